"""One upstream call on real sockets: what is sent, what is understood, and how often money may have been spent."""

import json
import socket
import ssl
import threading
import time
import traceback
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from urllib3 import HTTPHeaderDict
from urllib3.exceptions import NewConnectionError

from imagegen.deadline import Deadline
from imagegen.errors import (
    ImagegenError,
    ImageUrlRefusedError,
    MoneySpentError,
    NothingSpentError,
    PromptRejectedError,
    SecretMissingError,
    SecretUnavailableError,
    TryLaterError,
    UpstreamAnswerInvalidError,
    UpstreamAnswerTooLargeError,
    UpstreamConnectionLostError,
    UpstreamFailedError,
    UpstreamKeyRefusedError,
    UpstreamMisconfiguredError,
    UpstreamOutOfCreditError,
    UpstreamRateLimitedError,
    UpstreamRefusedRequestError,
    UpstreamTimeoutError,
    UpstreamTooFewImagesError,
    UpstreamUnavailableError,
    UpstreamUnreachableError,
)
from imagegen.images import ImageRequest, ResponseFormat, UpstreamAnswer
from imagegen.outbound.pool import HttpPool
from imagegen.providers.openai_compatible import TRIES, OpenAICompatibleProvider
from imagegen.version import VERSION
from local.serving import HungUpError, Reply, Request, serving
from local.upstream import Script, StandInUpstream
from tests.fakes.parameters import FakeParameters
from tests.fakes.provider import png

KEY = "sk-Q7vXw2LmN8dRtYp4"
ROTATED_KEY = "sk-Zk3HcB9sFjUa6eGo"
PARAMETER = "/imagegen/upstream-api-key"
URL = "https://images.example/1.png"
SHORT = 0.4  # seconds: long enough to connect, short enough to wait for
AT_MOST_SECONDS = 3.0  # well past SHORT, well before a peer that hangs gives up
IMAGE_BYTES = 64 * 1024


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagegen.providers.openai_compatible._FIRST_PAUSE_SECONDS", 0)


@dataclass
class Upstream:
    """The stand-in on a port; `requests` are all that came, paid or not. `over` is set when the test ends."""

    port: int
    stand_in: StandInUpstream
    requests: list[Request]
    over: threading.Event
    secrets: FakeParameters = field(default_factory=lambda: FakeParameters({PARAMETER: KEY}))
    pool: HttpPool = field(default_factory=HttpPool)

    def will(self, *scripts: Script) -> None:
        self.stand_in.script.extend(scripts)

    def call(
        self, request: ImageRequest | None = None, n: int = 1, *, timeout: float = 10, within: float = 30
    ) -> UpstreamAnswer:
        provider = OpenAICompatibleProvider(
            self.pool,
            base_url=f"http://127.0.0.1:{self.port}/v1",
            key=lambda fresh: self.secrets.get(PARAMETER, fresh=fresh),
            timeout=timeout,
            max_image_bytes=IMAGE_BYTES,
        )
        return provider.generate(request or asked(), n, Deadline.after(within))

    def failure(
        self, request: ImageRequest | None = None, n: int = 1, *, timeout: float = 10, within: float = 30
    ) -> ImagegenError:
        with pytest.raises(ImagegenError) as caught:
            self.call(request, n, timeout=timeout, within=within)
        assert_no_key_in(caught.value)
        return caught.value


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    stand_in = StandInUpstream(KEY)
    requests: list[Request] = []

    def respond(request: Request) -> Reply:
        requests.append(request)
        return stand_in.respond(request)

    over = threading.Event()
    with serving(respond) as port:
        try:
            yield Upstream(port, stand_in, requests, over)
        finally:
            over.set()


def asked(model: str = "dall-e-3", response_format: ResponseFormat = "url", **more: Any) -> ImageRequest:
    return ImageRequest(prompt="a cat", model=model, response_format=response_format, **more)


def says(status: int, body: object = "", **headers: str) -> Script:
    """Answers with a body: JSON where it is no str or bytes. `Retry_After` becomes Retry-After."""
    content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return lambda _: Reply(status, content, {name.replace("_", "-"): value for name, value in headers.items()})


def says_data(*data: object, **more: object) -> Script:
    return says(200, {"created": 1, "data": list(data), **more})


def refuses(
    status: int, code: object = None, kind: object = None, message: str = "No.", param: object = None, **headers: str
) -> Script:
    error = {"message": message, "type": kind, "param": param, "code": code}
    return says(status, {"error": error}, **headers)


def hangs_up(_: Request) -> Reply:
    raise HungUpError


def assert_no_key_in(error: BaseException) -> None:
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        current = current.__cause__ or current.__context__
    told = [f"{one} {one!r} {vars(one)}" for one in seen]
    text = "\n".join([*traceback.format_exception(error), *told])
    assert KEY not in text
    assert ROTATED_KEY not in text


class TestWhatIsSent:
    @pytest.mark.parametrize(
        ("request_", "n", "body"),
        [
            pytest.param(
                asked(size="1792x1024", quality="hd", style="natural", user="u-1"),
                1,
                {
                    "size": "1792x1024",
                    "quality": "hd",
                    "style": "natural",
                    "user": "u-1",
                    "response_format": "url",
                },
                id="dall-e-3, all fields",
            ),
            pytest.param(asked(), 1, {"response_format": "url"}, id="dall-e-3, nothing chosen"),
            pytest.param(asked(response_format="b64_json"), 1, {"response_format": "b64_json"}, id="dall-e-3, base64"),
            pytest.param(
                asked("dall-e-2", size="256x256", user="u-1", style="vivid", quality="standard"),
                3,
                {"size": "256x256", "user": "u-1", "response_format": "url"},
                id="dall-e-2 knows no style and no quality",
            ),
            pytest.param(
                asked(
                    "gpt-image-1",
                    size="1024x1536",
                    quality="high",
                    style="vivid",
                    user="u-1",
                    background="opaque",
                    moderation="low",
                    output_format="webp",
                    output_compression=0,
                ),
                2,
                {
                    "size": "1024x1536",
                    "quality": "high",
                    "user": "u-1",
                    "background": "opaque",
                    "moderation": "low",
                    "output_format": "webp",
                    "output_compression": 0,
                },
                id="gpt-image, all fields",
            ),
            pytest.param(asked("gpt-image-1"), 1, {}, id="gpt-image asked for url"),
            pytest.param(asked("gpt-image-1", "b64_json"), 1, {}, id="gpt-image asked for base64"),
            pytest.param(
                asked("flux-pro", size="512x768", quality="hd", style="vivid", user="u-1"),
                1,
                {"size": "512x768"},
                id="flux, all fields",
            ),
            pytest.param(asked("flux-pro", "b64_json"), 1, {}, id="flux asked for base64"),
        ],
    )
    def test_each_model_is_sent_the_fields_it_takes_and_no_others(
        self, upstream: Upstream, request_: ImageRequest, n: int, body: dict[str, Any]
    ) -> None:
        upstream.will(says_data(*[{"url": URL}] * n))

        upstream.call(request_, n)

        assert upstream.stand_in.calls == [{"model": request_.model, "prompt": "a cat", "n": n, **body}]

    def test_the_call_is_an_authorized_json_post_below_the_base_url(self, upstream: Upstream) -> None:
        upstream.will(says_data({"url": URL}))

        upstream.call()

        (request,) = upstream.requests
        assert (request.method, request.target) == ("POST", "/v1/images/generations")
        assert request.header("Host") == f"127.0.0.1:{upstream.port}"
        assert request.header("Authorization") == f"Bearer {KEY}"
        assert request.header("Content-Type") == "application/json"
        assert request.header("Accept") == "application/json"
        assert request.header("User-Agent") == f"imagegen/{VERSION}"

    @pytest.mark.parametrize("prompt", ['quotes " and \\', "line\nbreak", "한국어 🐈", "\u2028", "</script>"])
    def test_the_prompt_arrives_as_it_was_written(self, upstream: Upstream, prompt: str) -> None:
        upstream.will(says_data({"url": URL}))

        upstream.call(ImageRequest(prompt=prompt, model="dall-e-3", response_format="url"))

        assert upstream.stand_in.calls[0]["prompt"] == prompt

    def test_the_stand_in_finds_nothing_to_refuse_in_any_model_s_request(self, upstream: Upstream) -> None:
        for model, quality in (("dall-e-2", "standard"), ("dall-e-3", "hd"), ("gpt-image-1", "low"), ("flux", None)):
            size = "256x256" if model == "dall-e-2" else "1024x1024"
            assert len(upstream.call(asked(model, size=size, user="u-1", quality=quality)).images) == 1


PNG = png("a cat")
B64 = b64encode(PNG).decode()
COMPLETED = {"type": "image_generation.completed", "b64_json": B64}
# Base64 that holds both characters in which the URL-safe alphabet differs.
ODD_PNG = png("~~~???\u00fb\u00ff\u00be" * 8)


class TestSuccess:
    @pytest.mark.parametrize("status", [200, 201])
    def test_a_url_is_answered_as_a_url(self, upstream: Upstream, status: int) -> None:
        upstream.will(says(status, {"created": 1, "data": [{"url": URL, "revised_prompt": "a fine cat"}]}))

        (image,) = upstream.call().images

        assert (image.source, image.revised_prompt) == (URL, "a fine cat")

    @pytest.mark.parametrize("response_format", ["url", "b64_json"])
    @pytest.mark.parametrize(("item", "source"), [({"url": URL}, URL), ({"b64_json": B64}, PNG)])
    def test_either_kind_of_image_is_taken_whichever_was_asked_for(
        self, upstream: Upstream, item: dict[str, str], source: str | bytes, response_format: ResponseFormat
    ) -> None:
        upstream.will(says_data(item))

        assert upstream.call(asked(response_format=response_format)).images[0].source == source

    @pytest.mark.parametrize(
        ("item", "source"),
        [
            pytest.param({"url": "", "b64_json": B64, "revised_prompt": ""}, PNG, id="an empty url beside base64"),
            pytest.param({"url": URL, "b64_json": "", "revised_prompt": ""}, URL, id="empty base64 beside a url"),
            pytest.param({"url": None, "b64_json": B64}, PNG, id="a null url"),
            pytest.param({"url": URL, "b64_json": None}, URL, id="null base64"),
            pytest.param({"url": [URL]}, URL, id="a url in a list"),
            pytest.param({"b64_json": f"data:image/png;base64,{B64}"}, PNG, id="a data: prefix in b64_json"),
            pytest.param({"b64_json": f"DATA:image/png;base64,{B64}"}, PNG, id="an upper-case prefix"),
            pytest.param({"url": "", "b64_json": f"data:image/png;base64,{B64}"}, PNG, id="a prefix, an empty url"),
            pytest.param({"url": f"data:image/png;base64,{B64}"}, PNG, id="a data: url"),
            pytest.param({"url": f"data:image/png;base64,{B64}", "b64_json": ""}, PNG, id="a data: url, empty base64"),
            pytest.param({"b64_json": f"{B64[:20]}\n{B64[20:]}\r\n"}, PNG, id="line breaks in base64"),
            pytest.param({"b64_json": f" {B64} "}, PNG, id="spaces around base64"),
            pytest.param({"b64_json": b64encode(ODD_PNG).decode()}, ODD_PNG, id="every character of base64"),
            pytest.param({"b64_json": urlsafe_b64encode(ODD_PNG).decode()}, ODD_PNG, id="url-safe base64"),
            pytest.param({"b64_json": B64.rstrip("=")}, PNG, id="base64 without padding"),
            pytest.param({"b64_json": B64, "width": 1, "safe": {"a": [None]}}, PNG, id="unknown keys"),
        ],
    )
    def test_an_image_is_found_however_resellers_wrap_it(
        self, upstream: Upstream, item: dict[str, Any], source: str | bytes
    ) -> None:
        upstream.will(says_data(item))

        assert upstream.call(asked(response_format="b64_json")).images[0].source == source
        assert len(upstream.requests) == 1

    @pytest.mark.parametrize("revised", [None, "", 7, ["a"], {"text": "a"}, True])
    @pytest.mark.parametrize("item", [{"url": URL}, {"b64_json": B64}])
    def test_a_revised_prompt_that_is_no_text_is_none(
        self, upstream: Upstream, item: dict[str, str], revised: object
    ) -> None:
        upstream.will(says_data({**item, "revised_prompt": revised}))

        assert upstream.call().images[0].revised_prompt is None

    def test_details_and_usage_are_passed_on_and_unknown_keys_are_not(self, upstream: Upstream) -> None:
        usage = {
            "input_tokens": 50,
            "output_tokens": 50,
            "total_tokens": 100,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
        }
        details = {"background": "opaque", "output_format": "png", "size": "1024x1024", "quality": "high"}
        upstream.will(says_data({"b64_json": B64}, **details, usage=usage, request_id="r-1"))

        answer = upstream.call(asked("gpt-image-1", "b64_json"))

        assert (answer.details, answer.usage) == (details, usage)

    @pytest.mark.parametrize("odd", [None, "", 7, [], {}])
    def test_details_and_usage_of_odd_types_are_left_out(self, upstream: Upstream, odd: object) -> None:
        upstream.will(says_data({"b64_json": B64}, background=odd, output_format=odd, size=odd, quality=odd, usage=odd))

        answer = upstream.call(asked("gpt-image-1", "b64_json"))

        assert (answer.details, answer.usage) == ({}, None)

    def test_of_more_images_than_asked_for_the_first_are_taken(self, upstream: Upstream) -> None:
        upstream.will(says_data(*({"url": f"{URL}?{index}"} for index in range(4))))

        assert [image.source for image in upstream.call(n=2).images] == [f"{URL}?0", f"{URL}?1"]

    def test_an_answer_without_a_length_is_read_to_its_end(self, upstream: Upstream) -> None:
        body = json.dumps({"data": [{"b64_json": B64}]}).encode()

        def respond(request: Request) -> Reply:
            request.connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(body), 50):
                block = body[at : at + 50]
                request.connection.sendall(b"%x\r\n%s\r\n" % (len(block), block))
            request.connection.sendall(b"0\r\n\r\n")
            raise HungUpError

        upstream.will(respond)

        assert upstream.call().images[0].source == PNG

    def test_an_answer_that_comes_as_an_event_stream_is_read(self, upstream: Upstream) -> None:
        partial = {"type": "image_generation.partial_image", "b64_json": "AAAA", "partial_image_index": 0}
        events = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in (partial, COMPLETED))
        upstream.will(says(200, events, Content_Type="text/event-stream"))

        assert [image.source for image in upstream.call(asked("gpt-image-1")).images] == [PNG]
        assert len(upstream.requests) == 1

    def test_an_event_stream_that_is_never_closed_gives_its_image_at_the_deadline(self, upstream: Upstream) -> None:
        event = f"data: {json.dumps(COMPLETED)}\n\n".encode()
        head = b"HTTP/1.1 200 OK\r\n\r\n" + event
        upstream.will(lambda request: drips(upstream, request, head, b":\n\n"))

        assert [image.source for image in upstream.call(asked("gpt-image-1"), timeout=SHORT).images] == [PNG]
        assert len(upstream.requests) == 1

    def test_a_large_image_comes_whole(self, upstream: Upstream) -> None:
        content = png("x" * (IMAGE_BYTES - 200))
        upstream.will(says_data({"b64_json": b64encode(content).decode()}))

        assert upstream.call().images[0].source == content


class TestSuccessThatIsNone:
    @pytest.mark.parametrize(
        "body",
        [
            pytest.param("", id="an empty body"),
            pytest.param(" \n", id="white space"),
            pytest.param("OK", id="a word"),
            pytest.param("<!doctype html><html><body>Welcome</body></html>", id="HTML"),
            pytest.param('{"data": [{"url": "http', id="half of it"),
            pytest.param("[" * 50_000, id="nested beyond reason"),
            pytest.param(b"\xff\xfe\x00", id="no UTF-8"),
            pytest.param(b'{"data": [{"url": "\xff"}]}', id="no UTF-8 inside"),
            pytest.param([], id="a list"),
            pytest.param("null", id="null"),
            pytest.param({}, id="an empty object"),
            pytest.param({"error": {"message": "boom", "code": "x"}}, id="an error"),
            pytest.param({"error": "boom"}, id="an error that is text"),
            pytest.param({"created": 1, "data": None}, id="data null"),
            pytest.param({"data": {"url": URL}}, id="data an object"),
            pytest.param({"data": URL}, id="data a string"),
            pytest.param({"data": [None]}, id="an image null"),
            pytest.param({"data": [URL]}, id="an image a string"),
            pytest.param({"data": [{"url": 7}]}, id="url a number"),
            pytest.param({"data": [{"url": [7]}]}, id="url a list of numbers"),
            pytest.param({"data": [{"b64_json": 7}]}, id="base64 a number"),
            pytest.param({"data": [{"b64_json": "%%%%"}]}, id="no base64"),
            pytest.param({"data": [{"b64_json": "AAAAA"}]}, id="base64 of an impossible length"),
            pytest.param({"data": [{"url": "data:image/png;base64,%%%%"}]}, id="no base64 in a data: url"),
            pytest.param({"data": [{"b64_json": f"x{URL}"}]}, id="a URL where base64 belongs"),
        ],
    )
    def test_an_answer_that_no_images_api_gives_is_invalid_and_not_asked_for_again(
        self, upstream: Upstream, body: object
    ) -> None:
        upstream.will(says(200, body))

        assert type(upstream.failure()) is UpstreamAnswerInvalidError
        assert len(upstream.requests) == 1

    def test_an_answer_without_images_is_no_success_and_not_asked_for_again(self, upstream: Upstream) -> None:
        upstream.will(says_data())

        assert type(upstream.failure(asked("dall-e-2"), 2)) is UpstreamTooFewImagesError
        assert len(upstream.requests) == 1

    @pytest.mark.parametrize(
        ("data", "failure"),
        [
            ([], UpstreamTooFewImagesError),
            ([{}], UpstreamAnswerInvalidError),
            ([{"url": "", "b64_json": "", "revised_prompt": ""}], UpstreamAnswerInvalidError),
            ([{"b64_json": "%%%%"}], UpstreamAnswerInvalidError),
            ([{"url": "https://images.example/a b"}], ImageUrlRefusedError),
        ],
    )
    def test_a_good_image_is_kept_where_another_is_bad_or_missing(
        self, upstream: Upstream, data: list[object], failure: type[MoneySpentError]
    ) -> None:
        upstream.will(says_data({"url": URL}, *data))

        good, bad = upstream.call(asked("dall-e-2"), 2).images

        assert (good.source, good.failure) == (URL, None)
        assert (bad.source, type(bad.failure)) == (None, failure)
        assert len(upstream.requests) == 1

    @pytest.mark.parametrize("n", [1, 3])
    def test_an_answer_larger_than_its_images_can_be_is_cut(self, upstream: Upstream, n: int) -> None:
        upstream.will(says_data({"b64_json": "A" * (n * IMAGE_BYTES * 2 + 100_000)}))

        assert type(upstream.failure(asked("dall-e-2"), n)) is UpstreamAnswerTooLargeError
        assert len(upstream.requests) == 1

    def test_an_endless_answer_is_cut_long_before_the_deadline(self, upstream: Upstream) -> None:
        def respond(request: Request) -> Reply:
            request.connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while not upstream.over.is_set():
                request.connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
            raise HungUpError

        upstream.will(respond)

        assert type(upstream.failure()) is UpstreamAnswerTooLargeError
        assert len(upstream.requests) == 1


@dataclass(frozen=True)
class Refusal:
    script: Script
    error: type[ImagegenError]
    calls: int = 1
    param: str | None = None
    code: str | None = None


RAISED = [ValueError, RuntimeError, RecursionError, OSError, AttributeError, MemoryError]
HTML = "<html><h1>Oops</h1></html>"
REFUSALS = {
    "policy, DALL·E": Refusal(
        refuses(400, "content_policy_violation", "invalid_request_error"),
        PromptRejectedError,
        param="prompt",
        code="content_policy_violation",
    ),
    "policy, GPT image": Refusal(
        refuses(400, "moderation_blocked", "image_generation_user_error"),
        PromptRejectedError,
        param="prompt",
        code="moderation_blocked",
    ),
    "policy by its type alone": Refusal(
        refuses(400, None, "image_generation_user_error"), PromptRejectedError, param="prompt"
    ),
    "policy under 403": Refusal(
        refuses(403, "content_policy_violation"), PromptRejectedError, param="prompt", code="content_policy_violation"
    ),
    "policy, Azure": Refusal(refuses(400, "content_filter", param="prompt"), PromptRejectedError, param="prompt"),
    "policy, Azure's DALL·E 2": Refusal(refuses(400, "contentFilter"), PromptRejectedError, param="prompt"),
    "policy inside, Azure": Refusal(
        says(400, {"error": {"code": None, "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
        PromptRejectedError,
        param="prompt",
    ),
    "policy inside, Azure's DALL·E 3": Refusal(
        says(400, {"error": {"code": "BadRequest", "inner_error": {"code": "ResponsibleAIPolicyViolation"}}}),
        PromptRejectedError,
        param="prompt",
    ),
    "something else inside": Refusal(
        says(400, {"error": {"param": "size", "innererror": {"code": "BadSize"}}}),
        UpstreamRefusedRequestError,
        param="size",
    ),
    "text inside": Refusal(
        says(400, {"error": {"param": "n", "innererror": "x"}}), UpstreamRefusedRequestError, param="n"
    ),
    "policy under 403, xAI": Refusal(
        says(
            403,
            {
                "code": "The caller does not have permission to execute the specified operation",
                "error": "Content violates usage guidelines. Model: m, Failed check: SAFETY_CHECK_TYPE_BIO",
            },
        ),
        PromptRejectedError,
        param="prompt",
    ),
    "policy and half a surrogate pair": Refusal(
        says(400, b'{"error":{"code":"content_filter","message":"\\ud83d"}}'), PromptRejectedError, param="prompt"
    ),
    "policy under 403, OpenRouter": Refusal(
        refuses(403, 403, message='m requires moderation on p. Your input was flagged for "violence".'),
        PromptRejectedError,
        param="prompt",
    ),
    "policy under 403 by its words": Refusal(
        refuses(403, message="Your request was rejected as a result of our safety system."),
        PromptRejectedError,
        param="prompt",
    ),
    "an account blocked for its policy": Refusal(
        refuses(
            403,
            "Forbidden",
            message="Your resource has been temporarily blocked because we detected behavior that may violate our "
            "content policy.",
        ),
        UpstreamKeyRefusedError,
    ),
    "an account flagged": Refusal(refuses(403, message="Your account was flagged."), UpstreamKeyRefusedError),
    **{
        f"an operator's fault: {message}": Refusal(refuses(403, code, message=message), UpstreamKeyRefusedError)
        for code, message in (
            (None, "Your account violates the usage policy."),
            (None, "This API key does not comply with our usage policies."),
            (None, "Your IP address was flagged."),
            ("model_not_found", "You have no access to this model, see our usage policy."),
        )
    },
    "credit, in policy words": Refusal(
        refuses(403, "insufficient_quota", message="The request was flagged."), UpstreamOutOfCreditError
    ),
    "a team named": Refusal(
        refuses(403, message="Content violates usage guidelines. Team: 7f, API key ID: 8a, Model: grok."),
        PromptRejectedError,
        param="prompt",
    ),
    "policy words under 500": Refusal(refuses(500, message="content policy"), UpstreamFailedError),
    "a firewall's page": Refusal(says(403, "<h1>Our safety system says no</h1>"), UpstreamKeyRefusedError),
    "a field": Refusal(
        refuses(400, "invalid_value", "invalid_request_error", param="size"), UpstreamRefusedRequestError, param="size"
    ),
    "a field of theirs": Refusal(
        refuses(400, "unknown_parameter", param="watermark"), UpstreamRefusedRequestError, param=None
    ),
    "param a number": Refusal(refuses(400, param=400), UpstreamRefusedRequestError),
    "code a number": Refusal(refuses(400, code=1211), UpstreamRefusedRequestError),
    "a message in Chinese": Refusal(refuses(400, message="当前分组上游负载已饱和"), UpstreamRefusedRequestError),
    "400 and HTML": Refusal(says(400, HTML), UpstreamRefusedRequestError),
    "400 and nothing": Refusal(says(400), UpstreamRefusedRequestError),
    "400 and no UTF-8": Refusal(says(400, b"\xff\xfe"), UpstreamRefusedRequestError),
    "400 and a list": Refusal(says(400, [1]), UpstreamRefusedRequestError),
    "400 and error null": Refusal(says(400, {"error": None}), UpstreamRefusedRequestError),
    "400 and error text": Refusal(says(400, {"error": "bad"}), UpstreamRefusedRequestError),
    "400 nested beyond reason": Refusal(says(400, "[" * 50_000), UpstreamRefusedRequestError),
    "billing limit": Refusal(refuses(400, "billing_hard_limit_reached"), UpstreamOutOfCreditError),
    "402": Refusal(says(402, HTML), UpstreamOutOfCreditError),
    "403": Refusal(refuses(403, message="该令牌无权使用模型"), UpstreamKeyRefusedError),
    "403 out of quota": Refusal(refuses(403, "insufficient_user_quota"), UpstreamOutOfCreditError),
    "403 key out of quota": Refusal(refuses(403, "pre_consume_token_quota_failed"), UpstreamOutOfCreditError),
    "404": Refusal(refuses(404, None, "invalid_request_error", "Invalid URL (POST /v2)"), UpstreamMisconfiguredError),
    "404 and HTML": Refusal(says(404, HTML), UpstreamMisconfiguredError),
    "404 model": Refusal(refuses(404, "model_not_found"), UpstreamRefusedRequestError, param="model"),
    "405": Refusal(says(405), UpstreamMisconfiguredError),
    "408": Refusal(says(408), UpstreamFailedError),
    "409": Refusal(says(409), UpstreamFailedError),
    "413": Refusal(refuses(413, "read_request_body_failed"), UpstreamRefusedRequestError),
    "415": Refusal(says(415), UpstreamRefusedRequestError),
    "422": Refusal(refuses(422, param="n"), UpstreamRefusedRequestError, param="n"),
    "425": Refusal(says(425), UpstreamFailedError),
    "429": Refusal(refuses(429, "rate_limit_exceeded"), UpstreamRateLimitedError, calls=TRIES),
    "429 and nothing": Refusal(says(429), UpstreamRateLimitedError, calls=TRIES),
    "429 in Chinese": Refusal(refuses(429, message="上游负载已饱和"), UpstreamRateLimitedError, calls=TRIES),
    "429 out of quota": Refusal(refuses(429, "insufficient_quota"), UpstreamOutOfCreditError),
    "500": Refusal(refuses(500, "do_request_failed", "one_api_error"), UpstreamFailedError),
    "500 and a code that is a number": Refusal(refuses(500, 500), UpstreamFailedError),
    "500 and HTML": Refusal(says(500, HTML), UpstreamFailedError),
    "501": Refusal(refuses(501, "api_not_implemented"), UpstreamFailedError),
    "502": Refusal(says(502, HTML), UpstreamFailedError),
    "503": Refusal(refuses(503), UpstreamUnavailableError, calls=TRIES),
    "504": Refusal(says(504, HTML), UpstreamFailedError),
    "524": Refusal(says(524, HTML), UpstreamFailedError),
    "202": Refusal(says(202, {"task_id": "t-1"}), UpstreamFailedError),
    "204": Refusal(lambda _: Reply(204), UpstreamFailedError),
}


class TestRefusal:
    @pytest.mark.parametrize("refusal", REFUSALS.values(), ids=list(REFUSALS))
    def test_each_answer_has_its_meaning_and_costs_no_more_calls_than_it_may(
        self, upstream: Upstream, refusal: Refusal
    ) -> None:
        upstream.will(*[refusal.script] * (TRIES + 1))

        error = upstream.failure()

        assert type(error) is refusal.error
        assert (error.param, error.code) == (refusal.param, refusal.code)
        assert len(upstream.requests) == refusal.calls

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirect_is_not_followed(self, upstream: Upstream, status: int) -> None:
        upstream.will(says(status, Location=f"http://127.0.0.1:{upstream.port}/v1/images/generations"))

        assert type(upstream.failure()) is UpstreamMisconfiguredError
        assert len(upstream.requests) == 1

    def test_the_upstream_s_own_words_are_passed_on_without_urls_and_keys(self, upstream: Upstream) -> None:
        message = f"Bad size.\nSee https://platform.example/k?key=secret for {KEY} and sk-proj-abc*****xyz \x1b[0m."
        upstream.will(refuses(400, message=message))

        error = upstream.failure()

        assert "Bad size." in error.message
        assert "platform.example" not in error.message
        assert "secret" not in error.message
        assert "sk-" not in error.message
        assert error.message.isprintable()

    def test_a_key_of_an_unusual_shape_is_kept_out_of_the_message_too(self, upstream: Upstream) -> None:
        upstream.stand_in.key = upstream.secrets.values[PARAMETER] = "plain.key/with=odd+characters"
        upstream.will(refuses(400, message="plain.key/with=odd+characters cannot do that"))

        assert "odd+characters" not in upstream.failure().message

    def test_a_long_message_is_cut(self, upstream: Upstream) -> None:
        upstream.will(refuses(400, message="no " * 10_000))

        assert len(upstream.failure().message) < 500

    def test_what_a_server_error_says_is_not_passed_on(self, upstream: Upstream) -> None:
        upstream.will(refuses(500, message="database at 10.0.0.1 is down"))

        assert "database" not in upstream.failure().message

    @pytest.mark.parametrize("length", [12_000, 200_000])
    def test_a_refusal_of_many_question_marks_is_read_at_once(self, upstream: Upstream, length: int) -> None:
        upstream.will(refuses(400, message="?" * length))
        begun = time.monotonic()

        assert type(upstream.failure()) is UpstreamRefusedRequestError
        assert time.monotonic() - begun < AT_MOST_SECONDS

    @pytest.mark.parametrize("status", [400, 429, 500])
    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(b'{"error":' * 50_000, id="nested beyond reason"),
            pytest.param(b'{"error":{"message":"\\ud83d"}}', id="half a surrogate pair"),
            pytest.param(b'{"error":{"message":1e999}}', id="a number out of range"),
            pytest.param(b"\x00" * 1_000_000, id="a megabyte of nothing"),
        ],
    )
    def test_a_refusal_with_a_hostile_body_keeps_its_meaning(
        self, upstream: Upstream, status: int, body: bytes
    ) -> None:
        upstream.will(*[says(status, body)] * TRIES)
        meanings = {400: UpstreamRefusedRequestError, 429: UpstreamRateLimitedError, 500: UpstreamFailedError}

        assert type(upstream.failure()) is meanings[status]

    def test_a_refusal_whose_body_breaks_off_still_has_its_meaning(self, upstream: Upstream) -> None:
        upstream.will(lambda _: Reply(500, b"{", declared_length=100))

        assert type(upstream.failure()) is UpstreamFailedError
        assert len(upstream.requests) == 1


class TestTryingAgain:
    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize("refusals", range(1, TRIES))
    def test_a_refusal_that_waiting_cures_is_waited_out(self, upstream: Upstream, status: int, refusals: int) -> None:
        upstream.will(*[refuses(status)] * refusals, says_data({"url": URL}))

        assert upstream.call().images[0].source == URL
        assert len(upstream.requests) == refusals + 1

    @pytest.mark.parametrize("refusal", ["500", "502", "504", "524", "408", "400 and HTML", "403"])
    def test_what_comes_after_a_refusal_that_was_waited_out_counts(self, upstream: Upstream, refusal: str) -> None:
        upstream.will(refuses(503), REFUSALS[refusal].script, says_data({"url": URL}))

        assert type(upstream.failure()) is REFUSALS[refusal].error
        assert len(upstream.requests) == 2

    def test_a_drop_after_a_refusal_that_was_waited_out_ends_it(self, upstream: Upstream) -> None:
        upstream.will(refuses(429), hangs_up, says_data({"url": URL}))

        assert type(upstream.failure()) is UpstreamConnectionLostError
        assert len(upstream.requests) == 2

    @pytest.mark.parametrize("headers", [{"Retry_After": "0.3"}, {"Retry_After_Ms": "300"}])
    def test_the_time_that_the_upstream_names_is_waited(self, upstream: Upstream, headers: dict[str, str]) -> None:
        upstream.will(refuses(429, **headers), says_data({"url": URL}))
        begun = time.monotonic()

        upstream.call()

        assert time.monotonic() - begun >= 0.3
        assert len(upstream.requests) == 2

    @pytest.mark.parametrize(
        "headers",
        [
            {"Retry_After": "0"},
            {"Retry_After_Ms": "1", "Retry_After": "60"},
            {"Retry_After": "Wed, 21 Oct 2015 07:28:00 GMT"},
            {"Retry_After": "soon"},
            {"Retry_After": "-1"},
            {"Retry_After": ""},
            {"Retry_After": "Mon, 01 Jan 0001 00:00:00 -0000"},
            {"Retry_After": "Wed, 21 Oct 2015 07:28:00 +99999999999999"},
            {"Retry_After": "Wed, 21 Oct 99999 07:28:00 GMT"},
        ],
        ids=str,
    )
    def test_a_time_that_is_past_or_makes_no_sense_does_not_hold_up(
        self, upstream: Upstream, headers: dict[str, str]
    ) -> None:
        upstream.will(refuses(429, **headers), says_data({"url": URL}))

        assert upstream.call(within=5).images[0].source == URL
        assert len(upstream.requests) == 2

    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize("headers", [{"Retry_After": "60"}, {"Retry_After_Ms": "60000"}])
    def test_a_long_time_is_told_and_not_waited(self, upstream: Upstream, status: int, headers: dict[str, str]) -> None:
        upstream.will(refuses(status, **headers), says_data({"url": URL}))

        error = upstream.failure()

        assert isinstance(error, TryLaterError)
        assert error.retry_after == 60
        assert len(upstream.requests) == 1

    def test_a_date_far_ahead_is_told_and_not_waited(self, upstream: Upstream) -> None:
        later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
        upstream.will(refuses(429, Retry_After=later))

        error = upstream.failure()

        assert isinstance(error, TryLaterError)
        assert error.retry_after is not None
        assert 30 < error.retry_after <= 60
        assert len(upstream.requests) == 1

    def test_a_time_beyond_the_deadline_is_told_and_not_waited(self, upstream: Upstream) -> None:
        upstream.will(refuses(429, Retry_After="5"))

        assert type(upstream.failure(within=4)) is UpstreamRateLimitedError
        assert len(upstream.requests) == 1


class TestNoConnection:
    def test_a_refused_connection_is_unreachable_after_three_tries(self, upstream: Upstream) -> None:
        upstream.port = a_closed_port()

        assert type(upstream.failure()) is UpstreamUnreachableError
        assert upstream.secrets.asked == [(PARAMETER, False)] * TRIES  # each try asks for the key

    def test_with_no_time_left_nothing_is_sent(self, upstream: Upstream) -> None:
        assert isinstance(upstream.failure(within=0), NothingSpentError)
        assert upstream.requests == []

    def test_a_certificate_that_nobody_signed_is_unreachable_and_nothing_is_sent(
        self, upstream: Upstream, tmp_path: Path
    ) -> None:
        with a_self_signed_server(tmp_path) as (port, received):
            provider = OpenAICompatibleProvider(
                HttpPool(), base_url=f"https://127.0.0.1:{port}/v1", key=lambda _: KEY, timeout=5, max_image_bytes=1
            )
            with pytest.raises(UpstreamUnreachableError) as caught:
                provider.generate(asked(), 1, Deadline.after(5))

        assert_no_key_in(caught.value)
        assert received == ["refused"] * TRIES


class TestTooSlow:
    def test_an_upstream_that_hangs_is_given_up_at_the_time_out(self, upstream: Upstream) -> None:
        upstream.will(lambda _: hangs(upstream))
        begun = time.monotonic()

        assert type(upstream.failure(timeout=SHORT)) is UpstreamTimeoutError
        assert time.monotonic() - begun < AT_MOST_SECONDS
        assert len(upstream.requests) == 1

    def test_a_deadline_that_comes_first_counts(self, upstream: Upstream) -> None:
        upstream.will(lambda _: hangs(upstream))
        begun = time.monotonic()

        assert type(upstream.failure(within=SHORT)) is UpstreamTimeoutError
        assert time.monotonic() - begun < AT_MOST_SECONDS
        assert len(upstream.requests) == 1

    @pytest.mark.parametrize(
        ("head", "drop"),
        [
            pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" ", id="body"),
            pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", b" ", id="body without a length"),
            pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", id="chunks"),
            pytest.param(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x", id="headers"),
            pytest.param(b"HTTP/1.1 ", b"2", id="status line"),
        ],
    )
    def test_an_answer_that_drips_is_cut_at_the_deadline(self, upstream: Upstream, head: bytes, drop: bytes) -> None:
        upstream.will(lambda request: drips(upstream, request, head, drop))
        begun = time.monotonic()

        error = upstream.failure(timeout=SHORT)

        assert time.monotonic() - begun < AT_MOST_SECONDS
        assert isinstance(error, MoneySpentError)
        assert type(error) is UpstreamTimeoutError
        assert len(upstream.requests) == 1

    def test_a_refusal_that_drips_is_cut_at_the_deadline_and_keeps_its_meaning(self, upstream: Upstream) -> None:
        upstream.will(
            lambda request: drips(upstream, request, b"HTTP/1.1 500 Oops\r\nContent-Length: 100000\r\n\r\n", b" ")
        )
        begun = time.monotonic()

        assert type(upstream.failure(timeout=SHORT)) is UpstreamFailedError
        assert time.monotonic() - begun < AT_MOST_SECONDS
        assert len(upstream.requests) == 1


class TestLostConnection:
    def test_a_drop_before_the_answer_is_not_asked_for_again(self, upstream: Upstream) -> None:
        upstream.will(hangs_up)

        assert type(upstream.failure()) is UpstreamConnectionLostError
        assert len(upstream.requests) == 1

    @pytest.mark.parametrize(
        "sent",
        [
            b"HTTP/1.1 2",
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
            b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"data"',
            b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n{"data"',
            b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n{"data"\r\n',
        ],
    )
    def test_a_drop_in_mid_answer_is_not_asked_for_again(self, upstream: Upstream, sent: bytes) -> None:
        def respond(request: Request) -> Reply:
            request.connection.sendall(sent)
            raise HungUpError

        upstream.will(respond)

        assert type(upstream.failure()) is UpstreamConnectionLostError
        assert len(upstream.requests) == 1

    def test_a_drop_in_mid_header_may_have_cost_money_and_is_not_asked_for_again(self, upstream: Upstream) -> None:
        def respond(request: Request) -> Reply:
            request.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")
            raise HungUpError

        upstream.will(respond)

        assert isinstance(upstream.failure(), MoneySpentError)
        assert len(upstream.requests) == 1

    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(json.dumps({"data": [{"url": URL}]}), id="JSON"),
            pytest.param(f"data: {json.dumps(COMPLETED)}\n\n" * 2, id="two events"),
            pytest.param(f"data: {json.dumps(COMPLETED)}\n\ndata: {{", id="an event and the beginning of another"),
        ],
    )
    def test_an_image_that_is_whole_when_the_answer_breaks_off_is_kept(self, upstream: Upstream, body: str) -> None:
        upstream.will(lambda _: Reply(200, body.encode(), declared_length=len(body) + 1))

        images = upstream.call(asked("gpt-image-1"), 3).images

        assert {image.source for image in images} <= {URL, PNG, None}
        assert images[0].failure is None
        assert type(images[2].failure) is UpstreamConnectionLostError  # not "too few": it may come, and be paid for
        assert len(upstream.requests) == 1

    def test_an_answer_that_ends_before_its_length_is_not_asked_for_again(self, upstream: Upstream) -> None:
        body = json.dumps({"data": [{"url": URL}]}).encode()
        upstream.will(lambda _: Reply(200, body[:-1], declared_length=len(body)))

        assert type(upstream.failure()) is UpstreamConnectionLostError
        assert len(upstream.requests) == 1

    def test_an_answer_that_is_no_http_is_not_asked_for_again(self, upstream: Upstream) -> None:
        def respond(request: Request) -> Reply:
            request.connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
            raise HungUpError

        upstream.will(respond)

        assert type(upstream.failure()) is UpstreamConnectionLostError
        assert len(upstream.requests) == 1


class TestAnyException:
    """Once a request may have been sent, whatever is raised means that money may have been spent."""

    @pytest.mark.parametrize(
        "sent",
        [
            pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n", id="chunk of -5"),
            pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n{}\r\n", id="chunk of x"),
            pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 99, id="chunk without end"),
            pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}", id="length of -5"),
            pytest.param(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n{}", id="no gzip"),
            pytest.param(b"HTTP/1.1 200 OK\r\n\x00\xff: \x01\r\n:\r\n\r\n{}", id="garbage headers"),
            pytest.param(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n{}", id="too many headers"),
            pytest.param(b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000 + b"\r\n\r\n{}", id="a long header"),
            pytest.param(b"HTTP/1.1 two OK\r\n\r\n", id="garbage status"),
            pytest.param(b"HTTP/9.9 200 OK\r\n\r\n", id="unknown version"),
        ],
    )
    def test_an_answer_that_breaks_http_may_have_cost_money_and_is_not_asked_for_again(
        self, upstream: Upstream, sent: bytes
    ) -> None:
        def respond(request: Request) -> Reply:
            request.connection.sendall(sent)
            raise HungUpError

        upstream.will(respond)

        assert isinstance(upstream.failure(), MoneySpentError)
        assert len(upstream.requests) == 1

    @pytest.mark.parametrize("raised", RAISED)
    def test_an_exception_of_the_request_may_have_cost_money(self, raised: type[Exception]) -> None:
        assert type(failure_of(PoolStub(raised("hostile")))) is UpstreamConnectionLostError

    @pytest.mark.parametrize("raised", [*RAISED, NewConnectionError])
    def test_an_exception_while_an_answer_is_read_may_have_cost_money(self, raised: type[Exception]) -> None:
        error = NewConnectionError(None, "late") if raised is NewConnectionError else raised("hostile")  # type: ignore[arg-type]
        assert type(failure_of(PoolStub(ResponseStub(200, error)))) is UpstreamConnectionLostError

    @pytest.mark.parametrize(("status", "meaning"), [(401, UpstreamKeyRefusedError), (500, UpstreamFailedError)])
    @pytest.mark.parametrize("raised", RAISED)
    def test_an_exception_while_a_refusal_is_read_leaves_the_status_its_meaning(
        self, raised: type[Exception], status: int, meaning: type[ImagegenError]
    ) -> None:
        assert type(failure_of(PoolStub(ResponseStub(status, raised("hostile"))))) is meaning

    def test_an_exception_while_an_answer_is_closed_does_not_lose_it(self) -> None:
        response = ResponseStub(200, None, json.dumps({"data": [{"url": URL}]}).encode())

        assert call_of(PoolStub(response)).images[0].source == URL


@dataclass
class ResponseStub:
    """Its reading methods raise `error`, or give the body once. Its `close` raises."""

    status: int
    error: Exception | None
    body: bytes = b""
    headers: HTTPHeaderDict = field(default_factory=HTTPHeaderDict)

    def read(self, amount: int) -> bytes:
        if self.error:
            raise self.error
        body, self.body = self.body, b""
        return body

    read1 = read

    def shutdown(self) -> None:
        pass

    def close(self) -> None:
        raise RuntimeError("hostile")


@dataclass
class PoolStub:
    outcome: Exception | ResponseStub

    def request(self, *arguments: object, **named: object) -> ResponseStub:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def call_of(pool: PoolStub) -> UpstreamAnswer:
    provider = OpenAICompatibleProvider(
        cast("HttpPool", pool), base_url="http://127.0.0.1/v1", key=lambda _: KEY, timeout=5, max_image_bytes=1
    )
    return provider.generate(asked(), 1, Deadline.after(5))


def failure_of(pool: PoolStub) -> ImagegenError:
    with pytest.raises(ImagegenError) as caught:
        call_of(pool)
    return caught.value


class TestKey:
    def test_a_refused_key_is_read_anew_once_and_the_call_repeated_with_the_rotated_one(
        self, upstream: Upstream
    ) -> None:
        upstream.will(says_data({"url": URL}))
        upstream.secrets.get(PARAMETER)  # the old key is cached
        upstream.stand_in.key = upstream.secrets.values[PARAMETER] = ROTATED_KEY

        assert upstream.call().images[0].source == URL
        assert [request.header("Authorization") for request in upstream.requests] == [
            f"Bearer {KEY}",
            f"Bearer {ROTATED_KEY}",
        ]
        assert upstream.secrets.asked[1:] == [(PARAMETER, False), (PARAMETER, True), (PARAMETER, False)]

    @pytest.mark.parametrize("refusals", [(429, 429), (503, 503), (429, 503)])
    def test_the_call_with_the_rotated_key_counts_as_a_try(self, upstream: Upstream, refusals: tuple[int, ...]) -> None:
        upstream.secrets.get(PARAMETER)
        upstream.stand_in.key = upstream.secrets.values[PARAMETER] = ROTATED_KEY
        upstream.will(*map(refuses, refusals), says_data({"url": URL}))

        assert isinstance(upstream.failure(), TryLaterError)
        assert len(upstream.requests) == TRIES

    def test_a_key_that_turns_out_to_be_rotated_at_the_last_try_may_be_tried_later(self, upstream: Upstream) -> None:
        upstream.secrets.get(PARAMETER)
        upstream.secrets.values[PARAMETER] = ROTATED_KEY
        upstream.will(refuses(429), refuses(429), refuses(401))

        error = upstream.failure()

        assert isinstance(error, TryLaterError)
        assert error.retry_after == 0
        assert len(upstream.requests) == TRIES
        assert upstream.secrets.get(PARAMETER) == ROTATED_KEY

    def test_a_key_that_is_still_the_same_is_not_tried_again(self, upstream: Upstream) -> None:
        upstream.stand_in.key = "another"

        assert type(upstream.failure()) is UpstreamKeyRefusedError
        assert len(upstream.requests) == 1
        assert upstream.secrets.asked == [(PARAMETER, False), (PARAMETER, True)]

    def test_a_rotated_key_that_is_refused_too_ends_it(self, upstream: Upstream) -> None:
        upstream.secrets.get(PARAMETER)
        upstream.secrets.values[PARAMETER] = ROTATED_KEY
        upstream.stand_in.key = "another"

        assert type(upstream.failure()) is UpstreamKeyRefusedError
        assert len(upstream.requests) == 2

    def test_a_refusal_of_the_rotated_key_s_call_names_neither_key(self, upstream: Upstream) -> None:
        upstream.secrets.get(PARAMETER)
        upstream.stand_in.key = upstream.secrets.values[PARAMETER] = ROTATED_KEY
        upstream.will(refuses(400, message=f"{ROTATED_KEY} may not, nor may {KEY}"))

        assert type(upstream.failure()) is UpstreamRefusedRequestError

    def test_a_key_that_is_gone_when_it_is_read_anew_is_missing(self, upstream: Upstream) -> None:
        upstream.secrets.get(PARAMETER)
        upstream.secrets.values.clear()
        upstream.stand_in.key = "another"

        assert type(upstream.failure()) is SecretMissingError
        assert len(upstream.requests) == 1

    @pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY}\r\n", f"\t{KEY}"])
    def test_white_space_around_a_key_is_not_sent(self, upstream: Upstream, key: str) -> None:
        upstream.secrets.values[PARAMETER] = key
        upstream.will(says_data({"url": URL}))

        upstream.call()

        assert upstream.requests[0].header("Authorization") == f"Bearer {KEY}"

    @pytest.mark.parametrize("key", [None, "", " \n", f"{KEY}\nX-Other: 1", f"{KEY}\r\n{ROTATED_KEY}", f"{KEY} x", "é"])
    def test_without_a_key_that_a_header_can_carry_nothing_is_sent(self, upstream: Upstream, key: str | None) -> None:
        upstream.secrets.values = {} if key is None else {PARAMETER: key}

        assert type(upstream.failure()) is SecretMissingError
        assert upstream.requests == []

    def test_where_the_key_cannot_be_read_nothing_is_sent(self, upstream: Upstream) -> None:
        upstream.secrets.failures.append(SecretUnavailableError("SSM did not answer."))

        assert type(upstream.failure()) is SecretUnavailableError
        assert upstream.requests == []


def a_provider(port: int, pool: HttpPool) -> OpenAICompatibleProvider:
    return OpenAICompatibleProvider(
        pool, base_url=f"http://127.0.0.1:{port}/v1", key=lambda _: KEY, timeout=5, max_image_bytes=IMAGE_BYTES
    )


def hangs(upstream: Upstream) -> Reply:
    upstream.over.wait(2 * AT_MOST_SECONDS)
    raise HungUpError


def drips(upstream: Upstream, request: Request, head: bytes, drop: bytes) -> Reply:
    """Sends a little at a time, sooner than any time-out of a socket, until the client or the test ends it."""
    request.connection.sendall(head)
    give_up = time.monotonic() + 2 * AT_MOST_SECONDS
    while time.monotonic() < give_up and not upstream.over.wait(0.03):
        request.connection.sendall(drop)
    raise HungUpError


def a_closed_port() -> int:
    """A port that was free just now; whoever takes it meanwhile speaks no HTTP to us."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def connection_ended(request: Request) -> None:
    """Waits until the server has closed the connection, so that the client's end knows it."""
    give_up = time.monotonic() + AT_MOST_SECONDS
    while request.connection.fileno() != -1:
        assert time.monotonic() < give_up
        time.sleep(0.005)


@contextmanager
def dying_connections() -> Iterator[tuple[int, list[int]]]:
    """An upstream whose connections answer once and die under the second request, as behind a forgetful NAT.

    Gives the port and, for each request in order, the how-manieth on its connection it was.
    """
    requests: list[int] = []
    counts: dict[int, int] = {}

    def respond(request: Request) -> Reply:
        number = counts[id(request.connection)] = counts.get(id(request.connection), 0) + 1
        kept.append(request.connection)  # so that no other connection gets the same id
        requests.append(number)
        if number > 1:
            raise HungUpError
        return Reply(200, json.dumps({"data": [{"url": URL}]}).encode())

    kept: list[socket.socket] = []
    with serving(respond) as port:
        yield port, requests


@contextmanager
def a_self_signed_server(folder: Path) -> Iterator[tuple[int, list[str]]]:
    """A TLS server that clients have no reason to trust. Gives its port and what came of each connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(folder))
    received: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(5)
            try:
                with closing(context.wrap_socket(connection, server_side=True)) as secured:
                    data = secured.recv(100)
                    received.append(f"got {data!r}" if data else "nothing")
            except ssl.SSLError:
                received.append("refused")
            finally:
                connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1], received
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def self_signed(folder: Path) -> Path:
    """A certificate for 127.0.0.1 and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return file
