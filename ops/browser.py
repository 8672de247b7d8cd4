"""Debian's Chromium, driven by its own protocol through two pipes: no library, no port."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

from coordinator.errors import ShardcrawlError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--remote-debugging-pipe", "--hide-scrollbars", "--disable-extensions", "--disable-background-networking"),
    "--host-resolver-rules=MAP *.example 127.0.0.1",
)
PHONE, DESK = (390, 844), (1280, 900)
_DEADLINE_SECONDS = 20.0
_POLL_SECONDS = 0.02


class ChromiumMissing(ShardcrawlError):
    """There is no Chromium on this machine."""


class Tab:
    """One page. Its errors and refused scripts are in `wrong`."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.wrong: list[str] = []

    async def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol for this page."""
        return await self._browser.call(method, self._session, **parameters)

    async def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """Make the page as large as this screen."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def go(self, url: str, text: str) -> None:
        """Open a page, and wait until it shows a text."""
        await self.call("Page.navigate", url=url)
        await self.shows(text)

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def text(self) -> str:
        """What the page shows."""
        return str(await self.run("document.body ? document.body.innerText : ''"))

    async def shows(self, text: str) -> None:
        """Wait until the page shows a text. Raises AssertionError when it does not."""
        deadline = monotonic() + _DEADLINE_SECONDS
        found = ""
        while text not in found:
            with suppress(AssertionError):  # the page is just left for another one, or loads itself again
                found = await self.text()
            assert text in found or monotonic() < deadline, f"the page does not show {text!r} but: {found}"
            await asyncio.sleep(_POLL_SECONDS)

    async def click(self, name: str, row: str = "") -> None:
        """Click the button or link with this text: of several the last one, which a dialog has, or that of a row."""
        has_text = f"one.innerText.trim() === {json.dumps(name)}"
        in_row = f"(one.closest('tr')?.innerText || '').includes({json.dumps(row)})"
        found = f"[...document.querySelectorAll('button, a')].filter(one => {has_text} && {in_row})"
        assert await self.run(f"{found}.length"), f"no {name!r} in: {await self.text()}"
        await self.run(f"{found}.at(-1).click()")

    async def fill(self, name: str, value: str) -> None:
        """Write into the field of this name."""
        await self.run(f"document.querySelector('[name={name}]').value = {json.dumps(value)}")

    async def press(self, key: str) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode={"Tab": 9}.get(key, 13)
            )

    async def picture(self, file: Path, *, whole: bool = False) -> None:
        """Write a screenshot, as PNG; `whole`: of all the page."""
        found = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        await asyncio.to_thread(file.write_bytes, base64.b64decode(found["data"]))


class Browser:
    """One Chromium process. `pid` is its number."""

    def __init__(self, pid: int, reader: asyncio.StreamReader, out: int) -> None:
        self.pid = pid
        self._reader = reader
        self._out = out
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._tabs: dict[str, Tab] = {}

    async def tab(self) -> Tab:
        """Open a page."""
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        tab = self._tabs[session] = Tab(self, session)
        for domain in ("Page", "Runtime", "Log"):
            await tab.call(f"{domain}.enable")
        await tab.size(*DESK)
        return tab

    async def call(self, method: str, session: str = "", **parameters: Any) -> Any:
        """Call a method of the protocol. Raises AssertionError when it is refused."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        waiting = self._waiting[self._number] = asyncio.get_running_loop().create_future()
        os.write(self._out, json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(60):
            return await waiting

    async def read(self) -> None:
        """Read what the browser says, until cancelled."""
        while True:
            message = json.loads((await self._reader.readuntil(b"\0"))[:-1])
            if "id" in message:
                waiting = self._waiting.pop(message["id"])
                if "error" in message:
                    waiting.set_exception(AssertionError(message["error"]))
                elif not waiting.done():
                    waiting.set_result(message["result"])
            elif message["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self._tabs[message["sessionId"]].wrong.append(json.dumps(message["params"]))


@asynccontextmanager
async def open_chromium() -> AsyncIterator[Browser]:
    """A browser. Raises ChromiumMissing."""
    if CHROMIUM is None:
        raise ChromiumMissing("there is no chromium; install Debian's: apt-get install chromium")
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()

    def place_pipes() -> None:
        os.dup2(their_in, 3)
        os.dup2(their_out, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            *(CHROMIUM, *OPTIONS, f"--user-data-dir={profile}"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            pass_fds=(3, 4, their_in, their_out),
            preexec_fn=place_pipes,
            start_new_session=True,
        )
        os.close(their_in)
        os.close(their_out)
        reader = asyncio.StreamReader(limit=2**26)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(our_in, "rb")
        )
        browser = Browser(process.pid, reader, our_out)
        reading = asyncio.create_task(browser.read())
        try:
            yield browser
        finally:
            reading.cancel()
            os.close(our_out)
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
