"""Pure: where a redirect leads, and whether the job's credentials may go along."""

from __future__ import annotations

from urllib.parse import SplitResult, urljoin, urlsplit

# 300 and 304 to 306 name no other place to ask at.
REDIRECTS = frozenset({301, 302, 303, 307, 308})
LONGEST_URL = 8192
PORTS = {"http": 80, "https": 443}


class InvalidRedirect(Exception):
    """A redirect that cannot be followed; the message says why."""


def target(url: str, location: str | None) -> str:
    """The absolute URL that `location`, sent in answer to `url`, leads to, without a fragment. Raises Astray."""
    if location is None or not location.strip():
        raise InvalidRedirect("it has no Location that can be read")
    try:
        parts = urlsplit(urljoin(url, location.strip()))
        port_fits = parts.port is None or parts.port > 0
    except ValueError as error:
        raise InvalidRedirect(f"its Location is no URL: {error}") from error
    if parts.scheme not in PORTS:
        raise InvalidRedirect(
            f"its Location is of the scheme {parts.scheme[:20]!r}; only http and https can be fetched"
        )
    if not parts.hostname or not port_fits:
        raise InvalidRedirect("its Location names no host")
    if "@" in parts.netloc:
        raise InvalidRedirect("its Location has a user name in it")
    there = parts._replace(fragment="").geturl()
    if len(there) > LONGEST_URL:
        raise InvalidRedirect(f"its Location has more than {LONGEST_URL} characters")
    return there


def may_carry_credentials(origin: str, url: str) -> bool:
    """Whether credentials meant for `origin` may go to `url`: to the same origin, or to its https from its http."""
    if origin == url:
        return True
    before, after = urlsplit(origin), urlsplit(url)
    if before.hostname != after.hostname:
        return False
    upgraded = (before.scheme, _port(before), after.scheme, _port(after)) == ("http", 80, "https", 443)
    return upgraded or (before.scheme, _port(before)) == (after.scheme, _port(after))


def _port(parts: SplitResult) -> int | None:
    return parts.port or PORTS.get(parts.scheme)
