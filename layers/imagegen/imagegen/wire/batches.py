"""OpenAI's Batch format: the lines of a file that is dropped, the lines that tell what became of them, and the object.

An output line has durable links and nothing that goes stale or is heavy: no signed URL, no base64, no prompt.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from imagegen.domain.batches import AskedLine, Batch, BatchStatus, Counts, EndedLine, line_id
from imagegen.domain.errors import GenerationCancelledError, ImagegenError, InvalidRequestError, MoneySpentError
from imagegen.domain.failures import raised_again
from imagegen.domain.generations import Generation, Status
from imagegen.domain.images import ImageRequest
from imagegen.wire.answers import links_answer
from imagegen.wire.errors import answer_error
from imagegen.wire.json_text import decoded
from imagegen.wire.links import Links
from imagegen.wire.request_events import MOST_CUSTOM_ID
from imagegen.wire.requests import NO_ALIASES, read_image_fields

ENDPOINT = "/v1/images/generations"


def read_batch_line(text: bytes, *, prompt_cap: int, aliases: Mapping[str, str] = NO_ALIASES) -> AskedLine:
    """Raises InvalidRequestError where it is no line of a batch; what its body lacks comes with the request."""
    try:
        fields = decoded(text)
    except ValueError:
        raise InvalidRequestError("We could not parse this line as JSON.") from None
    if not isinstance(fields, dict):
        raise InvalidRequestError("Invalid line: expected a JSON object.")
    custom_id = fields.get("custom_id")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MOST_CUSTOM_ID:
        raise _invalid("custom_id", f"a text of 1 to {MOST_CUSTOM_ID} characters")
    return AskedLine(custom_id, partial(_request, fields, prompt_cap, aliases))


def _request(fields: Mapping[str, Any], prompt_cap: int, aliases: Mapping[str, str]) -> ImageRequest:
    if fields.get("method") != "POST":
        raise _invalid("method", "'POST'")
    if fields.get("url") != ENDPOINT:
        raise _invalid("url", f"'{ENDPOINT}'")
    body = fields.get("body")
    if not isinstance(body, dict):
        raise _invalid("body", "an object")
    return read_image_fields(body, prompt_cap=prompt_cap, aliases=aliases)


def _invalid(name: str, expected: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid '{name}': expected {expected}.", param=name, code="invalid_value")


def outcome_line(generation: Generation, *, durable_urls: bool = False) -> EndedLine:
    """What the generation of a line came to."""
    origin = generation.origin
    batch_id, line = origin.batch_id or "", origin.line or 0
    if generation.status is Status.COMPLETED:
        return _line(
            batch_id, line, origin.custom_id, 200, generation.id, links_answer(generation, durable_urls=durable_urls)
        )
    cancelled = GenerationCancelledError("The generation was cancelled.")
    error = raised_again(generation.failure) if generation.failure else cancelled
    if isinstance(error, MoneySpentError):
        error.images = generation.stored_ids
    answer = answer_error(error, Links(generation.base_url).permalink)
    return _line(batch_id, line, origin.custom_id, answer.status, generation.id, answer.body)


def refused_line(batch_id: str, line: int, custom_id: str | None, error: ImagegenError) -> EndedLine:
    """Why a line began no generation."""
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
    """OpenAI's Batch object; `counts` are how many of its lines have ended."""
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
    """The total is what is known of it so far, as long as the file is being read."""
    known = counts.completed + counts.failed
    total = known if batch.counts else max(known, batch.checkpoint.line, batch.total or 0)
    return {"total": total, "completed": counts.completed, "failed": counts.failed}


def batch_list_answer(batches: Sequence[tuple[Batch, Counts]], *, more: bool) -> dict[str, Any]:
    """OpenAI's list object, newest first."""
    return {
        "object": "list",
        "data": [batch_answer(batch, counts) for batch, counts in batches],
        "first_id": batches[0][0].id if batches else None,
        "last_id": batches[-1][0].id if batches else None,
        "has_more": more,
    }


def batch_event(batch: Batch) -> tuple[str, dict[str, Any]]:
    """The detail-type and the detail that tell how a batch ended."""
    answer = batch_answer(batch, batch.counts or Counts(0, 0))
    told = ("id", "status", "input_file_id", "output_file_id", "error_file_id", "created_at", "request_counts")
    ended = ("completed_at", "cancelled_at")
    return "Image Batch Completed", {"client": batch.caller, **{name: answer[name] for name in told + ended}}


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)
