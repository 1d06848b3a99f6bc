"""Makes the images of a generation: asks the upstream, stores what comes, answers with all of them or with why not."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass, field
from typing import Any, TypeVar

from imagegen.catalog import ImageModel
from imagegen.deadline import Deadline
from imagegen.errors import (
    ImageDownloadInterruptedError,
    ImagegenError,
    ImageStorageInterruptedError,
    InternalError,
    MoneySpentError,
    PartialGenerationError,
)
from imagegen.generations import Generation
from imagegen.images import GeneratedImage, ImageBody, UpstreamAnswer, UpstreamImage
from imagegen.ports import ImageProvider, ImageSource, ImageStore

T = TypeVar("T")

KEEP_TRIES = 4  # to fetch and store what is paid for: a second and a half of pauses in all
_FIRST_PAUSE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Outcome:
    """Every image that was asked for, in order, and what the upstream said about them."""

    images: tuple[GeneratedImage, ...]
    details: dict[str, str] = field(default_factory=dict)
    usage: dict[str, Any] | None = None


def generate(
    generation: Generation,
    model: ImageModel,
    *,
    provider: ImageProvider,
    source: ImageSource,
    store: ImageStore,
    pool: Executor,
    deadline: Deadline,
) -> Outcome:
    """Calls the upstream as often as the model needs for `n` images, all calls and all storing side by side.

    `pool` runs as many threads as a request may have images. Raises what the upstream call raised where nothing was
    bought at all; once a call was or may have been paid for, a MoneySpentError that carries the images stored.
    """
    request = generation.request
    side_by_side = pool if request.n > 1 else _ThisThread()

    def keep(image_id: str, image: UpstreamImage) -> GeneratedImage:
        content = _keep(image_id, image.source, source, store, deadline, want_content=request.response_format != "url")
        return GeneratedImage(image_id, image.revised_prompt, content)

    calls = {
        side_by_side.submit(provider.generate, request, len(image_ids), deadline): image_ids
        for image_ids in _shares(generation.image_ids, model.calls(request.n))
    }
    answers: list[UpstreamAnswer] = []
    keeping: dict[str, Future[GeneratedImage]] = {}
    failures: list[ImagegenError] = []
    for call in as_completed(calls):
        if failure := call.exception():
            failures.append(_told(failure))
            continue
        answers.append(call.result())
        for image_id, image in zip(calls[call], call.result().images, strict=True):
            keeping[image_id] = side_by_side.submit(keep, image_id, image)

    failures.extend(_told(failure) for kept in keeping.values() if (failure := kept.exception()))
    images = tuple(
        keeping[image_id].result()
        for image_id in generation.image_ids
        if image_id in keeping and not keeping[image_id].exception()
    )
    if failures:
        raise _failure(failures, images, request.n)
    return Outcome(images, answers[0].details, _total_usage(answers))


class _ThisThread(Executor):
    """Runs what is submitted at once: for a single image, handing over to a thread costs more than it gives."""

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(call(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  # it is the future's to tell
            future.set_exception(error)
        return future


def _shares(image_ids: Sequence[str], sizes: Sequence[int]) -> Iterator[Sequence[str]]:
    ids = iter(image_ids)
    for size in sizes:
        yield [next(ids) for _ in range(size)]


def _keep(
    image_id: str,
    where: str | bytes,
    source: ImageSource,
    store: ImageStore,
    deadline: Deadline,
    *,
    want_content: bool,
) -> bytes | None:
    """Fetches and stores one image; what breaks off is fetched again, never bought again."""
    for attempt in range(1, KEEP_TRIES + 1):
        try:
            with source.open(where, deadline) as body:
                if not want_content:
                    store.save(image_id, body, deadline)
                    return None
                blocks: list[bytes] = []
                copied = _copied(body.blocks, blocks)
                store.save(image_id, ImageBody(body.media_type, body.length, copied), deadline)
                for _ in copied:  # what is stored already is not read to its end
                    pass
                return b"".join(blocks)
        except (ImageDownloadInterruptedError, ImageStorageInterruptedError) as error:
            hopeless = isinstance(where, bytes) and isinstance(error, ImageDownloadInterruptedError)
            pause = _FIRST_PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1)
            if hopeless or attempt == KEEP_TRIES or pause >= deadline.remaining():
                raise
            time.sleep(pause)
    raise AssertionError


def _copied(blocks: Iterator[bytes], into: list[bytes]) -> Iterator[bytes]:
    for block in blocks:
        into.append(block)
        yield block


def _told(failure: BaseException) -> ImagegenError:
    if isinstance(failure, ImagegenError):
        return failure
    error = InternalError("Something went wrong on our side after the image model may have been called.")
    error.__cause__ = failure
    return error


def _failure(failures: Sequence[ImagegenError], images: Sequence[GeneratedImage], n: int) -> ImagegenError:
    """The one error that tells what happened: a call that may have been paid for outweighs one that was not."""
    cause = next((failure for failure in failures if isinstance(failure, MoneySpentError)), failures[0])
    if not images:
        return cause
    error = PartialGenerationError(f"{len(images)} of {n} images were made and stored. {cause.message}")
    error.__cause__ = cause
    error.images = images
    return error


def _total_usage(answers: Sequence[UpstreamAnswer]) -> dict[str, Any] | None:
    usages = [answer.usage for answer in answers if answer.usage]
    total: dict[str, Any] | None = None
    for usage in usages:
        total = usage if total is None else _added(total, usage)
    return total


def _added(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    total = dict(left)
    for key, value in right.items():
        known = total.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            total[key] = _added(known, value)
        elif isinstance(known, int) and isinstance(value, int):
            total[key] = known + value
        else:
            total[key] = value
    return total
