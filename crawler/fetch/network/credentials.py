"""The headers and the proxy of a job's requests. Only this file replaces ${NAME} by a secret of the environment."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from coordinator.errors import UsageError
from crawler.job.models import RequestSettings
from crawler.job.request_checks import COOKIE_TEXT, HEADER_TEXT, SECRET, is_proxy

HeaderPairs = tuple[tuple[str, str], ...]

CREDENTIAL_NAMES = frozenset({"authorization", "cookie", "proxy-authorization"})


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a job sends with its requests.

    `headers` are sent with every request. `secret_headers` are those that identify the sender (Authorization, Cookie,
    Proxy-Authorization) or have a secret in them; they are sent only to the origin that they are for. `proxy` is the
    proxy's URL with user and password.
    """

    headers: HeaderPairs = ()
    secret_headers: HeaderPairs = field(default=(), repr=False)
    proxy: str | None = field(default=None, repr=False)

    def headers_of(self, headers: HeaderPairs, with_credentials: bool) -> HeaderPairs:
        """Return a request's own headers, and the secret headers whose names are not among them."""
        if not with_credentials or not self.secret_headers:
            return headers
        if not headers:
            return self.secret_headers
        own = {name.lower() for name, _ in headers}
        return (*(pair for pair in self.secret_headers if pair[0].lower() not in own), *headers)


NO_CREDENTIALS = Credentials()


def resolve_credentials(request: RequestSettings, environ: Mapping[str, str]) -> Credentials:
    """Return the credentials that a job describes, with each ${NAME} replaced from `environ`.

    Raises UsageError if a name is not set, or if its value has a line break.
    """
    headers: list[tuple[str, str]] = []
    secret_headers: list[tuple[str, str]] = []
    for name, text in request.headers.items():
        secret = name.lower() in CREDENTIAL_NAMES or SECRET.search(text) is not None
        (secret_headers if secret else headers).append((name, _filled(text, "headers", environ)))
    if request.auth is not None:
        secret_headers.append(("Authorization", _authorization(request.auth, environ)))
    if request.cookies:
        cookies = (f"{name}={_filled(text, 'cookies', environ, COOKIE_TEXT)}" for name, text in request.cookies.items())
        secret_headers.append(("Cookie", "; ".join(cookies)))
    proxy = None if request.proxy is None else _proxy(request.proxy, environ)
    return Credentials(tuple(headers), tuple(secret_headers), proxy)


def _authorization(auth: str, environ: Mapping[str, str]) -> str:
    """Return the value of Authorization for `basic:USER:PASSWORD` (RFC 7617) or `bearer:TOKEN` (RFC 6750)."""
    scheme, _, rest = auth.partition(":")
    if scheme == "bearer":
        return f"Bearer {_filled(rest, 'auth', environ)}"
    user, _, password = rest.partition(":")
    user, password = _filled(user, "auth", environ), _filled(password, "auth", environ)
    if ":" in user:
        raise UsageError("job: [request] auth: a user name for basic may have no colon in it")
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"


def _proxy(proxy: str, environ: Mapping[str, str]) -> str:
    """Return the proxy's URL; secrets before its @ are percent-encoded, so that a password may have any character."""
    userinfo, at, place = proxy.rpartition("@")
    encoded = {name: quote(value, safe="") for name, value in environ.items()}
    url = _filled(userinfo, "proxy", encoded) + at + _filled(place, "proxy", environ)
    if not is_proxy(url):
        raise UsageError("job: [request] proxy: with its ${NAME} filled in it is no http, https or socks5 URL")
    return url


def _filled(text: str, key: str, environ: Mapping[str, str], allowed: re.Pattern[str] = HEADER_TEXT) -> str:
    def secret(match: re.Match[str]) -> str:
        value = environ.get(match[1])
        if value is None:
            raise UsageError(f"job: [request] {key}: ${{{match[1]}}} is not set in the environment")
        if not allowed.fullmatch(value):
            raise UsageError(
                f"job: [request] {key}: ${{{match[1]}}} has a line break, or another character that cannot stand there"
            )
        return value

    return SECRET.sub(secret, text)
