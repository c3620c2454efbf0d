"""A real headless Chromium, driven over its DevTools protocol by a pair of pipes."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess  # gevent's would take over the children of other tests
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.fileobject import FileObject

from helpers.support import PATIENCE_S

__all__ = ["Page", "chromium", "has_chromium"]

_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-pipe",
    "--hide-scrollbars",
    "--no-proxy-server",
)


def has_chromium() -> bool:
    return shutil.which("chromium") is not None


class Page:
    """A tab.  ``complaints``: what its console or its network had to complain of; ``asked``: the
    addresses that it has asked for.
    """

    def __init__(self, reader: Any, writer: Any) -> None:
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self._writer = writer
        self._answers: dict[int, AsyncResult[Any]] = {}
        self._session: str | None = None
        self._reading = gevent.spawn(self._read, reader)
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def close(self) -> None:
        self._reading.kill()

    def open(self, url: str) -> None:
        self._ask("Page.navigate", url=url)

    def resize(self, width: int, height: int, mobile: bool) -> None:
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )

    def be_dark(self) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark"}
        self._ask("Emulation.setEmulatedMedia", features=[feature])

    def evaluate(self, script: str) -> Any:
        """What the expression gives, as JSON."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        script = f"document.querySelector({json.dumps(selector)})?.textContent ?? ''"
        return str(self.evaluate(script))

    def wait_for(self, script: str) -> None:
        """Until the expression is true."""
        with gevent.Timeout(PATIENCE_S, AssertionError(f"never true: {script}")):
            while not self.evaluate(script):
                gevent.sleep(0.05)

    def screenshot(self, path: Path) -> None:
        """Of the whole page."""
        shot = self._ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _ask(self, method: str, **parameters: Any) -> Any:
        number = len(self._answers) + 1
        answer = self._answers[number] = AsyncResult()
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._writer.write(json.dumps(message).encode() + b"\0")
        self._writer.flush()
        return answer.get(timeout=PATIENCE_S)

    def _read(self, reader: Any) -> None:
        waiting = b""
        while data := reader.read1(65536):
            *messages, waiting = (waiting + data).split(b"\0")
            for message in messages:
                self._take(json.loads(message))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            answer = self._answers[message["id"]]
            if "error" in message:
                answer.set_exception(AssertionError(message["error"]))
            else:
                answer.set(message["result"])
            return
        method, parameters = message["method"], message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.asked.append(parameters["request"]["url"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(parameters))


def _pipe() -> tuple[int, int]:
    """Above the numbers at which Chromium wants its ends."""
    ends = os.pipe()
    reader, writer = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return reader, writer


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """``folder``: for its profile."""
    to_it, ours_to_it = _pipe()
    ours_from_it, from_it = _pipe()
    command = ["chromium", *_OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    with (folder / "chromium.log").open("w") as log:
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{to_it} 4>&{from_it}', "bash", *command],
            pass_fds=(to_it, from_it),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"HOME": str(folder)},
        )
    os.close(to_it)
    os.close(from_it)
    reader = FileObject(ours_from_it, "rb")
    writer = FileObject(ours_to_it, "wb")
    page = None
    try:
        page = Page(reader, writer)
        yield page
    finally:
        if page is not None:
            page.close()
        writer.close()  # which ends it, and all its processes
        with gevent.Timeout(5, False):
            gevent.get_hub().threadpool.apply(process.wait)
        process.kill()
        gevent.get_hub().threadpool.apply(process.wait)
        reader.close()
