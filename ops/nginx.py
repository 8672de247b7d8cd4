"""Debian's nginx as a local upstream that is faster than any client, and that can log its requests."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import psutil

from coordinator.errors import ShardcrawlError
from ops.sample import sample

# How long nginx may take to start, and how long to stop.
_DEADLINE_SECONDS = 10.0

# A parameter in nginx's configuration has at most 4096 bytes, so a longer body is made of parts.
_PART_BYTES = 4000


class NginxMissing(ShardcrawlError):
    """There is no nginx on this machine."""


class NginxFailed(ShardcrawlError):
    """nginx did not start."""


class Nginx:
    """`with Nginx(folder) as nginx` starts nginx, which serves at `nginx.url` on loopback with its files in `folder`.

    GET /item/ID returns sample JSON of about `size` bytes whose "id" is ID, percent-decoded (an ID with a quote or a
    backslash makes broken JSON: nginx escapes nothing); GET /batch?ids=… returns {"query": the query string as sent}.
    GET /site/NAME returns the file of this name in `site`, as HTML; GET /documents/NAME that in `documents`, as JSON.
    With `limit`, (requests a second, burst), GET /limited/ID returns the item, beyond the limit 429 and Retry-After.
    With `etags` items have an ETag and an "edition", If-None-Match gives 304, and `edit` changes those whose ID ends in
    00.
    With `delay`, seconds, GET /slow/ID returns the item after that time.
    With `tls`, a certificate and its key, it serves https, with HTTP/1.1 or HTTP/2 as the client wants.
    With `log`, `folder`/access.log gets a line "seconds-since-epoch status path" for each request but those for
    /robots.txt, which is not there.
    Raises NginxMissing or NginxFailed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        size: int = 4096,
        workers: int = 1,
        log: bool = False,
        limit: tuple[int, int] | None = None,
        tls: tuple[Path, Path] | None = None,
        delay: float = 0.0,
        etags: bool = False,
    ) -> None:
        self.url = ""
        self._edition = int(etags)
        self._folder = folder.resolve()
        self._size = size
        self._workers = workers
        self._log = log
        self._limit = limit
        self._tls = tls
        self._delay = delay

    @property
    def site(self) -> Path:
        """The folder of HTML files to serve."""
        return self._folder / "temporary" / "site"

    @property
    def documents(self) -> Path:
        """The folder of JSON files to serve."""
        return self._folder / "temporary" / "documents"

    @property
    def pid(self) -> int:
        """The process id of nginx's master."""
        return self._process.pid

    def edit(self) -> None:
        """Change the items whose ID ends in 00, and return when no process of nginx serves them as they were."""
        self._edition += 1
        self._configure()
        before = psutil.Process(self.pid).children()
        os.kill(self.pid, signal.SIGHUP)
        if psutil.wait_procs(before, _DEADLINE_SECONDS)[1]:
            raise NginxFailed(f"nginx took no new configuration; see {self._folder / 'error.log'}")

    def requests(self) -> list[tuple[float, str]]:
        """Time since the epoch and path of every request so far; empty without `log`."""
        return [(float(at), path) for at, _, path in self._logged()]

    def responses(self) -> list[tuple[float, int]]:
        """Time since the epoch and status of every response so far; empty without `log`."""
        return [(float(at), int(status)) for at, status, _ in self._logged()]

    def _logged(self) -> Iterator[list[str]]:
        try:
            lines = (self._folder / "access.log").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return iter(())
        return (line.rstrip("\n").split(" ", 2) for line in lines if line.endswith("\n"))  # the last is being written

    def __enter__(self) -> Self:
        program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise NginxMissing("nginx is not on this machine; install Debian's nginx-light")
        (self._folder / "temporary").mkdir(parents=True, exist_ok=True)
        for _ in range(5):
            # Another process may take the free port before nginx does. Then try again with another one.
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            self._port = port
            if self._start(program):
                self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}"
                return self
        raise NginxFailed(f"nginx found no free port; see {self._folder / 'error.log'}")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _configure(self) -> Path:
        config = self._folder / "nginx.conf"
        settings = (self._size, self._workers, self._log, self._limit, self._tls, self._delay, self._edition)
        config.write_text(configuration(self._folder, self._port, *settings))
        return config

    def _start(self, program: str) -> bool:
        """Start nginx and wait until it listens; False when the port is taken."""
        config, errors = self._configure(), self._folder / "error.log"
        errors.write_text("")
        pid = self._folder / "nginx.pid"
        pid.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [program, "-p", str(self._folder), "-e", str(errors), "-c", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                output = errors.read_text()
                if "Address already in use" in output:
                    return False
                raise NginxFailed(f"nginx stopped at once: {' '.join(output.split())[-300:] or 'without a message'}")
            if pid.exists():  # nginx writes it when it listens
                return True
            time.sleep(0.01)
        self.__exit__()
        raise NginxFailed(f"nginx did not listen within {_DEADLINE_SECONDS:.0f} s; see {errors}")


def configuration(
    folder: Path,
    port: int,
    size: int,
    workers: int,
    log: bool,
    limit: tuple[int, int] | None = None,
    tls: tuple[Path, Path] | None = None,
    delay: float = 0.0,
    edition: int = 0,
) -> str:
    """The text of nginx.conf for these settings and the current user. With `edition` 0 items have no ETag."""
    head, tail = '{"id": "$id", ', sample(size - len('{"id": "00000000", '))[1:]
    editions, etag = "", ""
    if edition:
        head += '"edition": $edition, '
        editions = f'map $id $edition {{ default 1; "~00$" {edition}; }}'
        etag = """if ($http_if_none_match = '"$edition-$id"') { return 304; } add_header ETag '"$edition-$id"'; """
    parts = {f"part{at // _PART_BYTES}": tail[at : at + _PART_BYTES] for at in range(0, len(tail), _PART_BYTES)}
    sets = "\n        ".join(f"set ${name} '{part}';" for name, part in parts.items())
    item = f"{etag}return 200 '{head}{''.join(f'${{{name}}}' for name in parts)}';"
    limited, zone = "", ""
    if limit:
        rate, burst = limit
        bucket = f"limit_req zone=limited burst={burst} nodelay;" if burst else "limit_req zone=limited;"
        zone = f"limit_req_zone $server_name zone=limited:1m rate={rate}r/s;"
        # `return` responds before the limit is checked, so the item is the fallback of a file that does not exist.
        limited = f"""
        location ~ ^/limited/(?<id>.*)$ {{
            {bucket}
            limit_req_status 429;
            limit_req_log_level info;
            add_header Retry-After 1 always;
            try_files /nothing @item;
        }}"""
    # nginx can delay only its response to a client without a password, so error_page makes the item of that response.
    slow = f"""
        location ~ ^/slow/(?<id>.*)$ {{
            auth_basic slow;
            auth_basic_user_file /dev/null;
            auth_delay {round(1000 * delay)}ms;
            error_page 401 =200 @item;
        }}"""
    secured = f"ssl_certificate {_quoted(tls[0])}; ssl_certificate_key {_quoted(tls[1])};" if tls else ""
    user = ""
    if os.geteuid() == 0:
        # The workers keep this user, so that they may read and write in the folder.
        user = f"user {pwd.getpwuid(0).pw_name} {grp.getgrgid(os.getegid()).gr_name};"
    access = f"access_log {_quoted(folder / 'access.log')} times;" if log else "access_log off;"
    temporary = "\n    ".join(
        f"{kind}_temp_path {_quoted(folder / 'temporary' / kind)};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
daemon off;
{user}
worker_processes {workers};
pid {_quoted(folder / "nginx.pid")};
error_log {_quoted(folder / "error.log")} warn;
events {{ worker_connections 8192; multi_accept on; }}
http {{
    {temporary}
    log_format times "$msec $status $request_uri";
    {access}
    default_type application/json;
    merge_slashes off;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    keepalive_timeout 3600s;
    {zone}
    {editions}
    server {{
        listen 127.0.0.1:{port}{" ssl http2" if tls else ""} backlog=4096;
        server_name upstream;
        root {_quoted(folder / "temporary")};
        {secured}
        {sets}
        location ~ ^/item/(?<id>.*)$ {{ {item} }}
        location = /batch {{ return 200 '{{"query": "$args"}}'; }}
        location /site/ {{ default_type text/html; }}
        location /documents/ {{ }}
        location = /robots.txt {{ access_log off; return 404; }}
        location / {{ return 404 '{{"error": "not found"}}'; }}{limited}{slow if delay else ""}
        location @item {{ {item} }}
    }}
}}
"""


def _quoted(path: Path) -> str:
    if re.search(r'["$\\\n]', str(path)):
        raise NginxFailed(f"nginx cannot work in {path!s:.200}; use a folder without quotes and dollar signs")
    return f'"{path}"'
