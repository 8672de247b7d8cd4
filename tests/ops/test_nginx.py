"""The nginx of the benchmarks: its responses, its log, and its errors."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import httpx
import pytest

from ops.nginx import Nginx, NginxFailed, NginxMissing, configuration

HAS_NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
needs_nginx = pytest.mark.skipif(not HAS_NGINX, reason="nginx is not on this machine")


@needs_nginx
def test_nginx_serves_items_with_their_id_and_logs_requests(tmp_path: Path) -> None:
    with Nginx(tmp_path / "a folder", size=2_000, log=True) as nginx, httpx.Client(base_url=nginx.url) as client:
        for key, quoted in (("a", "a"), ("a b/c//é", "a%20b%2Fc//%C3%A9")):
            response = client.get(f"/item/{quoted}")
            assert response.headers["content-type"] == "application/json"
            assert response.json()["id"] == key
            assert 1_900 <= len(response.content) <= 2_100
        assert client.get("/batch?ids=a%7Cb").json() == {"query": "ids=a%7Cb"}
        assert client.get("/nothing").status_code == 404
        assert [path for _, path in nginx.requests()] == [
            "/item/a",
            "/item/a%20b%2Fc//%C3%A9",
            "/batch?ids=a%7Cb",
            "/nothing",
        ]
        pid = nginx.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@needs_nginx
def test_nginx_limits_with_429_and_retry_after(tmp_path: Path) -> None:
    with Nginx(tmp_path, limit=(1, 2)) as nginx, httpx.Client(base_url=nginx.url) as client:
        responses = [client.get(f"/limited/{number}") for number in range(12)]
        assert [response.status_code for response in responses[:3]] == [200, 200, 200]
        assert responses[0].json()["id"] == "0"
        refused = [response for response in responses if response.status_code == 429]
        assert refused
        assert {response.headers["retry-after"] for response in refused} == {"1"}
        assert client.get("/item/free").status_code == 200
        assert nginx.requests() == []


@needs_nginx
def test_nginx_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(NginxFailed, match=r"stopped at once: .*worker_processes"), Nginx(tmp_path, workers=-1):
        pass


def test_a_missing_nginx_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.nginx.shutil.which", lambda *_, **__: None)
    with pytest.raises(NginxMissing, match="install Debian's nginx-light"), Nginx(tmp_path):
        pass


def test_nginx_gets_no_folder_that_its_configuration_cannot_name(tmp_path: Path) -> None:
    with pytest.raises(NginxFailed, match="without quotes and dollar signs"):
        configuration(tmp_path / 'a"b', 80, 100, 1, log=False)


@needs_nginx
def test_items_have_etags_and_some_of_them_can_be_edited(tmp_path: Path) -> None:
    with Nginx(tmp_path, size=2_000, etags=True) as nginx, httpx.Client(base_url=nginx.url) as client:
        before = [client.get(f"/item/{key}") for key in ("7", "700")]
        assert [client.get(one.url, headers={"If-None-Match": one.headers["etag"]}).status_code for one in before] == (
            [304, 304]
        )
        nginx.edit()
        after = [client.get(one.url, headers={"If-None-Match": one.headers["etag"]}) for one in before]
    assert [one.status_code for one in after] == [304, 200]
    assert after[1].json() == {**before[1].json(), "edition": 2}
