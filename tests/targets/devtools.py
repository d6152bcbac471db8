"""A page in headless Chromium, through the DevTools protocol on a pipe: what it logs, asks for, and looks like."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from codemill.targets import browser

_ANSWER_S = 60.0
# Chromium reads from descriptor 3 and writes to 4
_MOVED = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Page:
    """An open page. `logged`: what its console and the browser said of it; `requests`: all it asked for."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._said, self._number = b"", 0
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        self._features: list[dict[str, str]] = []
        self.logged: list[str] = []
        self.requests: list[str] = []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def open(
        self, page: Path | str, width: int = 1280, scheme: Literal["light", "dark"] = "light"
    ) -> None:
        """Load a file, or an address, as a screen of this width (below 500 a phone's) shows it, and wait for it."""
        self.logged.clear()
        self.requests.clear()
        phone = width < 500
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844 if phone else 900,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self._features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.media("")
        self._events.clear()
        self._ask("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        self._until("Page.loadEventFired")

    def media(self, kind: Literal["", "print"]) -> None:
        """Show the page as it is, or on the screen as it prints; the colour scheme stays."""
        self._ask("Emulation.setEmulatedMedia", media=kind, features=self._features)

    def value(self, script: str) -> Any:
        """What an expression is in the page, as JSON."""
        found = self._ask("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"])
        return found["result"].get("value")

    def hover(self, x: float, y: float) -> None:
        """The mouse at a place of the window."""
        self._ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, file: Path, whole: bool = True) -> None:
        """A PNG of what is in the window, or of the whole page."""
        taken = self._ask("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(taken["data"]))

    def printed(self, file: Path) -> None:
        """A PDF of the page on A4."""
        made = self._ask("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
        file.write_bytes(base64.b64decode(made["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _ANSWER_S
        while True:
            found = self._next(deadline)
            if found.get("id") == number:
                assert "error" not in found, f"{method}: {found['error']}"
                result: dict[str, Any] = found["result"]
                return result

    def _until(self, event: str) -> None:
        deadline = time.monotonic() + _ANSWER_S
        while not any(found.get("method") == event for found in self._events):
            self._next(deadline)

    def _next(self, deadline: float) -> dict[str, Any]:
        """The next message, noted where it is an event."""
        while b"\0" not in self._said:
            assert time.monotonic() < deadline, "Chromium does not answer"
            more = os.read(self._receive, 2**20)
            assert more, "Chromium has ended"
            self._said += more
        one, self._said = self._said.split(b"\0", 1)
        found: dict[str, Any] = json.loads(one)
        if "method" in found:
            self._events.append(found)
            self._note(found["method"], found["params"])
        return found

    def _note(self, method: str, said: dict[str, Any]) -> None:
        if method == "Runtime.consoleAPICalled":
            self.logged.append(f"{said['type']}: {said['args']}")
        elif method == "Runtime.exceptionThrown":
            self.logged.append(str(said["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.logged.append(said["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])


@contextmanager
def chromium() -> Iterator[Page]:
    """A browser with one page; MachineError where none is on the machine."""
    program = [*browser.chromium(), "--hide-scrollbars", "--remote-debugging-pipe"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        moved = [sys.executable, "-c", _MOVED, str(theirs_in), str(theirs_out)]
        process = subprocess.Popen(
            [*moved, *program, f"--user-data-dir={profile}"],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Page(ours_out, ours_in)
        finally:
            process.terminate()
            process.wait(20)
            os.close(ours_out)
            os.close(ours_in)
