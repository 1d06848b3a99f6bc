"""Writes OpenAI's success bodies, with our extra fields."""

import secrets
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import UnknownModelError
from imagegen.domain.failures import raised_again
from imagegen.domain.generations import Generation
from imagegen.domain.models import CATALOG, DEFAULT_MODEL, MAX_IMAGES, MOST_COMPRESSION, RESPONSE_FORMATS, ImageModel
from imagegen.ports import ImageStore
from imagegen.wire.errors import error_object
from imagegen.wire.links import Links
from imagegen.wire.requests import unknown_model

# Lambda takes 6 MB (6,291,556 bytes) of the JSON that carries an answer; the rest is for headers, prompts and links.
MAX_ANSWER_BYTES = 6_291_556 - 128 * 1024
_CATALOG_DATE = 1767225600  # 2026-01-01: OpenAI's model object wants a time, and the catalog knows none


def images_answer(
    generation: Generation, images: ImageStore, deadline: Deadline, *, durable_urls: bool = False
) -> dict[str, Any]:
    """OpenAI's ImagesResponse for a completed generation. An image has `url` or `b64_json`, and always `permalink`.

    With `durable_urls` the `url` is the durable link, here and below. Raises ImageStorageError where base64 is asked
    for and an image cannot be read.
    """

    def with_content(image_id: str) -> dict[str, Any]:
        with images.read(image_id, deadline) as blocks:
            return {"b64_json": b64encode(b"".join(blocks)).decode()}

    def with_url(image_id: str) -> dict[str, Any]:
        return _url(generation, image_id, None if durable_urls else images)

    wanted = generation.request.response_format
    return _answer(generation, with_content if wanted == "b64_json" else with_url)


def links_answer(generation: Generation, *, durable_urls: bool = False) -> dict[str, Any]:
    """The same with nothing of an image but its durable link."""
    return _answer(generation, lambda image_id: _url(generation, image_id, None) if durable_urls else {})


def base64_bytes(generation: Generation) -> int:
    """What the images of a completed generation weigh as base64."""
    return sum(4 * ((image.length + 2) // 3) for image in generation.stored.values())


def streamed_images_answer(
    generation: Generation, images: ImageStore, deadline: Deadline
) -> tuple[int, Iterator[bytes]]:
    """The same with base64, in constant memory: its length in bytes, and its blocks."""
    mark = secrets.token_hex(16)  # what no prompt can hold
    frame = msgspec.json.encode(_answer(generation, lambda _: {"b64_json": mark})).split(mark.encode())

    def blocks() -> Iterator[bytes]:
        yield frame[0]
        for image_id, text in zip(generation.image_ids, frame[1:], strict=True):
            with images.read(image_id, deadline) as content:
                yield from _encoded(content)
            yield text

    return sum(map(len, frame)) + base64_bytes(generation), blocks()


def _encoded(blocks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        block = rest + block  # noqa: PLW2901
        whole = len(block) - len(block) % 3
        rest = block[whole:]
        yield b64encode(block[:whole])
    yield b64encode(rest)


def _answer(generation: Generation, content: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "created": int(generation.created_at),
        "id": generation.id,
        "data": [_image(generation, image_id, content(image_id)) for image_id in generation.image_ids],
        **generation.details,
    }
    if generation.usage is not None:
        answer["usage"] = generation.usage
    return answer


def _image(generation: Generation, image_id: str, content: dict[str, Any]) -> dict[str, Any]:
    image = {"id": image_id, "permalink": Links(generation.base_url).permalink(image_id), **content}
    revised_prompt = generation.revised_prompt(image_id)
    return image if revised_prompt is None else image | {"revised_prompt": revised_prompt}


def _url(generation: Generation, image_id: str, signer: ImageStore | None) -> dict[str, Any]:
    """A signed URL and when it expires; without a signer the durable link, which does not."""
    if signer is None:
        return {"url": Links(generation.base_url).permalink(image_id)}
    signed = signer.signed_url(image_id)
    return {"url": signed.url, "expires_at": signed.expires_at}


def generation_answer(generation: Generation, images: ImageStore, *, durable_urls: bool = False) -> dict[str, Any]:
    """The generation object: how it stands, and what is stored so far, links freshly signed."""
    signer = None if durable_urls else images
    return {
        "id": generation.id,
        "object": "image.generation",
        "status": generation.status.value,
        "created_at": int(generation.created_at),
        "completed_at": None if generation.completed_at is None else int(generation.completed_at),
        "model": generation.request.model,
        "n": generation.request.n,
        "repeated_calls": generation.repeated_calls,
        "extra_calls": generation.extra_calls,
        "data": [
            _image(generation, image_id, _url(generation, image_id, signer)) for image_id in generation.stored_ids
        ],
        "error": error_object(raised_again(generation.failure)) if generation.failure else None,
    }


def generation_list_answer(
    generations: Sequence[Generation], images: ImageStore, *, more: bool, durable_urls: bool = False
) -> dict[str, Any]:
    """OpenAI's list object, newest first."""
    return {
        "object": "list",
        "data": [generation_answer(generation, images, durable_urls=durable_urls) for generation in generations],
        "first_id": generations[0].id if generations else None,
        "last_id": generations[-1].id if generations else None,
        "has_more": more,
    }


def models_answer(prompt_cap: int) -> dict[str, Any]:
    """OpenAI's list of models, each with what it takes. `prompt_cap` is in characters, for those it applies to."""
    return {"object": "list", "data": [_model(model, prompt_cap) for model in CATALOG.values()]}


def model_answer(name: str, aliases: Mapping[str, str], prompt_cap: int) -> dict[str, Any]:
    """OpenAI's model object, for a model or an alias of one. Raises UnknownModelError."""
    model = CATALOG.get(name) or CATALOG.get(aliases.get(name, ""))
    if model is None:
        raise UnknownModelError(unknown_model(name), param="model")
    return _model(model, prompt_cap)


def _model(model: ImageModel, prompt_cap: int) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": _CATALOG_DATE,
        "owned_by": model.owned_by,
        "default": model.id == DEFAULT_MODEL,
        "parameters": _parameters(model, prompt_cap),
    }


def _parameters(model: ImageModel, prompt_cap: int) -> dict[str, dict[str, Any]]:
    """What makes a difference to the model, by field of the request."""
    fields: dict[str, dict[str, Any]] = {
        "prompt": {"max_characters": model.longest_prompt(prompt_cap)},
        "n": {"min": 1, "max": MAX_IMAGES},
        "size": {"values": model.sizes},
    }
    if model.free_sizes:
        fields["size"]["free"] = asdict(model.free_sizes)
    choices = {
        "quality": model.qualities,
        "style": model.styles,
        "background": model.backgrounds,
        "moderation": model.moderations,
        "output_format": model.output_formats,
    }
    fields |= {name: {"values": values} for name, values in choices.items() if values}
    if model.output_formats:
        fields["output_compression"] = {"min": 0, "max": MOST_COMPRESSION}
    return fields | {"response_format": {"values": RESPONSE_FORMATS, "default": model.default_response_format}}
