"""Places to wait, through the gateway and the handlers. The contract of the places is in test_places.py."""

import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from imagegen.aws.places import DynamoPlaces
from imagegen.domain.places import KEPT_SECONDS
from local.aws_door import Fault
from local.serving import Reply
from tests.fakes.provider import png
from tests.support.client import EDITS, GENERATIONS, INLINE, Answer
from tests.support.in_process import InProcess
from tests.support.inputs import sized
from tests.support.stores import NOW
from tests.support.waiting import until
from tests.support.world import answering

Item = dict[str, Any]


class OnePlace:
    """The service with one place to wait. `clock` is the time of the places."""

    def __init__(self, service: InProcess, clock: list[float]) -> None:
        self.service, self.clock = service, clock
        self.prompt = uuid4().hex
        self.body = {"model": "dall-e-2", "prompt": self.prompt}
        self._table = service.function("ApiFunction").function.environment["GENERATION_TABLE"]
        self.places = DynamoPlaces(lambda: service.aws("dynamodb"), self._table, most=1, share=100)

    def is_taken(self) -> bool:
        """Takes the only place for another caller unless it is taken."""
        return self.places.take("another") is None

    def items(self) -> list[Item]:
        """All items of the table, without the places."""
        pages = self.service.aws("dynamodb").get_paginator("scan").paginate(TableName=self._table)
        return [item for page in pages for item in page["Items"] if item["sk"]["S"] != "places"]

    def in_use(self) -> list[str]:
        """The kinds of the places in use: `kept` or `place`."""
        key = {"pk": {"S": "places#0"}, "sk": {"S": "places"}}
        item = self.service.aws("dynamodb").get_item(TableName=self._table, Key=key).get("Item", {})
        return sorted(name.partition("#")[0] for name, value in item.items() if "M" in value)

    def clear(self) -> None:
        key = {"pk": {"S": "places#0"}, "sk": {"S": "places"}}
        self.service.aws("dynamodb").delete_item(TableName=self._table, Key=key)


@pytest.fixture
def one_place(handlers: InProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[OnePlace]:
    clock = [NOW]
    monkeypatch.setattr("imagegen.aws.places.time", SimpleNamespace(time=lambda: clock[0]))
    one = OnePlace(handlers, clock)
    one.clear()
    with handlers.function("ApiFunction").changed(MOST_WAITERS="1"):
        yield one
    one.clear()


def refused(answer: Answer, status: int) -> bool:
    assert 8 <= int(answer.headers["retry-after"]) <= 15
    return answer.failed == (status, "no_place_to_wait")


@pytest.mark.parametrize("headers", [{}, INLINE, {"Idempotency_Key": "a key"}], ids=["plain", "counted", "key"])
def test_a_request_without_a_place_leaves_nothing_and_its_retry_succeeds(
    one_place: OnePlace, headers: dict[str, str]
) -> None:
    caller, before = one_place.service.caller(), one_place.items()
    assert one_place.is_taken() is False
    answer = caller.post(one_place.body, **headers)
    assert refused(answer, 429)
    assert not {"x-generation-id", "x-should-retry", "x-ratelimit-remaining-images"} & set(answer.headers)
    assert one_place.items() == before
    one_place.clear()
    assert caller.make(one_place.body, **headers).status == 200
    assert len(one_place.service.calls(one_place.prompt)) == 1


def test_a_retry_without_a_place_is_refused_and_attaches_later(one_place: OnePlace) -> None:
    caller, key = one_place.service.caller(), {"Idempotency_Key": "a key"}
    first = caller.post(one_place.body, **key)
    assert one_place.is_taken() is False
    assert refused(caller.post(one_place.body, **key), 429)
    one_place.clear()
    assert caller.post(one_place.body, **key).json["id"] == first.json["id"]
    assert len(one_place.service.calls(one_place.prompt)) == 1


def test_a_result_without_a_place_is_424_and_may_be_asked_for_again(one_place: OnePlace) -> None:
    caller = one_place.service.caller()
    generation_id = caller.begin(**one_place.body)
    assert one_place.is_taken() is False
    for method in ("GET", "POST"):
        answer = caller.ask(method, f"{GENERATIONS}/{generation_id}/result", None if method == "GET" else b"")
        assert refused(answer, 424)
        assert (answer.headers["x-should-retry"], answer.generation_id) == ("true", generation_id)
    assert caller.result(generation_id).status == 200  # the worker has made it: there is nothing to wait for


def test_a_large_result_needs_a_place_while_it_is_sent(one_place: OnePlace) -> None:
    caller, content = one_place.service.caller(), png("x" * 4_800_000)  # 6.4 MB as base64
    one_place.service.will(one_place.prompt, answering(content))
    generation_id = caller.begin(**one_place.body, response_format="b64_json")
    caller.until_ended(generation_id)
    assert one_place.is_taken() is False
    refusal = caller.result(generation_id)
    assert refused(refusal, 424)
    assert "The images are stored." in refusal.error["message"]
    one_place.clear()
    assert b64decode(caller.result(generation_id).json["data"][0]["b64_json"]) == content
    assert one_place.in_use() == []


def test_a_wait_goes_on_in_the_place_that_its_redirect_kept_for_it(one_place: OnePlace) -> None:
    caller = one_place.service.caller()
    with one_place.service.function("ApiFunction").changed(MOST_WAITERS="1", API_IS_FIRST_WORKER="false"):
        first = caller.post(one_place.body)
        result = f"{GENERATIONS}/{first.generation_id}/result"
        assert (first.status, one_place.in_use(), one_place.is_taken()) == (303, ["kept"], True)
        one_place.clock[0] += KEPT_SECONDS - 1
        assert (caller.get(result).status, one_place.in_use(), one_place.is_taken()) == (303, ["kept"], True)
        one_place.clock[0] += KEPT_SECONDS + 1
        assert one_place.is_taken() is False
        assert refused(caller.get(result), 424)


@pytest.mark.parametrize(
    ("prefer", "status"), [("respond-async", 202), ("wait=0", 303), ("respond-async, wait=9", 202)]
)
def test_a_request_that_does_not_wait_needs_no_place(one_place: OnePlace, prefer: str, status: int) -> None:
    caller = one_place.service.caller()
    assert one_place.is_taken() is False
    assert caller.post(one_place.body, Prefer=prefer).status == status
    assert one_place.in_use() == ["place"]  # a redirect keeps none for a request that had none


@pytest.mark.parametrize(("prefer", "status"), [("respond-async", 202), ("wait=0", 303)])
def test_a_request_with_images_needs_a_place_while_they_are_read(one_place: OnePlace, prefer: str, status: int) -> None:
    caller = one_place.service.caller()
    image = f"data:image/png;base64,{b64encode(sized()).decode()}"
    body = one_place.body | {"model": "gpt-image-1.5", "images": [{"image_url": image}]}
    before = one_place.items()
    assert one_place.is_taken() is False
    assert refused(caller.ask("POST", EDITS, body, Prefer=prefer), 429)
    assert one_place.items() == before
    one_place.clear()
    assert caller.ask("POST", EDITS, body, Prefer=prefer).status == status
    assert one_place.in_use() == []


def test_without_waits_a_result_needs_no_place_either(one_place: OnePlace) -> None:
    caller = one_place.service.caller()
    assert one_place.is_taken() is False
    with one_place.service.function("ApiFunction").changed(MOST_WAITERS="1", WAIT_SECONDS="0"):
        first = caller.post(one_place.body)
        second = caller.get(f"{GENERATIONS}/{first.generation_id}/result")
    assert (first.status, second.status, one_place.in_use()) == (303, 303, ["place"])


def answers_200(one: OnePlace) -> int:
    return one.service.local.post(one.body).status


def answers_429(one: OnePlace) -> int:
    """The quota is used up."""
    return one.service.caller(images_per_day=0).post(one.body).status


def answers_502(one: OnePlace) -> int:
    """The upstream refuses its key."""
    one.service.will(one.prompt, lambda _: Reply(401, b"{}"))
    return one.service.local.post(one.body).status


def answers_503(one: OnePlace) -> int:
    """The place is counted, and then the quota cannot be."""
    one.service.stack.door.fail(Fault(2))
    return one.service.local.post(one.body).status


@pytest.mark.parametrize("answered", [answers_200, answers_429, answers_502, answers_503])
def test_a_place_is_given_back_when_the_execution_ends(
    one_place: OnePlace, answered: Callable[[OnePlace], int]
) -> None:
    assert f"answers_{answered(one_place)}" == answered.__name__
    assert one_place.in_use() == []


def test_a_place_is_held_while_the_execution_works_on_after_its_redirect(one_place: OnePlace) -> None:
    caller, gate = one_place.service.caller(), one_place.service.hold(one_place.prompt)
    answers: list[Answer] = []
    execution = threading.Thread(target=lambda: answers.append(caller.post(one_place.body, Prefer="wait=1")))
    execution.start()
    try:
        until(lambda: one_place.in_use() == ["kept", "place"], what="the redirect")
    finally:
        gate.open()
        execution.join()
    (answer,) = answers
    assert (answer.status, one_place.in_use()) == (303, ["kept"])
    assert caller.get(f"{GENERATIONS}/{answer.generation_id}").json["status"] == "completed"
    assert len(one_place.service.calls(one_place.prompt)) == 1


def test_requests_wait_if_the_places_cannot_be_counted_unless_too_many_ask(one_place: OnePlace) -> None:
    assert one_place.is_taken() is False
    door = one_place.service.stack.door
    door.fail(Fault(1, error="InternalServerError"))
    assert one_place.service.local.post(one_place.body).status == 200
    door.fail(Fault(1, error="ThrottlingException"))
    assert refused(one_place.service.local.post(one_place.body), 429)
    assert door.fail() == 1  # nothing else was asked
