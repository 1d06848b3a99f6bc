"""An upstream that recognises equal calls answers an operator's retry with the task that has failed."""

import pytest

from imagegen.domain import errors
from imagegen.domain.deadline import Deadline
from imagegen.domain.generations import Status
from imagegen.domain.images import UpstreamImages, UpstreamRequest, UpstreamTask
from tests.fakes.provider import FakeProvider
from tests.support.in_memory import InMemoryService

FAILURES = (errors.UpstreamTaskRefundedError("refunded"), errors.UpstreamTaskFailedError("charged"))


class OneTask(FakeProvider):
    """Answers every call with the same task, which fails."""

    def __init__(self, failure: errors.ImagegenError) -> None:
        super().__init__()
        self.failure, self.submits = failure, 0

    def start(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages | UpstreamTask:
        del call, deadline
        self.submits += 1
        return UpstreamTask("same", 5.0, 5.0, None)

    def poll(self, task_id: str, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages | UpstreamTask:
        del task_id, call, deadline
        raise self.failure


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.code)
def test_a_retry_that_is_answered_with_the_failed_task_fails_at_once(
    service: InMemoryService, failure: errors.ImagegenError
) -> None:
    service.provider = upstream = OneTask(failure)
    generation = service.admitted()
    service.deliver(generation.id)
    service.deliver(generation.id, 1)
    assert service.record(generation).status is Status.FAILED
    service.retry(generation.id)
    sent = len(service.queue.sent)
    service.deliver(generation.id)
    failed = service.record(generation)
    assert (failed.status, failed.failure and failed.failure.code) == (Status.FAILED, failure.code)
    assert (upstream.submits, failed.calls[0].sent, len(service.queue.sent)) == (2, 2, sent)
    assert service.used == ({1} if failure.money_spent else {0})
