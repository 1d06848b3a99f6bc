"""Waits for a generation and renders its result."""

from contextlib import AbstractContextManager
from typing import Protocol

import msgspec
from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.utilities.data_classes.common import BaseProxyEvent

from imagegen.aws_limits import LAMBDA_RESPONSE_BYTES
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    AnswerTooLargeError,
    GenerationCancelledError,
    GenerationStillRunningError,
    InternalError,
    RecordsUnavailableError,
)
from imagegen.domain.failures import failure_of
from imagegen.domain.generations import Generation, Status
from imagegen.ports import GenerationStore, ImageStore
from imagegen.routes.middleware import GenerationFailedError
from imagegen.routes.request import method_to_sign_for
from imagegen.routes.response import applied, encoded, json_response, redirect, relative
from imagegen.usecases.wait import wait
from imagegen.wire.answers import MAX_ANSWER_BYTES, base64_bytes, generation_answer, images_answer
from imagegen.wire.headers import Preference

MOST_HOPS = 16  # OpenAI's Python client gives up after 20 redirects
_READ_SECONDS = 20.0  # to read the images of one answer from S3, within API Gateway's 29 s
_POLL_SECONDS = 2  # the Retry-After of a 202
_HEADER_BYTES = 8 * 1024  # of a response, kept free beside its body


class Waiters(Protocol):
    def one(self) -> AbstractContextManager[bool]:
        """Counts one waiting request while the block runs. Yields whether there is room for it."""
        ...


class Results(msgspec.Struct, frozen=True, eq=False):
    """`durable_urls` is whether the `url` of an image is its durable link."""

    records: GenerationStore
    images: ImageStore
    waiters: Waiters
    durable_urls: bool

    def respond(
        self, event: BaseProxyEvent, generation_id: str, until: Deadline, preference: Preference, *, hop: int
    ) -> Response[str]:
        """The result if it is ready by `until`, else a redirect to where the wait continues.

        `hop` counts the redirects before.
        """
        try:
            generation, room = self._wait(generation_id, until)
        except RecordsUnavailableError as error:  # the work continues, and may be paid for
            raise InternalError("The generation continues, but its record could not be read.") from error
        if generation is None:
            raise GenerationCancelledError("The generation was deleted in the meantime.")
        if generation.ended:
            return self._result(event, generation, preference, hop=hop)
        if preference.respond_async:
            headers = {
                "Location": relative(event, f"generations/{generation_id}"),
                "Retry-After": str(_POLL_SECONDS),
            }
            return json_response(202, self.generation_object(generation), headers | applied(preference))
        if hop >= MOST_HOPS:
            raise GenerationStillRunningError(
                f"The image is still being made. Get it at /v1/images/generations/{generation_id}."
            )
        headers = {} if room else {"Retry-After": "1"} | applied(preference)
        return redirect(event, 303, _next_result(generation_id, hop), headers)

    def generation_object(self, generation: Generation) -> dict[str, object]:
        return generation_answer(generation, self.images, durable_urls=self.durable_urls)

    def _wait(self, generation_id: str, until: Deadline) -> tuple[Generation | None, bool]:
        """The generation once it has ended or the time is over, and whether there was room to wait."""
        generation = self.records.get(generation_id)
        if generation is None or generation.ended or not until.remaining():
            return generation, True
        with self.waiters.one() as room:
            return (wait(generation_id, self.records, until) if room else generation), room

    def _result(
        self, event: BaseProxyEvent, generation: Generation, preference: Preference, *, hop: int
    ) -> Response[str]:
        if generation.status is Status.COMPLETED:
            return self._images(event, generation, preference, hop=hop)
        failure = generation.failure or failure_of(GenerationCancelledError("The generation was cancelled."))
        raise GenerationFailedError(failure, generation.stored_ids)

    def _images(
        self, event: BaseProxyEvent, generation: Generation, preference: Preference, *, hop: int
    ) -> Response[str]:
        """OpenAI's answer; if it does not fit into Lambda's, a redirect to the stored answer."""
        if generation.request.response_format == "b64_json" and base64_bytes(generation) > MAX_ANSWER_BYTES:
            if hop == 0:
                return redirect(event, 303, _next_result(generation.id, hop), {})
            if event.http_method == "GET":
                signed = self.images.signed_answer_url(generation.id, method_to_sign_for(event))
                return redirect(event, 303, signed.url, {"Cache-Control": "no-store"})
        else:
            body = encoded(
                images_answer(generation, self.images, Deadline.after(_READ_SECONDS), durable_urls=self.durable_urls)
            )
            if _carried_bytes(body) <= LAMBDA_RESPONSE_BYTES - _HEADER_BYTES:
                return Response(200, "application/json", body, applied(preference))
        error = AnswerTooLargeError(
            "All images were made and stored, but their base64 does not fit into one answer. "
            "Fetch them by their permalinks, or ask for response_format 'url'."
        )
        error.images = generation.image_ids
        raise error


def _next_result(generation_id: str, hop: int) -> str:
    """Where the wait continues, relative to the request: so it is valid below a stage and behind a proxy."""
    return f"generations/{generation_id}/result" if hop == 0 else f"result?hop={hop + 1}"


def _carried_bytes(body: str) -> int:
    """The size of a body inside the JSON that carries it, where quotes and backslashes are escaped."""
    return len(body.encode()) + body.count('"') + body.count("\\")
