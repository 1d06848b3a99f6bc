"""A stand-in for the upstream: paints real images, so that everything works offline.

Each protocol has a module.
"""

import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

from local import upstream_gemini_chat as gemini_chat
from local import upstream_ideogram as ideogram
from local import upstream_openai as openai
from local.serving import Reply, Request
from local.upstream_inputs import Input
from local.upstream_kling import Kling
from local.upstream_midjourney import Midjourney
from local.upstream_replies import one_api_error
from local.upstream_studio import Call
from local.upstream_tasks import SUCCEEDS, Charge, Fate

Script = Callable[[Request], Reply | None]
_MOST_INPUTS = 64
_CALLS: dict[str, Callable[[Request], Call | Reply]] = {
    openai.GENERATIONS: openai.read_generation,
    openai.EDITS: openai.reader("edit"),
    openai.VARIATIONS: openai.reader("variation"),
    gemini_chat.PATH: gemini_chat.read,
    **{path: ideogram.reader(operation) for operation, path in ideogram.PATHS.items()},
}


class StandInUpstream:
    """Answers and refuses as OpenAI and its resellers do.

    `calls` are the bodies of the calls that would be charged, `downloads` the requests for images. A call of another
    protocol than OpenAI's names its `protocol`, and has `prompt`, `model` and `n` in addition to what was sent. A call
    that came with images has them as `images` and `mask`, and `sha256:…` in the place of base64; one that is no plain
    generation has an `operation`. A call without a prompt has an empty one. `inputs` are the contents of the last
    images, by their SHA-256.

    Each entry of `script` answers one call, in order; if it returns None, the usual answer follows. `by_prompt` does
    the same for calls with that prompt and goes first. `download_script` and `downloads_by_prompt` do the same for
    downloads. `pages` answer all requests for a path under /files/. `delay` is in seconds.

    A submit to `kling` or `midjourney` makes a task, which runs for `task_seconds` once it has begun. Of the submits,
    those are in `calls` that were accepted or answered by a script. `polls` are the requests for a task; `poll_script`
    and `polls_by_prompt` are for them what `script` and `by_prompt` are for calls. Each entry of `fates` is how one
    task with that prompt ends. `charged` is what submits cost, and what was refunded, if the upstream `refunds`. `now`
    is the clock of the tasks, in Unix seconds.
    """

    def __init__(self, key: str, *, now: Callable[[], float] = time.time) -> None:
        self.key = key
        self.now = now
        self.delay = 0.0
        self.task_seconds = 2.0
        self.refunds = True
        self.kling = Kling(self)
        self.midjourney = Midjourney(self)
        self.calls: list[dict[str, Any]] = []
        self.inputs: dict[str, bytes] = {}
        self.downloads: list[Request] = []
        self.script: deque[Script] = deque()
        self.download_script: deque[Script] = deque()
        self.by_prompt: defaultdict[str, deque[Script]] = defaultdict(deque)
        self.downloads_by_prompt: defaultdict[str, deque[Script]] = defaultdict(deque)
        self.polls: list[Request] = []
        self.poll_script: deque[Script] = deque()
        self.polls_by_prompt: defaultdict[str, deque[Script]] = defaultdict(deque)
        self.fates: defaultdict[str, deque[Fate]] = defaultdict(deque)
        self.pages: dict[str, Script] = {}
        self.files: dict[str, tuple[str, bytes]] = {}
        self._unpainted: dict[str, Callable[[], bytes]] = {}  # by name of the image file
        self._prompts: dict[str, str] = {}  # by name of the image file
        self._painted: dict[str, int] = {}
        self._lock = threading.Lock()

    def respond(self, request: Request) -> Reply:
        if (request.header("User-Agent") or "").lower().startswith("python"):
            return Reply(403, b"error code: 1010")  # as Cloudflare, for the default User-Agent of HTTP libraries
        if request.method == "POST" and request.target in _CALLS:
            return self._call(request)
        if protocol := self._task_protocol(request):
            return self._submit(protocol, request) if request.method == "POST" else self._poll(protocol, request)
        if request.method == "GET" and request.target.startswith("/files/"):
            return self._file(request)
        return _no_such_path(request)

    def hosted_gemini_image(self) -> Script:
        """A script: the answer has the URL of the painted image, and not the image."""

        def answer(request: Request) -> Reply:
            call = gemini_chat.read(request)
            return call if isinstance(call, Reply) else call.linking(self, request)

        return answer

    @property
    def charged(self) -> list[Charge]:
        """What each accepted submit was charged, and what was refunded of it so far."""
        return self.kling.charges() + self.midjourney.charges()

    def changed(self, change: Callable[[Reply], Reply]) -> Script:
        """A script for a call or a poll: does what is usual, and changes the answer.

        A change that raises HungUpError loses the answer. A task that was submitted is charged nevertheless.
        """
        return lambda request: change(self._usual(request))

    def fate(self, prompt: str) -> Fate:
        """How the next task with the prompt ends."""
        with self._lock:
            return self.fates[prompt].popleft() if self.fates.get(prompt) else SUCCEEDS

    def _task_protocol(self, request: Request) -> Kling | Midjourney | None:
        both = (self.kling, self.midjourney)
        return next((each for each in both if each.is_submit(request) or each.is_poll(request)), None)

    def _submit(self, protocol: Kling | Midjourney, request: Request) -> Reply:
        if not self._has_key(request):
            return one_api_error(401, "Invalid token")
        call = protocol.entry(request)
        if isinstance(call, Reply):
            return call
        with self._lock:
            scripted = self._next(self.by_prompt, call["prompt"], self.script)
            if scripted:
                self._note(call)
        if scripted and (reply := scripted(request)):
            time.sleep(self.delay)
            return reply
        reply, is_accepted = protocol.begin(request)
        if is_accepted and not scripted:
            with self._lock:
                self._note(call)
        time.sleep(self.delay)
        return reply

    def _poll(self, protocol: Kling | Midjourney, request: Request) -> Reply:
        if not self._has_key(request):
            return one_api_error(401, "Invalid token")
        task = protocol.find(request)
        with self._lock:
            self.polls.append(request)
            scripted = self._next(self.polls_by_prompt, task and task.prompt, self.poll_script)
        return (scripted and scripted(request)) or protocol.show(request)

    def _usual(self, request: Request) -> Reply:
        if protocol := self._task_protocol(request):
            return protocol.begin(request)[0] if request.method == "POST" else protocol.show(request)
        if request.target not in _CALLS:
            return _no_such_path(request)
        call = _CALLS[request.target](request)
        return call if isinstance(call, Reply) else call.answer(self, request)

    def _call(self, request: Request) -> Reply:
        """Answers a call whose answer has the images."""
        if not self._has_key(request):
            if request.target in (openai.GENERATIONS, openai.EDITS, openai.VARIATIONS):
                return openai.error(401, "Incorrect API key provided.", code="invalid_api_key")
            return one_api_error(401, "Invalid token")
        call = _CALLS[request.target](request)
        if isinstance(call, Reply):
            return call
        return self._scripted(call.entry(), request) or call.answer(self, request)

    def _has_key(self, request: Request) -> bool:
        return request.header("Authorization") == f"Bearer {self.key}"

    def _scripted(self, call: dict[str, Any], request: Request) -> Reply | None:
        """Notes the call and waits for the delay. Returns the answer of its script, if it has one."""
        with self._lock:
            self._note(call)
            scripted = self._next(self.by_prompt, call.get("prompt"), self.script)
        time.sleep(self.delay)
        return scripted(request) if scripted else None

    def _note(self, call: Mapping[str, Any]) -> None:
        """Notes a call, and keeps the images that came with it. Callers hold the lock."""
        self.calls.append({name: self._kept(value) for name, value in call.items()})

    def _kept(self, value: object) -> object:
        """The value without the content of images, which is in `inputs` from now on."""
        if isinstance(value, list):
            return [self._kept(each) for each in value]
        if not isinstance(value, Input):
            return value
        self.inputs.pop(value.sha256, None)
        self.inputs[value.sha256] = value.content
        while len(self.inputs) > _MOST_INPUTS:
            del self.inputs[next(iter(self.inputs))]
        return value.entry()

    def next_index(self, prompt: str) -> int:
        """How many images of the prompt there are with the next one."""
        with self._lock:
            self._painted[prompt] = self._painted.get(prompt, 0) + 1
            return self._painted[prompt]

    def hosted(self, content: bytes, kind: str, prompt: str, request: Request) -> str:
        """The URL under which the image is served from now on."""
        name = f"{uuid.uuid4().hex}.{kind}"
        self.files[name] = (f"image/{kind}", content)
        self._prompts[name] = prompt
        return f"http://{request.header('Host')}/files/{name}"

    def hosted_later(self, painting: Callable[[], bytes], prompt: str, request: Request) -> str:
        """The URL under which a PNG is served from now on. It is painted when it is downloaded."""
        name = f"{uuid.uuid4().hex}.png"
        self._unpainted[name] = painting
        self._prompts[name] = prompt
        return f"http://{request.header('Host')}/files/{name}"

    def _file(self, request: Request) -> Reply:
        with self._lock:
            self.downloads.append(request)
            scripted = self.pages.get(request.target)
            if scripted is None:
                prompt = self._prompts.get(request.target.removeprefix("/files/"))
                scripted = self._next(self.downloads_by_prompt, prompt, self.download_script)
        if scripted and (reply := scripted(request)):
            return reply
        name = request.target.removeprefix("/files/")
        if name not in self.files and (painting := self._unpainted.get(name)):
            self.files[name] = ("image/png", painting())
        kind, content = self.files.get(name, ("", b""))
        return Reply(200, content, {"Content-Type": kind}) if content else Reply(404, b"gone")

    @staticmethod
    def _next(by_prompt: Mapping[str, deque[Script]], prompt: object, script: deque[Script]) -> Script | None:
        own = by_prompt.get(prompt) if isinstance(prompt, str) else None
        return own.popleft() if own else script.popleft() if script else None


def _no_such_path(request: Request) -> Reply:
    return openai.error(404, f"Invalid URL ({request.method} {request.target})")
