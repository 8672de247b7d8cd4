"""Pure: checks whether the requests that a job describes can be sent."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from urllib.parse import urlsplit

from coordinator.errors import UsageError
from crawler.job.models import COOKIE_RULE, HEADER_RULE, RequestSettings

PROXY_SCHEMES = ("http", "https", "socks5")
SECRET = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# A line break in a header would begin another one.
HEADER_TEXT = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
COOKIE_TEXT = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")  # RFC 6265, section 4.1.1
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PLACE = re.compile(r"\{([^{}]*)\}")


def check_request(request: RequestSettings) -> None:
    """Raise UsageError for the first setting of `[request]` that no request could carry out."""
    _check_fields("headers", request.headers, HEADER_TEXT, HEADER_RULE)
    _check_fields("cookies", request.cookies, COOKIE_TEXT, COOKIE_RULE)
    if not HEADER_TEXT.fullmatch(request.user_agent):
        raise UsageError("job: [request] user_agent must be a text in one line")
    named = {name.lower() for name in request.headers}
    if request.auth is not None:
        _check_auth(request.auth)
        if "authorization" in named:
            raise UsageError("job: [request] auth and headers.Authorization say the same thing; leave one out")
    if request.cookies and "cookie" in named:
        raise UsageError("job: [request] cookies and headers.Cookie say the same thing; leave one out")
    if request.proxy is not None:
        _check_proxy(request.proxy)
    for network in request.allow_private:
        parse_network(network)
    if request.url is not None:
        split_template(request.url)
    elif request.keys_per_request > 1:
        raise UsageError("job: [request] keys_per_request needs a url with {keys} in it")


def split_template(url: str) -> tuple[str, str]:
    """What stands before and after {key} or {keys} in a request template. Raises UsageError."""
    places = _PLACE.findall(url)
    wrong = [place for place in places if place not in ("key", "keys")]
    if wrong:
        raise UsageError(f"[request] url: unknown placeholder {{{wrong[0]}}}; use {{key}} or {{keys}}")
    if len(places) != 1:
        raise UsageError(f"[request] url: {len(places)} placeholders; put {{key}} or {{keys}} in it once")
    head, _, tail = url.partition(f"{{{places[0]}}}")
    if "{" in head + tail or "}" in head + tail:
        raise UsageError("[request] url: a single { or }; write %7B and %7D for braces of the URL itself")
    try:
        parts = urlsplit(head)
        complete = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or True)
    except ValueError as error:
        raise UsageError(f"[request] url: {error}; write it like https://host/path?id={{key}}") from None
    if not complete:
        raise UsageError(f"[request] url: {url!r} is no absolute http or https URL")
    if "@" in parts.netloc:
        raise UsageError("[request] url: user:password@ would be stored with every page; write an Authorization header")
    if not (parts.path or parts.query or parts.fragment):
        raise UsageError("[request] url: the host may not depend on the key; make the source yield URLs instead")
    if "#" in head:
        raise UsageError("[request] url: what follows # is never sent, so the key cannot stand there")
    if any(char == " " or not char.isprintable() for char in url):
        raise UsageError("[request] url: it has a space or a control character; write %20 for a space")
    return head, tail


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """The network in an entry of `allow_private`. Raises UsageError."""
    try:
        return ip_network(text)
    except ValueError as error:
        raise UsageError(f"job: [request] allow_private: {error}; write networks like 127.0.0.0/8") from None


def is_proxy(url: str) -> bool:
    """Whether a URL names a proxy: a scheme that we speak, a host, and nothing behind it."""
    try:
        parts = urlsplit(url)
        return parts.scheme in PROXY_SCHEMES and bool(parts.hostname) and parts.port != 0 and parts.path in ("", "/")
    except ValueError:  # the port is no number
        return False


def _check_fields(key: str, fields: dict[str, str], allowed: re.Pattern[str], rule: str) -> None:
    for name, value in fields.items():
        if not _TOKEN.fullmatch(name) or not allowed.fullmatch(value):
            raise UsageError(f"job: [request] {key}: {name!r} {rule}")


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
        return  # a whole URL in the environment; `resolve_credentials` checks it
    if not is_proxy(SECRET.sub("1", proxy)):
        raise UsageError(
            "job: [request] proxy: write it like http://host:3128, https://host:3128 or socks5://host:1080"
        )
    password = proxy.rpartition("@")[0].partition("://")[2].partition(":")[2]
    if password and not SECRET.search(password):
        raise UsageError("job: [request] proxy: write its password as ${NAME}; the secret stays in the environment")
