"""Gemini's images over chat completions, as resellers offer them: checks requests and builds answers."""

import time
import uuid
from base64 import b64encode
from collections.abc import Callable
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType, ValidationError, convert

from local import upstream_painting as painting
from local.serving import Reply, Request, Responder
from local.upstream_forms import media_type_of
from local.upstream_inputs import MEDIA_TYPES, Input, noted, read_data_url
from local.upstream_replies import json_reply, one_api_error
from local.upstream_studio import Studio, json_object

PATH = "/v1/chat/completions"
PROTOCOL = "gemini-chat"

# The fields of `image_config` that a model takes. Google's ImageConfig names the values of both fields, and says that
# models without a field refuse it. Its guide to image generation gives `image_size` to Gemini 3 only; 2.0 has neither.
_IMAGE_CONFIG: dict[str, set[str]] = {
    "gemini-2.0-flash-exp-image-generation": set(),
    "gemini-2.5-flash-image": {"aspect_ratio"},
    "gemini-2.5-flash-image-preview": {"aspect_ratio"},
    "gemini-3-pro-image": {"aspect_ratio", "image_size"},
    "gemini-3-pro-image-preview": {"aspect_ratio", "image_size"},
}
# Width and height for 1K. They have the exact ratio. The models' own sizes are a few pixels off.
_SIZES = {
    "1:1": (1024, 1024),
    "2:3": (832, 1248),
    "3:2": (1248, 832),
    "3:4": (864, 1152),
    "4:3": (1152, 864),
    "9:16": (720, 1280),
    "16:9": (1280, 720),
    "21:9": (1512, 648),
}
_FACTORS = {"1K": 1, "2K": 2, "4K": 4}
_IMAGE_TOKENS = 1290
_TOKENS_OF_INPUT = 258


class _TextPart(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    text: str


class _ImageUrl(Struct, frozen=True, forbid_unknown_fields=True):
    url: str


class _ImagePart(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="image_url"):
    image_url: _ImageUrl


class _Message(Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["user"]
    content: str | list[_TextPart | _ImagePart]


class _ImageConfig(Struct, frozen=True, forbid_unknown_fields=True):
    aspect_ratio: Literal["1:1", "2:3", "3:2", "3:4", "4:3", "9:16", "16:9", "21:9"] | UnsetType = UNSET
    image_size: Literal["1K", "2K", "4K"] | UnsetType = UNSET


class _Google(Struct, frozen=True, forbid_unknown_fields=True):
    image_config: _ImageConfig = _ImageConfig()


class _ExtraBody(Struct, frozen=True, forbid_unknown_fields=True):
    google: _Google = _Google()


class _Body(Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    messages: list[_Message]
    stream: bool = False
    modalities: list[Literal["text", "image"]] | UnsetType = UNSET
    n: Literal[1] = 1
    extra_body: _ExtraBody = _ExtraBody()


class Asked(Struct, frozen=True):
    """What to paint. `size` is width x height."""

    model: str
    prompt: str
    size: str
    images: tuple[Input, ...] = ()


class Chat(Struct, frozen=True):
    """A request. `sent` are its fields."""

    sent: dict[str, Any]

    def entry(self) -> dict[str, Any]:
        """The entry of `StandInUpstream.calls`."""
        try:
            messages = convert(self.sent.get("messages"), list[_Message])
        except ValidationError:
            messages = []
        images = [image for image in _images(messages) if image]
        call = {"model": "", **self.sent, "prompt": _prompt(messages), "n": 1, "protocol": PROTOCOL}
        if "messages" in call:
            call["messages"] = _without_images(call["messages"])
        return call | ({"images": images} if images else {})

    def answer(self, studio: Studio, _: Request) -> Reply:
        """An answer with a PNG, where the model puts it: Gemini 3 in `images`, the others in the text."""
        return self._answer(studio, _in_place)

    def linking(self, studio: Studio, request: Request) -> Reply:
        """An answer with the URL of a PNG in the text."""

        def hosting(content: bytes, asked: Asked) -> Reply:
            return _in_text(studio.hosted(content, "png", asked.prompt, request), asked)

        return self._answer(studio, hosting)

    def _answer(self, studio: Studio, showing: Callable[[bytes, Asked], Reply]) -> Reply:
        asked = _checked(self.sent)
        if isinstance(asked, Reply):
            return asked
        strip = painting.strip_of(image.picture for image in asked.images)
        return showing(painting.paint(asked.prompt, studio.next_index(asked.prompt), asked.size, strip=strip), asked)


def read(request: Request) -> Chat | Reply:
    """Reads the fields, or refuses a body that is not a JSON object."""
    if media_type_of(request) != "application/json":
        return _error("The Content-Type must be application/json.")
    sent = json_object(request)
    return _error("The body is not a JSON object.") if sent is None else Chat(sent)


def _checked(sent: dict[str, Any]) -> Asked | Reply:
    try:
        body = convert(sent, _Body)
    except ValidationError as error:
        return _error(str(error))
    if body.model not in _IMAGE_CONFIG:
        message = f"No available channel for model {body.model} under group default"
        return one_api_error(503, message, code="model_not_found")
    if refusal := _refusal(body):
        return _error(refusal)
    found = _images(body.messages)
    images = [image for image in found if image and image.is_what_it_says and image.media_type in MEDIA_TYPES]
    if len(images) < len(found):
        return _error("Unable to process an input image: it must be a data URL of a PNG, JPEG or WebP.")
    config = body.extra_body.google.image_config
    factor = _FACTORS[config.image_size or "1K"]
    width, height = _SIZES[config.aspect_ratio or "1:1"]
    return Asked(body.model, _prompt(body.messages), f"{width * factor}x{height * factor}", tuple(images))


def _in_place(content: bytes, asked: Asked) -> Reply:
    url = f"data:image/png;base64,{b64encode(content).decode()}"
    if asked.model.startswith("gemini-3"):
        images = [{"type": "image_url", "image_url": {"url": url}}]
        return _completion({"content": "Here it is.", "images": images}, asked)
    return _in_text(url, asked)


def _in_text(url: str, asked: Asked) -> Reply:
    return _completion({"content": f"Here it is.\n![image]({url})"}, asked)


# Scripts for `StandInUpstream`. `StandInUpstream.hosted_gemini_image` is another.


def text_without_image(text: str = "I cannot draw that.") -> Responder:
    return lambda _: _completion({"content": text})


def content_filter(content: str | None = None) -> Responder:
    return lambda _: _completion({"content": content}, finish_reason="content_filter")


def hosted_image(url: str) -> Responder:
    """The image is at this URL."""
    return lambda _: _completion({"content": f"Here it is.\n![image]({url})"})


def broken_json() -> Responder:
    """The JSON ends too early."""
    return lambda _: Reply(200, b'{"id":"chatcmpl-1","choices":[{"index":0,', {"Content-Type": "application/json"})


def _prompt(messages: list[_Message]) -> str:
    """All texts, each on a line of its own."""
    return "\n".join(part.text for part in _parts(messages) if isinstance(part, _TextPart))


def _images(messages: list[_Message]) -> list[Input | None]:
    """All images. An image is None if it is not a data URL."""
    return [read_data_url("image_url", part.image_url.url) for part in _parts(messages) if isinstance(part, _ImagePart)]


def _parts(messages: list[_Message]) -> list[_TextPart | _ImagePart]:
    contents = (message.content for message in messages)
    return [part for content in contents for part in ([_TextPart(content)] if isinstance(content, str) else content)]


def _without_images(value: Any) -> Any:
    """Messages with the hash of each image in place of its base64."""
    if isinstance(value, list):
        return [_without_images(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {name: noted(each) if name == "url" else _without_images(each) for name, each in value.items()}


def _refusal(body: _Body) -> str | None:
    """Why the values are refused, which are valid one by one."""
    config = body.extra_body.google.image_config
    for name in ("aspect_ratio", "image_size"):
        if getattr(config, name) is not UNSET and name not in _IMAGE_CONFIG[body.model]:
            return f"{body.model} does not support {name}."
    if body.stream:
        return "stream must be false."
    if body.modalities is not UNSET and "image" not in body.modalities:
        return "modalities must contain image."
    return None if _prompt(body.messages).strip() else "The messages contain no text."


def _error(message: str) -> Reply:
    return one_api_error(400, message, code="invalid_request")


def _completion(message: dict[str, Any], asked: Asked | None = None, *, finish_reason: str = "stop") -> Reply:
    """An answer to a request. Without one, an answer without an image's tokens."""
    prompt_tokens, tokens = 4, 8
    if asked:
        prompt_tokens, tokens = len(asked.prompt.split()) + _TOKENS_OF_INPUT * len(asked.images), _IMAGE_TOKENS
    return json_reply(
        200,
        {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": asked.model if asked else "gemini-2.5-flash-image",
            "choices": [{"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", **message}}],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": tokens,
                "total_tokens": prompt_tokens + tokens,
            },
        },
    )
