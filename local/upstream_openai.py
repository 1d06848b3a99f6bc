"""OpenAI's images, as OpenAI and its resellers offer them: checks requests and builds answers."""

import re
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from msgspec import Struct
from PIL import Image

from local import upstream_painting as painting
from local.serving import Reply, Request
from local.upstream_forms import media_type_of, read_form
from local.upstream_inputs import MEDIA_TYPES, MEGABYTE, Input, has_alpha, read_file, transparent_area
from local.upstream_replies import json_reply
from local.upstream_studio import Studio, json_object

GENERATIONS, EDITS, VARIATIONS = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"

_GPT_PREFIXES = ("gpt-", "chatgpt-")
_GPT_FIELDS = {"model", "prompt", "n", "size", "quality", "user", "background", "output_format", "output_compression"}
_FIELDS = {
    "dall-e-2": {"model", "prompt", "n", "size", "user", "response_format"},
    "dall-e-3": {"model", "prompt", "n", "size", "quality", "style", "user", "response_format"},
    "flux": {"model", "prompt", "n", "size"},
    "flux-kontext": {"model", "prompt", "n", "aspect_ratio"},
    "qwen-image": {"model", "prompt", "n", "size"},
}
_FILES = ("image", "image[]", "mask")
# Values of text fields. A form has only texts.
_VALUES = {
    "aspect_ratio": "21:9|16:9|4:3|3:2|1:1|2:3|3:4|9:16|9:21",
    "background": "transparent|opaque|auto",
    "complexity": "low|medium|high",
    "frame_count": "[2-9]|1[0-6]",
    "frame_duration_ms": r"[1-9]\d*",
    "input_fidelity": "high|low",
    "n": "[1-9]|10",
    "output_compression": r"\d\d?|100",
    "output_format": "png|jpeg|webp",
    "quality": "low|medium|high|auto",
    "response_format": "url|b64_json",
}


class _Takes(Struct, frozen=True):
    """What a model takes with images. `images` is how many images `image[]` may have.

    `size` is a pattern, `values` are those that are not the usual ones.
    """

    fields: set[str]
    size: str = ""
    images: int = 0
    media_types: tuple[str, ...] = MEDIA_TYPES
    most_bytes: int = 50 * MEGABYTE
    is_square: bool = False
    most_characters: int = 32_000
    values: dict[str, str] = {}


_DALL_E_2 = _Takes(
    _FIELDS["dall-e-2"] | {"image", "mask"},
    size="256x256|512x512|1024x1024",
    media_types=("image/png",),
    most_bytes=4 * MEGABYTE - 1,
    is_square=True,
    most_characters=1000,
)
_GPT_1 = _Takes(
    _GPT_FIELDS | {"image", "image[]", "mask", "input_fidelity", "safety_identifier"},
    size="1024x1024|1536x1024|1024x1536|auto",
    images=16,
)
_GPT_2 = _Takes(
    _GPT_1.fields - {"input_fidelity"} | {"complexity", "frame_count", "frame_duration_ms"},
    size=r"\d+x\d+|auto",
    images=16,
    values={"quality": "low|medium|high|xhigh|max|auto", "output_format": "png|jpeg|webp|gif"},
)
_KONTEXT = _Takes(_FIELDS["flux-kontext"] | {"image"})
_QWEN = _Takes(_FIELDS["qwen-image"] | {"image"}, size=r"\d{3,4}x\d{3,4}")
_EDITS = {
    "dall-e-2": _DALL_E_2,
    "flux-kontext-pro": _KONTEXT,
    "flux-kontext-max": _KONTEXT,
    "qwen-image": _QWEN,
    "qwen-image-edit": _QWEN,
}
_VARIATION = _Takes(
    _DALL_E_2.fields - {"prompt", "mask"},
    size=_DALL_E_2.size,
    media_types=_DALL_E_2.media_types,
    most_bytes=_DALL_E_2.most_bytes,
    is_square=True,
)


class Generation(Struct, frozen=True):
    """A request for images of a prompt. `sent` are its fields."""

    sent: dict[str, Any]

    def entry(self) -> dict[str, Any]:
        return self.sent

    def answer(self, studio: Studio, request: Request) -> Reply:
        if refused := _refusal(self.sent):
            return refused
        prompt, kind, size = self.sent["prompt"], self.sent.get("output_format", "png"), _size(self.sent)

        def paint() -> bytes:
            return painting.paint(prompt, studio.next_index(prompt), size, kind)

        return _answered(self.sent, size, 0, paint, studio, request)


class Edit(Struct, frozen=True):
    """A request with images. `operation` is "edit" or "variation". `names` are those of all fields, in their order."""

    operation: str
    names: list[str]
    texts: dict[str, str]
    files: list[Input]

    @property
    def model(self) -> str:
        return self.texts.get("model", "dall-e-2")

    @property
    def prompt(self) -> str:
        return self.texts.get("prompt", "")

    @property
    def images(self) -> list[Input]:
        return [each for each in self.files if each.name != "mask"]

    @property
    def mask(self) -> Input | None:
        return next((each for each in self.files if each.name == "mask"), None)

    def entry(self) -> dict[str, Any]:
        """The entry of `StandInUpstream.calls`. `n` is a number, the other fields are texts."""
        n = self.texts.get("n", "1")
        named = {"model": self.model, "prompt": self.prompt, "n": int(n) if n.isdecimal() else 1}
        mask = {"mask": self.mask} if self.mask else {}
        return {**self.texts, **named, "operation": self.operation, "images": self.images, **mask}

    def answer(self, studio: Studio, request: Request) -> Reply:
        takes = self._takes()
        if isinstance(takes, Reply):
            return takes
        checks = (_wrong_names, _wrong_fields, _wrong_values, _wrong_images)
        if refused := next(chain.from_iterable(check(self, takes) for check in checks), None):
            return refused
        strip = painting.strip_of(each.picture for each in self.images)
        call: dict[str, Any] = {"prompt": "", **self.texts, "model": self.model, "n": int(self.texts.get("n", "1"))}
        text, kind, size = self.prompt or self.operation, call.get("output_format", "png"), self._size()
        first, area = self.images[0].picture, self._area()

        def paint() -> bytes:
            index = studio.next_index(self.prompt)
            if first and area:
                return painting.paint_in(area, first, text, index, size, kind, strip)
            return painting.paint(text, index, size, kind, strip)

        return _answered(call, size, len(self.images), paint, studio, request)

    def _takes(self) -> _Takes | Reply:
        if self.operation == "variation":
            found = _VARIATION if self.model == "dall-e-2" else None
        elif self.model.startswith(_GPT_PREFIXES):
            found = _GPT_2 if self.model.startswith("gpt-image-2") else _GPT_1
        else:
            found = _EDITS.get(self.model)
        if found:
            return found
        if _fields_of(self.model) is None:
            return _no_such_model(self.model)
        return error(400, f"Invalid value: '{self.model}'.", param="model", code="invalid_value")

    def _size(self) -> str:
        """That of the first image if the request leaves it open."""
        is_open = self.texts.get("size") == "auto" or not {"size", "aspect_ratio"} & self.texts.keys()
        if is_open and self.model.startswith((*_GPT_PREFIXES, "flux-kontext")):
            return "x".join(map(str, self.images[0].sides))
        return _size(self.texts)

    def _area(self) -> Image.Image | None:
        """The area of the first image to paint: that of the mask. DALL·E 2 takes the image itself for the mask."""
        masks = [self.mask] if self.mask else self.images if self.operation == "edit" and _is_dall_e(self) else []
        return next((transparent_area(each.picture) for each in masks if each.picture), None)


def read_generation(request: Request) -> Generation | Reply:
    sent = json_object(request)
    return error(400, "We could not parse the JSON body of your request.") if sent is None else Generation(sent)


def reader(operation: str) -> Callable[[Request], Edit | Reply]:
    """Reads the forms of an operation, or refuses them."""

    def read(request: Request) -> Edit | Reply:
        content_type = media_type_of(request)
        if content_type != "multipart/form-data":
            message = f"Invalid Content-Type header ({content_type}), expected multipart/form-data."
            return error(400, message)
        parts = read_form(request)
        if parts is None:
            return error(400, "Could not parse multipart form.")
        texts = {part.name: text for part in parts if (text := part.text()) is not None}
        files = [read_file(part) for part in parts if part.text() is None]
        return Edit(operation, [part.name for part in parts], texts, files)

    return read


def error(status: int, message: str, *, param: str | None = None, code: str | None = None) -> Reply:
    return json_reply(
        status, {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
    )


def _answered(
    call: dict[str, Any], size: str, inputs: int, paint: Callable[[], bytes], studio: Studio, request: Request
) -> Reply:
    images = [_image(call, paint(), studio, request) for _ in range(call.get("n", 1))]
    answer: dict[str, Any] = {"created": int(time.time()), "data": images}
    if call["model"].startswith(_GPT_PREFIXES):
        text_tokens, image_tokens, output = 10, 40 * inputs, 40 * len(images)
        tokens = {"input_tokens": text_tokens + image_tokens, "output_tokens": output}
        details = {"text_tokens": text_tokens, "image_tokens": image_tokens}
        answer |= {
            "background": "opaque",
            "output_format": call.get("output_format", "png"),
            "quality": "high",
            "size": size,
            "usage": {**tokens, "total_tokens": sum(tokens.values()), "input_tokens_details": details},
        }
    return json_reply(200, answer)


def _image(call: dict[str, Any], content: bytes, studio: Studio, request: Request) -> dict[str, str]:
    image = {"revised_prompt": f"{call['prompt']}, in detail"} if call["model"] == "dall-e-3" else {}
    if call["model"].startswith(_GPT_PREFIXES) or call.get("response_format") == "b64_json":
        return image | {"b64_json": b64encode(content).decode()}
    return image | {"url": studio.hosted(content, call.get("output_format", "png"), call["prompt"], request)}


def _size(call: dict[str, Any] | dict[str, str]) -> str:
    if ratio := call.get("aspect_ratio"):
        width, height = map(int, ratio.split(":"))
        return f"{width * 64}x{height * 64}"
    size = str(call.get("size", "1024x1024"))
    return "1024x1024" if size == "auto" else size


def _family(model: str) -> str:
    return next((family for family in ("flux-kontext", "flux") if model.startswith(family)), model)


def _fields_of(model: str) -> set[str] | None:
    """The fields of a generation. None if there is no such model."""
    return _GPT_FIELDS | {"moderation"} if model.startswith(_GPT_PREFIXES) else _FIELDS.get(_family(model))


def _refusal(call: dict[str, Any]) -> Reply | None:
    model = str(call.get("model"))
    fields = _fields_of(model)
    if fields is None:
        return _no_such_model(model)
    if unknown := next((name for name in call if name not in fields), None):
        return _unknown_parameter(unknown)
    if _family(model) == "flux-kontext" and "aspect_ratio" not in call:
        return error(400, "aspect_ratio is required.", param="aspect_ratio", code="missing_required_parameter")
    if model == "dall-e-3" and call.get("n", 1) != 1:
        return error(400, "You must provide n=1 for this model.", param="n", code="invalid_value")
    return None


def _wrong_names(form: Edit, takes: _Takes) -> Iterator[Reply]:
    """Why the fields are refused, whatever their values."""
    for name in form.names:
        if name == "image[]" and "image[]" not in takes.fields:
            yield _invalid_type("image", "a file", "an array")
        if name not in takes.fields:
            yield _unknown_parameter(name)
    for name in sorted({name for name in form.names if name != "image[]" and form.names.count(name) > 1}):
        message = f"Duplicate parameter: '{name}'. You provided multiple values for it, where only one is allowed."
        yield error(400, message, param=name, code="duplicate_parameter")


def _wrong_fields(form: Edit, takes: _Takes) -> Iterator[Reply]:
    """Why the kinds of the fields are refused, or those that are missing."""
    for name in form.texts.keys() & _FILES:
        yield _invalid_type(name, "a file", "a string")
    for file in form.files:
        if file.name not in _FILES:
            yield _invalid_type(file.name, "a string", "a file")
    if {"image", "image[]"} <= set(form.names):
        yield error(400, "Mutually exclusive parameters: 'image', 'image[]'.", param="image", code="invalid_value")
    if "prompt" in takes.fields and not form.prompt.strip():
        yield _missing("prompt")
    if not form.images:
        yield _missing("image")


def _wrong_values(form: Edit, takes: _Takes) -> Iterator[Reply]:
    patterns = {**_VALUES, **takes.values, "size": takes.size}
    for name, text in form.texts.items():
        pattern = patterns.get(name, "(?s:.*)")
        if not re.fullmatch(pattern, text) or (name == "size" and takes is _GPT_2 and not _is_size_of_gpt_2(text)):
            yield error(400, f"Invalid value: '{text}'.", param=name, code="invalid_value")
    if len(form.prompt) > takes.most_characters:
        message = f"Invalid 'prompt': string too long. Expected at most {takes.most_characters} characters."
        yield error(400, message, param="prompt", code="string_above_max_length")
    if form.texts.get("background") == "transparent" and form.texts.get("output_format") == "jpeg":
        message = "Transparent background is not supported for JPEG output format."
        yield error(400, message, param="background", code="invalid_value")


def _wrong_images(form: Edit, takes: _Takes) -> Iterator[Reply]:
    if len(form.images) > max(1, takes.images):
        message = f"Invalid 'image': array too long. Expected at most {takes.images} elements."
        yield error(400, message, param="image", code="array_above_max_length")
    for number, image in enumerate(form.images):
        param = f"image[{number}]" if image.name == "image[]" else image.name
        yield from _wrong_file(image, param, takes.media_types)
        if len(image.content) > takes.most_bytes or (takes.is_square and len(set(image.sides)) > 1):
            yield error(400, f"Invalid file '{param}': too large, or not square.", param=param)
    if form.mask:
        yield from _wrong_file(form.mask, "mask", ("image/png",))
        yield from _wrong_mask(form.mask, form.images[0], takes)
    elif _is_dall_e(form) and form.operation == "edit" and not _has_alpha(form.images[0]):
        yield error(400, "Invalid input image - format must be in ['RGBA', 'LA', 'L'], got RGB.")


def _wrong_file(file: Input, param: str, media_types: tuple[str, ...]) -> Iterator[Reply]:
    if file.media_type not in media_types:
        supported = ", ".join(f"'{each}'" for each in media_types)
        got = file.media_type or "application/octet-stream"
        message = f"Invalid file '{param}': unsupported mimetype ('{got}'). Supported file formats are {supported}."
        yield error(400, message, param=param, code="unsupported_file_mimetype")
    if not file.is_what_it_says:
        message = f"Invalid image file or mode for {param}, please check your image file."
        yield error(400, message, param=param, code="invalid_image_file")


def _wrong_mask(mask: Input, image: Input, takes: _Takes) -> Iterator[Reply]:
    reasons = {
        "mask is too large": len(mask.content) > min(takes.most_bytes, 4 * MEGABYTE - 1),
        "mask image missing alpha channel": not _has_alpha(mask),
        "mask size does not match image size": mask.sides != image.sides,
    }
    for reason, applies in reasons.items():
        if applies:
            message = f"Invalid mask image format - {reason}."
            yield error(400, message, param="mask", code="invalid_mask_image_format")


def _is_dall_e(form: Edit) -> bool:
    return form.model == "dall-e-2"


def _has_alpha(image: Input) -> bool:
    return image.picture is not None and has_alpha(image.picture)


def _is_size_of_gpt_2(size: str) -> bool:
    if size == "auto":
        return True
    width, height = painting.sides(size)
    shorter, longer = sorted((width, height))
    is_allowed = width % 16 == height % 16 == 0 and longer <= min(3840, 3 * shorter)
    return is_allowed and 655_360 <= width * height <= 3840 * 2160


def _no_such_model(model: str) -> Reply:
    return error(404, f"The model '{model}' does not exist.", code="model_not_found")


def _unknown_parameter(name: str) -> Reply:
    return error(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")


def _invalid_type(name: str, expected: str, got: str) -> Reply:
    message = f"Invalid type for '{name}': expected {expected}, but got {got} instead."
    return error(400, message, param=name, code="invalid_type")


def _missing(name: str) -> Reply:
    return error(400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
