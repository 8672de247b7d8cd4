"""Pure: where a redirect leads, and whether the job's credentials may be sent there."""

from __future__ import annotations

from dataclasses import replace

from coordinator.url import InvalidUrl, Target, parse
from crawler.model import Payload

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


def redirected_payload(payload: Payload, status: int, target: Target, redirected: Target) -> Payload:
    """Return what is sent where a redirect leads, as browsers do it: 303 and, after a POST, 301 and 302 make it a GET.

    Headers of a key's fields stay behind at another origin. Raises InvalidRedirect for a body that would go there.
    """
    same = may_carry_credentials(target, redirected)
    headers = payload.headers if same else ()
    if status == 303 or payload.method == "GET" or (status in (301, 302) and payload.method == "POST"):
        is_get = payload.method == "GET" and status != 303  # a GET may have a body
        body, kind = (payload.body, payload.content_type) if is_get else (None, None)
        if body is None or same:
            return replace(payload, method="GET", body=body, content_type=kind, headers=headers)
    if not same:
        raise InvalidRedirect(f"to another origin, {redirected.origin.text}, which does not get the {payload.method}")
    return payload


def may_carry_credentials(first: Target, target: Target) -> bool:
    """Whether credentials for `first` may be sent to `target`: to the same origin, or from its http to its https."""
    before, after = first.origin, target.origin
    if before is after or before.text == after.text:
        return True
    upgraded = (before.scheme, before.port, after.scheme, after.port) == ("http", 80, "https", 443)
    return upgraded and before.host == after.host
