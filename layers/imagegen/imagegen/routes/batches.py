"""`/v1/batches`: begins, shows and cancels batches."""

from collections.abc import Callable

import msgspec
from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.api_gateway import Router

from imagegen.domain.batches import Batch, BatchStatus, Counts, is_batch_id
from imagegen.ports import BatchLines, BatchQueue, BatchStore
from imagegen.routes.request import body_of, caller_of
from imagegen.routes.response import Body, json_response
from imagegen.usecases.begin_batch import BeginBatch
from imagegen.usecases.continue_batch import cancel_batch, get_batch
from imagegen.wire.batch_requests import read_batch_request
from imagegen.wire.batches import batch_answer, batch_list_answer
from imagegen.wire.headers import read_page, read_retry_identity


class BatchRoutes(msgspec.Struct, frozen=True, eq=False):
    """`now` gives Unix seconds."""

    beginning: BeginBatch
    batches: BatchStore
    lines: BatchLines
    queue: BatchQueue
    now: Callable[[], float]
    router: Router

    def register(self) -> Router:
        self.router.route("/v1/batches", "POST")(self.create)
        self.router.route("/v1/batches", "GET")(self.list)
        self.router.route("/v1/batches/<batch_id>", "GET")(self.get)
        self.router.route("/v1/batches/<batch_id>/cancel", "POST")(self.cancel)
        return self.router

    def create(self) -> Response[Body]:
        event = self.router.current_event
        asked = read_batch_request(body_of(event), event.headers.get("Content-Type"))
        batch = self.beginning.begin(asked, caller_of(event).name, read_retry_identity(event.headers))
        return json_response(200, batch_answer(batch, self._counts(batch)))

    def list(self) -> Response[Body]:
        event = self.router.current_event
        page = read_page(event.query_string_parameters or {}, is_batch_id)
        found = self.batches.newest(caller_of(event).name, page.limit + 1, after=page.after)
        listed = [(batch, self._counts(batch)) for batch in found[: page.limit]]
        return json_response(200, batch_list_answer(listed, more=len(found) > page.limit))

    def get(self, batch_id: str) -> Response[Body]:
        batch = get_batch(batch_id, caller_of(self.router.current_event).name, self.batches)
        return json_response(200, batch_answer(batch, self._counts(batch)))

    def cancel(self, batch_id: str) -> Response[Body]:
        caller = caller_of(self.router.current_event).name
        batch = cancel_batch(batch_id, caller, self.batches, self.queue, self.now())
        return json_response(200, batch_answer(batch, self._counts(batch)))

    def _counts(self, batch: Batch) -> Counts:
        """The final counts of the record, or else the counts so far."""
        if batch.status in (BatchStatus.VALIDATING, BatchStatus.FAILED):
            return Counts(0, 0)
        return batch.counts or self.lines.counts(batch.id)
