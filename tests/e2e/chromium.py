"""A headless Chromium, driven over a pipe by the DevTools protocol: what a user does, and what a user sees."""

import itertools
import json
import os
import queue
import shutil
import subprocess
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")
SECONDS = 30.0  # until a page that does not come to what is expected has failed
_KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), "Space": (32, " "), "Escape": (27, "")}


class Page:
    """One tab. `complaints` is what the browser's console told of errors and of what the page's policy refused."""

    def __init__(self, pipe: "_Pipe", session: str) -> None:
        self._pipe, self._session = pipe, session
        for domain in ("Page", "Runtime", "Log"):
            self.command(f"{domain}.enable")

    @property
    def complaints(self) -> list[str]:
        told = [event["params"] for event in self._pipe.events if event["method"] == "Log.entryAdded"]
        thrown = [event["params"] for event in self._pipe.events if event["method"] == "Runtime.exceptionThrown"]
        return [entry["entry"]["text"] for entry in told] + [json.dumps(each) for each in thrown]

    @property
    def asked(self) -> set[str]:
        """The addresses that were asked, once `Network.enable` was commanded."""
        sent = [event["params"] for event in self._pipe.events if event["method"] == "Network.requestWillBeSent"]
        return {each["request"]["url"] for each in sent if not each["request"]["url"].startswith("data:")}

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._pipe.command(method, parameters, self._session)

    def event(self, method: str) -> dict[str, Any]:
        """Waits for the first event of its kind."""
        deadline = time.monotonic() + SECONDS
        while not (found := [event["params"] for event in self._pipe.events if event["method"] == method]):
            assert time.monotonic() < deadline, method
            time.sleep(0.02)
        return dict(found[0])

    def open(self, url: str) -> None:
        self.command("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, expression: str) -> Any:
        """What the expression gives in the page, awaited."""
        told = self.command("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def until(self, condition: str) -> None:
        """Waits for it to become true."""
        deadline = time.monotonic() + SECONDS
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < deadline, (condition, self.run("document.body.innerText"))
            time.sleep(0.05)

    def press(self, key: str, *, shift: bool = False) -> None:
        code, text = _KEYS[key]
        pressed = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code}
        modifiers = 8 if shift else 0
        down = "keyDown" if text else "rawKeyDown"
        self.command("Input.dispatchKeyEvent", type=down, text=text, modifiers=modifiers, **pressed)
        self.command("Input.dispatchKeyEvent", type="keyUp", modifiers=modifiers, **pressed)

    def write(self, text: str) -> None:
        """Into whatever has the focus."""
        self.command("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Where the element is, as a mouse does: what is covered or not there is not clicked."""
        found = json.dumps(selector)
        box = self.run(f"""(() => {{
          const element = document.querySelector({found});
          element.scrollIntoView({{block: "center", behavior: "instant"}});
          const {{x, y, width, height}} = element.getBoundingClientRect();
          return [x + width / 2, y + height / 2];
        }})()""")
        where = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.command("Input.dispatchMouseEvent", type=kind, **where)

    def fill(self, selector: str, text: str) -> None:
        self.click(selector)
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.write(text)

    def choose(self, selector: str, value: str) -> None:
        self.run(f"""(() => {{
          const select = document.querySelector({json.dumps(selector)});
          select.value = {json.dumps(value)};
          select.dispatchEvent(new Event("change", {{bubbles: true}}));
        }})()""")

    def screenshot(self) -> bytes:
        """A PNG of the whole page."""
        return b64decode(self.command("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def window(self, width: int, height: int, *, scale: float = 1, dark: bool = False) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])


class _Pipe:
    """Commands on one file descriptor, answers and events on the other, each ended by a zero byte."""

    def __init__(self, out: int, back: int) -> None:
        self.events: list[dict[str, Any]] = []
        self._out, self._back = out, back
        self._numbers = itertools.count(1)
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def command(self, method: str, parameters: dict[str, Any], session: str | None = None) -> dict[str, Any]:
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
def chromium(folder: Path) -> Iterator[Page]:
    """A browser with one tab; what it keeps is kept in the folder."""
    to_browser, out = os.pipe()
    back, from_browser = os.pipe()

    def as_it_wants_them() -> None:
        os.dup2(to_browser, 13)  # aside first: either may be in the place of the other
        os.dup2(from_browser, 14)
        os.dup2(13, 3)
        os.dup2(14, 4)

    browser = subprocess.Popen(
        [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder}", "--remote-debugging-pipe"],
        preexec_fn=as_it_wants_them,  # noqa: PLW1509  # nothing else can place a descriptor
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    pipe = _Pipe(out, back)
    try:
        target = pipe.command("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = pipe.command("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        yield Page(pipe, session)
    finally:
        browser.kill()
        browser.wait()
        os.close(out)
