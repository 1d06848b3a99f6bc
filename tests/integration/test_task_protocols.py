"""Kling and Midjourney over HTTP: what is sent, what comes of each answer to a submit and to a poll.

test_protocols.py tests what they share with the other protocols of resellers.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest

from imagegen.domain import errors
from imagegen.domain.deadline import Deadline
from imagegen.domain.images import UpstreamImages, UpstreamRequest, UpstreamTask
from imagegen.providers.aspect_ratios import SIZES, ratio_of
from local import upstream_kling as kling
from local import upstream_midjourney as midjourney
from local import upstream_tasks as tasks
from local.serving import Reply, Request
from local.upstream import Script
from tests.support import odd_hosts
from tests.support.models import upstream_request
from tests.support.odd_hosts import CHUNKED, OK, chunk, writes
from tests.support.upstream_host import (
    KEY,
    PARAMETER,
    URL,
    Error,
    UpstreamHost,
    answers,
    cut_off,
    failure_of,
    hangs_up,
    read_fields,
    upstream_on,
)

KLING, MIDJOURNEY, NIJI = "kling-v2-1", "mj_imagine", "niji"
EACH_PROTOCOL = pytest.mark.parametrize("model", [KLING, MIDJOURNEY])
PAUSES = {KLING: (2.0, 10.0), MIDJOURNEY: (5.0, 15.0)}
TASK = "task-1"


class Upstream(UpstreamHost):
    """`now` is the clock of the upstream's tasks, which take 100 seconds."""

    now = 0.0

    def call(self, model: str, n: int = 1, **fields: Any) -> UpstreamRequest:
        return upstream_request(read_fields(model, **fields), n)

    def begin(self, model: str, call: UpstreamRequest | None = None) -> UpstreamTask:
        task = self.provider(model).start(call or self.call(model), Deadline.after(60))
        assert isinstance(task, UpstreamTask)
        return task

    def poll(
        self, model: str, task_id: str = TASK, call: UpstreamRequest | None = None, *, within: float = 60
    ) -> UpstreamImages | UpstreamTask:
        return self.provider(model).poll(task_id, call or self.call(model), Deadline.after(within))

    def images(self, model: str, task: UpstreamTask, call: UpstreamRequest | None = None) -> UpstreamImages:
        self.now += 100
        images = self.poll(model, task.id, call)
        assert isinstance(images, UpstreamImages)
        return images

    def answer_polls(self, *scripts: Script) -> None:
        self.stand_in.poll_script.extend(scripts)

    def bought(self) -> set[str]:
        """The ids of the tasks that were paid for."""
        return {charge.task_id for charge in self.stand_in.charged}


@pytest.fixture
def upstream(host: odd_hosts.ReusableHost) -> Iterator[Upstream]:
    with upstream_on(host, Upstream) as upstream:
        upstream.stand_in.now = lambda: upstream.now
        upstream.stand_in.task_seconds = 100
        yield upstream


def pending(model: str, task_id: str = TASK, progress: int | None = None) -> UpstreamTask:
    """A task that has not ended."""
    return UpstreamTask(task_id, *PAUSES[model], progress)


def shows(model: str, status: str = "", *, reason: str = "", **more: object) -> Script:
    """An answer to a poll of the task."""
    if model == KLING:
        return answers(
            200, {"code": 0, "data": {"task_id": TASK, "task_status": status, "task_status_msg": reason} | more}
        )
    return answers(200, {"id": TASK, "status": status, "failReason": reason} | more)


# What is sent

COMMON = {"quality": "auto", "style": "vivid", "response_format": "url", "user": "u-1", "safety_identifier": "s"}


@pytest.mark.parametrize(
    ("model", "fields", "sent"),
    [
        *((model, {}, {}) for model in ("kling-v1", "kling-v1-5", "kling-v2", KLING)),
        (KLING, COMMON | {"size": "auto"}, {}),
        *((KLING, {"size": size}, {"aspect_ratio": ratio_of(size, ":")}) for size in SIZES),
        ("kling-v1", {"aspect_ratio": "2:3"}, {"aspect_ratio": "2:3"}),
        ("kling-v1-5", {"aspect_ratio": "21:9"}, {"aspect_ratio": "21:9"}),
        ("kling-v1", {"resolution": "1k"}, {"resolution": "1k"}),
        ("kling-v2", {"resolution": "2k", "size": "720x1280"}, {"resolution": "2k", "aspect_ratio": "9:16"}),
        *((KLING, {"negative_prompt": text}, {"negative_prompt": text}) for text in ("", "no dogs, 獺🦦\n")),
    ],
    ids=str,
)
def test_kling_is_sent_its_fields_and_always_a_shape(
    upstream: Upstream, model: str, fields: dict[str, Any], sent: dict[str, Any]
) -> None:
    upstream.begin(model, replace(upstream.call(model, 9, **fields), reference="gen_1.0.0"))
    (request,) = upstream.requests  # the stand-in refuses what it does not know
    assert json.loads(request.body) == {
        "model_name": model,
        "prompt": "a cat",
        "n": 9,
        "external_task_id": "gen_1.0.0",
        "aspect_ratio": "16:9",
        **sent,
    }


@pytest.mark.parametrize(
    ("model", "fields", "body"),
    [
        (MIDJOURNEY, COMMON, {"prompt": "a cat --seed 7", "botType": "MID_JOURNEY"}),
        (NIJI, {"style": "cute"}, {"prompt": "a cat --style cute --seed 7", "botType": "NIJI_JOURNEY"}),
        (
            MIDJOURNEY,
            {"size": "1792x1024", "style": "raw", "negative_prompt": "dogs, 獺🦦"},
            {"prompt": "a cat --ar 16:9 --style raw --seed 7 --no dogs, 獺🦦", "botType": "MID_JOURNEY"},
        ),
    ],
)
def test_midjourney_is_sent_a_text_and_its_bot(
    upstream: Upstream, model: str, fields: dict[str, Any], body: dict[str, Any]
) -> None:
    upstream.begin(model, upstream.call(model, seed=7, **fields))
    (request,) = upstream.requests
    assert json.loads(request.body) == body


def test_the_model_is_named_as_the_upstream_names_it_and_the_bot_follows_the_provider(upstream: Upstream) -> None:
    upstream.will(answers(200, {"code": 0, "data": {"task_id": TASK}}))
    upstream.begin(KLING, replace(upstream.call(KLING), model="vendor/kling"))
    upstream.begin(NIJI, replace(upstream.call(NIJI), model="vendor/niji"))
    first, second = (json.loads(request.body) for request in upstream.requests)
    assert (first["model_name"], second["botType"]) == ("vendor/kling", "NIJI_JOURNEY")


@pytest.mark.parametrize("base", ["/v1", "/v1/", ""])
@pytest.mark.parametrize(
    ("model", "mode", "submit", "poll"),
    [
        (KLING, "", kling.PATH, f"{kling.PATH}/{TASK}"),
        *(
            (MIDJOURNEY, mode, f"{prefix}/mj/submit/imagine", f"/mj/task/{TASK}/fetch")
            for mode, prefix in (("", ""), ("fast", "/mj-fast"), ("relax", "/mj-relax"), ("turbo", "/mj-turbo"))
        ),
    ],
)
def test_a_task_is_beside_the_version(
    upstream: Upstream, base: str, model: str, mode: str, submit: str, poll: str
) -> None:
    upstream.base = base
    call = replace(upstream.call(model), mode=mode)
    upstream.begin(model, call)
    upstream.answer_polls(shows(model))
    upstream.poll(model, call=call)
    first, second = upstream.requests
    assert (first.method, first.target, first.header("Content-Type")) == ("POST", submit, "application/json")
    assert (second.method, second.target, second.body) == ("GET", poll, b"")
    for request in upstream.requests:
        assert (request.header("Authorization"), request.header("Accept")) == (f"Bearer {KEY}", "application/json")


# What comes of a submit

# Whether another attempt may follow, the request is to blame, or the call may have been charged.
NEXT, BLAMED, SPENT = (False, True), (False, False), (True, False)
POLICY, NO_KEY, NO_CREDIT = errors.PromptRejectedError, errors.UpstreamKeyRefusedError, errors.UpstreamOutOfCreditError
BUSY, AWAY, FAILED = errors.UpstreamRateLimitedError, errors.UpstreamUnavailableError, errors.UpstreamFailedError
REFUSED, NO_MODEL, INVALID = (
    errors.UpstreamRefusedRequestError,
    errors.UpstreamLacksModelError,
    errors.UpstreamAnswerInvalidError,
)
OF_KLING: list[tuple[int, tuple[int, ...], Error, tuple[bool, bool]]] = [
    (401, (1000, 1001, 1002, 1003, 1004), NO_KEY, NEXT),
    (429, (1100, 1101, 1102), NO_CREDIT, NEXT),
    (403, (1103,), NO_MODEL, NEXT),
    (400, (1200, 1201), REFUSED, BLAMED),
    (404, (1202, 1203), NO_MODEL, NEXT),
    (400, (1300, 1301), POLICY, BLAMED),
    (429, (1302, 1303), BUSY, NEXT),
    (429, (1304,), NO_KEY, NEXT),
    (500, (5000, 777, -1, 10**30), FAILED, SPENT),
    (503, (5001,), AWAY, NEXT),
    (504, (5002,), FAILED, SPENT),
]
OF_MIDJOURNEY: list[tuple[int, int, str, Error, tuple[bool, bool]]] = [
    (400, 3, "No available account instance", AWAY, NEXT),
    (400, 4, "quota_not_enough ", NO_CREDIT, NEXT),
    *((400, 4, said, REFUSED, BLAMED) for said in ("prompt_is_required ", "bind_request_body_failed x", "")),
    # new-api says these once it has sent the submit on (`relay/mjproxy_handler.go`).
    (400, 4, "do_request_failed ", FAILED, SPENT),
    (400, 4, "insert_midjourney_task_failed ", FAILED, SPENT),
    (400, 4, "copy_response_body_failed ", FAILED, SPENT),
    (500, 5, "do_request_failed ", FAILED, SPENT),
    (400, 9, "Submit failed, system error", FAILED, SPENT),
    (400, 23, "Queue full, try again later", BUSY, NEXT),
    (400, 24, "May contain sensitive words", POLICY, BLAMED),
    (429, 30, "Group saturated, try again later", BUSY, NEXT),
    *((400, code, "?", FAILED, SPENT) for code in (0, 2, 20, 25, -1, 10**30)),
]
OUTCOMES = [
    *(
        (KLING, used, {"code": code, "message": "No."}, error, then)
        for status, codes, error, then in OF_KLING
        for code, used in (*((code, status) for code in codes), (codes[-1], 200))
    ),
    *(
        # A task's id that comes with a failure is kept, if the task may be paid for.
        (
            MIDJOURNEY,
            used,
            {"code": code, "description": said, **({} if then is SPENT else {"result": TASK})},
            error,
            then,
        )
        for status, code, said, error, then in OF_MIDJOURNEY
        for used in (status, 200)
    ),
    # Accepted, but without a task
    *((MIDJOURNEY, 200, {"code": code, "result": ""}, INVALID, SPENT) for code in (1, 21, 22)),
    (KLING, 200, {"code": 0, "message": "SUCCEED", "data": {"task_status": "submitted"}}, INVALID, SPENT),
    # No code
    (KLING, 200, {"code": "unknown", "message": "No."}, INVALID, SPENT),
    (MIDJOURNEY, 200, {"code": "24", "description": "No."}, INVALID, SPENT),
    # A status that says more than the code
    (KLING, 429, {"code": "1303"}, BUSY, NEXT),
    (MIDJOURNEY, 401, {"code": 4, "description": "No."}, NO_KEY, NEXT),
    (MIDJOURNEY, 503, {"code": 4, "description": "No."}, AWAY, NEXT),
]


@pytest.mark.parametrize(("model", "status", "body", "error", "then"), OUTCOMES)
def test_a_refused_submit_has_its_meaning(
    upstream: Upstream, model: str, status: int, body: object, error: Error, then: tuple[bool, bool]
) -> None:
    upstream.will(answers(status, body))
    failure = failure_of(lambda: upstream.begin(model))
    assert type(failure) is error
    assert (failure.money_spent, failure.another_attempt) == then
    assert len(upstream.submits) == 1


@pytest.mark.parametrize("code", [1, 21, 22])
@pytest.mark.parametrize("result", [TASK, 1700000000000123])
def test_midjourney_accepts_with_three_codes(upstream: Upstream, code: int, result: object) -> None:
    upstream.will(answers(200, {"code": code, "description": "?", "result": result}))
    assert upstream.begin(MIDJOURNEY) == pending(MIDJOURNEY, str(result))


@pytest.mark.parametrize(
    "body",
    [
        {"code": 0, "message": "SUCCEED", "data": {"task_id": TASK, "task_status": "submitted"}},
        {"code": "success", "message": "", "data": {"task_id": TASK, "status": "SUBMITTED"}},
        {"task_id": TASK, "status": ""},
        {"data": {"data": {"task_id": TASK}}},
        {"code": "success", "data": {"task_id": TASK, "data": {"code": 0, "data": {"task_id": "inner"}}}},
    ],
    ids=str,
)
def test_kling_accepts_in_each_envelope(upstream: Upstream, body: object) -> None:
    upstream.will(answers(200, body))
    assert upstream.begin(KLING) == pending(KLING)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("model", "status", "body"),
    [
        (KLING, 429, {"code": 1303, "message": "parallel task over resource pack limit"}),
        (KLING, 503, {"code": 5001, "message": "maintenance"}),
        (MIDJOURNEY, 429, {"code": 30, "description": "Group saturated"}),
    ],
)
def test_the_time_that_a_busy_upstream_names_is_known(
    upstream: Upstream, model: str, status: int, body: object
) -> None:
    upstream.will(answers(status, body, Retry_After="3"))
    assert failure_of(lambda: upstream.begin(model)).retry_after == 3


@pytest.mark.parametrize(
    ("model", "status", "body"),
    [
        *((KLING, status, {"code": 1201, "message": f"n: {KEY} is wrong"}) for status in (200, 400)),
        *((MIDJOURNEY, status, {"code": 4, "description": f"n: {KEY} is wrong"}) for status in (200, 400)),
    ],
)
def test_the_reason_of_a_refusal_is_told_without_the_key(
    upstream: Upstream, model: str, status: int, body: object
) -> None:
    upstream.will(answers(status, body))
    failure = failure_of(lambda: upstream.begin(model))
    assert failure.message == "The image model refused the request: n: [redacted] is wrong"


# A submit whose outcome is unknown

LOST: list[tuple[Script, Error]] = [
    (hangs_up, errors.UpstreamConnectionLostError),
    (writes(OK + b"Content-Length: 90\r\n\r\n" + b'{"code":'), errors.UpstreamConnectionLostError),
    (cut_off(answers(200)), errors.UpstreamConnectionLostError),
    (answers(200), INVALID),
    (tasks.html_page(), INVALID),
    (tasks.cut_off_json(), INVALID),
    *((tasks.html_page(status), FAILED) for status in (500, 502, 504, 524)),
    (answers(200, b" " * 70_000), errors.UpstreamAnswerTooLargeError),
]
EACH_LOST = pytest.mark.parametrize(("lost", "error"), LOST)


def accepted_and(upstream: Upstream, lost: Script) -> Script:
    """The upstream begins and charges the task, and its answer is lost."""

    def respond(request: Request) -> Reply | None:
        upstream.stand_in.changed(lambda reply: reply)(request)
        return lost(request)

    return respond


@EACH_LOST
def test_kling_finds_the_task_of_a_lost_answer(upstream: Upstream, lost: Script, error: Error) -> None:
    upstream.will(accepted_and(upstream, lost))
    call = replace(upstream.call(KLING), reference="gen_1.0.0")
    task = upstream.begin(KLING, call)
    assert {task.id} == upstream.bought()
    assert [(each.method, each.target) for each in upstream.requests] == [
        ("POST", kling.PATH),
        ("GET", f"{kling.PATH}/gen_1.0.0"),
    ]
    assert len(upstream.images(KLING, task, call).images) == 1


@EACH_LOST
def test_a_lost_answer_without_a_task_may_have_been_charged(upstream: Upstream, lost: Script, error: Error) -> None:
    for model in (KLING, MIDJOURNEY):
        upstream.will(lost)
        failure = failure_of(lambda model=model: upstream.begin(model))  # type: ignore[misc]
        assert type(failure) is error
        assert failure.money_spent
    assert len(upstream.submits) == 2


FOUND = answers(200, {"code": 0, "data": {"task_id": TASK, "task_info": {"external_task_id": "reference"}}})
# Answers to Kling's query by external_task_id. The task is certainly not there, or the upstream has no such query.
NOT_FOUND: list[Script] = [
    kling.refusing(1203, "task not found"),
    kling.refusing(1201, "invalid task id"),
    answers(400, {"code": "task_not_exist", "message": "task_not_exist", "data": None}),
    answers(200, {"code": 1203, "message": "task not found"}),
    answers(200, {"code": 0, "message": "SUCCEED", "data": None}),
    answers(404, {"error": {"message": "Invalid URL (GET /kling/v1/images/generations/1)"}}),
    answers(405),
    answers(501, {"error": {"code": "api_not_implemented"}}),
]
# It may be there.
NOT_CLEAR: list[Script] = [
    hangs_up,
    tasks.html_page(),
    tasks.html_page(524),
    tasks.unavailable(),
    tasks.too_many_requests(),
    tasks.cut_off_json(),
    cut_off(answers(200)),
    answers(200),
    answers(401),
    answers(403),
    answers(500, {"code": 5000, "message": "internal"}),
    *(answers(200, {"code": code, "message": "No."}) for code in (5000, 1302, 1000, "error")),
    kling.another_task(),
    answers(200, {"code": 0, "data": {"task_id": "1"}}),
    answers(200, b" " * 300_000),
]


@pytest.mark.parametrize("script", [*NOT_FOUND, *NOT_CLEAR])
def test_the_failure_of_a_submit_stays_if_no_task_is_found(upstream: Upstream, script: Script) -> None:
    upstream.will(answers(504))
    upstream.answer_polls(script)
    assert type(failure_of(lambda: upstream.begin(KLING))) is FAILED
    assert [request.method for request in upstream.requests] == ["POST", "GET"]


def test_a_submit_that_bought_nothing_is_not_looked_for(upstream: Upstream) -> None:
    upstream.will(kling.refusing(1303))
    assert type(failure_of(lambda: upstream.begin(KLING))) is BUSY
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("script", "methods"),
    [
        (FOUND, ["GET"]),
        *((script, ["GET", "POST"]) for script in NOT_FOUND),
        *((script, ["GET"]) for script in NOT_CLEAR),
    ],
)
def test_kling_looks_for_the_task_before_it_repeats_a_submit(
    upstream: Upstream, script: Script, methods: list[str]
) -> None:
    upstream.answer_polls(script)
    call = replace(upstream.call(KLING), repeats=True)
    if script is FOUND:
        assert upstream.begin(KLING, call) == pending(KLING)
    elif script in NOT_FOUND:
        assert {upstream.begin(KLING, call).id} == upstream.bought()
    else:
        failure = failure_of(lambda: upstream.begin(KLING, call))
        assert (type(failure), failure.retry_after) == (AWAY, None)
    assert [request.method for request in upstream.requests] == methods


@pytest.mark.parametrize("rewrites", [False, True])
def test_midjourney_repeats_the_text_and_gets_the_same_task(upstream: Upstream, rewrites: bool) -> None:
    upstream.stand_in.midjourney.rewrites_codes = rewrites
    upstream.will(accepted_and(upstream, hangs_up))
    call = upstream.call(MIDJOURNEY)
    assert failure_of(lambda: upstream.begin(MIDJOURNEY, call)).money_spent
    task = upstream.begin(MIDJOURNEY, replace(call, repeats=True))
    assert {task.id} == upstream.bought()
    first, second = upstream.submits
    assert first.body == second.body
    other = upstream.begin(MIDJOURNEY, replace(call, reference="another"))
    assert other.id != task.id


# What comes of a poll


@pytest.mark.parametrize(
    ("model", "progress"), [(KLING, [None] * 5), (MIDJOURNEY, [None, 0, 5, 60, 99])], ids=["kling", "midjourney"]
)
def test_a_task_runs_until_its_images_come(upstream: Upstream, model: str, progress: list[int | None]) -> None:
    task = upstream.begin(model)
    assert task == pending(model, task.id, progress[0])
    for upstream.now, known in zip((0, 5, 60, 99.9), progress[1:], strict=True):
        assert upstream.poll(model, task.id) == pending(model, task.id, known)
    assert len(upstream.images(model, task).images) == 1


@pytest.mark.parametrize("change", [None, kling.new_api_envelope, kling.sibling_envelope])
def test_images_of_kling_are_kept_in_their_order_from_each_envelope(upstream: Upstream, change: Any) -> None:
    if change:
        upstream.will(upstream.stand_in.changed(change))
        upstream.answer_polls(*[upstream.stand_in.changed(change)] * 2)
    call = upstream.call(KLING, 3)
    task = upstream.begin(KLING, call)
    upstream.now = 50
    assert upstream.poll(KLING, task.id, call) == pending(KLING, task.id)
    images = upstream.images(KLING, task, call).images
    shown = json.loads(kling.Kling.show(upstream.stand_in.kling, upstream.requests[-1]).body)["data"]["task_result"]
    assert [image.source for image in images] == [image["url"] for image in shown["images"]]
    assert len({image.source for image in images}) == 3


def test_a_grid_of_midjourney_is_kept_with_its_seed_its_actions_and_its_account(upstream: Upstream) -> None:
    call = replace(upstream.call(MIDJOURNEY, seed=7), number=2)
    answer = upstream.images(MIDJOURNEY, upstream.begin(MIDJOURNEY, call), call)
    (grid,) = answer.images
    assert isinstance(grid.source, str)
    assert grid.source.startswith(f"http://127.0.0.1:{upstream.port}/files/")
    assert (grid.revised_prompt, grid.details, answer.account) == ("a cat --seed 9", {"seed": 9}, "1118138338562560102")
    assert [action.name for action in grid.actions] == [
        *(f"upscale_{index}" for index in range(1, 5)),
        *(f"variation_{index}" for index in range(1, 5)),
        "reroll",
    ]


@EACH_PROTOCOL
def test_images_without_a_url_are_a_failure_that_is_charged(upstream: Upstream, model: str) -> None:
    upstream.stand_in.fates["a cat"].append(tasks.WITHOUT_URL)
    task = upstream.begin(model)
    assert type(failure_of(lambda: upstream.images(model, task))) is INVALID


@pytest.mark.parametrize(
    ("model", "script"),
    [
        *(
            (MIDJOURNEY, shows(MIDJOURNEY, status, imageUrl=URL, progress="100%"))
            for status in ("", "NOT_START", "SUBMITTED", "IN_PROGRESS", "MODAL", "success", "?")
        ),
        *(
            (KLING, shows(KLING, status, progress="100%", task_result={"images": [{"index": 0, "url": URL}]}))
            for status in ("", "submitted", "processing", "?")
        ),
    ],
)
def test_only_the_status_ends_a_task(upstream: Upstream, model: str, script: Script) -> None:
    """A preview is not an image, and a progress of 100% not an end."""
    upstream.answer_polls(script)
    assert upstream.poll(model) == pending(model, progress=100)


FAILED_TASK, REFUNDED = errors.UpstreamTaskFailedError, errors.UpstreamTaskRefundedError
FILTERED, UNKNOWN_TASK = errors.ImageFilteredError, errors.UpstreamTaskUnknownError


UNSAFE = "Your request was rejected by the image model's safety system."
FAILURES: list[tuple[str, bool, Error, str]] = [
    ("", False, FAILED_TASK, "The image model's task failed, and may be charged: it gave no reason."),
    (f"{KEY} ended", False, FAILED_TASK, "The image model's task failed, and may be charged: [redacted] ended"),
    (f"{KEY} ended", True, REFUNDED, "The image model's task failed, and its price was returned: [redacted] ended"),
    ("Banned prompt detected", False, FILTERED, UNSAFE),
    ("内容违规", True, POLICY, UNSAFE),
]


@pytest.mark.parametrize(
    ("model", "status", "reason", "refunds", "error", "message"),
    [
        *((model, "FAILURE", *failure) for model in (KLING, MIDJOURNEY) for failure in FAILURES),
        (MIDJOURNEY, "CANCEL", *FAILURES[0]),
        *((KLING, status, *FAILURES[0]) for status in ("failed", "Error", "cancelled")),
    ],
)
def test_a_failed_task_says_if_it_is_charged(
    upstream: Upstream, model: str, status: str, reason: str, refunds: bool, error: Error, message: str
) -> None:
    upstream.refunds = refunds
    upstream.answer_polls(shows(model, status, reason=reason, progress="50%", imageUrl=URL))
    failure = failure_of(lambda: upstream.poll(model))
    assert (type(failure), failure.message) == (error, message)


@pytest.mark.parametrize(
    ("model", "fate", "refunds", "error"),
    [
        (KLING, kling.risk_control(), True, FILTERED),  # Kling says it to the reseller
        (MIDJOURNEY, midjourney.banned_prompt(), True, FILTERED),  # the answer does not say that it is refunded
        (MIDJOURNEY, midjourney.image_denied(), False, FILTERED),
        (MIDJOURNEY, midjourney.CANCELLED, False, FAILED_TASK),
        (KLING, tasks.FORGOTTEN, False, UNKNOWN_TASK),
        (MIDJOURNEY, tasks.FORGOTTEN, False, UNKNOWN_TASK),
    ],
)
def test_a_task_ends_as_the_stand_in_ends_it(
    upstream: Upstream, model: str, fate: tasks.Fate, refunds: bool, error: Error
) -> None:
    upstream.stand_in.fates["a cat"].append(fate)
    upstream.stand_in.refunds = refunds
    task = upstream.begin(model)
    failure = failure_of(lambda: upstream.images(model, task))
    assert type(failure) is error


@pytest.mark.parametrize(
    ("model", "script"),
    [
        (KLING, kling.refusing(1203, "task not found")),
        (KLING, answers(400, {"code": "task_not_exist", "message": "task_not_exist"})),
        (KLING, answers(400, {"code": "invalid", "message": "no such task"})),
        (KLING, answers(200, {"code": 1203, "message": "?"})),
        (MIDJOURNEY, lambda _: midjourney.gateway_error("task_no_found")),
        (MIDJOURNEY, answers(200, {"code": 4, "description": "task_not_found"})),
        (MIDJOURNEY, answers(200)),
        (MIDJOURNEY, answers(200, b" \n")),
    ],
)
def test_a_task_that_the_upstream_does_not_know_may_be_charged(upstream: Upstream, model: str, script: Script) -> None:
    upstream.answer_polls(script)
    failure = failure_of(lambda: upstream.poll(model))
    assert (type(failure), failure.money_spent) == (UNKNOWN_TASK, True)


# Answers to a poll that say nothing about the task

SILENT: list[Script] = [
    hangs_up,
    tasks.html_page(),
    tasks.html_page(524),
    tasks.html_page(404),
    tasks.unavailable(),
    tasks.too_many_requests(),
    tasks.cut_off_json(),
    cut_off(answers(200)),
    writes(CHUNKED),
    writes(b"HTTP/1.1 2"),
    kling.another_task(),
    midjourney.another_task(),
    answers(200, {}),
    answers(200, []),
    answers(200, b"null"),
    answers(401, {"code": 1000, "message": "task not found"}),
    answers(403),
    answers(404, {"error": {"message": "Invalid URL", "code": None}}),
    answers(204),
    answers(308, Location="/elsewhere"),
]


def failing(status: int) -> Script:
    """The upstream could not look at the task. Its answer resembles that of a failed task, in both protocols."""
    return answers(status, {"id": TASK, "task_id": TASK, "status": "FAILURE", "task_status": "failed"})


@EACH_PROTOCOL
@pytest.mark.parametrize("script", [*SILENT, *(failing(status) for status in (429, 500, 502, 503, 504, 524))])
def test_a_poll_that_fails_says_nothing(upstream: Upstream, model: str, script: Script) -> None:
    upstream.answer_polls(script)
    assert upstream.poll(model) == pending(model)
    assert len(upstream.requests) == 1


@EACH_PROTOCOL
def test_an_answer_that_is_too_large_says_nothing_and_a_large_one_counts(upstream: Upstream, model: str) -> None:
    whole = {"id": TASK, "status": "SUCCESS", "imageUrl": URL, "task_id": TASK}
    whole["task_result"] = {"images": [{"url": URL}]}  # type: ignore[assignment]
    body = json.dumps(whole).encode()
    upstream.answer_polls(answers(200, body.ljust(256 * 1024)), answers(200, body.ljust(256 * 1024 + 1)))
    assert isinstance(upstream.poll(model), UpstreamImages)
    assert upstream.poll(model) == pending(model)


@EACH_PROTOCOL
def test_after_a_refused_key_the_next_poll_has_the_new_one(upstream: Upstream, model: str) -> None:
    upstream.rotate_key()
    upstream.secrets.asked.clear()
    assert upstream.poll(model) == pending(model)
    assert upstream.secrets.asked == [(PARAMETER, False), (PARAMETER, True)]
    upstream.answer_polls(shows(model, progress="7%"))
    assert upstream.poll(model) == pending(model, progress=7)
    assert len(upstream.requests) == 2


@EACH_PROTOCOL
@pytest.mark.parametrize("key", [None, "", f"{KEY}\nX-Other: 1", errors.SecretUnavailableError("down")], ids=repr)
def test_without_a_readable_key_a_poll_says_nothing(
    upstream: Upstream, model: str, key: str | Exception | None
) -> None:
    upstream.secrets.values = {PARAMETER: key} if isinstance(key, str) else {}
    if isinstance(key, Exception):
        upstream.secrets.failures.extend([key] * 3)
    assert upstream.poll(model) == pending(model)
    assert upstream.requests == []


@EACH_PROTOCOL
def test_the_reason_of_a_failure_is_redacted_even_if_the_key_cannot_be_read(upstream: Upstream, model: str) -> None:
    upstream.secrets.failures.extend([None, errors.SecretUnavailableError("down")])
    upstream.answer_polls(shows(model, "FAILURE", reason=f"Bad key {KEY}."))
    assert type(failure_of(lambda: upstream.poll(model))) is FAILED_TASK


class TestTooSlow:
    @pytest.fixture
    def host(self) -> Iterator[odd_hosts.ReusableHost]:
        """Not shared, since a request may arrive after the test."""
        with odd_hosts.reusable_host() as host:
            yield host

    @EACH_PROTOCOL
    @pytest.mark.parametrize(("head", "drop"), [(b"", b""), (CHUNKED, chunk(b" "))], ids=["nothing", "drips"])
    def test_a_poll_that_hangs_says_nothing(self, upstream: Upstream, model: str, head: bytes, drop: bytes) -> None:
        upstream.answer_polls(*[upstream.slow.drips(head, drop)] * 9)
        result = upstream.slow.cuts(
            lambda seconds: upstream.poll(model, within=seconds),
            upstream.requests,
            too_soon=lambda _: not upstream.requests,
        )
        assert result == pending(model)


# Hostile ids. tests/unit/test_task_answers.py has other hostile answers.

IDS = [
    "..",
    ".",
    "a/b",
    "a/../../v1/models",
    "x?y=1#z",
    "%2e%2e",
    "a;b",
    "é",
    "a b",
    "a\nb",
    "a\0",
    "",
    "x" * 200,
    "x" * 201,
]
NUMBERS = [7, 10**199, 10**200, 0, -1, True, None, 1.5]


@EACH_PROTOCOL
@pytest.mark.parametrize("task_id", [*IDS, *NUMBERS], ids=lambda value: ascii(value)[:30])
def test_an_id_stays_within_its_path_or_is_refused(upstream: Upstream, model: str, task_id: object) -> None:
    upstream.will(answers(200, {"code": int(model == MIDJOURNEY), "data": {"task_id": task_id}, "result": task_id}))
    text = str(task_id)
    is_usable = type(task_id) in (str, int) and text.isascii() and text.isprintable() and " " not in text
    if not is_usable or not task_id or len(text) > 200:
        assert type(failure_of(lambda: upstream.begin(model))) is INVALID
        return
    task = upstream.begin(model)
    assert task.id == text
    upstream.answer_polls(answers(503))
    upstream.poll(model, task.id)
    segment = quote(text, safe="")
    assert upstream.requests[-1].target == (
        f"{kling.PATH}/{segment}" if model == KLING else f"/mj/task/{segment}/fetch"
    )
