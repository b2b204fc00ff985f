"""Headless Chromium, asked through its DevTools protocol."""

import asyncio
import base64
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from patience import HANGS_AFTER_S

_FLAGS = (
    *("--headless=new", "--no-first-run", "--disable-extensions", "--disable-background-networking"),
    # Plots draw with WebGL, which a machine without a GPU computes.
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--disable-dev-shm-usage", "--remote-debugging-port=0", "--window-size=1500,1100"),
)


def chromium() -> str:
    """The browser; a test without one is skipped."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium (apt-get install chromium)")
    return found


class Page:
    """One tab, and what went wrong in it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._calls = socket, 0
        self.errors: list[str] = []
        """Exceptions that no script caught, and what scripts reported as errors."""

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        self._calls += 1
        call = self._calls
        await self._socket.send_json({"id": call, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json(timeout=HANGS_AFTER_S)
            if message.get("id") == call:
                assert "error" not in message, message
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif message["method"] == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(" ".join(str(one.get("value", one.get("description"))) for one in params["args"]))

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def open(self, address: str, *, until: str) -> None:
        """Go to an address and wait until an expression is true of it."""
        await self.call("Page.navigate", url=address)
        await self.wait(until)

    async def wait(self, until: str) -> None:
        """Until an expression is true of the page."""
        give_up_at = time.monotonic() + HANGS_AFTER_S
        while not await self.evaluate(f"Boolean({until})"):
            if time.monotonic() > give_up_at:
                text = await self.evaluate("document.body.innerText")
                raise AssertionError(f"{until} never held. Errors: {self.errors}. The page says:\n{text}")
            await asyncio.sleep(0.3)

    async def screenshot(self, path: Path) -> None:
        """What a person would see, as a PNG file."""
        shot = await self.call("Page.captureScreenshot")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def open_browser(profile: Path) -> AsyncIterator[Page]:
    """An empty tab of a browser of its own, which ends with the block."""
    # Chromium's sandbox refuses to run as root, as containers do; it is our own pages that are opened.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    process = subprocess.Popen(
        [chromium(), *_FLAGS, *sandbox, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port = await _port(profile / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
            async with session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime"):
                    await page.call(f"{domain}.enable")
                yield page
    finally:
        process.terminate()
        process.wait(timeout=HANGS_AFTER_S)


async def _port(file: Path) -> int:
    give_up_at = time.monotonic() + HANGS_AFTER_S
    while not file.exists() or not file.read_text().strip():
        assert time.monotonic() < give_up_at, "chromium never listened"
        await asyncio.sleep(0.1)
    return int(file.read_text().split()[0])
