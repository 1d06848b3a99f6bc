"""A headless Chromium by the DevTools protocol over a pipe: the actions of a user, and what the page shows."""

import itertools
import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.waiting import until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")
SECONDS = 60.0  # then a page that is not as expected has failed
_KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), "Space": (32, " "), "Escape": (27, "")}


class Page:
    """One tab, in a browser context with its own storage and permissions."""

    def __init__(self, pipe: "_Pipe", session: str, context: str) -> None:
        self._pipe, self._session, self.context = pipe, session, context
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")
        self.command("Emulation.setFocusEmulationEnabled", enabled=True)  # so that it reads the clipboard

    @property
    def complaints(self) -> list[str]:
        """The console's errors and breaches of the page's policy."""
        entries = [event["entry"]["text"] for event in self._events("Log.entryAdded")]
        return entries + [json.dumps(event) for event in self._events("Runtime.exceptionThrown")]

    @property
    def asked(self) -> set[str]:
        """The URLs of all requests, with redirects."""
        urls = {event["request"]["url"] for event in self._events("Network.requestWillBeSent")}
        return {url for url in urls if not url.startswith("data:")}

    def _events(self, method: str) -> list[dict[str, Any]]:
        events = [event for event in list(self._pipe.events) if event.get("sessionId") == self._session]
        return [event["params"] for event in events if event["method"] == method]

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._pipe.command(method, self._session, **parameters)

    def open(self, url: str) -> None:
        self.command("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, expression: str) -> Any:
        """The awaited value of an expression in the page. `$` and `$$` are querySelector and querySelectorAll."""
        options = {"awaitPromise": True, "returnByValue": True, "includeCommandLineAPI": True}
        answer = self.command("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Waits until the condition is true."""
        try:
            until(lambda: self.run(f"Boolean({condition})"), SECONDS)
        except AssertionError as error:
            raise AssertionError(condition, self.run("document.body.innerText")) from error

    def press(self, key: str, *, shift: bool = False) -> None:
        code, text = _KEYS[key]
        pressed = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code}
        modifiers = 8 if shift else 0
        down = "keyDown" if text else "rawKeyDown"
        self.command("Input.dispatchKeyEvent", type=down, text=text, modifiers=modifiers, **pressed)
        self.command("Input.dispatchKeyEvent", type="keyUp", modifiers=modifiers, **pressed)

    def write(self, text: str) -> None:
        """Types into the element with the focus."""
        self.command("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Clicks at the place of the element, so an element that is covered gets no click."""
        found = f"$({json.dumps(selector)})"
        self.run(f"{found}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.run(f"{found}.getBoundingClientRect().toJSON()")
        where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.command("Input.dispatchMouseEvent", type=kind, **where)

    def fill(self, selector: str, text: str) -> None:
        self.click(selector)
        self.run(f"$({json.dumps(selector)}).select()")
        self.write(text)

    def choose(self, selector: str, value: str) -> None:
        found = f"$({json.dumps(selector)})"
        self.run(f"{found}.value = {json.dumps(value)}; {found}.dispatchEvent(new Event('change', {{bubbles: true}}))")

    def window(self, width: int, height: int, *, scale: float = 1, dark: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 500}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])


class Browser:
    def __init__(self, pipe: "_Pipe") -> None:
        self._pipe = pipe

    @contextmanager
    def page(self) -> Iterator[Page]:
        """A new tab with an empty storage."""
        context = self._pipe.command("Target.createBrowserContext")["browserContextId"]
        target = self._pipe.command("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self._pipe.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        try:
            yield Page(self._pipe, session, context)
        finally:
            self._pipe.command("Target.disposeBrowserContext", browserContextId=context)


class _Pipe:
    """Commands on one file descriptor, answers and events on the other, each ended by a zero byte."""

    def __init__(self, out: int, back: int) -> None:
        self.events: list[dict[str, Any]] = []
        self._out, self._back = out, back
        self._numbers = itertools.count(1)
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def command(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._answers.get(timeout=SECONDS))["id"] != number:
            continue
        assert "error" not in answer, (method, answer)
        return dict(answer["result"])

    def _read(self) -> None:
        with os.fdopen(self._back, "rb") as back:
            rest = b""
            while block := back.read1(65536):
                *whole, rest = (rest + block).split(b"\0")
                for message in map(json.loads, whole):
                    if "id" in message:
                        self._answers.put(message)
                    else:
                        self.events.append(message)


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with its data in the folder."""
    to_browser, out = os.pipe()
    back, from_browser = os.pipe()

    def place_pipes() -> None:
        os.dup2(to_browser, 13)  # aside first: one may have the number of the other
        os.dup2(from_browser, 14)
        os.dup2(13, 3)
        os.dup2(14, 4)

    browser = subprocess.Popen(
        [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder}", "--remote-debugging-pipe"],
        preexec_fn=place_pipes,  # noqa: PLW1509  # nothing else can place a descriptor
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Browser(_Pipe(out, back))
    finally:
        browser.kill()
        browser.wait()
        os.close(out)
