"""Waits for a generation and renders its result."""

import random
from collections.abc import Callable
from contextlib import ExitStack

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
    NoPlaceToWaitError,
    RecordsUnavailableError,
)
from imagegen.domain.failures import failure_of
from imagegen.domain.generations import Generation, Status
from imagegen.ports import GenerationStore, ImageStore, Places
from imagegen.routes.middleware import GenerationFailedError
from imagegen.routes.request import method_to_sign_for
from imagegen.routes.response import Body, applied, encoded, json_response, redirect, relative
from imagegen.usecases.first_work import FirstWork
from imagegen.usecases.wait import wait
from imagegen.wire.answers import (
    MAX_ANSWER_BYTES,
    MAX_STREAMED_BYTES,
    base64_answer,
    base64_bytes,
    description_answer,
    generation_answer,
    images_answer,
)
from imagegen.wire.headers import Preference
from imagegen.wire.links import Links

MOST_HOPS = 16  # OpenAI's Python client gives up after 20 redirects
_STREAM_SECONDS = 240.0  # to send one answer: after 6 MB, Lambda sends 2 MB a second, so 200 MB take 97 s
_READ_SECONDS = 20.0  # to read the images of one answer from S3, within API Gateway's 29 s
_HEADER_BYTES = 8 * 1024  # of a response, kept free beside its body
_POLL_SECONDS = 2  # the Retry-After of a 202
_RETRY_SECONDS = (
    8,
    15,
)  # the Retry-After of a refusal, at random so that those refused together do not return together


class Results(msgspec.Struct, frozen=True, eq=False):
    """`durable_urls` is whether the `url` of an image is its durable link.

    If the function cannot stream, an answer that exceeds Lambda's limit was stored beside the images.
    """

    records: GenerationStore
    images: ImageStore
    places: Places
    durable_urls: bool
    streaming: bool

    def respond(
        self,
        event: BaseProxyEvent,
        generation_id: str,
        until: Deadline | None,
        preference: Preference,
        *,
        hop: int,
        closing: ExitStack,
        note_end: Callable[[Generation], None],
        work: FirstWork | None = None,
    ) -> Response[Body]:
        """The result if it is ready by `until`, else a redirect to where the wait continues.

        `until` is `None` if the request has no place to wait; then none is kept for its next wait. `hop` counts the
        redirects before. `closing` is closed when the body has been sent. `note_end` gets the generation if it has
        ended, also if its answer is an exception. `work` is the work on the generation if this process does it.
        """
        try:
            deadline = until or Deadline.after(0)
            generation = (work and work.ended(deadline)) or wait(generation_id, self.records, deadline)
        except RecordsUnavailableError as error:  # the work continues, and may be paid for
            raise InternalError("The generation continues, but its record could not be read.") from error
        if generation is None:
            raise GenerationCancelledError("The generation was deleted in the meantime.")
        if generation.ended:
            note_end(generation)
            return self._result(event, generation, preference, hop=hop, closing=closing)
        if preference.respond_async:
            headers = {
                "Location": relative(event, f"generations/{generation_id}"),
                "Retry-After": str(_POLL_SECONDS),
            }
            return json_response(202, self._continued(generation), headers | applied(preference))
        if hop >= MOST_HOPS:
            raise GenerationStillRunningError(
                f"The image is still being made. Get it at /v1/images/generations/{generation_id}."
            )
        if until:
            self.places.keep(generation.caller, generation.id)
        return self._next_wait(event, generation, hop, applied(preference))

    def generation_object(self, generation: Generation) -> dict[str, object]:
        return generation_answer(generation, self.images, durable_urls=self.durable_urls)

    def is_slow_to_send(self, generation: Generation) -> bool:
        """Whether sending the result holds the function for seconds. It then needs a place, as a wait does."""
        return (
            self.streaming
            and generation.status is Status.COMPLETED
            and generation.request.response_format == "b64_json"
            and base64_bytes(generation) > LAMBDA_RESPONSE_BYTES
        )

    def no_place(self, generation: Generation) -> NoPlaceToWaitError:
        """The refusal of a result of a generation that has begun."""
        image = "The images are stored." if generation.ended else "The image is still being made."
        error = NoPlaceToWaitError(
            f"Too many requests wait for their images. {image} "
            f"Retry, or get it later at /v1/images/generations/{generation.id}."
        )
        error.retry_after = retry_after()
        return error

    def _continued(self, generation: Generation) -> dict[str, object]:
        """The generation object with a sentence for clients that do not follow the Location."""
        url = Links(generation.base_url).result(generation.id)
        message = f"The image is still being made. GET {url} with the same key to wait for it."
        return {**self.generation_object(generation), "message": message}

    def _next_wait(
        self, event: BaseProxyEvent, generation: Generation, hop: int, headers: dict[str, str]
    ) -> Response[Body]:
        """A redirect to where the wait continues, relative to the request: valid below a stage and behind a proxy."""
        location = f"generations/{generation.id}/result" if hop == 0 else f"result?hop={hop + 1}"
        return json_response(
            303,
            self._continued(generation),
            {"Location": relative(event, location), **headers},
        )

    def _result(
        self, event: BaseProxyEvent, generation: Generation, preference: Preference, *, hop: int, closing: ExitStack
    ) -> Response[Body]:
        if generation.status is not Status.COMPLETED:
            failure = generation.failure or failure_of(GenerationCancelledError("The generation was cancelled."))
            raise GenerationFailedError(failure, generation.stored_ids)
        if generation.request.operation == "describe":
            return json_response(200, description_answer(generation), applied(preference))
        if generation.request.response_format != "b64_json":
            body = encoded(images_answer(generation, self.images, durable_urls=self.durable_urls))
            return Response(200, "application/json", body, applied(preference))
        if base64_bytes(generation) <= (MAX_STREAMED_BYTES if self.streaming else MAX_ANSWER_BYTES):
            deadline = Deadline.after(_STREAM_SECONDS if self.streaming else _READ_SECONDS)
            length, blocks = closing.enter_context(base64_answer(generation, self.images, deadline))
            if self.streaming:
                return Response(200, "application/json", blocks, {"Content-Length": str(length)} | applied(preference))
            body = b"".join(blocks).decode()
            if _carried_bytes(body) <= LAMBDA_RESPONSE_BYTES - _HEADER_BYTES:
                return Response(200, "application/json", body, applied(preference))
        elif not self.streaming and hop == 0:
            return self._next_wait(event, generation, hop, {})
        elif not self.streaming and event.http_method == "GET":
            signed = self.images.signed_answer_url(generation.id, method_to_sign_for(event))
            return redirect(event, 303, signed.url, {"Cache-Control": "no-store"})
        error = AnswerTooLargeError(
            "All images were made and stored, but their base64 does not fit into one answer. "
            "Fetch them by their permalinks, or ask for response_format 'url'."
        )
        error.images = generation.image_ids
        raise error


def _carried_bytes(body: str) -> int:
    """The size of a body inside the JSON that carries it, where quotes and backslashes are escaped."""
    return len(body.encode()) + body.count('"') + body.count("\\")


def retry_after() -> int:
    return random.randint(*_RETRY_SECONDS)
