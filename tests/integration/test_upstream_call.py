"""One upstream call over real sockets: its request, its result, and how often money may have been spent."""

import json
import socket
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest
from urllib3.exceptions import NewConnectionError

from imagegen import VERSION
from imagegen.domain import errors
from imagegen.domain.deadline import Deadline
from imagegen.domain.images import ImageRequest, ResponseFormat, UpstreamImages
from local.serving import Reply
from local.upstream import Script
from tests.fakes.provider import png
from tests.support import odd_hosts
from tests.support.models import read_request, upstream_request
from tests.support.odd_hosts import CHUNKED, LAST_CHUNK, OK, chunk, writes
from tests.support.upstream_host import (
    KEY,
    PARAMETER,
    ROTATED_KEY,
    URL,
    Error,
    UpstreamHost,
    answers,
    failure_of,
    upstream_on,
)

IMAGE_BYTES = 64 * 1024
JSON_BYTES = 64 * 1024  # of an answer, without its base64
PNG = png("a cat")
COMPLETED = {"type": "image_generation.completed", "b64_json": b64encode(PNG).decode()}


class Upstream(UpstreamHost):
    def call(
        self, request: ImageRequest | None = None, n: int = 1, *, timeout: float = 10, within: float = 30
    ) -> UpstreamImages:
        call = upstream_request(request or image_request(), n)
        images = self.provider("dall-e-3", timeout=timeout).start(call, Deadline.after(within))
        assert isinstance(images, UpstreamImages)
        return images

    def failure(self, *, timeout: float = 10, within: float = 30) -> errors.ImagegenError:
        return failure_of(lambda: self.call(timeout=timeout, within=within))

    def failure_of_one_call(self, n: int = 1) -> Error:
        """The type of the error of one call. A second call would succeed."""
        self.will(answers_data({"url": URL}))
        failure = failure_of(lambda: self.call(n=n))
        assert len(self.requests) == 1
        return type(failure)


@pytest.fixture
def upstream(host: odd_hosts.ReusableHost) -> Iterator[Upstream]:
    with upstream_on(host, Upstream) as upstream:
        upstream.max_image_bytes = IMAGE_BYTES
        yield upstream


def image_request(model: str = "dall-e-3", response_format: ResponseFormat = "url", **more: Any) -> ImageRequest:
    return ImageRequest(prompt="a cat", model=model, response_format=response_format, options=more)


def answers_data(*data: object, **more: object) -> Script:
    return answers(200, {"created": 1, "data": list(data), **more})


def refuses(status: int, code: str | None = None, message: str = "No.", **headers: str) -> Script:
    return answers(status, {"error": {"message": message, "code": code}}, **headers)


GPT_IMAGE: dict[str, Any] = {"quality": "high", "background": "opaque", "moderation": "low"}
GPT_IMAGE |= {"output_format": "webp", "output_compression": 0}


class TestRequest:
    @pytest.mark.parametrize(
        ("model", "n", "own", "names"),
        [
            ("dall-e-2", 3, {"quality": "standard"}, "size user response_format"),
            ("dall-e-3", 1, {"quality": "hd"}, "size quality style user response_format"),
            ("gpt-image-1", 2, GPT_IMAGE, "size user safety_identifier " + " ".join(GPT_IMAGE)),
            ("flux-pro", 1, {"quality": "auto"}, "size"),
        ],
    )
    def test_a_model_is_sent_only_its_fields(
        self, upstream: Upstream, model: str, n: int, own: dict[str, Any], names: str
    ) -> None:
        given = {"size": "1024x1024", "style": "vivid", "user": "u-1", "safety_identifier": "s-1", **own}
        request = read_request().fields({"model": model, "prompt": "a cat", "n": n, **given})
        upstream.will(answers_data(*[{"url": URL}] * n))
        upstream.call(request, n)
        sent = {name: value for name, value in {**given, "response_format": "url"}.items() if name in names.split()}
        assert upstream.stand_in.calls == [{"model": model, "prompt": "a cat", "n": n, **sent}]

    def test_an_omitted_field_is_not_sent(self, upstream: Upstream) -> None:
        upstream.will(answers_data({"url": URL}))
        upstream.call(read_request().fields({"prompt": "a cat", "response_format": "b64_json"}))
        (call,) = upstream.stand_in.calls
        assert call == {"model": "dall-e-3", "prompt": "a cat", "n": 1, "response_format": "b64_json"}

    def test_the_call_is_an_authorized_json_post(self, upstream: Upstream) -> None:
        upstream.will(answers_data({"url": URL}))
        upstream.call()
        (request,) = upstream.requests
        assert (request.method, request.target) == ("POST", "/v1/images/generations")
        assert request.header("Host") == f"127.0.0.1:{upstream.port}"
        assert request.header("Authorization") == f"Bearer {KEY}"
        assert request.header("Content-Type") == request.header("Accept") == "application/json"
        assert request.header("User-Agent") == f"imagegen/{VERSION}"

    def test_the_prompt_is_sent_unchanged(self, upstream: Upstream) -> None:
        prompt = 'quotes " and \\, a line\nbreak, 한국어 🐈, \u2028, </script>'
        upstream.will(answers_data({"url": URL}))
        upstream.call(ImageRequest(prompt=prompt, model="dall-e-3", response_format="url"))
        assert upstream.stand_in.calls[0]["prompt"] == prompt


class TestSuccess:
    @pytest.mark.parametrize("status", [200, 201])
    def test_images_details_and_usage_are_returned(self, upstream: Upstream, status: int) -> None:
        usage = {"input_tokens": 50, "output_tokens": 50, "total_tokens": 100}
        usage_details = {"input_tokens_details": {"text_tokens": 10, "image_tokens": 40}}
        data = [{"url": URL, "revised_prompt": "a fine cat"}, {"b64_json": COMPLETED["b64_json"]}]
        upstream.will(answers(status, {"created": 1, "data": data, "quality": "high", "usage": usage | usage_details}))
        answer = upstream.call(n=2)
        assert [(image.source, image.revised_prompt) for image in answer.images] == [(URL, "a fine cat"), (PNG, None)]
        assert (answer.details, answer.usage) == ({"quality": "high"}, usage | usage_details)
        assert len(upstream.requests) == 1

    def test_an_answer_without_a_length_is_read_to_its_end(self, upstream: Upstream) -> None:
        body = json.dumps({"data": [{"b64_json": COMPLETED["b64_json"]}]}).encode()
        chunks = (chunk(body[at : at + 50]) for at in range(0, len(body), 50))
        upstream.will(writes(CHUNKED, *chunks, LAST_CHUNK))
        assert upstream.call().images[0].source == PNG

    def test_a_large_image_is_whole(self, upstream: Upstream) -> None:
        content = png("x" * (IMAGE_BYTES - 200))
        upstream.will(answers_data({"b64_json": b64encode(content).decode()}))
        assert upstream.call().images[0].source == content


ANSWER = json.dumps({"data": [{"url": URL}]}).encode()
LOST = [
    *(b"", b"HTTP/1.1 2", b"HTTP/1.1 two OK\r\n\r\n", b"HTTP/9.9 200 OK\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    *(OK + b"A: b\r\n" * 200 + b"\r\n{}", OK + b"A: " + b"b" * 70_000 + b"\r\n\r\n{}"),
    *(OK + b"Content-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER[:length] for length in (0, 7, -1)),
    *(OK + b"Content-Length: -5\r\n\r\n{}", OK + b"Content-Encoding: gzip\r\n\r\n{}"),
    *(CHUNKED + part for part in (b'20\r\n{"data"', b'7\r\n{"data"\r\n', b"-5\r\n{}\r\n", b"x\r\n{}\r\n", b"f" * 99)),
]


class TestNoSuccess:
    @pytest.mark.parametrize(
        ("script", "error"),
        [
            (answers(200, b"OK"), errors.UpstreamAnswerInvalidError),
            (answers_data(), errors.UpstreamTooFewImagesError),
            (refuses(400, message=f"{KEY} may not"), errors.UpstreamRefusedRequestError),
            (refuses(429, "insufficient_quota"), errors.UpstreamOutOfCreditError),
            (lambda _: Reply(204), errors.UpstreamFailedError),
            (answers(308, Location="/v1/images/generations"), errors.UpstreamMisconfiguredError),
            (answers(408), errors.UpstreamFailedError),
            (answers(500, b"\0" * 1_000_000), errors.UpstreamFailedError),
            (lambda _: Reply(504, b"{", declared_length=9), errors.UpstreamFailedError),
            *((writes(sent), errors.UpstreamConnectionLostError) for sent in LOST),
            # A header that breaks off, and an invalid header.
            *((writes(OK + sent), errors.MoneySpentError) for sent in (b"Content-Le", b"\0\xff: \1\r\n:\r\n\r\n{}")),
        ],
    )
    def test_it_has_its_error_and_no_retry(self, upstream: Upstream, script: Script, error: Error) -> None:
        upstream.will(script)
        failure = upstream.failure_of_one_call()
        assert failure is error or (error is errors.MoneySpentError and issubclass(failure, error))

    def test_a_whole_image_in_a_broken_answer_is_kept(self, upstream: Upstream) -> None:
        upstream.will(lambda _: Reply(200, ANSWER, declared_length=len(ANSWER) + 1))
        first, _, third = upstream.call(image_request("gpt-image-1"), 3).images
        assert (first.source, first.failure) == (URL, None)
        assert type(third.failure) is errors.UpstreamConnectionLostError  # not "too few": the image may be charged
        assert len(upstream.requests) == 1

    @pytest.mark.parametrize("n", [1, 3])
    def test_an_answer_over_the_size_of_its_images_is_cut(self, upstream: Upstream, n: int) -> None:
        limit = n * IMAGE_BYTES * 4 // 3 + JSON_BYTES
        answer = json.dumps({"data": [{"url": URL}] * n}).encode()
        upstream.will(answers(200, answer.rjust(limit)), answers(200, answer.rjust(limit + 1)))
        assert [image.source for image in upstream.call(n=n).images] == [URL] * n
        upstream.requests.clear()
        assert upstream.failure_of_one_call(n) is errors.UpstreamAnswerTooLargeError

    def test_an_endless_answer_is_cut_long_before_the_deadline(self, upstream: Upstream) -> None:
        upstream.will(upstream.slow.drips(CHUNKED, chunk(b" " * 2**20)))
        assert type(upstream.failure(timeout=600, within=600)) is errors.UpstreamAnswerTooLargeError
        assert len(upstream.requests) == 1
        assert not upstream.slow.gave_up.is_set()


class TestRefusal:
    """tests/unit/test_routes.py has what follows: another route, another try, or a wait in the queue."""

    @pytest.mark.parametrize(
        ("status", "failure"), [(429, errors.UpstreamRateLimitedError), (503, errors.UpstreamUnavailableError)]
    )
    @pytest.mark.parametrize("seconds", [None, 0, 0.3, 8.1])
    def test_a_refusal_is_one_call_and_has_the_named_time(
        self, upstream: Upstream, status: int, failure: Error, seconds: float | None
    ) -> None:
        upstream.will(refuses(status, **({} if seconds is None else {"Retry_After": str(seconds)})))
        error = upstream.failure()
        assert isinstance(error, errors.TryLaterError)
        assert (type(error), error.retry_after, len(upstream.requests)) == (failure, seconds, 1)


class TestNoConnection:
    def test_a_refused_connection_is_unreachable(self, upstream: Upstream) -> None:
        with socket.socket() as bound_but_not_listening:
            bound_but_not_listening.bind(("127.0.0.1", 0))
            upstream.port = bound_but_not_listening.getsockname()[1]
            assert type(upstream.failure()) is errors.UpstreamUnreachableError
        assert upstream.secrets.asked == [(PARAMETER, False)]


class TestTooSlow:
    @pytest.fixture
    def host(self) -> Iterator[odd_hosts.ReusableHost]:
        """Not shared, since a request may arrive after the test."""
        with odd_hosts.reusable_host() as host:
            yield host

    @staticmethod
    def cut(upstream: Upstream, head: bytes, drop: bytes, *too_soon: Error, limit: str = "timeout") -> Error:
        def attempt(seconds: float) -> Error:
            return type(upstream.failure(**{limit: seconds}))

        upstream.will(*[upstream.slow.drips(head, drop)] * 9)
        too_soon += (errors.UpstreamUnreachableError,)
        return upstream.slow.cuts(attempt, upstream.requests, too_soon=lambda failure: failure in too_soon)

    @pytest.mark.parametrize("limit", ["timeout", "within"])
    def test_an_upstream_that_hangs_times_out(self, upstream: Upstream, limit: str) -> None:
        assert self.cut(upstream, b"", b"", limit=limit) is errors.UpstreamTimeoutError

    @odd_hosts.EACH_DRIP
    def test_an_answer_that_drips_is_cut(self, upstream: Upstream, head: bytes, drop: bytes) -> None:
        assert self.cut(upstream, head, drop) is errors.UpstreamTimeoutError
        assert issubclass(errors.UpstreamTimeoutError, errors.MoneySpentError)

    def test_a_refusal_that_drips_is_cut_and_keeps_its_meaning(self, upstream: Upstream) -> None:
        head = b"HTTP/1.1 500 Oops\r\nContent-Length: 99999\r\n\r\n"
        assert self.cut(upstream, head, b" ", errors.UpstreamTimeoutError) is errors.UpstreamFailedError

    def test_an_event_stream_that_is_never_closed_gives_its_image_at_the_time_out(self, upstream: Upstream) -> None:
        head = OK + b"Content-Type: text/event-stream\r\n\r\ndata: %s\n\n" % json.dumps(COMPLETED).encode()

        def attempt(seconds: float) -> object:
            try:
                return upstream.call(timeout=seconds).images[0].source
            except errors.ImagegenError as error:
                return error

        upstream.will(*[upstream.slow.drips(head, b":\n\n")] * 9)
        assert upstream.slow.cuts(attempt, upstream.requests, too_soon=lambda source: source != PNG) == PNG


class TestAnyException:
    @pytest.mark.parametrize(
        "raised",
        [ValueError("hostile"), RecursionError("hostile"), OSError("hostile"), MemoryError("hostile")],
        ids=repr,
    )
    @pytest.mark.parametrize(
        ("method", "status", "error"),
        [
            ("imagegen.outbound.pool.HttpPool.request", 200, errors.UpstreamConnectionLostError),
            ("urllib3.HTTPResponse.read1", 200, errors.UpstreamConnectionLostError),
            ("urllib3.HTTPResponse.read", 500, errors.UpstreamFailedError),
        ],
    )
    def test_an_exception_may_have_cost_money_and_a_refusal_keeps_its_meaning(
        self,
        upstream: Upstream,
        monkeypatch: pytest.MonkeyPatch,
        raised: Exception,
        method: str,
        status: int,
        error: Error,
    ) -> None:
        self.raise_in(monkeypatch, method, raised)
        upstream.will(answers(status, ANSWER))
        assert type(upstream.failure()) is error

    def test_a_late_connection_error_may_cost_money(self, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
        late = NewConnectionError(None, "late")  # type: ignore[arg-type]
        self.raise_in(monkeypatch, "urllib3.HTTPResponse.read1", late)
        upstream.will(answers(200, ANSWER))
        assert upstream.failure_of_one_call() is errors.UpstreamConnectionLostError

    def test_an_exception_on_closing_keeps_the_answer(
        self, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.raise_in(monkeypatch, "urllib3.HTTPResponse.close", RuntimeError("hostile"))
        upstream.will(answers(200, ANSWER))
        assert upstream.call().images[0].source == URL

    @staticmethod
    def raise_in(monkeypatch: pytest.MonkeyPatch, method: str, raised: Exception) -> None:
        def raises(*arguments: object, **named: object) -> None:
            raise raised

        monkeypatch.setattr(method, raises)


class TestKey:
    def test_after_a_refused_key_that_was_rotated_the_call_may_be_sent_again_at_once(self, upstream: Upstream) -> None:
        upstream.rotate_key()
        error = upstream.failure()
        assert isinstance(error, errors.TryLaterError)
        assert (error.retry_after, len(upstream.requests)) == (0, 1)
        assert upstream.call().images
        sent = [request.header("Authorization") for request in upstream.requests]
        assert sent == [f"Bearer {KEY}", f"Bearer {ROTATED_KEY}"]
        assert upstream.secrets.asked[1:] == [(PARAMETER, False), (PARAMETER, True), (PARAMETER, False)]

    def test_an_unchanged_key_is_not_retried(self, upstream: Upstream) -> None:
        upstream.stand_in.key = "another"
        assert upstream.failure_of_one_call() is errors.UpstreamKeyRefusedError
        assert upstream.secrets.asked == [(PARAMETER, False), (PARAMETER, True)]

    def test_a_refused_rotated_key_is_refused(self, upstream: Upstream) -> None:
        upstream.rotate_key()
        upstream.stand_in.key = "another"
        assert isinstance(upstream.failure(), errors.TryLaterError)
        assert type(upstream.failure()) is errors.UpstreamKeyRefusedError

    def test_a_refusal_of_the_rotated_key_names_neither_key(self, upstream: Upstream) -> None:
        upstream.rotate_key()
        assert isinstance(upstream.failure(), errors.TryLaterError)
        upstream.will(refuses(400, message=f"{ROTATED_KEY} may not"))
        assert type(upstream.failure()) is errors.UpstreamRefusedRequestError

    def test_a_key_that_is_deleted_during_the_call_is_missing(self, upstream: Upstream) -> None:
        upstream.rotate_key()
        upstream.secrets.values.clear()
        assert upstream.failure_of_one_call() is errors.SecretMissingError

    @pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY}\r\n", f"\t{KEY}"])
    def test_whitespace_around_a_key_is_not_sent(self, upstream: Upstream, key: str) -> None:
        upstream.secrets.values[PARAMETER] = key
        upstream.will(answers_data({"url": URL}))
        upstream.call()
        assert upstream.requests[0].header("Authorization") == f"Bearer {KEY}"

    @pytest.mark.parametrize("key", [None, "", " \n", f"{KEY}\nX-Other: 1", f"{KEY}\r\n{ROTATED_KEY}", f"{KEY} x", "é"])
    def test_without_a_valid_key_nothing_is_sent(self, upstream: Upstream, key: str | None) -> None:
        upstream.secrets.values = {} if key is None else {PARAMETER: key}
        assert type(upstream.failure()) is errors.SecretMissingError
        assert upstream.requests == []

    def test_an_unreadable_key_is_not_sent(self, upstream: Upstream) -> None:
        upstream.secrets.failures.append(errors.SecretUnavailableError("SSM did not answer."))
        assert type(upstream.failure()) is errors.SecretUnavailableError
        assert upstream.requests == []
