"""Pure: where a redirect leads, and whether the job's credentials may be sent there."""

from __future__ import annotations

from coordinator.url import InvalidUrl, Target, parse

# 300 and 304 to 306 do not say where to send the request instead.
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
MAX_URL_CHARACTERS = 8192


class InvalidRedirect(Exception):
    """A redirect that cannot be followed; the message says why."""


def redirect_target(target: Target, location: str | None) -> Target:
    """Return where a response to `target` with this Location redirects. Raises InvalidRedirect."""
    if location is None or not location.strip():
        raise InvalidRedirect("it has no Location that can be read")
    try:
        redirected = parse(location, target)
    except InvalidUrl as error:
        raise InvalidRedirect(f"its Location {error}") from error
    if len(redirected.href) > MAX_URL_CHARACTERS:
        raise InvalidRedirect(f"its Location has more than {MAX_URL_CHARACTERS} characters")
    return redirected


def may_carry_credentials(first: Target, target: Target) -> bool:
    """Whether credentials for `first` may be sent to `target`: to the same origin, or from its http to its https."""
    before, after = first.origin, target.origin
    if before is after or before.text == after.text:
        return True
    upgraded = (before.scheme, before.port, after.scheme, after.port) == ("http", 80, "https", 443)
    return upgraded and before.host == after.host
