"""Makes the bodies of successful answers: OpenAI's objects, with the extra fields of this service."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec

from imagegen.aws_limits import LAMBDA_RESPONSE_BYTES, LAMBDA_STREAM_BYTES
from imagegen.domain.base64_blocks import base64_blocks, base64_length
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImageStorageInterruptedError
from imagegen.domain.generations import Generation, Status
from imagegen.domain.inputs import InputImage
from imagegen.ports import ImageStore
from imagegen.wire.costs import cost_answer
from imagegen.wire.errors import error_object
from imagegen.wire.links import Links

_MOST_OPENED_AGAIN = 3
# Bytes of base64; the rest is for headers, prompts and links.
MAX_ANSWER_BYTES = LAMBDA_RESPONSE_BYTES - 128 * 1024
MAX_STREAMED_BYTES = LAMBDA_STREAM_BYTES - 2 * 1024 * 1024


def images_answer(generation: Generation, images: ImageStore, *, durable_urls: bool = False) -> dict[str, Any]:
    """Returns OpenAI's ImagesResponse for a completed generation whose images have `permalink` and `url`.

    With `durable_urls`, the `url` is the durable link, here and below.
    """
    return _answer(generation, lambda image_id: _url(generation, image_id, None if durable_urls else images))


def description_answer(generation: Generation) -> dict[str, Any]:
    """Returns the texts that describe the input image of a completed generation."""
    return {
        "created": int(generation.created_at),
        "id": generation.id,
        "model": generation.request.model,
        "data": _texts(generation),
    }


def _texts(generation: Generation) -> list[dict[str, Any]]:
    return [{"text": text} for text in generation.texts]


def links_answer(generation: Generation, *, durable_urls: bool = False) -> dict[str, Any]:
    """Returns the same without `b64_json` and presigned URLs: an image has only its durable link."""
    return _answer(generation, lambda image_id: _url(generation, image_id, None) if durable_urls else {})


def base64_bytes(generation: Generation) -> int:
    """Returns the size in bytes of the images of a completed generation as base64."""
    return sum(base64_length(image.length) for image in generation.stored.values())


@contextmanager
def base64_answer(
    generation: Generation, images: ImageStore, deadline: Deadline
) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Yields the length in bytes and the blocks of the ImagesResponse whose images have `permalink` and `b64_json`.

    All images are open before it yields. The blocks are made in constant memory. Raises ImageStorageError if an image
    cannot be opened; the blocks raise it too.
    """
    mark = secrets.token_hex(16)  # random, so no prompt contains it
    frame = msgspec.json.encode(_answer(generation, lambda _: {"b64_json": mark})).split(mark.encode())
    with ExitStack() as opened:
        contents = [opened.enter_context(images.read(image_id, deadline)) for image_id in generation.image_ids]

        def blocks() -> Iterator[bytes]:
            yield frame[0]
            for image_id, content, text in zip(generation.image_ids, contents, frame[1:], strict=True):
                yield from base64_blocks(_whole(image_id, content, images, deadline))
                yield text

        yield sum(map(len, frame)) + base64_bytes(generation), blocks()


def _whole(image_id: str, content: Iterator[bytes], images: ImageStore, deadline: Deadline) -> Iterator[bytes]:
    """The blocks of an image. Opens it again, a few times, where reading broke off: its answer cannot be taken back.

    A slow client holds up the reading of each image, and S3 may end a connection that idles.
    """
    offset, again, reading = 0, 0, True
    with ExitStack() as opened:
        while True:
            try:
                if not reading:
                    content = opened.enter_context(images.read(image_id, deadline, offset=offset))
                    reading = True
                block = next(content, None)
            except ImageStorageInterruptedError:
                again += 1
                if again > _MOST_OPENED_AGAIN:
                    raise
                reading = False
                continue
            if block is None:
                return
            offset += len(block)
            yield block


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
    answered = generation.answered(image_id)
    if answered is None:
        return image
    revised = {} if answered.revised_prompt is None else {"revised_prompt": answered.revised_prompt}
    actions = [{"name": action.name, "label": action.label or None} for action in answered.actions]
    return image | revised | answered.details | ({"actions": actions} if actions else {})


def _url(generation: Generation, image_id: str, signer: ImageStore | None) -> dict[str, Any]:
    """Returns a signed URL with its time of expiry, or the durable link if there is no signer."""
    if signer is None:
        return {"url": Links(generation.base_url).permalink(image_id)}
    signed = signer.signed_url(image_id)
    return {"url": signed.url, "expires_at": signed.expires_at}


def generation_answer(generation: Generation, images: ImageStore, *, durable_urls: bool = False) -> dict[str, Any]:
    """Returns the generation object: its status and the images stored so far, with fresh URLs."""
    signer = None if durable_urls else images
    progress = 100 if generation.status is Status.COMPLETED else generation.progress
    return {
        "id": generation.id,
        "object": "image.generation",
        "status": generation.status.value,
        **({} if generation.progress is None else {"progress": progress}),
        "created_at": int(generation.created_at),
        "completed_at": None if generation.completed_at is None else int(generation.completed_at),
        "model": generation.request.model,
        "operation": generation.request.operation,
        "n": generation.request.n,
        "inputs": [_input(image) for image in generation.request.inputs],
        "repeated_calls": generation.repeated_calls,
        "extra_calls": generation.extra_calls,
        "upstream": generation.upstream,
        "cost": cost_answer(generation),
        "data": _texts(generation)
        or [_image(generation, image_id, _url(generation, image_id, signer)) for image_id in generation.stored_ids],
        "error": error_object(generation.failure) if generation.failure else None,
    }


def _input(image: InputImage) -> dict[str, Any]:
    return {
        "id": image.id,
        "field": image.role,
        "media_type": image.media_type,
        "bytes": image.length,
        "width": image.width,
        "height": image.height,
        "sha256": image.sha256,
    }


def generation_list_answer(
    generations: Sequence[Generation], images: ImageStore, *, more: bool, durable_urls: bool = False
) -> dict[str, Any]:
    """Returns OpenAI's list object, newest first."""
    return {
        "object": "list",
        "data": [generation_answer(generation, images, durable_urls=durable_urls) for generation in generations],
        "first_id": generations[0].id if generations else None,
        "last_id": generations[-1].id if generations else None,
        "has_more": more,
    }
