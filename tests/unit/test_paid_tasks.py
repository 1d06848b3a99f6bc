"""What answers about tasks say of money: an id that was answered is kept, and no broken poll ends a task."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

import pytest
import urllib3

from imagegen.domain import errors
from imagegen.domain.deadline import Deadline
from imagegen.domain.images import ImageRequest, UpstreamRequest, UpstreamTask
from imagegen.ports import ImageProvider
from imagegen.providers.kling.provider import KlingProvider
from imagegen.providers.midjourney.provider import MidjourneyProvider
from imagegen.providers.request_bodies import UpstreamBody
from imagegen.providers.upstream_api import Refusal, UpstreamApi

DEADLINE = Deadline.after(60)
CALL = UpstreamRequest(ImageRequest("a cat", "any", "url"), "any", "any", 1, "gen_x.0.0")
NO_TASK = (404, b'{"code":1203,"message":"no such resource"}')
PROVIDERS = {"kling": KlingProvider, "midjourney": MidjourneyProvider}


class Answers:
    """An UpstreamApi whose upstream gives these answers in turn, the last one again and again."""

    def __init__(self, *answers: tuple[int, bytes], is_reseller: bool = True, refunds: bool = False) -> None:
        self.is_reseller, self.refunds_failed_tasks = is_reseller, refunds
        self._answers = list(answers)

    def below_own(self, prefix: str, path: str) -> SplitResult:
        return urlsplit(f"https://upstream.example{prefix}{path}")

    def without_key(self, text: str) -> str:
        return text

    def post(
        self, url: SplitResult, body: UpstreamBody, n: int, deadline: Deadline, refusal: Refusal
    ) -> tuple[bytearray, None]:
        del url, n, deadline
        assert len(b"".join(body.blocks)) == body.length
        status, content = self._next()
        if status != 200:
            raise refusal(status, urllib3.HTTPHeaderDict(), content, "sk-key")
        return bytearray(content), None

    def get(self, url: SplitResult, deadline: Deadline) -> tuple[int, bytes]:
        del url, deadline
        return self._next()

    def _next(self) -> tuple[int, bytes]:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def provider(name: str, *answers: tuple[int, bytes]) -> ImageProvider:
    return cast("ImageProvider", PROVIDERS[name](cast("UpstreamApi", Answers(*answers))))


def task_of(result: Any) -> str:
    assert isinstance(result, UpstreamTask)
    return result.id


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("kling", b'{"code":200,"message":"ok","data":{"task_id":"t1","task_status":"submitted"}}'),
        ("kling", b'{"code":5000,"data":{"task_id":"t1"}}'),
        ("midjourney", b'{"code":200,"result":"t1"}'),
        ("midjourney", b'{"code":"1","result":"t1"}'),
        ("midjourney", b'{"code":9,"description":"system error","result":"t1"}'),
    ],
)
def test_the_id_of_a_task_is_kept_whatever_code_stands_beside_it(name: str, body: bytes) -> None:
    assert task_of(provider(name, (200, body)).start(CALL, DEADLINE)) == "t1"


@pytest.mark.parametrize(
    ("name", "status", "body", "failure"),
    [
        ("kling", 429, b'{"code":429,"message":"too many"}', errors.UpstreamRateLimitedError),
        ("kling", 401, b'{"code":401,"message":"no"}', errors.UpstreamKeyRefusedError),
        ("kling", 402, b'{"code":402,"message":"no"}', errors.UpstreamOutOfCreditError),
        ("kling", 503, b'{"code":503,"message":"no channel"}', errors.UpstreamUnavailableError),
        ("kling", 429, b'{"code":1102,"message":"used up"}', errors.UpstreamOutOfCreditError),
        ("kling", 429, b'{"code":1303,"message":"parallel"}', errors.UpstreamRateLimitedError),
        ("midjourney", 200, b'{"code":23,"description":"full","result":"t1"}', errors.UpstreamRateLimitedError),
        ("midjourney", 400, b'{"code":4,"description":"prompt_is_required"}', errors.UpstreamRefusedRequestError),
        ("midjourney", 400, b'{"code":4,"description":"bind_request_body_failed"}', errors.UpstreamRefusedRequestError),
        ("midjourney", 400, b'{"code":4,"description":"insert_midjourney_task_failed"}', errors.UpstreamFailedError),
        ("midjourney", 400, b'{"code":4,"description":"copy_response_body_failed"}', errors.UpstreamFailedError),
    ],
)
def test_a_refused_submit_says_whether_it_may_be_charged(
    name: str, status: int, body: bytes, failure: type[errors.ImagegenError]
) -> None:
    with pytest.raises(failure):
        provider(name, (status, body), NO_TASK).start(CALL, DEADLINE)


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("kling", [(500, b'{"code":0,"data":{"task_id":"t1","task_status":"failed"}}')]),
        ("kling", [(400, b'{"code":"channel_not_found","message":"channel not found"}')]),
        ("kling", [(404, b'{"code":404,"message":"Not Found"}')]),
        ("midjourney", [(502, b'{"id":"t1","status":"FAILURE"}')]),
        ("midjourney", [(200, b""), (200, b'{"id":"t1","status":"IN_PROGRESS"}')]),
        ("midjourney", [(200, b""), (502, b"")]),
    ],
)
def test_a_poll_that_fails_says_nothing_about_the_task(name: str, answers: Sequence[tuple[int, bytes]]) -> None:
    assert task_of(provider(name, *answers).poll("t1", CALL, DEADLINE)) == "t1"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("kling", NO_TASK),
        ("kling", (400, b'{"code":"task_not_exist","message":"task_not_exist"}')),
        ("midjourney", (200, b"")),  # twice: midjourney-proxy's answer
        ("midjourney", (400, b'{"code":4,"description":"task_no_found "}')),
    ],
)
def test_an_upstream_that_does_not_know_the_task_says_so(name: str, answer: tuple[int, bytes]) -> None:
    with pytest.raises(errors.UpstreamTaskUnknownError):
        provider(name, answer).poll("t1", CALL, DEADLINE)


@pytest.mark.parametrize(
    ("is_reseller", "refunds", "units", "failure"),
    [
        (False, False, "0", errors.UpstreamTaskRefundedError),
        (False, False, "0.00", errors.UpstreamTaskRefundedError),
        *((False, False, units, errors.UpstreamTaskFailedError) for units in ("1", "0.5", "", "no", "nan")),
        (True, False, "0", errors.UpstreamTaskFailedError),  # what the reseller was charged
        (True, True, "1", errors.UpstreamTaskRefundedError),
    ],
)
def test_the_units_that_kling_took_say_nothing_about_the_price_of_a_reseller(
    is_reseller: bool, refunds: bool, units: str, failure: type[errors.ImagegenError]
) -> None:
    body = b'{"code":0,"data":{"task_id":"t1","task_status":"failed","final_unit_deduction":"%s"}}' % units.encode()
    answers = Answers((200, body), is_reseller=is_reseller, refunds=refunds)
    with pytest.raises(failure):
        KlingProvider(cast("UpstreamApi", answers)).poll("t1", CALL, DEADLINE)


def test_polls_that_are_refused_do_not_each_read_the_key_again() -> None:
    """SSM would throttle, and the authorizer reads there too."""
    fresh: list[bool] = []

    class Refuses:
        def request(self, *_: Any, **__: Any) -> urllib3.BaseHTTPResponse:
            return urllib3.HTTPResponse(BytesIO(b"{}"), status=401, preload_content=False)

    def key(is_fresh: bool) -> str:
        fresh.append(is_fresh)
        return "sk-key"

    pool: Any = Refuses()
    api = UpstreamApi(
        pool, base_url="https://upstream.example", is_reseller=True, key=key, timeout=60, max_image_bytes=1
    )
    for _ in range(3):
        api.get(urlsplit("https://upstream.example/mj/task/t1/fetch"), DEADLINE)
    assert fresh.count(True) == 1
