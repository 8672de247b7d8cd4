"""Sends one message to a webhook of the user's."""

from __future__ import annotations

import httpx

from coordinator.errors import FetchError


async def post_json(url: str, content: bytes, *, seconds: float) -> None:
    """Send this JSON by POST. Raises FetchError, without the URL, when it is not taken within `seconds`."""
    try:
        async with httpx.AsyncClient(timeout=seconds) as client:
            response = await client.post(url, content=content, headers={"Content-Type": "application/json"})
    except (httpx.HTTPError, httpx.InvalidURL) as error:  # its text may have the URL, and so a secret
        raise FetchError("protocol", type(error).__name__) from None
    if not response.is_success:
        raise FetchError("protocol", f"status {response.status_code}")
