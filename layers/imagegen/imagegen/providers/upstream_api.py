"""Sends calls to one upstream, whatever the protocol: its key, its time limits and its refusals."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

import urllib3
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.exceptions import TimeoutError as HTTPTimeoutError

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    ImagegenError,
    MoneySpentError,
    NothingSpentError,
    SecretMissingError,
    SecretUnavailableError,
    UpstreamAnswerTooLargeError,
    UpstreamConnectionLostError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
    UpstreamUnreachableError,
)
from imagegen.domain.images import UpstreamImages, UpstreamRequest, UpstreamTask
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.read_deadline import BLOCK_BYTES, cut_off_at
from imagegen.providers.request_bodies import UpstreamBody

_JSON_SLACK_BYTES = 64 * 1024  # for the rest of an answer in addition to base64

_MOST_GET_BYTES = 256 * 1024
# A thousand tasks are polled some 70 times a second, and an account may read 40 parameters (`aws/ssm.py`).
_READ_AGAIN_SECONDS = 30.0

_SUCCESS = (200, 201)
Key = Callable[[bool], str | None]
# The exception for a status, headers and a body. It is given the key, and never shows it.
Refusal = Callable[[int, urllib3.HTTPHeaderDict, bytes, str], ImagegenError]


class UpstreamApi:
    """One upstream under one key.

    `base_url` is that of OpenAI's clients, with the version. `is_reseller` is whether it serves several protocols under
    one origin. `key(fresh)` returns the key, past caches if `fresh` is true. It is sent in `key_header`. `timeout` is
    in seconds, for one call. `max_image_bytes` limits the size of an answer. `refunds_failed_tasks` is whether the
    upstream returns the price of a task that failed.
    """

    def __init__(
        self,
        pool: HttpPool,
        *,
        base_url: str,
        is_reseller: bool,
        key: Key,
        key_header: str = "Authorization",
        timeout: float,
        max_image_bytes: int,
        refunds_failed_tasks: bool = False,
    ) -> None:
        self.refunds_failed_tasks = refunds_failed_tasks
        self._pool = pool
        self._base_url = base_url.rstrip("/")
        self.is_reseller = is_reseller
        self._key = key
        self._key_header = key_header
        self._key_prefix = "Bearer " if key_header == "Authorization" else ""
        self._timeout = timeout
        self._max_image_bytes = max_image_bytes
        self._read_again_at = 0.0

    def below_base(self, path: str) -> SplitResult:
        return urlsplit(self._base_url + path)

    def below_own(self, prefix: str, path: str) -> SplitResult:
        """A URL of another protocol than OpenAI's. A reseller serves it below `prefix`, beside OpenAI's API."""
        base = self._base_url.removesuffix("/v1") + prefix if self.is_reseller else self._base_url
        return urlsplit(base + path)

    def has_key(self) -> bool:
        """Whether the key is set. Raises SecretUnavailableError."""
        return bool((self._key(False) or "").strip())  # noqa: FBT003  # `fresh`

    def post(
        self, url: SplitResult, body: UpstreamBody, n: int, deadline: Deadline, refusal: Refusal
    ) -> tuple[bytearray, MoneySpentError | None]:
        """Sends a call for `n` images in its answer.

        Returns the part of the answer that came in time, even if the rest is lost, and why it is: the part may have
        complete images. Raises a NothingSpentError if no image was bought, else a MoneySpentError. A NothingSpentError
        of the blocks of the body passes: the upstream then got only a part of the request.
        """
        deadline = deadline.sooner(self._timeout)
        key = self._usable_key(fresh=False)
        response = self._post(url, body, key, deadline)
        try:
            if response.status in _SUCCESS:
                return self._read_success(response, n, deadline)
            refused = _read_refusal(response, deadline)
        finally:
            with suppress(Exception):  # the answer is read already and must not be lost
                response.close()
        if response.status == 401 and self._usable_key(fresh=True) != key:
            changed = UpstreamUnavailableError("The key for the image model has just been changed. Please try again.")
            changed.retry_after = 0
            raise changed
        raise refusal(response.status, response.headers, refused, key)

    def get(self, url: SplitResult, deadline: Deadline) -> tuple[int, bytes] | None:
        """Asks for something that costs nothing. Returns status and body, `None` if no whole answer came. Never raises.

        If the upstream refuses the key, it is read past caches for the next call, but not for each.
        """
        try:
            key = self._usable_key(fresh=False)
            headers = {self._key_header: self._key_prefix + key, "Accept": "application/json"}
            response = self._pool.request("GET", url, deadline, headers=headers)
            try:
                with cut_off_at(deadline, response.shutdown):
                    body = response.read(_MOST_GET_BYTES + 1)
            finally:
                response.close()
            if response.status == 401 and time.monotonic() >= self._read_again_at:
                self._read_again_at = time.monotonic() + _READ_AGAIN_SECONDS
                self._key(True)  # noqa: FBT003  # `fresh`
        except Exception:  # noqa: BLE001  # whatever happened, it says nothing about what was asked for
            return None
        return (response.status, body) if len(body) <= _MOST_GET_BYTES else None

    def without_key(self, text: str) -> str:
        """Returns a text of the upstream in which its key is replaced, should it contain it."""
        key = ""
        with suppress(SecretUnavailableError):
            key = (self._key(False) or "").strip()  # noqa: FBT003  # `fresh`
        return text.replace(key, "[redacted]") if key else text

    def _usable_key(self, *, fresh: bool) -> str:
        key = (self._key(fresh) or "").strip()
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise SecretMissingError("This service has no usable key for the image model; its operator must set one.")
        return key

    def _post(self, url: SplitResult, body: UpstreamBody, key: str, deadline: Deadline) -> urllib3.BaseHTTPResponse:
        headers = {
            self._key_header: self._key_prefix + key,
            "Content-Type": body.content_type,
            "Content-Length": str(body.length),
            "Accept": "application/json",
        }
        sending = _Sending(body, deadline)
        try:
            return self._pool.request("POST", url, deadline, body=sending, headers=headers)
        except NothingSpentError:
            raise
        except Exception as error:  # noqa: BLE001  # after any failure, the request may have been sent
            raise _not_answered(error, deadline, is_part=sending.is_part) from None
        finally:
            with suppress(Exception):  # an answer that came before the whole body was sent must not be lost
                body.blocks.close()

    def _read_success(
        self, response: urllib3.BaseHTTPResponse, n: int, deadline: Deadline
    ) -> tuple[bytearray, MoneySpentError | None]:
        limit = n * self._max_image_bytes * 4 // 3 + _JSON_SLACK_BYTES
        read = bytearray()
        lost: MoneySpentError | None = None
        try:
            with cut_off_at(deadline, response.shutdown):
                while len(read) <= limit and (block := response.read1(BLOCK_BYTES)) and deadline.remaining():
                    read += block
        except Exception:  # noqa: BLE001  # after any failure, the images may be paid for
            lost = UpstreamConnectionLostError("The connection to the image model's API was lost.")
        if not deadline.remaining():
            lost = UpstreamTimeoutError("The image model's API did not answer in time.")
        if len(read) > limit:
            del read[limit:]
            lost = UpstreamAnswerTooLargeError("The image model's answer is larger than its images can be.")
        return read, lost


class _Sending:
    """Hands the blocks of a body to a connection. `is_part` is whether it got some of them, but not the last one.

    The time-out of a socket begins anew with each block, so the deadline is looked at too. Raises
    UpstreamUnreachableError.
    """

    def __init__(self, body: UpstreamBody, deadline: Deadline) -> None:
        self.is_part = False
        self._body = body
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        left = self._body.length
        for block in self._body.blocks:
            if not self._deadline.remaining():
                raise UpstreamUnreachableError("The image model's API did not take the request in time.")
            left -= len(block)
            self.is_part = left > 0
            yield block


class AnswersAtOnce:
    """What the providers have in common whose upstream answers a call with its images."""

    def __init__(self, api: UpstreamApi) -> None:
        self._api = api

    def find(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamTask | None:  # noqa: ARG002  # it has none
        return None

    def poll(self, task_id: str, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages:
        raise NotImplementedError("this protocol has no tasks")


def _not_answered(error: Exception, deadline: Deadline, *, is_part: bool) -> ImagegenError:
    """Returns the failure of a call without an answer. It depends on whether the request may have been sent.

    With `is_part` only a part of its body was handed to the connection: no server can act on it.
    """
    if isinstance(error, NewConnectionError | ConnectTimeoutError):
        return UpstreamUnreachableError("The image model's API could not be reached.")
    if is_part:
        return UpstreamUnreachableError("The connection to the image model's API was lost before all was sent.")
    if isinstance(error, HTTPTimeoutError) or not deadline.remaining():
        return UpstreamTimeoutError("The image model's API did not answer in time.")
    return UpstreamConnectionLostError("The connection to the image model's API was lost.")


def _read_refusal(response: urllib3.BaseHTTPResponse, deadline: Deadline) -> bytes:
    """Returns the first 64 KB of the body, or nothing, because the status says enough. Never raises."""
    try:
        with cut_off_at(deadline, response.shutdown):
            return response.read(_JSON_SLACK_BYTES)
    except Exception:  # noqa: BLE001
        return b""
