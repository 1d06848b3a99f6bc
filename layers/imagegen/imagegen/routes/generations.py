"""Submits requests for images by every operation; `/v1/images/generations`: shows, cancels and deletes generations."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import msgspec
from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.api_gateway import Router

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import NoPlaceToBeginError
from imagegen.domain.generations import Generation
from imagegen.domain.images import ImageRequest
from imagegen.domain.inputs import Operation
from imagegen.domain.retry_identity import RetryIdentity
from imagegen.ports import GenerationStore, Journal, Places
from imagegen.routes.request import body_of, caller_of, links_of
from imagegen.routes.response import Body, json_response
from imagegen.routes.results import MOST_HOPS, Results, retry_after
from imagegen.usecases.first_work import FirstWork
from imagegen.usecases.manage_generation import CancelGeneration, DeleteGeneration, get_generation
from imagegen.usecases.submit import Submission, SubmitGeneration, Submitted
from imagegen.usecases.take_inputs import IdentifiedInputs, TakeInputs
from imagegen.usecases.wait import place_to_wait
from imagegen.usecases.work_on_generation import GenerationWorker
from imagegen.wire.answers import generation_list_answer
from imagegen.wire.headers import Preference, read_page, read_preference, read_retry_identity
from imagegen.wire.image_requests import ReadImageRequest
from imagegen.wire.requests import PATHS, ReadRequest

CLOSING_SECONDS = 15.0  # of the function's time-out, kept free to note the outcome
_DELETE_SECONDS = 20.0  # to delete images, within API Gateway's 29 s


class GenerationRoutes(msgspec.Struct, frozen=True, eq=False):
    """`wait_seconds` is how long a request waits for its images.

    With `api_is_first_worker` this process makes the images of synchronous requests itself. Without streaming it makes
    only those of quick models, and only for clients that say so when they retry: the gateway may not wait for the end.
    """

    submission: SubmitGeneration
    worker: GenerationWorker
    cancellation: CancelGeneration
    deletion: DeleteGeneration
    records: GenerationStore
    places: Places
    results: Results
    journal: Journal
    read_request: ReadRequest
    read_images: Mapping[str, ReadImageRequest]
    inputs: TakeInputs
    public_base_url: str
    wait_seconds: float
    api_is_first_worker: bool
    streaming: bool
    router: Router

    def register(self) -> Router:
        route, one = self.router.route, "/v1/images/generations/<generation_id>"
        route(PATHS["generate"], "POST")(self.create)
        route(PATHS["edit"], "POST")(self.edit)
        route(PATHS["variation"], "POST")(self.vary)
        route(PATHS["describe"], "POST")(self.describe)
        route("/v1/images/generations", "GET")(self.list)
        route(one, "GET")(self.get)
        route(one, "DELETE")(self.delete)
        route(f"{one}/cancel", "POST")(self.cancel)
        route(f"{one}/result", "GET")(self.result)
        route(f"{one}/result", "POST")(self.result)  # some clients repeat the method after a 303
        return self.router

    def create(self) -> Response[Body]:
        event, until = self.router.current_event, self._until
        request = self.read_request(body_of(event), event.headers.get("Content-Type"))
        return self._submit(request, lambda: None, until)

    def edit(self) -> Response[Body]:
        return self._from_images("edit")

    def vary(self) -> Response[Body]:
        return self._from_images("variation")

    def describe(self) -> Response[Body]:
        return self._from_images("describe")

    def _from_images(self, operation: Operation) -> Response[Body]:
        event, until = self.router.current_event, self._until
        asked = self.read_images[operation](body_of(event), event.headers.get("Content-Type"))
        model = self.read_request.catalog.models[asked.request.model]
        caller = caller_of(event).name
        return self._submit(asked.request, lambda: self.inputs.of(asked, model, caller), until)

    @property
    def _until(self) -> Deadline:
        return Deadline.after(self.wait_seconds)

    def _submit(
        self, request: ImageRequest, identify: Callable[[], IdentifiedInputs | None], until: Deadline
    ) -> Response[Body]:
        """`identify` reads the input images, which takes time, so it is called once there is a place."""
        event, closing = self.router.current_event, self._closing
        identity, preference = read_retry_identity(event.headers), read_preference(event.headers)
        caller = caller_of(event)
        if preference.wait is not None:
            until = until.sooner(preference.wait)
        waits = until.remaining() > 0 and (preference.wait is not None or not preference.respond_async)
        if waits and not closing.enter_context(place_to_wait(self.places, caller.name)):
            if not preference.respond_async:
                raise _no_place_to_begin()
            waits = False
        submission = Submission(
            request,
            caller,
            links_of(event, self.public_base_url).base_url,
            identity=identity,
            claim=waits and self._is_made_here(request, identity, preference),
        )
        with ExitStack() as reading:
            # To read images takes up to 40 s of an execution, which nobody may hold without a place.
            needs_place = not waits and request.operation != "generate"
            if needs_place and not reading.enter_context(place_to_wait(self.places, caller.name)):
                raise _no_place_to_begin()
            submitted = self.submission.submit_with(identify, submission)
        self.router.append_context(generation=submitted.generation, standing=submitted.standing)
        work = self._work_here(submitted, submitted.owner) if submitted.owner else None
        return self.results.respond(
            event,
            submitted.generation.id,
            until if waits else None,
            preference,
            hop=0,
            closing=closing,
            note_end=self._note_end,
            work=work,
        )

    def _note_end(self, ended: Generation) -> None:
        self.router.append_context(ended=ended)

    @property
    def _closing(self) -> ExitStack:
        """Is closed when the answer has been sent."""
        closing: ExitStack = self.router.context["closing"]
        return closing

    def _is_made_here(self, request: ImageRequest, identity: RetryIdentity, preference: Preference) -> bool:
        if request.operation != "generate":
            return False
        if self.streaming or not self.api_is_first_worker:
            return self.api_is_first_worker
        return (
            self.read_request.catalog.models[request.model].quick
            and identity.is_counted
            and not preference.respond_async
            and preference.wait is None
        )

    def _work_here(self, submitted: Submitted, owner: str) -> FirstWork:
        """Begins the work. This process is not free before it is done."""
        generation = submitted.generation
        seconds = self.router.lambda_context.get_remaining_time_in_millis() / 1000 - CLOSING_SECONDS
        until = Deadline.after(seconds)

        def work() -> Generation | None:
            # No message brought this work, so there is none to hide.
            return self.worker.work(generation, owner, until, poll=0, extend_visibility=lambda _: None)

        begun = FirstWork(generation.id, work, self.journal)
        self._closing.callback(begun.join)
        return begun

    def result(self, generation_id: str) -> Response[Body]:
        event = self.router.current_event
        until = Deadline.after(self.wait_seconds)
        caller = caller_of(event).name
        generation = get_generation(generation_id, caller, self.records)
        self.router.append_context(generation=generation)
        waits = until.remaining() > 0 and not generation.ended
        needs_place = waits or self.results.is_slow_to_send(generation)
        if needs_place and not self._closing.enter_context(place_to_wait(self.places, caller, generation.id)):
            raise self.results.no_place(generation)
        hop = (event.query_string_parameters or {}).get("hop") or "1"
        return self.results.respond(
            event,
            generation.id,
            until if waits else None,
            Preference(),
            hop=int(hop) if hop.isdecimal() and len(hop) < 4 else MOST_HOPS,
            closing=self._closing,
            note_end=self._note_end,
        )

    def list(self) -> Response[Body]:
        event = self.router.current_event
        page = read_page(event.query_string_parameters or {})
        caller = caller_of(event).name
        found = self.records.newest(caller, page.limit + 1, after=page.after, status=page.status)
        answer = generation_list_answer(
            found[: page.limit],
            self.results.images,
            more=len(found) > page.limit,
            durable_urls=self.results.durable_urls,
        )
        return json_response(200, answer)

    def get(self, generation_id: str) -> Response[Body]:
        caller = caller_of(self.router.current_event).name
        generation = get_generation(generation_id, caller, self.records)
        return json_response(200, self.results.generation_object(generation))

    def cancel(self, generation_id: str) -> Response[Body]:
        cancelled = self.cancellation.cancel(generation_id, caller_of(self.router.current_event).name)
        return json_response(200, self.results.generation_object(cancelled))

    def delete(self, generation_id: str) -> Response[Body]:
        caller = caller_of(self.router.current_event).name
        self.deletion.delete(generation_id, caller, Deadline.after(_DELETE_SECONDS))
        deleted: dict[str, Any] = {"id": generation_id, "object": "image.generation.deleted", "deleted": True}
        return json_response(200, deleted)


def _no_place_to_begin() -> NoPlaceToBeginError:
    error = NoPlaceToBeginError(
        "Too many requests wait for their images. Nothing was begun. Retry later, or send 'Prefer: respond-async', "
        "which needs no place to wait, but with input images one while they are read."
    )
    error.retry_after = retry_after()
    return error
