"""Writes OpenAI's Batch format: output and error lines, and the batch object.

An output line has durable links. It has nothing that expires or is large: no signed URL, no base64, no prompt.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from imagegen.domain.batches import Batch, BatchProblem, BatchStatus, Counts, EndedLine, line_id
from imagegen.domain.errors import BatchCancelledError, BatchExpiredError, GenerationCancelledError, ImagegenError
from imagegen.domain.failures import Failure, failure_of
from imagegen.domain.generations import Generation, Status
from imagegen.wire.answers import links_answer
from imagegen.wire.batch_requests import ENDPOINTS, WINDOW
from imagegen.wire.errors import answer_failure
from imagegen.wire.links import Links

# Of these, OpenAI's line has an error and no response.
_WITHOUT_RESPONSE = (BatchCancelledError.code, BatchExpiredError.code)


def outcome_line(generation: Generation, *, durable_urls: bool = False) -> EndedLine:
    """Returns the outcome of a line whose generation has ended."""
    origin = generation.origin
    batch_id, line = origin.batch_id or "", origin.line or 0
    if generation.status is Status.COMPLETED:
        body = links_answer(generation, durable_urls=durable_urls)
        return _line(batch_id, line, origin.custom_id, _response(200, generation.id, body))
    failure = generation.failure or failure_of(GenerationCancelledError("The generation was cancelled."))
    return _failed_line(generation.origin.custom_id, batch_id, line, failure, generation)


def refused_line(batch_id: str, line: int, custom_id: str | None, error: ImagegenError) -> EndedLine:
    """Returns the outcome of a line that began no generation. `error` is the reason."""
    return _failed_line(custom_id, batch_id, line, failure_of(error), None)


def _failed_line(
    custom_id: str | None, batch_id: str, line: int, failure: Failure, generation: Generation | None
) -> EndedLine:
    if failure.code in _WITHOUT_RESPONSE:
        return _line(batch_id, line, custom_id, None, {"code": failure.code, "message": failure.message})
    if generation is None:
        answer, request_id = answer_failure(failure, str), line_id(batch_id, line)
    else:
        permalink = Links(generation.base_url).permalink
        answer, request_id = answer_failure(failure, permalink, generation.stored_ids), generation.id
    return _line(batch_id, line, custom_id, _response(answer.status, request_id, answer.body))


def _response(status: int, request_id: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": request_id, "body": body}


def _line(
    batch_id: str,
    line: int,
    custom_id: str | None,
    response: dict[str, Any] | None,
    error: dict[str, Any] | None = None,
) -> EndedLine:
    fields = {
        "id": line_id(batch_id, line),
        "custom_id": custom_id,
        "line": line,
        "response": response,
        "error": error,
    }
    is_completed = response is not None and response["status_code"] == 200
    return EndedLine(completed=is_completed, text=msgspec.json.encode(fields).decode())


def batch_answer(batch: Batch, counts: Counts) -> dict[str, Any]:
    """Returns OpenAI's Batch object. `counts` are its ended lines. A batch of the inbox has the keys of its files."""
    has_output, has_errors = batch.ended and counts.completed > 0, batch.ended and counts.failed > 0

    def at(time: float | None, status: BatchStatus | None = None) -> int | None:
        return None if time is None or status not in (None, batch.status) else int(time)

    answer = {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint or ENDPOINTS[0],
        "errors": _problems(batch.problems) if batch.problems else None,
        "input_file_id": batch.input_file_id,
        "completion_window": WINDOW,
        "status": batch.status.value,
        "output_file_id": batch.output_file_id if has_output else None,
        "error_file_id": batch.error_file_id if has_errors else None,
        "created_at": int(batch.created_at),
        "in_progress_at": at(batch.created_at if batch.is_of_inbox else batch.begun_at),
        "expires_at": at(batch.expires_at),
        "finalizing_at": at(batch.finalizing_at),
        "completed_at": at(batch.ended_at, BatchStatus.COMPLETED),
        "failed_at": at(batch.ended_at, BatchStatus.FAILED),
        "expired_at": at(batch.ended_at, BatchStatus.EXPIRED),
        "cancelling_at": at(batch.cancelling_at),
        "cancelled_at": at(batch.ended_at, BatchStatus.CANCELLED),
        "request_counts": request_counts(batch, counts),
        "metadata": batch.metadata,
    }
    if batch.is_of_inbox:
        answer["input_key"] = batch.file.key
        answer["output_key"] = batch.output_key if has_output else None
        answer["error_key"] = batch.errors_key if has_errors else None
    return answer


def _problems(problems: Sequence[BatchProblem]) -> dict[str, Any]:
    return {"object": "list", "data": [msgspec.to_builtins(each) for each in problems]}


def request_counts(batch: Batch, counts: Counts) -> dict[str, int]:
    """Returns OpenAI's counts. While a file of the inbox is read, the total is the number of lines known so far."""
    known = counts.completed + counts.failed
    total = known if batch.counts else max(known, batch.checkpoint.line, batch.total or 0, batch.validated or 0)
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
    always = ("id", "status", "endpoint", "input_file_id", "output_file_id", "error_file_id", "created_at")
    ended = ("request_counts", "errors", "metadata", "completed_at", "failed_at", "expired_at", "cancelled_at")
    keys = {name: answer.get(name) for name in ("input_key", "output_key", "error_key")}
    return "Image Batch Completed", {"client": batch.caller, **{name: answer[name] for name in always + ended}, **keys}
