"""Drives Debian's Chromium, or Google's, over its DevTools protocol: one page, its console, clicks, keys, pictures.

Nothing but the standard library and the repository's own websocket client. Addresses other than loopback do not
resolve inside the browser, so that no test depends on, or reaches, the network.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from cascade_studio.commands.processes import end_group
from tools.websocket import WebSocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--remote-debugging-port=0",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
PATIENCE = 120.0
"""Seconds for whatever a page does: a limit against hanging, on a machine that may be busy with something else."""

FRAMES = "for (let i = 0; i < 4; i++) await new Promise(requestAnimationFrame)"
"""Statement of a page: waits until everything that was changed before it is drawn."""

SPOT = """await (async ([selector, across, down]) => {
  const shown = (e) => { const { width, height } = e.getBoundingClientRect(); return width && height; };
  const found = [...document.querySelectorAll(selector)].find(shown);
  if (!found || found.disabled) return null;
  const box = () => found.getBoundingClientRect();
  const place = () => [box().x + across * box().width, box().y + down * box().height];
  const [x, y] = place();
  for (let i = 0; i < 4; i++) {
    await new Promise(requestAnimationFrame);
    if (String(place()) !== String([x, y])) return null;
  }
  return found.contains(document.elementFromPoint(x, y)) ? [x, y] : null;
})(arguments)"""
"""Expression of a page: where a selector's first shown element can be pressed; null while it moves or is covered."""


class BrowserError(Exception):
    """The page threw an error, or something did not come in time."""


def find_chromium() -> str | None:
    """The path of an installed Chromium, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """A headless Chromium with one page of ``size`` pixels. Use it in a ``with`` block, which ends it."""

    def __init__(self, size: tuple[int, int] = (1600, 1000)) -> None:
        self.size = size
        self.errors: list[str] = []
        self._number = 0
        self._profile = Path(tempfile.mkdtemp(prefix="cascade-studio-browser-"))
        self._process: subprocess.Popen | None = None
        self._socket: WebSocket | None = None

    def __enter__(self) -> Browser:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _start(self) -> None:
        program = find_chromium()
        if program is None:
            raise BrowserError("No Chromium is installed.")
        command = [
            program,
            *FLAGS,
            f"--user-data-dir={self._profile}",
            f"--window-size={self.size[0]},{self.size[1]}",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        port = int(self._until(self._port_file, "Chromium's port"))
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE
        ) as answer:
            page = next(target for target in json.load(answer) if target["type"] == "page")
        self._socket = WebSocket("127.0.0.1", port, f"/devtools/page/{page['id']}", timeout=PATIENCE)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=self.size[0],
            height=self.size[1],
            deviceScaleFactor=1,
            mobile=False,
        )

    def _port_file(self) -> str | None:
        if self._process.poll() is not None:
            raise BrowserError(f"Chromium ended with code {self._process.returncode} when it was started.")
        file = self._profile / "DevToolsActivePort"
        lines = file.read_text(encoding="utf-8").split() if file.is_file() else []
        return lines[0] if len(lines) >= 2 else None

    @staticmethod
    def _until(look: Callable[[], Any], what: str, timeout: float = PATIENCE, pause: float = 0.05) -> Any:
        limit = time.monotonic() + timeout
        while True:
            found = look()
            if found:
                return found
            if time.monotonic() > limit:
                raise BrowserError(f"{what} did not come within {timeout:.0f} s.")
            time.sleep(pause)

    def stop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            end_group(self._process, patience=10.0)
            self._process = None
        shutil.rmtree(self._profile, ignore_errors=True)

    def send(self, method: str, timeout: float = PATIENCE, **params: Any) -> dict[str, Any]:
        """One command of the protocol; events that arrive before its answer are noted."""
        self._number += 1
        number = self._number
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        limit = time.monotonic() + timeout
        while True:
            try:
                message = json.loads(self._socket.receive(max(0.01, limit - time.monotonic())))
            except TimeoutError:
                raise BrowserError(f"{method} was not answered within {timeout:.0f} s: {params}") from None
            if message.get("id") == number:
                if "error" in message:
                    raise BrowserError(f"{method}: {message['error'].get('message')}")
                return message["result"]
            if "method" in message:
                self._note(message["method"], message["params"])

    def _note(self, event: str, data: dict[str, Any]) -> None:
        """Keep what the page complains about: errors, warnings, uncaught exceptions, requests that failed."""
        if event == "Runtime.consoleAPICalled" and data["type"] in ("error", "assert", "warning"):
            words = [str(argument.get("value", argument.get("description", ""))) for argument in data["args"]]
            self.errors.append(" ".join([*words, *_frames(data.get("stackTrace"))]))
        elif event == "Page.javascriptDialogOpening":  # the host's question before an unsaved workflow is left
            self._number += 1
            accepted = {"id": self._number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            self._socket.send(json.dumps(accepted))
        elif event == "Runtime.exceptionThrown":
            details = data["exceptionDetails"]
            text = details.get("exception", {}).get("description") or details.get("text", "")
            self.errors.append(f"{text} {details.get('url', '')}")
        elif event == "Log.entryAdded" and data["entry"]["level"] == "error":
            self.errors.append(f"{data['entry']['text']} {data['entry'].get('url', '')}")

    def run(self, code: str, *values: Any, timeout: float = PATIENCE) -> Any:
        """The result of the body of an async function in the page; ``values`` are its ``arguments``."""
        given = ", ".join(json.dumps(value) for value in values)
        answer = self.send(
            "Runtime.evaluate",
            timeout,
            expression=f"(async function () {{ {code} }})({given})",
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def wait(self, expression: str, *values: Any, timeout: float = PATIENCE) -> Any:
        """Wait until an expression is true in the page; returns its value. ``values`` are ``arguments`` in it."""
        return self._until(lambda: self.run(f"return {expression}", *values), f"'{expression}'", timeout, 0.1)

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of the first element of a selector, once there is one that is shown."""
        found = self.wait(
            "(() => { for (const e of document.querySelectorAll(arguments[0])) { const r = e.getBoundingClientRect();"
            "if (r.width && r.height) return [r.x, r.y, r.width, r.height]; } })()",
            selector,
        )
        return tuple(found)

    def click(self, selector: str, across: float = 0.5, down: float = 0.5) -> None:
        """Press the mouse on the first shown element of a selector, as a hand would: it stands still, uncovered."""
        spot = self._until(
            lambda: self.run(f"return {SPOT}", selector, across, down),
            f"a free place to press on '{selector}'",
            pause=0.1,
        )
        self.click_at(*spot)

    def click_at(self, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: int) -> None:
        """Press and release a key, by its name and its virtual key code."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def type_text(self, text: str) -> None:
        """Type into what has the focus."""
        self.send("Input.insertText", text=text)

    def drop(self, path: Path, x: float, y: float) -> None:
        """Drop a file from the desktop onto the page."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def picture(self, clip: tuple[float, float, float, float] | None = None) -> bytes:
        """A PNG of the page, or of a part of it: left, top, width, height."""
        area = {} if clip is None else {"clip": dict(zip(("x", "y", "width", "height"), clip), scale=1)}
        return base64.b64decode(self.send("Page.captureScreenshot", format="png", **area)["data"])

    def take_errors(self) -> list[str]:
        """What the page complained about since the last time."""
        self.run("return 0")
        found, self.errors = self.errors, []
        return found


def _frames(trace: dict[str, Any] | None) -> list[str]:
    return [f"{frame['url']}:{frame['lineNumber']}" for frame in (trace or {}).get("callFrames", [])]
