"""Upstreams that speak OpenAI's `POST /v1/images/generations`: OpenAI itself and the resellers of its format."""

import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import msgspec
import urllib3
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.exceptions import TimeoutError as HTTPTimeoutError

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    ImagegenError,
    MoneySpentError,
    SecretMissingError,
    TryLaterError,
    UpstreamAnswerTooLargeError,
    UpstreamConnectionLostError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
    UpstreamUnreachableError,
)
from imagegen.domain.images import ImageRequest, UpstreamAnswer
from imagegen.domain.models import CATALOG
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.reading import BLOCK_BYTES, cut_off_at
from imagegen.providers.openai_answers import read_answer
from imagegen.providers.openai_refusals import read_refusal

TRIES = 3  # HTTP calls, whatever refuses them: resellers try other channels themselves, and clients retry too
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 8.0  # a caller waits; who is told a longer time had better hear it at once
_JSON_SLACK_BYTES = 64 * 1024  # what an answer holds besides base64

_SUCCESS = (200, 201)
_OPTIONAL_FIELDS = (
    "size",
    "quality",
    "style",
    "user",
    "safety_identifier",
    "background",
    "moderation",
    "output_format",
    "output_compression",
    "response_format",
)

Key = Callable[[bool], str | None]


class OpenAICompatibleProvider:
    """Implements `ports.ImageProvider`.

    `base_url` ends before `/images/generations`. `key(fresh)` gives the upstream's key, past any cache where `fresh`.
    `timeout` is in seconds, for one call. `max_image_bytes` bounds what an answer may weigh.
    """

    def __init__(self, pool: HttpPool, *, base_url: str, key: Key, timeout: float, max_image_bytes: int) -> None:
        self._pool = pool
        self._url = urlsplit(f"{base_url.rstrip('/')}/images/generations")
        self._key = key
        self._timeout = timeout
        self._max_image_bytes = max_image_bytes

    def generate(self, request: ImageRequest, n: int, deadline: Deadline) -> UpstreamAnswer:
        deadline = deadline.sooner(self._timeout)
        body = msgspec.json.encode(_wire_request(request, n))
        for attempt in range(1, TRIES + 1):
            try:
                return self._call(body, n, deadline)
            except TryLaterError as error:
                pause = error.retry_after
                if pause is None:
                    pause = _FIRST_PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1)
                if attempt == TRIES or pause > _LONGEST_PAUSE_SECONDS or pause >= deadline.remaining():
                    raise
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _call(self, body: bytes, n: int, deadline: Deadline) -> UpstreamAnswer:
        key = self._usable_key(fresh=False)
        response = self._post(body, key, deadline)
        try:
            if response.status in _SUCCESS:
                return self._read_success(response, n, deadline)
            refusal = _read_refusal(response, deadline)
        finally:
            with suppress(Exception):  # an answer that is read is not lost for it
                response.close()
        if response.status == 401 and self._usable_key(fresh=True) != key:
            changed = UpstreamUnavailableError("The key for the image model was changed just now. Please try again.")
            changed.retry_after = 0
            raise changed
        raise read_refusal(response.status, response.headers, refusal, key)

    def _usable_key(self, *, fresh: bool) -> str:
        key = (self._key(fresh) or "").strip()
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise SecretMissingError("This service has no usable key for the image model; its operator must set one.")
        return key

    def _post(self, body: bytes, key: str, deadline: Deadline) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request(
                "POST",
                self._url,
                deadline,
                body=body,
                headers={
                    "Authorization": f"Bearer {key}",
                    "Content-Type": "application/json",
                    "Accept": "application/json",
                },
            )
        except Exception as error:  # noqa: BLE001  # whatever went wrong, the request may have been sent
            raise _not_answered(error, deadline) from None

    def _read_success(self, response: urllib3.BaseHTTPResponse, n: int, deadline: Deadline) -> UpstreamAnswer:
        """What came in time is read, even if the rest is lost: it may hold whole images."""
        limit = n * self._max_image_bytes * 4 // 3 + _JSON_SLACK_BYTES
        read = bytearray()
        lost: MoneySpentError | None = None
        try:
            with cut_off_at(deadline, response.shutdown):
                while len(read) <= limit and (block := response.read1(BLOCK_BYTES)) and deadline.remaining():
                    read += block
        except Exception:  # noqa: BLE001  # the images may be paid for, whatever went wrong
            lost = UpstreamConnectionLostError("The connection to the image model's API was lost.")
        if not deadline.remaining():
            lost = UpstreamTimeoutError("The image model's API did not answer in time.")
        if len(read) > limit:
            del read[limit:]
            lost = UpstreamAnswerTooLargeError("The image model's answer is larger than its images can be.")
        return read_answer(read, n, lost)


def _not_answered(error: Exception, deadline: Deadline) -> ImagegenError:
    """What it means that no answer came, by whether the request can have been sent."""
    if isinstance(error, NewConnectionError | ConnectTimeoutError):
        return UpstreamUnreachableError("The image model's API could not be reached.")
    if isinstance(error, HTTPTimeoutError) or not deadline.remaining():
        return UpstreamTimeoutError("The image model's API did not answer in time.")
    return UpstreamConnectionLostError("The connection to the image model's API was lost.")


def _read_refusal(response: urllib3.BaseHTTPResponse, deadline: Deadline) -> bytes:
    """The first 64 KB of the body, or nothing: the status says enough already. Never raises."""
    try:
        with cut_off_at(deadline, response.shutdown):
            return response.read(_JSON_SLACK_BYTES)
    except Exception:  # noqa: BLE001
        return b""


def _wire_request(request: ImageRequest, n: int) -> dict[str, Any]:
    takes = CATALOG[request.model].upstream_fields
    asked = {name: getattr(request, name) for name in _OPTIONAL_FIELDS if name in takes}
    wire = {name: value for name, value in asked.items() if value is not None}
    return {"model": request.model, "prompt": request.prompt, "n": n, **wire}
