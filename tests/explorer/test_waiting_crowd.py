"""Crowds that wait for images of seven minutes: each client gets its image or an early refusal that it may retry."""

import random
from collections.abc import Callable
from functools import partial

import pytest

from tests.explorer.crowd import IMAGES, Client, Crowd, openai_client, patched
from tests.explorer.simulated_time import SimulatedTime

SEVEN_MINUTES = 420.0
EARLY_SECONDS = 60.0
LATEST_NOTICE = 4.0  # the longest pause between two looks at a record, and round trips
A_MINUTE = 8  # requests of one client, at most
FOR_EVER = 1_000_000
STREAMED, BUFFERED = 230.0, 25.0  # seconds of a wait
SOON, LATE = 5.0, 250.0  # before and after the redirects of those who came first


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> SimulatedTime:
    random.seed(23)
    time = SimulatedTime()
    patched(monkeypatch, time)
    return time


def check(crowd: Crowd, *clients: Client) -> list[Client]:
    """What holds for each client. Returns those that got their image."""
    served = []
    for client in clients:
        assert client.ended
        assert client.busiest_minute <= A_MINUTE, client
        assert all(seconds == pytest.approx(crowd.wait_seconds) for seconds, status in client.waits if status == 303)
        if client.ended.status == 200:
            served.append(client)
            assert sum(seconds for seconds, _ in client.waits) == pytest.approx(SEVEN_MINUTES, abs=LATEST_NOTICE)
        else:
            assert (client.ended.status, client.waits) == (429, [])
            assert client.codes.keys() <= {"no_place_to_wait", "rate_limit_exceeded"}
            assert client.ended_at - client.asked_at[0] < EARLY_SECONDS
    bought = [call.request.prompt for call in crowd.service.provider.calls]
    assert len(bought) == len(set(bought))
    return served


@pytest.mark.parametrize(
    ("clients", "most", "rate", "max_retries", "wait_seconds"),
    [
        pytest.param(1000, 100, 50, 2, STREAMED, id="OpenAI's clients"),
        pytest.param(30, 3, 2, FOR_EVER, STREAMED, id="patient clients"),
        pytest.param(30, 3, 2, FOR_EVER, BUFFERED, id="patient clients without streaming"),
        pytest.param(1000, 100, 50, FOR_EVER, STREAMED, id="long", marks=pytest.mark.soak),
        pytest.param(1000, 100, 50, FOR_EVER, BUFFERED, id="long without streaming", marks=pytest.mark.soak),
    ],
)
def test_each_client_of_a_crowd_gets_its_image_or_an_early_refusal(
    time: SimulatedTime, clients: int, most: int, rate: int, max_retries: int, wait_seconds: float
) -> None:
    crowd = Crowd(
        time,
        most=most,
        image_seconds=SEVEN_MINUTES,
        wait_seconds=wait_seconds,
        rate=rate,
        burst=2 * rate,
        first_worker=wait_seconds == STREAMED,
    )
    for number in range(clients):
        crowd.client(f"client-{number}", openai_client(max_retries), delay=random.uniform(0, 5))
    time.run()
    served = check(crowd, *crowd.clients)
    assert len(served) == (clients if max_retries == FOR_EVER else most)
    assert len(crowd.service.provider.calls) == len(served)
    assert crowd.items.items == {"places#0": {"used": {"N": "0"}}}
    assert crowd.busy == 0
    assert crowd.most_busy <= 2 * most + 1  # those that work on, those that wait, and one that is refused


Greedy = Callable[[Crowd, int], None]
GREEDY = "greedy"  # the one caller of all these connections
CONNECTIONS, PAUSE = 40, 6.0  # more than the caller's share; what follows an answer at once


def polls_in_a_loop(crowd: Crowd, number: int) -> None:
    """Each connection asks again for the result of the same image."""
    key = {"Idempotency-Key": "the same", "Prefer": "respond-async"}
    begun = crowd.ask(Client(GREEDY), "POST", IMAGES, {"prompt": "one"}, **key)
    repeat(crowd, lambda: crowd.ask(Client(GREEDY), "GET", f"{IMAGES}/{begun.headers['x-generation-id']}/result"))


def opens_many_waits(crowd: Crowd, number: int) -> None:
    """The processes work on after their redirects, so each of its images takes two places."""
    openai_client(FOR_EVER, prompt=f"number {number}")(crowd, Client(GREEDY))


def hangs_up(crowd: Crowd, number: int) -> None:
    """It never comes for the place that was kept for it."""
    asked, headers = {"prompt": f"number {number}"}, {"Idempotency-Key": f"key {number}", "Prefer": "wait=1"}
    repeat(crowd, lambda: crowd.ask(Client(GREEDY), "POST", IMAGES, asked, **headers))


def does_not_wait(crowd: Crowd, number: int) -> None:
    asked, headers = {"prompt": f"number {number}"}, {"Idempotency-Key": f"key {number}", "Prefer": "wait=0"}
    repeat(crowd, lambda: crowd.ask(Client(GREEDY), "POST", IMAGES, asked, **headers))


def repeat(crowd: Crowd, ask: Callable[[], object]) -> None:
    until = crowd.time.now + SEVEN_MINUTES
    while crowd.time.now < until:
        ask()
        crowd.time.sleep(PAUSE)


@pytest.mark.parametrize(
    ("greedy", "first_worker"),
    [(polls_in_a_loop, False), (opens_many_waits, True), (hangs_up, True), (does_not_wait, False)],
)
def test_a_greedy_caller_delays_nobody_else(time: SimulatedTime, greedy: Greedy, first_worker: bool) -> None:
    """Of thirty places it gets 27, also after its redirects. The others need three: one of them has two by then."""
    crowd = Crowd(time, most=30, image_seconds=SEVEN_MINUTES, first_worker=first_worker)
    for number in range(CONNECTIONS):
        time.spawn(partial(greedy, crowd, number))
    others = [crowd.client(f"other, after {delay} s", openai_client(0), delay=delay) for delay in (SOON, LATE)]
    time.run()
    assert check(crowd, *others) == others
