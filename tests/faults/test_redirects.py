"""Upstreams whose redirects lead to where a crawler must not go."""

from __future__ import annotations

import os

import pytest

from tests.faults.crawl import Crawl
from tests.servers.misbehaving import misbehaving

pytestmark = pytest.mark.anyio

# Name -> (where the redirect leads, a part of the reason why its key is refused). {port} is that of a server which
# listens on 127.0.0.1, which the job allows, and on 127.0.0.2, which it does not.
REFUSED = {
    "metadata": ("http://169.254.169.254/latest/meta-data/", "169.254.169.254 is not public"),
    "other-loopback": ("http://127.0.0.2:{port}/chunked", "127.0.0.2 is not public"),
    "mapped": ("http://[::ffff:127.0.0.2]:{port}/chunked", "is not public"),
    "one-number": ("http://2130706434:{port}/chunked", "127.0.0.2"),
    "any": ("http://0.0.0.0:{port}/chunked", "0.0.0.0 is not public"),
    "file": ("file:///etc/passwd", "does not start with http"),
    "user": ("http://user:secret@127.0.0.1:{port}/chunked", "user information"),
    "loop": ("/to/loop", "redirect"),
    "without-location": ("", "Location"),
}
# A resolver: rebind.test is at 127.0.0.1 at the first lookup and at 127.0.0.2 at later ones, two.test is at both.
RESOLVER = """
import socket
known, lookups = socket.getaddrinfo, []
def getaddrinfo(host, *rest, **named):
    if host == "rebind.test":
        lookups.append(host)
        host = "127.0.0.1" if len(lookups) == 1 else "127.0.0.2"
    if host == "two.test":
        return known("127.0.0.1", *rest, **named) + known("127.0.0.2", *rest, **named)
    return known(host, *rest, **named)
socket.getaddrinfo = getaddrinfo
"""


async def test_redirects_that_must_not_be_followed(crawl: Crawl) -> None:
    """They are refused before anything connects, a connection goes to the address that was checked, and no other server
    gets the credentials."""
    upstream, keys = crawl.upstream, crawl.good_keys()
    crawl.shell.write("sitecustomize.py", RESOLVER)
    path = os.pathsep.join(filter(None, (str(crawl.shell.folder), os.environ.get("PYTHONPATH"))))
    async with misbehaving() as elsewhere:
        upstream.redirects = {name: url.replace("{port}", str(elsewhere.port)) for name, (url, _) in REFUSED.items()}
        upstream.redirects |= {"elsewhere": elsewhere.url("/chunked"), "here": f"{upstream.url}/item/there"}
        for host in ("rebind.test", "two.test"):
            upstream.redirects |= {f"{host}-{number}": elsewhere.url("/chunked", host) for number in range(5)}
        lines = [*keys, *(f"{upstream.url}/to/{name}" for name in upstream.redirects), elsewhere.url("/chunked")]
        running = await crawl.start_job(
            lines,
            request=f'robots = false\nheaders = {{ Authorization = "Bearer ${{TOKEN}}" }}\nhosts = ["{upstream.url}"]',
            allowed="127.0.0.1",
            environ={"PYTHONPATH": path, "TOKEN": "s3cret"},
        )
        ended = await crawl.complete(running)
    found = await crawl.outcomes("regexp_replace(key, '.*/to/', '')")
    assert all(found[key] == ("stored", None) for key in keys)
    for name, (_, words) in REFUSED.items():
        outcome, reason = found[name]
        assert outcome == "refused", (name, reason)
        assert words in (reason or ""), (name, reason)
    assert found["here"] == found["elsewhere"] == ("stored", None)
    assert set(elsewhere.connected_to) == {"127.0.0.1"}
    assert elsewhere.heads
    for secret in ("s3cret", "user:secret"):
        assert not [head for head in elsewhere.heads if secret.encode() in head]
        assert secret not in ended.err + ended.out
    await crawl.agreed("24 hostile redirects", f"{len(upstream.redirects) - 2} kinds", len(lines))
