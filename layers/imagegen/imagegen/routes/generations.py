"""`/v1/images/generations`: submits requests for images, and shows, cancels and deletes generations."""

from typing import Any

import msgspec
from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.api_gateway import Router

from imagegen.domain.deadline import Deadline
from imagegen.domain.redacted_traceback import redacted_traceback
from imagegen.ports import GenerationStore, Journal
from imagegen.routes.request import body_of, caller_of, links_of
from imagegen.routes.response import json_response
from imagegen.routes.results import MOST_HOPS, Results
from imagegen.usecases.manage_generation import CancelGeneration, DeleteGeneration, get_generation
from imagegen.usecases.submit import Submission, SubmitGeneration, Submitted
from imagegen.usecases.work_on_generation import GenerationWorker
from imagegen.wire.answers import generation_list_answer
from imagegen.wire.headers import Preference, read_page, read_preference, read_retry_identity
from imagegen.wire.requests import ReadRequest

CLOSING_SECONDS = 5.0  # of the function's time-out, kept free to answer
_DELETE_SECONDS = 20.0  # to delete images, within API Gateway's 29 s


class GenerationRoutes(msgspec.Struct, frozen=True, eq=False):
    """`wait_seconds` is how long a request waits for its images.

    With `api_is_first_worker` this process makes the images of quick models itself.
    """

    submission: SubmitGeneration
    worker: GenerationWorker
    cancellation: CancelGeneration
    deletion: DeleteGeneration
    records: GenerationStore
    results: Results
    journal: Journal
    read_request: ReadRequest
    public_base_url: str
    wait_seconds: float
    api_is_first_worker: bool
    router: Router

    def register(self) -> Router:
        route, one = self.router.route, "/v1/images/generations/<generation_id>"
        route("/v1/images/generations", "POST")(self.create)
        route("/v1/images/generations", "GET")(self.list)
        route(one, "GET")(self.get)
        route(one, "DELETE")(self.delete)
        route(f"{one}/cancel", "POST")(self.cancel)
        route(f"{one}/result", "GET")(self.result)
        route(f"{one}/result", "POST")(self.result)  # some clients repeat the method after a 303
        return self.router

    def create(self) -> Response[str]:
        event = self.router.current_event
        until = Deadline.after(self.wait_seconds)
        request = self.read_request(body_of(event), event.headers.get("Content-Type"))
        identity, preference = read_retry_identity(event.headers), read_preference(event.headers)
        submitted = self.submission.submit(
            Submission(
                request,
                caller_of(event),
                links_of(event, self.public_base_url).base_url,
                identity=identity,
                claim=self.api_is_first_worker
                and self.read_request.catalog.models[request.model].is_quick(request.options.get("quality"))
                and identity.is_counted
                and not preference.respond_async
                and preference.wait is None,
            )
        )
        self.router.append_context(generation=submitted.generation, standing=submitted.standing)
        if submitted.owner:
            self._work_here(submitted, submitted.owner)
        if preference.wait is not None:
            until = until.sooner(preference.wait)
        elif preference.respond_async:
            until = Deadline.after(0)
        return self.results.respond(event, submitted.generation.id, until, preference, hop=0)

    def _work_here(self, submitted: Submitted, owner: str) -> None:
        seconds = self.router.lambda_context.get_remaining_time_in_millis() / 1000 - CLOSING_SECONDS
        try:
            self.worker.work(
                submitted.generation,
                owner,
                Deadline.after(seconds),
                poll=0,
                extend_visibility=lambda _: None,  # no message brought this work
            )
        except Exception as error:  # noqa: BLE001  # the message behind the record brings a worker
            self.journal.interrupted(redacted_traceback(error), generation_id=submitted.generation.id)

    def result(self, generation_id: str) -> Response[str]:
        event = self.router.current_event
        generation = get_generation(generation_id, caller_of(event).name, self.records)
        self.router.append_context(generation=generation)
        hop = (event.query_string_parameters or {}).get("hop") or "1"
        return self.results.respond(
            event,
            generation.id,
            Deadline.after(self.wait_seconds),
            Preference(),
            hop=int(hop) if hop.isdecimal() and len(hop) < 4 else MOST_HOPS,
        )

    def list(self) -> Response[str]:
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

    def get(self, generation_id: str) -> Response[str]:
        caller = caller_of(self.router.current_event).name
        generation = get_generation(generation_id, caller, self.records)
        return json_response(200, self.results.generation_object(generation))

    def cancel(self, generation_id: str) -> Response[str]:
        cancelled = self.cancellation.cancel(generation_id, caller_of(self.router.current_event).name)
        return json_response(200, self.results.generation_object(cancelled))

    def delete(self, generation_id: str) -> Response[str]:
        caller = caller_of(self.router.current_event).name
        self.deletion.delete(generation_id, caller, Deadline.after(_DELETE_SECONDS))
        deleted: dict[str, Any] = {"id": generation_id, "object": "image.generation.deleted", "deleted": True}
        return json_response(200, deleted)
