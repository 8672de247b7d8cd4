"""Redis by way of sentinels, and by TLS, with servers of these tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from coordinator.errors import RedisRefused, RedisUnavailable
from coordinator.redis.connection import check_server, connect_redis, translate_redis_errors
from coordinator.redis.sockets import without_sentinels
from tests.servers.http2 import make_certificate
from tests.servers.own_servers import free_port
from tests.servers.sentinels import guarded_redis
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

SECRET = "geheim"


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("redis+sentinel://a:1,b:2/ours", "redis://a:1?"),
        (f"redis+sentinel://me:{SECRET}@a/ours/3", f"redis://me:{SECRET}@a/3?"),
        ("rediss+sentinel://[::1]:26379/ours-2/0?ssl_cert_reqs=none", "rediss://[::1]:26379/0?ssl_cert_reqs=none"),
        ("redis+sentinel://a/ours?sentinel_password=x&socket_timeout=3", "redis://a?socket_timeout=3"),
        ("redis://a/0?x=1", "redis://a/0?x=1"),
        ("unix:///run/redis+sentinel://a", "unix:///run/redis+sentinel://a"),
    ],
)
def test_the_servers_own_address(url: str, plain: str) -> None:
    assert without_sentinels(url)[0] == plain


@pytest.mark.parametrize(
    "url",
    [
        f"redis+sentinel://:{SECRET}@a:26379",
        f"redis+sentinel://:{SECRET}@a:26379/0",
        f"redis+sentinel://:{SECRET}@a:port/ours",
        f"redis+sentinel://:{SECRET}@a/ours/db",
        f"redis+sentinel://:{SECRET}@/ours",
        f"redis+other://:{SECRET}@a/ours",
    ],
)
def test_a_malformed_address_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(RedisRefused, match="is malformed; give it as redis") as caught:
        connect_redis(url)
    assert SECRET not in str(caught.value)


async def test_who_asks_sentinels_finds_the_new_master(tmp_path: Path) -> None:
    async with guarded_redis(tmp_path) as guarded:
        client, other = connect_redis(guarded.url), connect_redis(guarded.url.replace("/ours/", "/theirs/"))
        try:
            await check_server(client, guarded.url)
            await client.set("key", "before")
            assert await client.execute_command("WAIT", 1, 5000) == 1
            with pytest.raises(RedisUnavailable, match="knows no master theirs"), translate_redis_errors():
                await other.ping()
            guarded.kill_master()

            async def responds() -> bool:
                try:
                    with translate_redis_errors():
                        return bool(await client.set("key", "after", get=True))
                except RedisUnavailable:
                    return False

            await eventually(responds, "the replica to be the master")
            assert await client.get("key") == b"after"
        finally:
            await client.aclose()
            await other.aclose()


async def test_redis_by_tls_is_checked_and_used(tmp_path: Path) -> None:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("the embedded server has no TLS; install Debian's redis-server")
    pem, port = make_certificate(tmp_path, "localhost"), free_port()
    words = ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no", "--save", ""]
    words += ["--tls-cert-file", str(pem), "--tls-key-file", str(pem), "--tls-ca-cert-file", str(pem)]
    server = subprocess.Popen([program, *words], cwd=tmp_path, stdout=subprocess.DEVNULL)
    trusted = connect_redis(f"rediss://localhost:{port}/0?ssl_ca_certs={pem}")
    untrusted = connect_redis(f"rediss://localhost:{port}/0")
    try:

        async def responds() -> bool:
            try:
                with translate_redis_errors():
                    return bool(await trusted.ping())
            except RedisUnavailable:
                return False

        await eventually(responds, "the server")
        assert await trusted.set("key", "value")
        with pytest.raises(RedisUnavailable, match="certificate verify failed"), translate_redis_errors():
            await untrusted.ping()
    finally:
        await trusted.aclose()
        await untrusted.aclose()
        server.kill()
        server.wait()
