"""A worker's session at an upstream: it logs in once, and again when the upstream no longer knows the session."""

from __future__ import annotations

import asyncio
import logging
import re
from codecs import BOM_UTF8
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from coordinator.errors import FetchError
from coordinator.limits.limiter import Limiter
from coordinator.redis.retrying import retry_unavailable
from coordinator.tasks import cancel_and_wait
from coordinator.url import Target
from crawler.fetch.network.credentials import Pairs
from crawler.model import HttpResponse, Payload, Request

logger = logging.getLogger(__name__)

# A session that was never of use is renewed after this time only: it may have ended, or it never was a right one.
UNPROVEN_SECONDS = 60.0
# While a pause lasts, a login checks this often whether a change of the limits ends it earlier.
CHECK_PAUSE_SECONDS = 0.25
# How long a login that the upstream refused stands for all keys, until it is attempted again.
REFUSED_SECONDS = 30.0
# With these the upstream may take the same login later.
TRANSIENT_STATUSES = frozenset({408, 425, 429})
_TOKEN = re.compile(r"[\x21-\x7e]+")

Send = Callable[[Target, Payload], Awaitable[HttpResponse]]


@dataclass(eq=False, slots=True)
class Session:
    """What one login began: `headers` are sent in it. `is_proven`: the upstream knew it at least once."""

    headers: Pairs
    began_at: float
    is_proven: bool = False


class LoginRefused(Exception):
    """The upstream does not take the login; `response` says so. The message has no secret."""

    def __init__(self, reason: str, response: HttpResponse) -> None:
        super().__init__(reason)
        self.response = response._replace(body=b"")


class Login:
    """The session of one worker. `token` is a path in the JSON response to the login; None: its cookies are enough.

    `send` makes one request, and raises FetchError. `upstream` is the one that it goes to.
    """

    def __init__(
        self, target: Target, payload: Payload, token: str | None, send: Send, limiter: Limiter, upstream: str
    ) -> None:
        self.target = target
        self._payload = payload
        self._token = token
        self._send = send
        self._limiter = limiter
        self._upstream = upstream
        self.session: Session | None = None
        self._refused: LoginRefused | None = None
        self._refused_until = 0.0
        self._task: asyncio.Task[None] | None = None

    def has_ended(self, session: Session, request: Request, status: int) -> bool:
        """Whether this status of a response says that the request should be sent again, in another session.

        A request has this once, and a session is given up only if it was ever of use: a right one may still be refused.
        """
        if status != 401:
            session.is_proven = session.is_proven or status < 400
            return False
        if request.renewed:
            return False
        if session is self.session:
            if not session.is_proven and self._limiter.clock() - session.began_at < UNPROVEN_SECONDS:
                return False
            self.session = None
        request.renewed = True
        self._limiter.report(request.upstream, undecided=1)
        return True

    async def begin(self) -> None:
        """Log in; all that call this meanwhile wait for the same login. Raises LoginRefused, FetchError."""
        if self._refused is not None and self._limiter.clock() < self._refused_until:
            raise self._refused
        if self._task is None:
            self._task = asyncio.create_task(self._begin(), name="login")
        task = self._task
        try:
            await asyncio.shield(task)
        finally:
            if task.done() and self._task is task:
                self._task = None

    async def close(self) -> None:
        """Cancel the login that is under way."""
        await cancel_and_wait([] if self._task is None else [self._task])

    async def _begin(self) -> None:
        self._refused = None
        await retry_unavailable(partial(_until_slot, self._limiter, self._upstream), "a login")
        try:
            response = await self._send(self.target, self._payload)
        except FetchError as error:
            raise FetchError("login", str(error), sent=error.sent) from error
        status = response.status
        self._limiter.report(self._upstream, throttled=status in (429, 503), failed=status >= 500, undecided=1)
        if status in TRANSIENT_STATUSES or status >= 500:
            raise FetchError("login", f"status {status}")
        self._refused_until = self._limiter.clock() + REFUSED_SECONDS
        token = None if self._token is None else _token_in(response.body, self._token)
        # A form for a browser is followed by a redirect, and the cookies come with it.
        if not 200 <= status < (300 if self._token else 400):
            self._refused = LoginRefused(f"the login at {self.target.href} is refused: status {status}", response)
        elif self._token is not None and token is None:
            self._refused = LoginRefused(
                f"the login at {self.target.href} brings no text at {self._token!r} of its JSON", response
            )
        else:
            headers = () if token is None else (("Authorization", f"Bearer {token}"),)
            self.session = Session(headers, self._limiter.clock())
            logger.info("logged in at %s", self.target.href, extra={"event": "logged_in"})
            return
        logger.error("%s", self._refused, extra={"event": "login_refused"})
        raise self._refused


async def _until_slot(limiter: Limiter, upstream: str) -> None:
    """Wait until one request may leave. Raises RedisUnavailable, RedisRefused."""
    clock = limiter.clock
    while True:
        wait = limiter.resumes_at(upstream) - clock()
        if wait <= 0:
            if not limiter.needs_slots(upstream):
                return
            reservation = await limiter.reserve(upstream, 1)
            wait = (reservation.slots[0] if reservation.slots else reservation.again_at) - clock()
            if reservation.slots:
                await asyncio.sleep(max(wait, 0.0))
                return
        await asyncio.sleep(min(max(wait, 0.001), CHECK_PAUSE_SECONDS))


def _token_in(body: bytes, path: str) -> str | None:
    try:
        found: Any = msgspec.json.decode(body.removeprefix(BOM_UTF8))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    for name in path.split("."):
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, str) and _TOKEN.fullmatch(found) else None
