"""Sends one message to a webhook of the user's."""

from __future__ import annotations

import asyncio

from coordinator.errors import FetchError


async def post_json(url: str, content: bytes, *, seconds: float) -> None:
    """Send this JSON by POST; what comes after the status is not read.

    Raises FetchError, without the URL, when it is not taken within `seconds`.
    """
    import httpx  # few runs have a webhook, and importing takes time

    named = {"Content-Type": "application/json"}
    try:
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(timeout=seconds) as client,
            client.stream("POST", url, content=content, headers=named) as response,
        ):
            pass
    except Exception as error:  # noqa: BLE001 - a URL can be wrong in many ways, and the text may have its secret
        raise FetchError("protocol", type(error).__name__) from None
    if not response.is_success:
        raise FetchError("protocol", f"status {response.status_code}")
