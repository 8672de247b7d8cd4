"""The addresses of the page: the same shell for every page, what it asks for, its files, and its actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from coordinator.errors import ShardcrawlError, Unavailable, UsageError
from crawler.local.services import Addresses
from crawler.web.actions import ACTIONS, act
from crawler.web.feed import INTERVAL_SECONDS, Feed, as_json
from crawler.web.guard import ACTIONS_PATH, Access, PageGuard
from crawler.web.keys_view import KeysView
from crawler.web.metrics import PATHS, Metrics
from crawler.web.runs_view import RunsView
from crawler.web.stores import Stores

_TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}


class Dashboard:
    """The page as an ASGI application. `close` ends what it reads."""

    def __init__(
        self, addresses: Callable[[], Addresses | None], access: Access, seconds: float = INTERVAL_SECONDS
    ) -> None:
        self._access = access
        self._stores = Stores(addresses)
        # Pages that take long must not make Postgres look away.
        self._scraped = Stores(addresses, 1)
        self.runs = RunsView(self._stores)
        self.keys = KeysView(self._stores)
        self.feed = Feed(self.runs.news, seconds)
        self._files = {file.name: file.read_bytes() for file in files(__package__).joinpath("static").iterdir()}
        pages = ("/", "/runs/{run}", "/runs/{run}/keys", "/runs/{run}/keys/{digest}", "/diff")
        metrics = Metrics(self._scraped)
        routes = [
            *(Route(path, metrics) for path in PATHS),
            *(Route(path, self._page) for path in pages),
            Route("/static/{name}", self._file),
            Route("/api/session", self._session),
            Route("/api/news", self._news),
            Route("/api/runs/{run}/history", self._history),
            Route("/api/runs/{run}/reasons", self._reasons),
            Route("/api/runs/{run}/keys", self._ended),
            Route("/api/runs/{run}/keys/{digest}", self._key),
            Route("/api/diff", self._diff),
            Route("/api/diff/keys", self._changed),
            Route(f"{ACTIONS_PATH}{{verb}}", self._act, methods=["POST"]),
        ]
        handlers: Mapping[Any, Any] = {ShardcrawlError: _error_page, HTTPException: _not_found}
        self.app: ASGIApp = PageGuard(Starlette(routes=routes, exception_handlers=handlers), access)

    async def close(self) -> None:
        """Stop reading, and close all connections."""
        self.feed.close()
        await self._stores.close()
        await self._scraped.close()

    async def _page(self, _: Request) -> Response:
        return self._sent("page.html")

    async def _file(self, request: Request) -> Response:
        return self._sent(request.path_params["name"])

    def _sent(self, name: str) -> Response:
        if name not in self._files:
            raise HTTPException(404)
        return Response(self._files[name], media_type=_TYPES[name.rpartition(".")[2]])

    async def _session(self, _: Request) -> Response:
        actions = {verb: one.states for verb, one in ACTIONS.items()} if self._access.may_act else {}
        return _json({"actions": actions, "only_reads": self._access.only_reads})

    async def _news(self, request: Request) -> Response:
        self.feed.admit()
        events = self.feed.follow(request.query_params.get("run", ""))
        return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    async def _history(self, request: Request) -> Response:
        return _json(await self.runs.history(request.path_params["run"]))

    async def _reasons(self, request: Request) -> Response:
        return _json(await self.keys.reasons(request.path_params["run"]))

    async def _ended(self, request: Request) -> Response:
        given = request.query_params
        wanted = given.get("outcome", "failed"), given.get("behind", ""), given.get("text", "")
        return _json(await self.keys.ended(request.path_params["run"], *wanted))

    async def _key(self, request: Request) -> Response:
        return _json(await self.keys.key(request.path_params["run"], request.path_params["digest"]))

    async def _diff(self, request: Request) -> Response:
        given = request.query_params
        wanted = given.get("first", ""), given.get("second", ""), given.get("table", "")
        return _json(await self.keys.diff(*wanted))

    async def _changed(self, request: Request) -> Response:
        given = request.query_params
        wanted = given.get("first", ""), given.get("second", ""), given.get("table", ""), given.get("change", "")
        return _json(await self.keys.changed(*wanted))

    async def _act(self, request: Request) -> Response:
        verb, body = request.path_params["verb"], await request.body()
        done = await act(self._stores, verb, body)
        self.keys.forget_reasons()
        return _json(done)


def _json(value: Any) -> Response:
    return Response(as_json(value), media_type="application/json")


async def _error_page(request: Request, error: ShardcrawlError) -> Response:
    status = 503 if isinstance(error, Unavailable) else 404 if request.method == "GET" else 409
    return JSONResponse({"error": str(error)}, status if isinstance(error, Unavailable | UsageError) else 409)


async def _not_found(_: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code)
