"""Reads the answers of Kling, and of resellers that wrap them: `data` may be within `data`, and fields renamed."""

from collections.abc import Iterator, Mapping

import msgspec

from imagegen.domain.errors import (
    ImagegenError,
    MoneySpentError,
    PromptRejectedError,
    UpstreamFailedError,
    UpstreamKeyRefusedError,
    UpstreamLacksModelError,
    UpstreamOutOfCreditError,
    UpstreamRateLimitedError,
    UpstreamRefusedRequestError,
    UpstreamUnavailableError,
)
from imagegen.domain.images import UpstreamImage, UpstreamImages
from imagegen.providers.answer_values import MOST_ENTRIES, NULL, exactly, image_url, value_of
from imagegen.providers.lenient_json import decoded
from imagegen.providers.refusals import refusal, refused_because
from imagegen.providers.tasks import NO_TASK, per_cent, task_id_of

_MOST_WRAPPERS = 4
_SUCCESS = {"succeed", "succeeded", "success", "completed"}
_FAILURE = {"failed", "fail", "failure", "error", "cancel", "cancelled", "canceled"}

# The exceptions of codes whose message says nothing more.
_KINDS: Mapping[tuple[int, ...], type[ImagegenError]] = {
    (1000, 1001, 1002, 1003, 1004, 1304): UpstreamKeyRefusedError,
    (1100, 1101, 1102): UpstreamOutOfCreditError,
    (1300, 1301): PromptRejectedError,
    (1302, 1303): UpstreamRateLimitedError,
    (5001,): UpstreamUnavailableError,
}


class _Info(msgspec.Struct):
    external_task_id: msgspec.Raw = NULL


class _Result(msgspec.Struct):
    images: list[msgspec.Raw] = []


class _Image(msgspec.Struct):
    index: msgspec.Raw = NULL
    url: msgspec.Raw = NULL


class _Answer(msgspec.Struct):
    """One level of an answer."""

    code: msgspec.Raw = NULL
    message: msgspec.Raw = NULL
    data: msgspec.Raw = NULL
    task_id: msgspec.Raw = NULL
    task_status: msgspec.Raw = NULL
    status: msgspec.Raw = NULL
    progress: msgspec.Raw = NULL
    task_status_msg: msgspec.Raw = NULL
    fail_reason: msgspec.Raw = NULL
    task_info: msgspec.Raw = NULL
    task_result: msgspec.Raw = NULL
    final_unit_deduction: msgspec.Raw = NULL


class Task(msgspec.Struct, frozen=True):
    """What an answer says about a task. `id` is that by which it is polled; a wrapped answer has a second one.

    `status` is "" while the task runs, else "success" or "failure". `refunded` is what Kling says to its own customer,
    who may be a reseller.
    """

    id: str
    ids: frozenset[str]
    reference: str | None
    status: str
    progress: int | None
    reason: str
    refunded: bool
    images: tuple[msgspec.Raw, ...]


def read_code(body: bytes | bytearray) -> tuple[int | str | None, str]:
    """Returns the code and the message of an answer, `None` if it has no code. 0 means success."""
    answer = decoded(body, _Answer) or _Answer()
    text = value_of(answer.code, str)
    code = value_of(answer.code, int) if text is None else 0 if text == "success" else text
    return code, value_of(answer.message, str) or ""


def read_task(body: bytes | bytearray) -> Task | None:
    """Returns `None` if the answer has no task."""
    levels = list(_levels(body))
    ids = [known for level in levels if (known := task_id_of(level.task_id))]
    if not ids:
        return None
    reasons = (value_of(raw, str) for level in levels for raw in (level.task_status_msg, level.fail_reason))
    deductions = [units for level in levels if (units := value_of(level.final_unit_deduction, str)) is not None]
    results = (value_of(level.task_result, _Result) for level in levels)
    references = (value_of((value_of(level.task_info, _Info) or _Info()).external_task_id, str) for level in levels)
    return Task(
        id=ids[0],
        ids=frozenset(ids),
        reference=next(filter(None, references), None),
        status=_status(levels),
        progress=next((part for level in levels if (part := per_cent(level.progress)) is not None), None),
        reason=next(filter(None, reasons), ""),
        refunded=bool(deductions) and not any(_is_charged(text) for text in deductions),
        images=tuple(next((result.images for result in results if result), ())),
    )


def images_of(task: Task, n: int) -> UpstreamImages:
    """Returns exactly `n` images of a task that succeeded. Raises the first failure if no image is usable."""
    entries = [value_of(raw, _Image) or _Image() for raw in task.images[:MOST_ENTRIES]]
    entries.sort(key=lambda entry: value_of(entry.index, int) or 0)
    return UpstreamImages(exactly([_image(entry) for entry in entries], n, None))


def no_such_task(status: int, body: bytes | bytearray) -> bool:
    """Whether an answer says that there is no such task. Some resellers refuse with status 200."""
    code, message = read_code(body)
    return status in (200, 400, 404) and bool(code) and (code == 1203 or bool(NO_TASK.search(f"{code} {message}")))


def refusal_of_code(code: int, message: str) -> ImagegenError:
    """Returns the exception for a code of Kling (its guide, "Error Codes"). The message does not contain the key."""
    if code in (1200, 1201):
        return UpstreamRefusedRequestError(refused_because(message))
    if code in (1103, 1202, 1203):
        return UpstreamLacksModelError(refused_because(message), param="model")
    for codes, kind in _KINDS.items():
        if code in codes:
            return refusal(kind)
    return UpstreamFailedError(f"The image model's API failed (code {code}).")


def _levels(body: bytes | bytearray) -> Iterator[_Answer]:
    """Yields an answer and what is wrapped in it, from the outside."""
    level = decoded(body, _Answer)
    for _ in range(_MOST_WRAPPERS):
        if level is None:
            return
        yield level
        level = value_of(level.data, _Answer)


def _status(levels: list[_Answer]) -> str:
    """Kling's own status counts, which is the innermost; a gateway's `status` may be older."""
    texts = [value_of(raw, str) for level in reversed(levels) for raw in (level.task_status, level.status)]
    known = next((text.lower() for text in texts if text), "")
    return "success" if known in _SUCCESS else "failure" if known in _FAILURE else ""


def _is_charged(units: str) -> bool:
    """Whether Kling says that it took units of account for a task: a number as text."""
    try:
        return float(units) != 0
    except ValueError:
        return True


def _image(entry: _Image) -> UpstreamImage:
    try:
        return UpstreamImage(image_url(value_of(entry.url, str) or ""))
    except MoneySpentError as failure:
        return UpstreamImage(failure=failure)
