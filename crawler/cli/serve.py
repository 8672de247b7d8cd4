"""The command that serves the page: serve."""

from __future__ import annotations

import logging
import re
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from coordinator.errors import UsageError
from crawler.cli.display.progress import say
from crawler.cli.options import command, option, place_from, place_options, run_async
from crawler.telemetry import logs

logger = logging.getLogger(__name__)

LEAST_TOKEN_CHARACTERS = 16


@command("serve")
@option("--listen", default="127.0.0.1:8765", show_default=True, metavar="HOST:PORT", help="Where browsers find it.")
@option("--host", multiple=True, metavar="NAME", help="A name by which browsers come to it; may be given again.")
@option("--token", help="Who has it can act, not only look: a secret of 16 characters or more; use the environment.")
@option("--read-only", is_flag=True, help="Only show, also to those who have the token.")
@place_options("info")
def serve_command(listen: str, host: tuple[str, ...], token: str | None, read_only: bool, **options: Any) -> None:
    """Show runs, upstreams, workers and failed keys in a browser, live. Example: SHARDCRAWL_TOKEN=… shardcrawl serve

    It keeps nothing: start it and end it whenever you like.
    """
    from crawler.web.guard import Access
    from crawler.web.server import serve_page

    if token and len(token) < LEAST_TOKEN_CHARACTERS:
        raise UsageError(f"serve: SHARDCRAWL_TOKEN is shorter than {LEAST_TOKEN_CHARACTERS} characters; make it longer")
    if token and not (token.isascii() and token.isprintable() and token == token.strip()):
        raise UsageError("serve: no browser can send this SHARDCRAWL_TOKEN: leave out blanks and newlines at its ends")
    if bad := [name for name in host if not re.fullmatch(r"[A-Za-z0-9.-]+", name)]:
        raise UsageError(f"serve: --host is {bad[0]!r}; write a name, like crawl.example.org, without a port")
    access = Access(frozenset(name.lower() for name in host), token or "", read_only)

    def on_ready(address: str) -> None:
        reads = "" if access.may_act else "; it only reads" + ("" if read_only else ": actions need SHARDCRAWL_TOKEN")
        is_local = ip_address(str(urlsplit(address).hostname)).is_loopback
        seen = "" if is_local else "; whoever reaches this address can read keys and rows"
        text = f"the page is at {address}{reads}{seen}"
        if logs.line_format() == logs.JSON:
            logger.info("%s", text, extra={"event": "page_served"})
        else:
            say(Console(stderr=True), text)

    run_async(serve_page(place_from(options), listen, access, on_ready))
