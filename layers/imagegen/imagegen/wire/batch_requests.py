"""Reads OpenAI's Batch format: the request for a batch, and the lines of its input file."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from imagegen.domain.batches import AskedBatch, AskedLine, BatchProblem
from imagegen.domain.errors import InvalidRequestError, UnsupportedMediaTypeError
from imagegen.domain.file_lines import MAX_LINE_BYTES
from imagegen.domain.files import is_file_id
from imagegen.domain.images import AskedImages
from imagegen.wire.field_errors import invalid, missing, unknown
from imagegen.wire.files import read_expiry
from imagegen.wire.image_requests import ReadImageRequest
from imagegen.wire.json_text import decoded
from imagegen.wire.request_events import MOST_CUSTOM_ID
from imagegen.wire.requests import PATHS, ReadRequest, json_object, media_type_of

ENDPOINTS = (PATHS["generate"], PATHS["edit"])
WINDOW = "24h"  # the only one that OpenAI has
_MOST_PAIRS, _LONGEST_KEY, _LONGEST_VALUE = 16, 64, 512  # of metadata, as OpenAI
_CUSTOM_ID = f"a string of 1 to {MOST_CUSTOM_ID} characters"

ReadFields = Callable[[Mapping[str, Any]], AskedImages]


def read_batch_request(body: bytes, content_type: str | None) -> AskedBatch:
    """Reads the body of a request for a batch. Raises InvalidRequestError, UnsupportedMediaTypeError."""
    if media_type_of(content_type) != "application/json":
        raise UnsupportedMediaTypeError("Unsupported content type: the request body must be application/json.")
    fields = {name: value for name, value in json_object(body).items() if value is not None}
    values = {name: fields.pop(name, None) for name in ("input_file_id", "endpoint", "completion_window")}
    metadata, expires = fields.pop("metadata", None), fields.pop("output_expires_after", None)
    for name in fields:
        raise unknown(name)
    for name, value in values.items():
        if value is None:
            raise missing(name)
    file_id, endpoint = values["input_file_id"], values["endpoint"]
    if not isinstance(file_id, str) or not is_file_id(file_id):
        raise invalid("input_file_id", "the id of a file, such as file-…")
    if endpoint not in ENDPOINTS:
        raise invalid("endpoint", f"one of {', '.join(ENDPOINTS)}")
    if values["completion_window"] != WINDOW:
        raise invalid("completion_window", f"'{WINDOW}'")
    return AskedBatch(
        file_id,
        str(endpoint),
        None if metadata is None else _metadata(metadata),
        None if expires is None else read_expiry("output_expires_after", expires),
    )


def _metadata(value: Any) -> dict[str, str]:
    pairs = value.items() if isinstance(value, dict) else ()
    fits = all(
        len(key) <= _LONGEST_KEY and isinstance(each, str) and len(each) <= _LONGEST_VALUE for key, each in pairs
    )
    if not isinstance(value, dict) or len(value) > _MOST_PAIRS or not fits:
        raise invalid(
            "metadata",
            f"an object with at most {_MOST_PAIRS} names of at most {_LONGEST_KEY} characters, each with a string of "
            f"at most {_LONGEST_VALUE}",
        )
    return value


def check_batch_line(text: bytes | None, number: int, endpoint: str) -> str | BatchProblem:
    """Returns the custom_id of a line, or what makes the file invalid. A request that is not valid does not.

    The codes are OpenAI's.
    """
    if text is None:
        return BatchProblem("line_too_long", f"The line is over {MAX_LINE_BYTES} bytes.", number)
    try:
        fields = decoded(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        return BatchProblem("invalid_json_line", "This line is not parseable as a JSON object.", number)
    custom_id = fields.get("custom_id")
    if not _is_custom_id(custom_id):
        code = "missing_required_parameter" if custom_id is None else "invalid_custom_id"
        return _problem(code, invalid("custom_id", _CUSTOM_ID), number)
    if fields.get("method") != "POST":
        return _problem("invalid_method", invalid("method", "'POST'"), number)
    if fields.get("url") != endpoint:
        return _problem("invalid_url", invalid("url", f"the endpoint of the batch, '{endpoint}'"), number)
    return str(custom_id)


def line_readers(generate: ReadRequest, edit: ReadImageRequest) -> dict[str, ReadFields]:
    """Returns the readers of bodies by the paths that a line may name."""
    return {PATHS["generate"]: lambda body: AskedImages(generate.fields(body)), PATHS["edit"]: edit.fields}


def read_batch_line(text: bytes, read_fields: Mapping[str, ReadFields]) -> AskedLine:
    """Reads a line. Raises InvalidRequestError if it is not a line of a batch; `request` raises for an invalid body.

    `read_fields` reads a body, by the path that the line names.
    """
    try:
        fields = decoded(text)
    except ValueError:
        raise InvalidRequestError("We could not parse this line as JSON.") from None
    if not isinstance(fields, dict):
        raise InvalidRequestError("Invalid line: expected a JSON object.")
    custom_id = fields.get("custom_id")
    if not _is_custom_id(custom_id):
        raise invalid("custom_id", _CUSTOM_ID)
    return AskedLine(str(custom_id), partial(_request, fields, read_fields))


def _is_custom_id(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= MOST_CUSTOM_ID


def _request(fields: Mapping[str, Any], read_fields: Mapping[str, ReadFields]) -> AskedImages:
    if fields.get("method") != "POST":
        raise invalid("method", "'POST'")
    url = fields.get("url")
    if not isinstance(url, str) or url not in read_fields:
        raise invalid("url", f"one of {', '.join(read_fields)}")
    body = fields.get("body")
    if not isinstance(body, dict):
        raise invalid("body", "an object")
    return read_fields[url](body)


def _problem(code: str, error: InvalidRequestError, line: int) -> BatchProblem:
    return BatchProblem(code, error.message, line, error.param)
