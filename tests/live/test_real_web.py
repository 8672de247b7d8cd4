"""What the real web sends, and what becomes of it: one row for each kind, put to whole runs with both engines.

A row is: what comes from upstream, the outcome of its key, and what is stored. The rows are the documentation.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import socket
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.live.shell import Shell
from tests.servers.raw import raw, raw_server

pytestmark = pytest.mark.anyio

ENGINES = ("pyreqwest", "httpx")
# What an engine has no part in is put to the second one in `make faults` only.
FIRST_ENGINE = ("pyreqwest", pytest.param("httpx", marks=pytest.mark.slow))
LIMITS = '[limits."*"]\nrate = "none"\nconcurrency = 32\n'
JSON = b"Content-Type: application/json"
HTML = b"Content-Type: text/html"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xfe"
PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n\0"
ZIP = b"PK\x03\x04\x14\0\0\0\x08\0"


@dataclass(frozen=True, slots=True)
class Row:
    """What comes: raw `responses`, one for each attempt. What is to be seen: the outcome, and what is stored.

    That is the `body` (as the Python value of the jsonb) or the `content`. `encoding` and `reason` are compared where
    they are given.
    """

    what: str
    responses: Sequence[bytes]
    outcome: str = "stored"
    body: Any = None
    content: bytes | None = None
    encoding: str | None = None
    reason: str = ""


def page(body: bytes, *lines: bytes) -> list[bytes]:
    return [raw(body, *lines)]


def text(what: str, body: bytes, line: bytes, expected: str, encoding: str) -> Row:
    return Row(what, page(body, line), body=expected, encoding=encoding)


TEXT = [
    text("UTF-8 without a charset", "é".encode(), HTML, "é", "utf-8"),
    text("a BOM is stronger than the header", b"\xef\xbb\xbf\xc3\xa9", HTML + b"; charset=shift_jis", "é", "utf-8"),
    text("the header is stronger than meta", b"<meta charset=utf-8>\xe9", HTML + b"; charset=iso-8859-1",
         "<meta charset=utf-8>é", "windows-1252"),
    text("meta", b'<meta charset="koi8-r">\xc3', HTML, '<meta charset="koi8-r">ц', "koi8-r"),
    text("http-equiv", b'<meta http-equiv=Content-Type content="text/html; charset=koi8-r">\xc3', HTML,
         '<meta http-equiv=Content-Type content="text/html; charset=koi8-r">ц', "koi8-r"),
    text("XML declaration", b'<?xml version="1.0" encoding="ISO-8859-2"?><a>\xb1</a>', b"Content-Type: text/xml",
         '<?xml version="1.0" encoding="ISO-8859-2"?><a>ą</a>', "iso-8859-2"),
    text("neither declared nor UTF-8", b"caf\xe9", HTML, "café", "windows-1252"),
    text("iso-8859-1 means windows-1252", b"\x93x\x94", HTML + b"; charset=iso-8859-1", "“x”", "windows-1252"),
    text("label x-sjis", b"\x82\xa0", HTML + b"; charset=x-sjis", "あ", "shift_jis"),
    text("label windows-31j", b"\x87\x40", HTML + b"; charset=windows-31j", "①", "shift_jis"),
    text("label in quotes, other letters", b"\xc3", HTML + b'; Charset="KOI8-R"', "ц", "koi8-r"),
    text("a label that nobody knows: utf8mb4", "é".encode(), HTML + b"; charset=utf8mb4", "é", "utf-8"),
    text("a label that nobody knows: none", "é".encode(), HTML + b"; charset=none", "é", "utf-8"),
    text("a label with rubbish behind it", "é".encode(), HTML + b"; charset=utf-8, text/html", "é", "utf-8"),
    text("a byte that fits nowhere", b"a\xffb", HTML + b"; charset=utf-8", "a\ufffdb", "utf-8, 1 replaced"),
    text("UTF-16 by its BOM", "\ufeffé".encode("utf-16-le"), HTML, "é", "utf-16le"),
]  # fmt: skip

JSON_TEXT = [
    Row("JSON with a BOM", page(b'\xef\xbb\xbf{"a":1}', JSON), body={"a": 1}),
    Row("JSON in UTF-16", page('{"a":"é"}'.encode("utf-16"), JSON), body={"a": "é"}),
    Row("JSON in UTF-16 without a BOM", page('{"a":"é"}'.encode("utf-16-le"), JSON), body={"a": "é"}),
    Row("JSON in declared latin-1", page(b'{"a":"\xe9"}', JSON + b"; charset=latin-1"), body={"a": "é"}),
    Row("JSON that is none", page(b"<html>", JSON), "failed", reason="json"),
    Row("a problem as JSON", page(b'{"a":1}', b"Content-Type: application/problem+json"), body={"a": 1}),
    Row("JSON without a type", page(b'{"a":1}'), body={"a": 1}),
    Row("a number beyond a double without a type", page(b'{"a":1e400}'), body={"a": 10**400}),
    Row("two types: the last", page(b'{"a":1}', b"Content-Type: text/plain", JSON), body={"a": 1}),
    Row("a type that is not ASCII", page(b'{"a":1}', JSON + b"; x=\xc3\xa9"), body={"a": 1}),
]

CONTENT = [
    Row("an image", page(PNG, b"Content-Type: image/png"), content=PNG),
    Row("a PDF", page(PDF, b"Content-Type: application/pdf"), content=PDF),
    Row("a zip", page(ZIP, b"Content-Type: application/zip"), content=ZIP),
    Row("an image without a type", page(PNG), content=PNG),
    Row("an image that says text", page(PNG, b"Content-Type: text/plain"), content=PNG),
    Row("an empty image", page(b"", b"Content-Type: image/png"), body=None),
    Row("an SVG is text", page(b"<svg/>", b"Content-Type: image/svg+xml"), body="<svg/>"),
]

BODY = b'{"a": 1}'


def encoded(what: str, body: bytes, *lines: bytes) -> Row:
    return Row(what, page(body, JSON, *lines), body={"a": 1})


CODINGS = [
    *(
        encoded(f"Content-Encoding: {name or '(empty)'}", BODY, b"Content-Encoding: " + name.encode())
        for name in ("utf-8", "none", "binary", "aws-chunked", "identity", "", "UTF-8", "8bit")
    ),
    encoded("gzip", gzip.compress(BODY), b"Content-Encoding: gzip"),
    encoded("gzip with a quality", gzip.compress(BODY), b"Content-Encoding: gzip;q=1.0"),
    encoded("gzip in quotes", gzip.compress(BODY), b'Content-Encoding: "gzip"'),
    encoded("gzip twice", gzip.compress(gzip.compress(BODY)), b"Content-Encoding: gzip, gzip"),
    encoded("two lines", gzip.compress(zlib.compress(BODY)), b"Content-Encoding: deflate", b"Content-Encoding: gzip"),
    encoded("aws-chunked,gzip", gzip.compress(BODY), b"Content-Encoding: aws-chunked,gzip"),
    Row("one that nobody knows", page(b"\x01\x02", HTML, b"Content-Encoding: sdch"), content=b"\x01\x02"),
]

HEADERS = [
    encoded("a folded line", BODY, b"X-A: one", b"  two"),
    Row("a folded type", page(BODY, b"Content-Type:", b" application/json"), body={"a": 1}),
    encoded("a control character in a value", BODY, b"X-A: a\x01b"),
    encoded("a line without a colon", BODY, b"nonsense"),
    encoded("a name with a space", BODY, b"X A: b"),
    encoded("a space before the colon", BODY, b"X-A : b"),
    encoded("bytes that are no ASCII", BODY, b"X-A: caf\xc3\xa9", b"X-B: caf\xe9"),
    encoded("101 headers", BODY, *(b"X-%d: a" % number for number in range(99))),
    encoded("256 headers", BODY, *(b"X-%d: a" % number for number in range(254))),
    encoded("a transfer encoding that means nothing", BODY, b"Transfer-Encoding: identity"),
    encoded("bare line feeds", BODY, b"X-A: a\nX-B: b"),
    Row("an empty length", [b"HTTP/1.1 200 OK\r\n" + JSON + b"\r\nContent-Length:\r\n\r\n" + BODY], body={"a": 1}),
    Row("no reason phrase", [raw(BODY, JSON, status=b"200")], body={"a": 1}),
]


def status(code: int, outcome: str, reason: str = "", *lines: bytes, body: bytes = b"{}") -> Row:
    return Row(f"status {code}", [raw(body, JSON, *lines, status=b"%d Status" % code)], outcome, reason=reason)


def then_stored(what: str, code: int, *lines: bytes, body: bytes = b"{}") -> Row:
    return Row(what, [raw(body, JSON, *lines, status=b"%d Status" % code), raw(BODY, JSON)], body={"a": 1})


OUTCOMES = [
    status(401, "refused", "status 401"),
    status(403, "refused", "status 403"),
    status(451, "refused", "status 451"),
    status(404, "gone"),
    status(410, "gone"),
    status(206, "failed", "206"),
    then_stored("202: not an answer yet", 202, b"Retry-After: 0"),
    then_stored("a 403 that speaks of a rate limit in its headers", 403, b"Retry-After: 1"),
    then_stored(
        "GitHub's secondary rate limit",
        403,
        b"Retry-After: 1",
        body=b'{"message":"You have exceeded a secondary rate limit."}',
    ),
    then_stored("500 with Retry-After", 500, b"Retry-After: 0.4"),
    then_stored("408 with Retry-After", 408, b"Retry-After: 1"),
]

POISON = [
    Row("a number beyond a double", page(b'{"a":1e400}', JSON), body={"a": 10**400}),
    Row("1,500 nested lists", page(b"[" * 1500 + b"]" * 1500, JSON), body=...),
    Row("a NUL in JSON", page(b'{"a":"\\u0000"}', JSON), "failed"),
    Row("half a surrogate", page(b'{"a":"\\ud800"}', JSON), "failed"),
    Row("rubbish after JSON", page(b'{"a":1} x', JSON), "failed"),
    Row("NaN", page(b'{"a":NaN}', JSON), "failed"),
]

ROWS = [*TEXT, *JSON_TEXT, *CONTENT, *CODINGS, *HEADERS, *OUTCOMES, *POISON]


def write_job(shell: Shell, request: str, sections: str = "", *, run: str = "", source: str = "keys.txt") -> None:
    """Write job.toml: one worker, no rate, and these lines in [request], [run], and behind them."""
    shell.write(
        "job.toml",
        f'[run]\nname = "web"\nworkers = 1\n{run}\n[source]\npath = "{source}"\n'
        f'[request]\n{request}\nallow_private = ["127.0.0.0/8"]\n{sections}{LIMITS}',
    )


@pytest.mark.parametrize("engine", ENGINES)
async def test_each_response_becomes_what_its_row_says(shell: Shell, environ: dict[str, str], engine: str) -> None:
    """One run over all rows: so the neighbours of each bad response are stored too."""
    responses = {f"/{index}": row.responses for index, row in enumerate(ROWS)}
    async with raw_server(responses) as server:
        shell.write("keys.txt", [str(index) for index in range(len(ROWS))])
        write_job(
            shell, f'url = "{server.url()}/{{key}}"\nengine = "{engine}"', "[retry]\nattempts = 3\nbackoff = 0.05\n"
        )
        await shell.run("run", "job.toml", environ=environ, code=None)
    pages = await shell.sql(
        "select key, outcome, reason, body::text as body, encode(content, 'hex') as content, encoding from pages",
        environ,
    )
    by_key = {int(page["key"]): page for page in pages}
    assert [line for index, row in enumerate(ROWS) for line in differences(row, by_key[index])] == []


def differences(row: Row, page: dict[str, Any]) -> list[str]:
    """What is not as the row says, each as a line."""
    found = []
    if page["outcome"] != row.outcome:
        return [f"{row.what}: {page['outcome']} ({page['reason']}), not {row.outcome}"]
    if row.reason not in (page["reason"] or ""):
        found.append(f"{row.what}: the reason {page['reason']!r} does not say {row.reason!r}")
    if row.encoding is not None and page["encoding"] != row.encoding:
        found.append(f"{row.what}: encoding {page['encoding']!r}, not {row.encoding!r}")
    if row.outcome == "stored" and row.body is not ...:
        body = None if page["body"] is None else json.loads(page["body"])
        content = None if page["content"] is None else bytes.fromhex(page["content"])
        if (body, content) != (row.body, row.content):
            found.append(f"{row.what}: stored {body!r} and {content!r}, not {row.body!r} and {row.content!r}")
    return found


@dataclass(frozen=True, slots=True)
class Value:
    """A JSON literal that a parser puts into a column of this type; `stored` is Postgres' text of it, None if refused.

    Refused means that the key fails, and its reason names the column.
    """

    column: str
    literal: str
    stored: str | None


VALUES = [
    Value("numeric", "12345678901234567.89", "12345678901234567.89"),
    Value("numeric", "0.1", "0.1"),
    Value("numeric", "1e400", "1" + "0" * 400),
    Value("numeric", '"1_000"', None),
    Value("numeric(10, 2)", "1.005", None),
    Value("numeric(10, 2)", "1.50", "1.50"),
    Value("bigint", "9223372036854775807", "9223372036854775807"),
    Value("bigint", "9223372036854775808", None),
    Value("bigint", '"1_000"', None),
    Value("bigint", "true", None),
    Value("jsonb", "1180591620717411303424", "1180591620717411303424"),
    Value("jsonb", "12345678901234567.89", "12345678901234567.89"),
    Value("timestamptz", '"2024-05-06T07:08:00.123456789Z"', None),
    Value("timestamptz", '"2024-05-06T07:08:00.123456000Z"', "2024-05-06 07:08:00.123456+00"),
    Value("time", '"12:00:00.1234567"', None),
    Value("int", "7", "7"),
    Value("float8", "0.1", "0.1"),
    Value("bool", "true", "true"),
    Value("timestamp with time zone", '"2024-05-06T07:08:00Z"', "2024-05-06 07:08:00+00"),
]

PARSE = """
def rows(response):
    found = response.json()
    return {found["table"]: [{"v": found["value"]}]}
"""


@pytest.mark.parametrize("engine", FIRST_ENGINE)
async def test_each_value_is_stored_exactly_or_its_key_fails(
    shell: Shell, environ: dict[str, str], engine: str
) -> None:
    types = list(dict.fromkeys(value.column for value in VALUES))
    responses = {
        f"/{index}": page(f'{{"table": "t{types.index(value.column)}", "value": {value.literal}}}'.encode(), JSON)
        for index, value in enumerate(VALUES)
    }
    tables = "".join(f'[[tables]]\nname = "t{index}"\ncolumns = {{ v = "{of}" }}\n' for index, of in enumerate(types))
    async with raw_server(responses) as server:
        shell.write("keys.txt", [str(index) for index in range(len(VALUES))])
        shell.write("parse.py", PARSE)
        request = f'url = "{server.url()}/{{key}}"\nengine = "{engine}"'
        write_job(shell, request, f'[parse]\npython = "parse:rows"\n{tables}')
        await shell.run("run", "job.toml", environ=environ, code=None)
    wrong = []
    rows = " union all ".join(f"select digest, v::text from t{index}" for index in range(len(types)))
    found = await shell.sql(f"select key, reason, v from pages left join ({rows}) as t using (digest)", environ)
    for row in found:
        value = VALUES[int(row["key"])]
        if row["v"] != value.stored or (value.stored is None and "v" not in (row["reason"] or "")):
            wrong.append(f"{value.literal} in {value.column}: {row['v']} ({row['reason']}), not {value.stored}")
    assert len(found) == len(VALUES)
    assert wrong == []


# What follows the host in a key, and the request target that must arrive: the one of the WHATWG URL standard.
TARGETS = [
    ("", "/"),
    ("/foo/bar/..", "/foo/"),
    ("/foo/../bar2", "/bar2"),
    ("/%2e/one-dot", "/one-dot"),
    ("/x/%2E%2e/two-dots", "/two-dots"),
    ("\\backslash", "/backslash"),
    ("/back\\slash", "/back/slash"),
    ("/a b", "/a%20b"),
    ("/\u00e9", "/%C3%A9"),
    ("/pipe|", "/pipe|"),
    ("/[brackets]", "/[brackets]"),
    ("/%zz", "/%zz"),
    ("/fragment#f", "/fragment"),
    ('?q="x"', "/?q=%22x%22"),
    ("?q='y'", "/?q=%27y%27"),
    ("//twice", "//twice"),
    ("/semi;colon:@&=+$,", "/semi;colon:@&=+$,"),
    ("/%41", "/%41"),
]
# Path, its Location as bytes, and the request target that follows.
REDIRECTS = [
    ("/1", b"\\redirected", "/redirected"),
    ("/2", b"/caf\xc3\xa9", "/caf%C3%A9"),
    ("/3", b"/a b", "/a%20b"),
    ("/4", b"/x/../y", "/y"),
    ("/5", b"?only-a-query", "/5?only-a-query"),
]


@pytest.mark.parametrize("engine", ENGINES)
async def test_each_url_is_requested_as_the_standard_says(shell: Shell, environ: dict[str, str], engine: str) -> None:
    moved = {path: [raw(b"", b"Location: " + to, status=b"302 Found")] for path, to, _ in REDIRECTS}
    async with raw_server(moved) as server:
        shell.write("keys.txt", [server.url(key) for key in (*(key for key, _ in TARGETS), *moved)])
        write_job(shell, f'engine = "{engine}"')
        await shell.run("run", "job.toml", environ=environ, code=None)
    expected = [*(target for _, target in TARGETS), *moved, *(target for _, _, target in REDIRECTS)]
    # The redirect that is not ASCII is asked for again by the other reader, so it is not counted.
    assert {target.decode() for target in server.targets} == set(expected)


# A robots.txt, a path, and whether the path may be fetched.
ROBOTS = [
    (b"User-agent: *\nCrawl-delay: 0.01\nUser-agent: x\nDisallow: /search/\n", "/search/1", False),
    (b"User-agent: *\nDissallow: /a\nDisalow: /b\n", "/b", False),
    (b"User Agent: *\nDisallow: /c\n", "/c", False),
    (b"User-agent: *\nSitemap: http://x/\nDisallow: /d\n", "/d", False),
    (b"User-agent: *\nDisallow: /e\n", "/f", True),
    (b"# " + b"-" * 5000 + b"\nUser-agent: *\nDisallow: /g\n", "/g", False),  # it is larger than `max_body`
]
# Heads under which a robots.txt is still read.
ROBOTS_HEADS = (b"Content-Encoding: utf-8", b"X-A: one\r\n two")


@pytest.mark.parametrize("engine", FIRST_ENGINE)
async def test_each_robots_txt_is_read_as_others_read_it(shell: Shell, environ: dict[str, str], engine: str) -> None:
    responses: dict[str, Sequence[bytes]] = {"/robots.txt": [raw(b"User-agent: *\nDisallow: /no\n", *ROBOTS_HEADS)]}
    for index, (robots, path, _) in enumerate(ROBOTS, start=2):
        responses |= {f"127.0.0.{index}/robots.txt": [raw(robots)], path: [raw(BODY, JSON)]}
    responses["/yes"] = [raw(BODY, JSON)]
    async with raw_server(responses) as server:
        keys = [server.url(path, f"127.0.0.{index}") for index, (_, path, _) in enumerate(ROBOTS, start=2)]
        shell.write("keys.txt", [*keys, server.url("/yes"), server.url("/no")])
        write_job(shell, f'engine = "{engine}"\nmax_body = 1000')
        await shell.run("run", "job.toml", environ=environ)
    expected = [path for _, path, allowed in ROBOTS if allowed] + ["/yes"]
    assert sorted(target.decode() for target in server.targets) == sorted(expected)


# A file of the source, and its keys.
SOURCES = {
    "utf-16-le.txt": "\ufeffa1\na2\u00e9\n".encode("utf-16-le"),
    "utf-16-be.txt": "\ufeffb1\nb2\n".encode("utf-16-be"),
    "cr-only.txt": b"c1\rc2\r",
    "crlf.txt": b"d1\r\nd2\r\n",
    "xz.txt": lzma.compress(b"e1\ne2\n"),
    "bz2.txt": bz2.compress(b"f1\nf2\n"),
    "blanks.txt": b"  g1  \n\tg2\t\n\n",
    "bom-between.txt": b"\xef\xbb\xbfh1\n\xef\xbb\xbfh2\n",
    "gzip-and-rubbish.txt": gzip.compress(b"i1\ni2\n") + b"\0\0rubbish",
    "hash.txt": b"#j1\nj2\n",
}
KEYS = [*(f"{letter}{number}" for letter in "bcdefghi" for number in (1, 2)), "a1", "a2\u00e9", "#j1", "j2"]


async def test_each_file_of_a_folder_is_read_whatever_its_form(shell: Shell, environ: dict[str, str]) -> None:
    (shell.folder / "corpus").mkdir()
    for name, content in SOURCES.items():
        (shell.folder / "corpus" / name).write_bytes(content)
    async with raw_server({}) as server:
        write_job(shell, f'url = "{server.url()}/{{key}}"', source="corpus")
        await shell.run("run", "job.toml", environ=environ)
    pages = await shell.sql("select key from pages where outcome = 'gone'", environ)
    assert sorted(page["key"] for page in pages) == sorted(KEYS)


# Several keys a request: what the upstream says of a title, and the outcome of its key.
TITLES = {
    "Albert_Einstein": ({"title": "Albert Einstein", "id": 1}, "stored"),
    "deletion discussion 100": ({"title": "Deletion discussion 100", "id": 2}, "stored"),
    "Missing": ({"title": "Missing", "missing": True}, "gone"),
    "Left out": (None, "failed"),
    "Plain": ({"title": "Plain", "id": 3}, "stored"),
}
PARSE_TITLES = """
def rows(response):
    found = []
    for page in response.json()["pages"]:
        if page.get("missing"):
            response.gone(response.key_for(page["title"]))
        else:
            found.append({"_key": page["title"], "id": page["id"]})
    return {"articles": found}
"""


@pytest.mark.parametrize("engine", FIRST_ENGINE)
async def test_each_key_of_a_request_has_its_own_outcome(shell: Shell, environ: dict[str, str], engine: str) -> None:
    normalized = [
        {"from": key, "to": said["title"]} for key, (said, _) in TITLES.items() if said and said["title"] != key
    ]
    found = [*(said for said, _ in TITLES.values() if said), {"title": "Nobody asked for it", "id": 9}]
    listing = json.dumps({"normalized": normalized, "pages": found}).encode()
    async with raw_server({"": page(listing, JSON)}) as server:
        shell.write("keys.txt", list(TITLES))
        shell.write("parse.py", PARSE_TITLES)
        write_job(
            shell,
            f'url = "{server.url()}/?titles={{keys}}"\nkeys_per_request = 50\nengine = "{engine}"',
            '[parse]\npython = "parse:rows"\nalias = ["normalized"]\n'
            '[[tables]]\nname = "articles"\ncolumns = { id = "bigint" }\n',
            run="max_failed = 1.0",
        )
        await shell.run("run", "job.toml", environ=environ)
    pages = await shell.sql("select key, outcome from pages", environ)
    assert {page["key"]: page["outcome"] for page in pages} == {key: outcome for key, (_, outcome) in TITLES.items()}
    rows = await shell.sql("select key, id from pages join articles using (digest)", environ)
    assert {row["key"]: row["id"] for row in rows} == {
        key: said["id"] for key, (said, _) in TITLES.items() if said and "id" in said
    }


# A host that cannot be reached, and what the reason of its keys says.
DEAD = {"http://127.0.0.1:{closed}/x": "connection refused", "http://no-such-host.invalid/x": "not known"}


@pytest.mark.parametrize("engine", ENGINES)
async def test_each_dead_host_costs_its_own_keys_their_attempts(
    shell: Shell, environ: dict[str, str], engine: str
) -> None:
    """The run ends before the deadline of `shell`, which is a tenth of what one such key once took."""
    async with raw_server({"/live": page(BODY, JSON)}) as server:
        dead = {url.format(closed=free_port()): reason for url, reason in DEAD.items()}
        shell.write("keys.txt", [server.url("/live"), *dead])
        write_job(shell, f'engine = "{engine}"', "[retry]\nattempts = 3\n", run="max_failed = 1.0")
        await shell.run("run", "job.toml", environ=environ)
    pages = await shell.sql("select key, outcome, reason, attempts from pages", environ)
    by_key = {page["key"]: page for page in pages}
    assert by_key[server.url("/live")]["outcome"] == "stored"
    for url, reason in dead.items():
        assert (by_key[url]["outcome"], by_key[url]["attempts"]) == ("failed", 3)
        assert reason in by_key[url]["reason"].lower()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
