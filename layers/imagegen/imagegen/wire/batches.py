"""Reads and writes OpenAI's Batch format: input lines, output and error lines, and the batch object.

An output line has durable links. It has nothing that expires or is large: no signed URL, no base64, no prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from imagegen.domain.batches import AskedLine, Batch, BatchStatus, Counts, EndedLine, line_id
from imagegen.domain.errors import GenerationCancelledError, ImagegenError, InvalidRequestError
from imagegen.domain.failures import failure_of
from imagegen.domain.generations import Generation, Status
from imagegen.domain.images import ImageRequest
from imagegen.wire.answers import links_answer
from imagegen.wire.errors import answer_error, answer_failure
from imagegen.wire.json_text import decoded
from imagegen.wire.links import Links
from imagegen.wire.request_events import MOST_CUSTOM_ID

ENDPOINT = "/v1/images/generations"


def read_batch_line(text: bytes, read_fields: Callable[[Mapping[str, Any]], ImageRequest]) -> AskedLine:
    """Reads a line. Raises InvalidRequestError if it is not a line of a batch; `request` raises for an invalid body."""
    try:
        fields = decoded(text)
    except ValueError:
        raise InvalidRequestError("We could not parse this line as JSON.") from None
    if not isinstance(fields, dict):
        raise InvalidRequestError("Invalid line: expected a JSON object.")
    custom_id = fields.get("custom_id")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MOST_CUSTOM_ID:
        raise _invalid("custom_id", f"a string of 1 to {MOST_CUSTOM_ID} characters")
    return AskedLine(custom_id, partial(_request, fields, read_fields))


def _request(fields: Mapping[str, Any], read_fields: Callable[[Mapping[str, Any]], ImageRequest]) -> ImageRequest:
    if fields.get("method") != "POST":
        raise _invalid("method", "'POST'")
    if fields.get("url") != ENDPOINT:
        raise _invalid("url", f"'{ENDPOINT}'")
    body = fields.get("body")
    if not isinstance(body, dict):
        raise _invalid("body", "an object")
    return read_fields(body)


def _invalid(name: str, expected: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid '{name}': expected {expected}.", param=name, code="invalid_value")


def outcome_line(generation: Generation, *, durable_urls: bool = False) -> EndedLine:
    """Returns the outcome of a line whose generation has ended."""
    origin = generation.origin
    batch_id, line = origin.batch_id or "", origin.line or 0
    if generation.status is Status.COMPLETED:
        return _line(
            batch_id, line, origin.custom_id, 200, generation.id, links_answer(generation, durable_urls=durable_urls)
        )
    failure = generation.failure or failure_of(GenerationCancelledError("The generation was cancelled."))
    answer = answer_failure(failure, Links(generation.base_url).permalink, generation.stored_ids)
    return _line(batch_id, line, origin.custom_id, answer.status, generation.id, answer.body)


def refused_line(batch_id: str, line: int, custom_id: str | None, error: ImagegenError) -> EndedLine:
    """Returns the outcome of a line that began no generation. `error` is the reason."""
    answer = answer_error(error, str)
    return _line(batch_id, line, custom_id, answer.status, line_id(batch_id, line), answer.body)


def _line(
    batch_id: str, line: int, custom_id: str | None, status: int, request_id: str, body: dict[str, Any]
) -> EndedLine:
    fields = {
        "id": line_id(batch_id, line),
        "custom_id": custom_id,
        "line": line,
        "response": {"status_code": status, "request_id": request_id, "body": body},
        "error": None,
    }
    return EndedLine(completed=status == 200, text=msgspec.json.encode(fields).decode())


def batch_answer(batch: Batch, counts: Counts) -> dict[str, Any]:
    """Returns OpenAI's Batch object. `counts` are its ended lines."""
    ended = batch.ended
    cancelled = batch.status is BatchStatus.CANCELLED
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": ENDPOINT,
        "errors": None,
        "input_file_id": batch.file.key,
        "completion_window": "24h",
        "status": batch.status.value,
        "output_file_id": batch.output_key if ended and counts.completed else None,
        "error_file_id": batch.errors_key if ended and counts.failed else None,
        "created_at": int(batch.created_at),
        "in_progress_at": int(batch.created_at),
        "expires_at": None,
        "finalizing_at": _seconds(batch.finalizing_at),
        "completed_at": None if cancelled else _seconds(batch.ended_at),
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": _seconds(batch.cancelling_at),
        "cancelled_at": _seconds(batch.ended_at) if cancelled else None,
        "request_counts": request_counts(batch, counts),
        "metadata": None,
    }


def request_counts(batch: Batch, counts: Counts) -> dict[str, int]:
    """Returns OpenAI's counts. While the file is read, the total is the number of lines known so far."""
    known = counts.completed + counts.failed
    total = known if batch.counts else max(known, batch.checkpoint.line, batch.total or 0)
    return {"total": total, "completed": counts.completed, "failed": counts.failed}


def batch_list_answer(batches: Sequence[tuple[Batch, Counts]], *, more: bool) -> dict[str, Any]:
    """Returns OpenAI's list object, newest first."""
    return {
        "object": "list",
        "data": [batch_answer(batch, counts) for batch, counts in batches],
        "first_id": batches[0][0].id if batches else None,
        "last_id": batches[-1][0].id if batches else None,
        "has_more": more,
    }


def batch_event(batch: Batch) -> tuple[str, dict[str, Any]]:
    """Returns the detail-type and the detail of the event for the end of a batch."""
    answer = batch_answer(batch, batch.counts or Counts(0, 0))
    always = ("id", "status", "input_file_id", "output_file_id", "error_file_id", "created_at", "request_counts")
    ended = ("completed_at", "cancelled_at")
    return "Image Batch Completed", {"client": batch.caller, **{name: answer[name] for name in always + ended}}


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)
