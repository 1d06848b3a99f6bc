"""What the protocols with tasks have in common: ends of tasks, ids, progress, and no answer that breaks them."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import SplitResult

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegen.domain import errors
from imagegen.domain.deadline import Deadline
from imagegen.domain.images import ImageRequest, UpstreamImages, UpstreamTask
from imagegen.outbound.pool import HttpPool
from imagegen.ports import ImageProvider
from imagegen.providers.kling.provider import KlingProvider
from imagegen.providers.midjourney.provider import MidjourneyProvider
from imagegen.providers.request_bodies import UpstreamBody
from imagegen.providers.tasks import failed_task, per_cent, task_id_of
from imagegen.providers.upstream_api import Refusal, UpstreamApi
from tests.support.models import upstream_request

PROVIDERS: dict[str, Callable[[UpstreamApi], ImageProvider]] = {
    "kling-v2-1": KlingProvider,
    "mj_imagine": MidjourneyProvider,
}
EACH_PROTOCOL = pytest.mark.parametrize("model", PROVIDERS)
URL = "https://images.example/1.png"
NO_PROGRESS: list[object] = ["", "%", "101%", "-1%", "5.5%", "50%%", "half", 101, -1, 5.5, None, True, []]
NO_IDS: list[object] = ["", "x" * 201, "a b", "a\n", "\0", "é", 0, 10**200, None, True, 1.5, [], {}]


@pytest.mark.parametrize(
    ("reason", "by_policy"),
    [
        # trueai's proxy joins Midjourney's title and its text.
        ("Banned prompt detected, Sorry! Our AI moderator thinks this is against our community standards.", True),
        ("Image denied, Request cancelled due to image filters", True),
        ("Request cancelled due to output filters", True),
        ("Failure to pass the risk control system", True),
        ("可能包含敏感词", True),
        ("内容违规", True),
        ("包含违禁词", True),
        ("图片审核不通过", True),
        ("Your request was rejected by our safety system.", True),
        ("This prompt violates our content policy.", True),
        ("The prompt may contain SENSITIVE words", True),
        ("", False),
        ("Timeout.", False),
        ("任务超时", False),
        ("Invalid parameter, Unrecognized parameter(s): --x", False),
        ("Your account was flagged.", False),
    ],
)
@pytest.mark.parametrize("refunded", [False, True])
def test_the_words_of_the_reason_say_why_a_task_failed(reason: str, by_policy: bool, refunded: bool) -> None:
    failure = failed_task(reason, refunded=refunded)
    kinds = {
        (True, True): errors.PromptRejectedError,
        (True, False): errors.ImageFilteredError,
        (False, True): errors.UpstreamTaskRefundedError,
        (False, False): errors.UpstreamTaskFailedError,
    }
    assert type(failure) is kinds[by_policy, refunded]
    assert failure.money_spent is not refunded
    assert failure.param == ("prompt" if by_policy else None)


def test_the_reason_is_told_without_secrets_and_cut() -> None:
    failure = failed_task(f"See https://user:secret@host/x {'a ' * 500}", refunded=False)
    assert failure.message.startswith("The image model's task failed, and may be charged: See [redacted] a a")
    assert len(failure.message) < 400


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(value if isinstance(value, bytes) else json.dumps(value).encode())


@pytest.mark.parametrize(
    ("value", "known"),
    [
        *(("50%", 50), ("0%", 0), ("100%", 100), ("7", 7), (" 7% ", 7), (0, 0), (99, 99)),
        *((odd, None) for odd in NO_PROGRESS),
        *((b"1" + b"0" * 400, None), (b"1" * 9_000, None), (b'"\\ud83d"', None), ("1" * 9_000, None)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_progress_is_from_0_to_100(value: object, known: int | None) -> None:
    assert per_cent(raw(value)) == known


@pytest.mark.parametrize(
    ("value", "known"),
    [
        *(("t1", "t1"), ("a/b?c#..", "a/b?c#.."), ("x" * 200, "x" * 200), (7, "7"), (10**199, str(10**199))),
        *((odd, None) for odd in NO_IDS),
        *((b"1" * 9_000, None), (b'"\\ud83d"', None), (b"{", None)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_id_is_a_word_or_a_number(value: object, known: str | None) -> None:
    assert task_id_of(raw(value)) == known


# Hostile answers


class HostileApi(UpstreamApi):
    """An upstream whose every answer has the same body."""

    def __init__(self, body: bytes) -> None:
        super().__init__(
            HttpPool(),
            base_url="https://upstream.example/v1",
            is_reseller=True,
            key=lambda _: "sk-1",
            timeout=1,
            max_image_bytes=1,
        )
        self.body = body
        self.status = 200

    def post(
        self, url: SplitResult, body: UpstreamBody, n: int, deadline: Deadline, refusal: Refusal
    ) -> tuple[bytearray, errors.MoneySpentError | None]:
        assert len(b"".join(body.blocks)) == body.length
        return bytearray(self.body), None

    def get(self, url: SplitResult, deadline: Deadline) -> tuple[int, bytes] | None:
        return self.status, self.body


def answered(model: str, body: bytes) -> None:
    """Whatever an answer to a submit or a poll is, it is a task, exactly the images, or a known failure."""
    api = HostileApi(body)
    provider, call = PROVIDERS[model](api), upstream_request(ImageRequest("a cat", model, "url"))
    with suppress(errors.ImagegenError):
        task = provider.start(call, Deadline.after(1))
        assert isinstance(task, UpstreamTask)
        assert task.id.isascii()
    for api.status in (200, 400):
        with suppress(errors.ImagegenError):
            result = provider.poll("t1", call, Deadline.after(1))
            assert isinstance(result, UpstreamTask) or len(result.images) == 1


WHOLE = {
    "code": 1,
    "result": "t1",
    "task_id": "t1",
    "id": "t1",
    "task_result": {"images": [{"index": 0, "url": URL}]},
    "imageUrl": URL,
}
NAMES = (
    *("code", "message", "data", "task_id", "task_status", "task_status_msg", "task_info", "task_result"),
    *("images", "url", "index", "external_task_id", "final_unit_deduction", "progress", "status", "description"),
    *("result", "imageUrl", "failReason", "buttons", "properties", "customId", "label", "finalPrompt"),
)
STATUSES = ("succeed", "failed", "SUCCESS", "FAILURE")
VALUES = [b'"\\ud83d"', b"1" + b"0" * 400, b"1e400", b"-0", b"0.5", b'"7"', b"true", b"null", b"[" * 900 + b"]" * 900]
VALUES += [b'"\\u0000"', b"[%s]" % b",".join([b"0"] * 100_000), b'{"images":[%s]}' % b",".join([b"0"] * 100_000)]
BROKEN = [b"[" * 100_000, b'{"data":' * 40_000, b'{"data":' * 20_000 + b"1" + b"}" * 20_000, b"\xff", b"\xef\xbb\xbf{}"]


def with_odd_value(value: bytes) -> Iterator[bytes]:
    for status in STATUSES:
        whole = json.dumps(WHOLE | {"status": status, "task_status": status}).encode()
        for name in NAMES:
            yield whole[:-1] + b', "%s": %s}' % (name.encode(), value)


@EACH_PROTOCOL
@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value[:10]))
def test_no_value_breaks_the_reading_or_takes_long(model: str, value: bytes) -> None:
    began, bodies = time.process_time(), list(with_odd_value(value))
    for body in bodies:
        answered(model, body)
    assert time.process_time() - began < 0.2 * len(bodies)


@EACH_PROTOCOL
@pytest.mark.parametrize("body", BROKEN, ids=lambda body: repr(body[:10]))
def test_no_broken_json_breaks_the_reading(model: str, body: bytes) -> None:
    answered(model, body)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([URL, "t1", "", "50%", "\ud83d", *STATUSES, "task_no_found"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=12,
)


@EACH_PROTOCOL
@given(JSON | st.dictionaries(st.sampled_from(NAMES), JSON).map(lambda odd: WHOLE | odd))
@settings(deadline=None, max_examples=200)
def test_any_answer_is_a_task_images_or_a_failure(model: str, answer: object) -> None:
    answered(model, json.dumps(answer).encode())


def test_a_whole_answer_gives_images() -> None:
    """Otherwise the tests above would prove little."""
    for model, provider in PROVIDERS.items():
        api = HostileApi(json.dumps(WHOLE | {"status": "SUCCESS"}).encode())
        call = upstream_request(ImageRequest("a cat", model, "url"))
        assert isinstance(provider(api).poll("t1", call, Deadline.after(1)), UpstreamImages)
