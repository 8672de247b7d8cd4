"""Pure: where a redirect leads, and whether the job's credentials may be sent there."""

from __future__ import annotations

from urllib.parse import SplitResult, urljoin, urlsplit

# 300 and 304 to 306 do not say where to send the request instead.
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
MAX_URL_CHARACTERS = 8192
DEFAULT_PORTS = {"http": 80, "https": 443}


class InvalidRedirect(Exception):
    """A redirect that cannot be followed; the message says why."""


def redirect_target(url: str, location: str | None) -> str:
    """Return the absolute URL to which a response to `url` with this Location redirects, without its fragment.

    Raises InvalidRedirect.
    """
    if location is None or not location.strip():
        raise InvalidRedirect("it has no Location that can be read")
    try:
        parts = urlsplit(urljoin(url, location.strip()))
        port_fits = parts.port is None or parts.port > 0
    except ValueError as error:
        raise InvalidRedirect(f"its Location is no URL: {error}") from error
    if parts.scheme not in DEFAULT_PORTS:
        raise InvalidRedirect(
            f"its Location is of the scheme {parts.scheme[:20]!r}; only http and https can be fetched"
        )
    if not parts.hostname or not port_fits:
        raise InvalidRedirect("its Location names no host")
    if "@" in parts.netloc:
        raise InvalidRedirect("its Location has a user name in it")
    target = parts._replace(fragment="").geturl()
    if len(target) > MAX_URL_CHARACTERS:
        raise InvalidRedirect(f"its Location has more than {MAX_URL_CHARACTERS} characters")
    return target


def may_carry_credentials(origin: str, url: str) -> bool:
    """Whether credentials for `origin` may be sent to `url`: to the same origin, or from its http to its https."""
    if origin == url:
        return True
    before, after = urlsplit(origin), urlsplit(url)
    if before.hostname != after.hostname:
        return False
    upgraded = (before.scheme, _port(before), after.scheme, _port(after)) == ("http", 80, "https", 443)
    return upgraded or (before.scheme, _port(before)) == (after.scheme, _port(after))


def _port(parts: SplitResult) -> int | None:
    return parts.port or DEFAULT_PORTS.get(parts.scheme)
