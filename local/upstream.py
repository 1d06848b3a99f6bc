"""A stand-in for the upstream: paints real images, so that everything works offline.

This module speaks OpenAI's protocol. Each other protocol has a module.
"""

import hashlib
import io
import json
import textwrap
import threading
import time
import uuid
from base64 import b64encode
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from local import upstream_gemini_chat as gemini_chat
from local import upstream_ideogram as ideogram
from local.serving import Reply, Request
from local.upstream_kling import Kling
from local.upstream_midjourney import Midjourney
from local.upstream_replies import json_reply, one_api_error
from local.upstream_tasks import SUCCEEDS, Charge, Fate

_GPT_PREFIXES = ("gpt-", "chatgpt-")
_GPT_FIELDS = {"model", "prompt", "n", "size", "quality", "user", "background", "moderation"} | {
    "output_format",
    "output_compression",
}
_FIELDS = {
    "dall-e-2": {"model", "prompt", "n", "size", "user", "response_format"},
    "dall-e-3": {"model", "prompt", "n", "size", "quality", "style", "user", "response_format"},
    "flux": {"model", "prompt", "n", "size"},
    "flux-kontext": {"model", "prompt", "n", "aspect_ratio"},
    "qwen-image": {"model", "prompt", "n", "size"},
}
Script = Callable[[Request], Reply | None]


class StandInUpstream:
    """Answers and refuses as OpenAI and its resellers do.

    `calls` are the bodies of the calls that would be charged, `downloads` the requests for images. A call of another
    protocol than OpenAI's names its `protocol`, and has `prompt`, `model` and `n` in addition to what was sent. Each
    entry of `script` answers one call, in order; if it returns None, the usual answer follows. `by_prompt` does the
    same for calls with that prompt and goes first. `download_script` and `downloads_by_prompt` do the same for
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
        calls = {
            "/v1/images/generations": self._generate,
            gemini_chat.PATH: self._gemini_chat,
            ideogram.PATH: self._ideogram,
        }
        if request.method == "POST" and request.target in calls:
            return calls[request.target](request)
        if protocol := self._task_protocol(request):
            return self._submit(protocol, request) if request.method == "POST" else self._poll(protocol, request)
        if request.method == "GET" and request.target.startswith("/files/"):
            return self._file(request)
        return _error(404, f"Invalid URL ({request.method} {request.target})")

    def hosted_gemini_image(self) -> Script:
        """A script: the answer has the URL of the painted image, and not the image."""

        def answer(request: Request) -> Reply:
            sent = gemini_chat.fields(request)
            asked = sent if isinstance(sent, Reply) else gemini_chat.checked(sent)
            if isinstance(asked, Reply):
                return asked
            content = paint(asked.prompt, self.next_index(asked.prompt), asked.size)
            return gemini_chat.linking(self._hosted(content, "png", asked.prompt, request), asked)

        return answer

    @property
    def charged(self) -> list[Charge]:
        """What each accepted submit was charged, and what was refunded of it so far."""
        return self.kling.charges() + self.midjourney.charges()

    def changed(self, change: Callable[[Reply], Reply]) -> Script:
        """A script for a submit or a poll of a task: does what is usual, and changes the answer.

        A change that raises HungUpError loses the answer. A task that was submitted is charged nevertheless.
        """
        return lambda request: change(self._usual(request))

    def fate(self, prompt: str) -> Fate:
        """How the next task with the prompt ends."""
        with self._lock:
            return self.fates[prompt].popleft() if self.fates.get(prompt) else SUCCEEDS

    def picture(self, prompt: str, index: int, size: str, request: Request) -> str:
        """The URL of a picture, which is painted when it is downloaded."""
        return self._hosted_later(partial(paint, prompt, index, size), prompt, request)

    def grid(self, prompt: str, text: str, index: int, size: str, request: Request) -> str:
        """The URL of four pictures of the text in one. Their downloads are scripted by the prompt."""
        return self._hosted_later(partial(paint_grid, text, index, size), prompt, request)

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
                self.calls.append(call)
        if scripted and (reply := scripted(request)):
            time.sleep(self.delay)
            return reply
        reply, is_accepted = protocol.begin(request)
        if is_accepted and not scripted:
            self.calls.append(call)
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
        protocol = self._task_protocol(request)
        if protocol is None:
            return _error(404, f"Invalid URL ({request.method} {request.target})")
        return protocol.begin(request)[0] if request.method == "POST" else protocol.show(request)

    def _gemini_chat(self, request: Request) -> Reply:
        if not self._has_key(request):
            return one_api_error(401, "Invalid token")
        sent = gemini_chat.fields(request)
        if isinstance(sent, Reply):
            return sent
        if reply := self._scripted(gemini_chat.entry(sent), request):
            return reply
        asked = gemini_chat.checked(sent)
        if isinstance(asked, Reply):
            return asked
        return gemini_chat.answer(asked, paint(asked.prompt, self.next_index(asked.prompt), asked.size))

    def _ideogram(self, request: Request) -> Reply:
        if not self._has_key(request):
            return one_api_error(401, "Invalid token")
        sent = ideogram.fields(request)
        if isinstance(sent, Reply):
            return sent
        if reply := self._scripted(ideogram.entry(sent), request):
            return reply
        asked = ideogram.checked(sent)
        if isinstance(asked, Reply):
            return asked
        images = [paint(asked.prompt, self.next_index(asked.prompt), asked.size) for _ in range(asked.n)]
        return ideogram.answer(asked, [self._hosted(image, "png", asked.prompt, request) for image in images])

    def _has_key(self, request: Request) -> bool:
        return request.header("Authorization") == f"Bearer {self.key}"

    def _scripted(self, call: dict[str, Any], request: Request) -> Reply | None:
        """Notes the call and waits for the delay. Returns the answer of its script, if it has one."""
        with self._lock:
            self.calls.append(call)
            scripted = self._next(self.by_prompt, call.get("prompt"), self.script)
        time.sleep(self.delay)
        return scripted(request) if scripted else None

    def _generate(self, request: Request) -> Reply:
        if not self._has_key(request):
            return _error(401, "Incorrect API key provided.", code="invalid_api_key")
        call = json.loads(request.body)
        if reply := self._scripted(call, request):
            return reply
        if refused := _refusal(call):
            return refused
        images = [self._image(call, request) for _ in range(call.get("n", 1))]
        answer: dict[str, Any] = {"created": int(time.time()), "data": images}
        if call["model"].startswith(_GPT_PREFIXES):
            tokens = {"input_tokens": 10, "output_tokens": 40 * len(images), "total_tokens": 10 + 40 * len(images)}
            answer |= {
                "background": "opaque",
                "output_format": call.get("output_format", "png"),
                "quality": "high",
                "size": _size(call),
                "usage": {**tokens, "input_tokens_details": {"text_tokens": 10, "image_tokens": 0}},
            }
        return json_reply(200, answer)

    def _image(self, call: dict[str, Any], request: Request) -> dict[str, str]:
        kind = call.get("output_format", "png")
        content = paint(call["prompt"], self.next_index(call["prompt"]), _size(call), kind)
        image = {"revised_prompt": f"{call['prompt']}, in detail"} if call["model"] == "dall-e-3" else {}
        if call["model"].startswith(_GPT_PREFIXES) or call.get("response_format") == "b64_json":
            return image | {"b64_json": b64encode(content).decode()}
        return image | {"url": self._hosted(content, kind, call["prompt"], request)}

    def next_index(self, prompt: str) -> int:
        """How many images of the prompt there are with the next one."""
        with self._lock:
            self._painted[prompt] = self._painted.get(prompt, 0) + 1
            return self._painted[prompt]

    def _hosted(self, content: bytes, kind: str, prompt: str, request: Request) -> str:
        """The URL under which the image is served from now on."""
        name = f"{uuid.uuid4().hex}.{kind}"
        self.files[name] = (f"image/{kind}", content)
        self._prompts[name] = prompt
        return f"http://{request.header('Host')}/files/{name}"

    def _hosted_later(self, painting: Callable[[], bytes], prompt: str, request: Request) -> str:
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


def paint(prompt: str, index: int, size: str, kind: str = "png") -> bytes:
    """A picture that shows the prompt. Each prompt and index gives another picture."""
    return _encoded(_picture(prompt, index, *_sides(size)), kind)


def paint_grid(prompt: str, index: int, size: str) -> bytes:
    """Four pictures in one PNG, each of half the width and half the height."""
    width, height = _sides(size)
    grid = Image.new("RGB", (width, height))
    for at in range(4):
        picture = _picture(prompt, 4 * index - 3 + at, width // 2, height // 2)
        grid.paste(picture, (at % 2 * (width // 2), at // 2 * (height // 2)))
    return _encoded(grid, "png")


def _sides(size: str) -> tuple[int, int]:
    width, height = map(int, size.split("x"))
    return width, height


def _encoded(picture: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **({"compress_level": 1} if kind == "png" else {}))
    return out.getvalue()


def _picture(prompt: str, index: int, width: int, height: int) -> Image.Image:
    seed = hashlib.sha256(f"{prompt}\0{index}".encode()).digest()
    top, bottom = (tuple(64 + byte // 2 for byte in seed[at : at + 3]) for at in (0, 3))
    picture = Image.composite(
        Image.new("RGB", (width, height), bottom),
        Image.new("RGB", (width, height), top),
        Image.linear_gradient("L").resize((width, height)),
    )
    draw = ImageDraw.Draw(picture)
    for at in range(6, 22, 4):
        x, y = seed[at] * width // 255, seed[at + 1] * height // 255
        radius = (seed[at + 2] + 40) * min(width, height) // 1200
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(seed[at : at + 3]))
    font_size = max(12, min(width, height) // 20)
    columns = max(8, int(width * 1.6 / font_size))
    text = "\n".join(textwrap.wrap(prompt, columns)[:12])
    shadow = max(1, font_size // 16)
    draw.multiline_text(
        (width // 16, height // 16),
        f"{text}\n\n#{index}",
        font=ImageFont.load_default(font_size),
        fill="white",
        stroke_width=shadow,
        stroke_fill="black",
    )
    return picture


def _size(call: dict[str, Any]) -> str:
    if ratio := call.get("aspect_ratio"):
        width, height = map(int, ratio.split(":"))
        return f"{width * 64}x{height * 64}"
    size = str(call.get("size", "1024x1024"))
    return "1024x1024" if size == "auto" else size


def _refusal(call: dict[str, Any]) -> Reply | None:
    model = str(call.get("model"))
    family = next((family for family in ("flux-kontext", "flux") if model.startswith(family)), model)
    fields = _GPT_FIELDS if model.startswith(_GPT_PREFIXES) else _FIELDS.get(family)
    if fields is None:
        return _error(404, f"The model '{model}' does not exist.", code="model_not_found")
    for name in call:
        if name not in fields:
            return _error(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
    if family == "flux-kontext" and "aspect_ratio" not in call:
        return _error(400, "aspect_ratio is required.", param="aspect_ratio", code="missing_required_parameter")
    if model == "dall-e-3" and call.get("n", 1) != 1:
        return _error(400, "You must provide n=1 for this model.", param="n", code="invalid_value")
    return None


def _error(status: int, message: str, *, param: str | None = None, code: str | None = None) -> Reply:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return json_reply(status, {"error": error})
