"""Pure: whether what a job says about its requests can be sent at all."""

from __future__ import annotations

import re
from typing import Any

from coordinator.errors import UsageError
from coordinator.settings import RequestSettings
from crawler.fetch.network.address import Guard
from crawler.fetch.network.credentials import COOKIE_TEXT, HEADER_TEXT, SECRET, is_proxy

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def check_request(request: RequestSettings) -> None:
    """Raise UsageError for the first setting of `[request]` that no request could carry out."""
    for name, value in request.headers:
        if not _TOKEN.fullmatch(name) or not _is_text(value, HEADER_TEXT):
            raise UsageError(f"job: [request] headers: {name!r} must be a header name with a text in one line")
    for name, value in request.cookies:
        if not _TOKEN.fullmatch(name) or not _is_text(value, COOKIE_TEXT):
            raise UsageError(
                f"job: [request] cookies: {name!r} must be a cookie's name with a text that has no space, ;"
            )
    if not _is_text(request.user_agent, HEADER_TEXT):
        raise UsageError("job: [request] user_agent must be a text in one line")
    named = {name.lower() for name, _ in request.headers}
    if request.auth is not None:
        _check_auth(request.auth)
        if "authorization" in named:
            raise UsageError("job: [request] auth and headers.Authorization say the same thing; leave one out")
    if request.cookies and "cookie" in named:
        raise UsageError("job: [request] cookies and headers.Cookie say the same thing; leave one out")
    if request.proxy is not None:
        _check_proxy(request.proxy)
    Guard(request.allow_private)


def _check_auth(auth: str) -> None:
    scheme, _, rest = auth.partition(":")
    secret = rest.partition(":")[2] if scheme == "basic" else rest
    if scheme not in ("basic", "bearer") or not SECRET.search(secret):
        # A job is kept in Redis and Postgres, so a password in it would be too.
        raise UsageError(
            "job: [request] auth: write basic:USER:${PASSWORD} or bearer:${TOKEN}; the secret stays in the environment"
        )


def _check_proxy(proxy: str) -> None:
    if SECRET.fullmatch(proxy):
        return  # judged when it is filled in
    if not is_proxy(SECRET.sub("1", proxy)):
        raise UsageError(
            "job: [request] proxy: write it like http://host:3128, https://host:3128 or socks5://host:1080"
        )
    password = proxy.rpartition("@")[0].partition("://")[2].partition(":")[2]
    if password and not SECRET.search(password):
        raise UsageError("job: [request] proxy: write its password as ${NAME}; the secret stays in the environment")


def _is_text(value: Any, allowed: re.Pattern[str]) -> bool:
    return isinstance(value, str) and allowed.fullmatch(value) is not None
