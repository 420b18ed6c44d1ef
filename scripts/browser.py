"""A headless Chromium, driven over its debugging pipe: pages in any width, light or dark, pictures of them, scripts."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Literal

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip
ANSWER_SECONDS = 60.0
EVENTS = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
Scheme = Literal["light", "dark"]


class Page:
    """One tab. Every method raises RuntimeError where the browser reports an error, or has ended.

    Attributes:
        events: what the last page did: its requests, its console, what its policy forbade.
    """

    def __init__(self, commands: BinaryIO, answers: int) -> None:
        self._commands, self._answers, self._ids, self._read = commands, answers, count(1), b""
        self._session, self.events = "", list[dict[str, Any]]()
        tab = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Runtime"):
            self._ask(f"{domain}.enable")

    def show(self, url: str, *, width: int, height: int = 900, scheme: Scheme = "light") -> None:
        """Load a page at a width in pixels, and wait until it is loaded."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events = []
        self._ask("Page.navigate", url=url)
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited where it is a promise; a page's own policy does not apply."""
        done = self._ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise RuntimeError(f"expected a value, got {done['exceptionDetails']}")
        return done["result"].get("value")

    def wait(self, script: str, *, seconds: float = 60.0) -> None:
        """Wait until a JavaScript expression is true, and one second more, in which the page is drawn."""
        end = time.monotonic() + seconds
        while not self.run(script):
            if time.monotonic() > end:
                raise RuntimeError(f"expected {script} within {seconds:.0f} s")
            time.sleep(0.2)
        time.sleep(1.0)

    def picture(self) -> bytes:
        """What is in the window, as WebP."""
        data = self._ask("Page.captureScreenshot", format="webp", quality=85)["data"]
        return base64.b64decode(data)

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        command = {"id": number, "method": method, "params": params}
        command |= {"sessionId": self._session} if self._session else {}
        self._commands.write(json.dumps(command).encode() + b"\0")
        self._commands.flush()
        while (answer := self._next()).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"expected {method} to succeed, got {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], ANSWER_SECONDS)
            more = os.read(self._answers, 1 << 16) if ready else b""
            if not more:
                raise RuntimeError("expected an answer, got none" if not ready else "expected an answer, got the end")
            self._read += more
        data, _, self._read = self._read.partition(b"\0")
        message: dict[str, Any] = json.loads(data)
        if message.get("method") in EVENTS:
            self.events.append(message)
        return message


@contextmanager
def open_browser(program: str) -> Iterator[Page]:
    """A tab of a browser with an empty profile, which ends with the block."""
    read_commands, write_commands = os.pipe()
    read_answers, write_answers = os.pipe()
    theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read_commands, write_answers)]
    for end in (read_commands, write_answers):
        os.close(end)
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        start = f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}'
        command = ["bash", "-c", start, "bash", program, *FLAGS, f"--user-data-dir={profile}"]
        nowhere = subprocess.DEVNULL
        browser = subprocess.Popen(command, pass_fds=theirs, stdout=nowhere, stderr=nowhere)
        for end in theirs:
            os.close(end)
        try:
            with os.fdopen(write_commands, "wb") as commands:
                yield Page(commands, read_answers)
        finally:
            browser.kill()
            browser.wait()
            os.close(read_answers)


def file_url(path: Path) -> str:
    """The address of a file."""
    return path.resolve().as_uri()
