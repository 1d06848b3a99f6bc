"""The protocols of resellers over HTTP: what is sent, what comes of each answer, and how many calls are made.

test_upstream_call.py tests what all protocols share, test_task_protocols.py what those with tasks have in addition.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from imagegen.domain import errors
from imagegen.domain.images import UpstreamImages
from local import upstream_gemini_chat as gemini_chat
from local import upstream_ideogram as ideogram
from local.serving import Reply
from local.upstream import Script
from local.upstream_replies import one_api_error
from tests.support import odd_hosts
from tests.support.odd_hosts import CHUNKED, chunk
from tests.support.upstream_host import (
    KEY,
    URL,
    Error,
    UpstreamHost,
    answers,
    cut_off,
    failure_of,
    hangs_up,
    upstream_on,
)

FLASH_2, FLASH, PRO = "gemini-2.0-flash-exp-image-generation", "gemini-2.5-flash-image", "gemini-3-pro-image"
IDEOGRAM, KLING, MIDJOURNEY = "ideogram-v3", "kling-v2-1", "mj_imagine"
# An answer that bought something, which no test waits to be painted. Tasks have the id "1".
GOOD = {
    FLASH: gemini_chat.hosted_image(URL),
    IDEOGRAM: ideogram.images_at(URL),
    KLING: answers(200, {"code": 0, "data": {"task_id": "1", "task_status": "submitted"}}),
    MIDJOURNEY: answers(200, {"code": 1, "description": "Submit success", "result": "1"}),
}
EACH_PROTOCOL = pytest.mark.parametrize("model", GOOD)
PROMPT = 'quotes " and \\, a line\r\nbreak, --boundary, 한국어 🐈, \u2028, </script>'


class Upstream(UpstreamHost):
    def call(self, model: str, n: int = 1, **fields: Any) -> UpstreamImages:
        images = self.start(model, n, **fields)
        assert isinstance(images, UpstreamImages)
        return images

    def failure(self, model: str, *, timeout: float = 30) -> errors.ImagegenError:
        return failure_of(lambda: self.start(model, timeout=timeout))

    def sent(self) -> dict[str, Any]:
        """The fields of the only call, without those that the stand-in adds."""
        (call,) = self.stand_in.calls
        added = ("protocol", "n", "model") if call["protocol"] == ideogram.PROTOCOL else ("protocol", "n")
        return {name: value for name, value in call.items() if name not in added}


@pytest.fixture
def upstream(host: odd_hosts.ReusableHost) -> Iterator[Upstream]:
    with upstream_on(host, Upstream) as upstream:
        yield upstream


def says(status: int, code: str | None = None, message: str = "No.") -> Script:
    return lambda _: one_api_error(status, message, code=code)


# What is sent

COMMON = {
    "n": 1,
    "quality": "auto",
    "style": "vivid",
    "response_format": "url",
    "user": "u-1",
    "safety_identifier": "s",
}


@pytest.mark.parametrize(
    ("model", "fields", "config"),
    [
        *((model, {}, None) for model in (FLASH_2, FLASH, PRO)),
        *((model, COMMON | {"size": "auto"}, None) for model in (FLASH_2, FLASH, PRO)),
        (FLASH_2, {"size": "1024x1024"}, None),
        (FLASH, {"size": "1024x1024"}, {"aspect_ratio": "1:1"}),
        (FLASH, {"size": "1536x1024"}, {"aspect_ratio": "3:2"}),
        (FLASH, {"size": "960x1280"}, {"aspect_ratio": "3:4"}),
        (FLASH, {"aspect_ratio": "21:9"}, {"aspect_ratio": "21:9"}),
        (PRO, {"size": "1792x1024"}, {"aspect_ratio": "16:9"}),
        (PRO, {"image_size": "1K"}, {"image_size": "1K"}),
        (PRO, {"image_size": "1K", "size": "1024x1792"}, {"image_size": "1K", "aspect_ratio": "9:16"}),
        (PRO, {"image_size": "1K", "aspect_ratio": "2:3"}, {"image_size": "1K", "aspect_ratio": "2:3"}),
    ],
)
def test_gemini_is_sent_a_shape_only_if_one_was_asked_for(
    upstream: Upstream, model: str, fields: dict[str, Any], config: object
) -> None:
    assert len(upstream.call(model, **fields).images) == 1  # the stand-in refuses what it does not know
    extra = {"extra_body": {"google": {"image_config": config}}} if config else {}
    message = {"role": "user", "content": "a cat"}
    body = json.loads(upstream.requests[0].body)
    assert body == {"model": model, "messages": [message], "stream": False, **extra}


RATIOS = {
    **dict.fromkeys(("256x256", "512x512", "1024x1024", "auto"), "1x1"),
    **dict(zip(("1536x1024", "1024x1536", "1280x960", "960x1280"), ("3x2", "2x3", "4x3", "3x4"), strict=True)),
    **dict.fromkeys(("1792x1024", "1280x720"), "16x9"),
    **dict.fromkeys(("1024x1792", "720x1280"), "9x16"),
}
COLORS = [{"color_hex": "#00FFA9", "color_weight": 0.5}, {"color_hex": "#000000"}]


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({}, {"aspect_ratio": "1x1"}),
        (COMMON, {"aspect_ratio": "1x1"}),
        *(({"size": size}, {"aspect_ratio": ratio}) for size, ratio in RATIOS.items()),
        ({"aspect_ratio": "10x16"}, {"aspect_ratio": "10x16"}),
        ({"resolution": "512x1536"}, {"resolution": "512x1536"}),
        *(
            ({name: value}, {"aspect_ratio": "1x1", name: value})
            for name, value in {
                "rendering_speed": "FLASH",
                "magic_prompt": "OFF",
                "negative_prompt": "no dogs, 獺🦦\n",
                "style_type": "FICTION",
                "style_codes": ["0123aBcF", "ffffffff"],
            }.items()
        ),
        *(({"seed": seed}, {"aspect_ratio": "1x1", "seed": str(seed)}) for seed in (0, 2_147_483_647)),
        ({"negative_prompt": ""}, {"aspect_ratio": "1x1", "negative_prompt": ""}),
    ],
    ids=str,
)
def test_ideogram_is_sent_its_fields_and_always_a_shape(
    upstream: Upstream, fields: dict[str, Any], sent: dict[str, Any]
) -> None:
    upstream.call(IDEOGRAM, **fields)  # the stand-in refuses what it does not know
    assert upstream.sent() == {"prompt": "a cat", "num_images": "1", **sent}


@pytest.mark.parametrize("palette", [{"name": "EMBER"}, {"members": COLORS}])
def test_a_palette_is_sent_as_json(upstream: Upstream, palette: dict[str, Any]) -> None:
    upstream.call(IDEOGRAM, color_palette=palette)
    assert json.loads(upstream.sent()["color_palette"]) == palette


@pytest.mark.parametrize("base", ["/v1", "/v1/", ""])
def test_ideogram_is_beside_the_version_and_the_chat_below_it(upstream: Upstream, base: str) -> None:
    upstream.base = base
    upstream.will(GOOD[IDEOGRAM])
    upstream.call(IDEOGRAM)
    (request,) = upstream.requests
    assert (request.method, request.target) == ("POST", ideogram.PATH)
    assert (request.header("Content-Type") or "").startswith("multipart/form-data; boundary=")
    assert request.header("Authorization") == f"Bearer {KEY}"
    if base:
        upstream.will(GOOD[FLASH])
        upstream.call(FLASH)
        chat = upstream.requests[-1]
        assert (chat.method, chat.target) == ("POST", gemini_chat.PATH)
        assert (chat.header("Content-Type"), chat.header("Authorization")) == ("application/json", f"Bearer {KEY}")


@pytest.mark.parametrize("model", [FLASH, IDEOGRAM, KLING])
def test_the_prompt_is_sent_unchanged(upstream: Upstream, model: str) -> None:
    upstream.will(GOOD[model])
    upstream.start(model, prompt=PROMPT)
    assert upstream.stand_in.calls[0]["prompt"] == PROMPT


# What comes of it


def test_an_image_of_gemini_is_kept_with_its_token_counts(upstream: Upstream) -> None:
    for model in (FLASH, PRO):  # in the text, and in a list
        answer = upstream.call(model, size="1024x1024")
        (image,) = answer.images
        assert isinstance(image.source, bytes)
        assert image.source.startswith(b"\x89PNG")
        assert (image.revised_prompt, image.details, answer.details) == (None, {}, {})
        assert answer.usage == {
            "input_tokens": 2,
            "output_tokens": 1290,
            "total_tokens": 1292,
            "input_tokens_details": {"text_tokens": 2, "image_tokens": 0},
        }


def test_an_image_that_gemini_hosts_is_kept_as_its_url(upstream: Upstream) -> None:
    upstream.will(upstream.stand_in.hosted_gemini_image())
    (image,) = upstream.call(FLASH).images
    assert isinstance(image.source, str)
    assert image.source.rpartition("/")[2] in upstream.stand_in.files


def test_images_of_ideogram_are_kept_with_their_details(upstream: Upstream) -> None:
    answer = upstream.call(IDEOGRAM, 2, seed=7, resolution="512x1536", style_type="DESIGN")
    details = {"seed": 7, "resolution": "512x1536", "style_type": "DESIGN"}
    assert [(image.revised_prompt, image.details) for image in answer.images] == [("a cat, in detail", details)] * 2
    assert len({image.source for image in answer.images}) == 2
    assert (answer.details, answer.usage) == ({}, None)


def test_a_call_of_ideogram_may_be_for_eight_images(upstream: Upstream) -> None:
    urls = [f"{URL}?{index}" for index in range(8)]
    upstream.will(ideogram.images_at(*urls[:3], "", *urls[4:]))
    images = upstream.call(IDEOGRAM, 8).images
    assert upstream.sent()["num_images"] == "8"
    assert [image.source for image in images] == [*urls[:3], None, *urls[4:]]
    assert type(images[3].failure) is errors.ImageFilteredError


def test_fewer_images_than_were_asked_for_are_not_asked_for_again(upstream: Upstream) -> None:
    upstream.will(ideogram.images_at(URL), ideogram.images_at(URL))
    first, second = upstream.call(IDEOGRAM, 2).images
    assert (first.source, type(second.failure)) == (URL, errors.UpstreamTooFewImagesError)
    assert len(upstream.requests) == 1


# Refusals and failures, with one call each

POLICY, FILTERED = errors.PromptRejectedError, errors.ImageFilteredError
NO_CREDIT, NO_KEY = errors.UpstreamOutOfCreditError, errors.UpstreamKeyRefusedError
INVALID, LOST = errors.UpstreamAnswerInvalidError, errors.UpstreamConnectionLostError
OF_A_RESELLER: list[tuple[Script, Error]] = [
    (says(400, "content_policy_violation"), POLICY),
    (says(400, "prompt_blocked"), POLICY),
    (says(400, "invalid_request"), errors.UpstreamRefusedRequestError),
    (says(401), NO_KEY),
    (says(402), NO_CREDIT),
    (says(403, "insufficient_user_quota"), NO_CREDIT),
    (says(403, "pre_consume_token_quota_failed"), NO_CREDIT),
    (says(403), NO_KEY),
    (says(404, "model_not_found"), errors.UpstreamLacksModelError),
    (says(404), errors.UpstreamMisconfiguredError),
    (says(413, "read_request_body_failed"), errors.UpstreamRefusedRequestError),
    (says(500, "do_request_failed"), errors.UpstreamFailedError),
    (answers(504), errors.UpstreamFailedError),
    (answers(524, b"<html>"), errors.UpstreamFailedError),
    (answers(200), INVALID),
    (answers(200, b"<!doctype html>"), INVALID),
    (answers(200, {"error": {"message": "No."}}), INVALID),
    (hangs_up, LOST),
    (lambda _: Reply(200, b'{"data": [', declared_length=99), LOST),
]
OF_GEMINI: list[tuple[Script, Error]] = [
    (gemini_chat.content_filter(), FILTERED),
    (gemini_chat.content_filter("I cannot draw that."), FILTERED),
    (gemini_chat.text_without_image(), errors.UpstreamNoImageError),
    (gemini_chat.broken_json(), INVALID),
    (gemini_chat.hosted_image("https://images.example/é"), errors.ImageUrlRefusedError),
    (answers(400, [{"error": {"code": 400, "status": "INVALID_ARGUMENT"}}]), errors.UpstreamRefusedRequestError),
    (says(422), errors.UpstreamRefusedRequestError),
]
OF_IDEOGRAM: list[tuple[Script, Error]] = [
    (ideogram.unsafe_prompt(), POLICY),
    (answers(422), POLICY),
    (ideogram.unsafe_image(), FILTERED),
    (ideogram.insufficient_funds(), NO_CREDIT),
    (answers(402, {"error": "No.", "reject_reason": "daily_limit"}), NO_CREDIT),
    (answers(400, {"error": "Invalid seed."}), errors.UpstreamRefusedRequestError),
    (ideogram.images_at(), errors.UpstreamTooFewImagesError),
    (ideogram.images_at("https://images.example/é"), errors.ImageUrlRefusedError),
    (answers(200, {"code": 0, "data": {"task_id": "t1"}}), INVALID),
]


@pytest.mark.parametrize(
    ("model", "script", "error"),
    [
        *((model, script, error) for model in GOOD for script, error in OF_A_RESELLER),
        *((FLASH, script, error) for script, error in OF_GEMINI),
        *((IDEOGRAM, script, error) for script, error in OF_IDEOGRAM),
    ],
)
def test_a_failure_has_its_meaning_and_is_not_repeated(
    upstream: Upstream, model: str, script: Script, error: Error
) -> None:
    upstream.will(script, GOOD[model])  # a second call would succeed
    assert type(upstream.failure(model)) is error
    assert len(upstream.submits) == 1


def test_a_reason_of_ideogram_and_a_text_of_gemini_are_told(upstream: Upstream) -> None:
    upstream.will(answers(400, {"error": f"Invalid seed for {KEY}."}), gemini_chat.text_without_image("I cannot."))
    assert upstream.failure(IDEOGRAM).message == "The image model refused the request: Invalid seed for [redacted]."
    assert upstream.failure(FLASH).message == "The image model answered with text and no image: I cannot."


@EACH_PROTOCOL
def test_a_refused_key_is_no_charge(upstream: Upstream, model: str) -> None:
    upstream.stand_in.key = "sk-another"
    assert type(upstream.failure(model)) is NO_KEY
    assert upstream.stand_in.calls == []


# Refusals that a wait may end

BUSY = [
    (FLASH, says(429), errors.UpstreamRateLimitedError),
    (FLASH, answers(429, {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}), errors.UpstreamRateLimitedError),
    (IDEOGRAM, ideogram.inflight_limit(), errors.UpstreamRateLimitedError),
    *((model, says(503, "model_not_found"), errors.UpstreamUnavailableError) for model in GOOD),
]


@pytest.mark.parametrize(("model", "script", "error"), BUSY)
def test_a_busy_upstream_bought_nothing(upstream: Upstream, model: str, script: Script, error: Error) -> None:
    upstream.will(script)
    assert type(upstream.failure(model)) is error
    assert len(upstream.submits) == 1


@EACH_PROTOCOL
def test_the_time_that_a_busy_upstream_names_is_known(upstream: Upstream, model: str) -> None:
    upstream.will(answers(429, {"error": "Too many."}, Retry_After="3"))
    error = upstream.failure(model)
    assert isinstance(error, errors.UpstreamRateLimitedError)
    assert error.retry_after == 3


@EACH_PROTOCOL
@pytest.mark.parametrize(("script", "error"), [(says(500), errors.UpstreamFailedError), (hangs_up, LOST)])
def test_nothing_is_repeated_after_an_outcome_that_is_unknown(
    upstream: Upstream, model: str, script: Script, error: Error
) -> None:
    upstream.will(script, GOOD[model])
    assert type(upstream.failure(model)) is error
    assert error.money_spent
    assert len(upstream.submits) == 1


@EACH_PROTOCOL
def test_the_refusal_of_an_unknown_model_names_the_field(upstream: Upstream, model: str) -> None:
    upstream.will(says(404, "model_not_found"))
    failure = upstream.failure(model)
    assert (type(failure), failure.param) == (errors.UpstreamLacksModelError, "model")
    assert len(upstream.submits) == 1


# Answers that come late or in part


class TestTooSlow:
    @pytest.fixture
    def host(self) -> Iterator[odd_hosts.ReusableHost]:
        """Not shared, since a request may arrive after the test."""
        with odd_hosts.reusable_host() as host:
            yield host

    @EACH_PROTOCOL
    @pytest.mark.parametrize(("head", "drop"), [(b"", b""), (CHUNKED, chunk(b" "))], ids=["nothing", "drips"])
    def test_an_upstream_that_hangs_times_out_and_may_have_charged(
        self, upstream: Upstream, model: str, head: bytes, drop: bytes
    ) -> None:
        upstream.will(*[upstream.slow.drips(head, drop)] * 9)
        error = upstream.slow.cuts(
            lambda seconds: type(upstream.failure(model, timeout=seconds)),
            upstream.submits,
            too_soon=lambda failure: failure is errors.UpstreamUnreachableError,
        )
        assert error is errors.UpstreamTimeoutError
        assert error.money_spent


@EACH_PROTOCOL
def test_a_whole_answer_of_a_broken_connection_counts(upstream: Upstream, model: str) -> None:
    upstream.will(cut_off(GOOD[model]), GOOD[model])
    bought = upstream.start(model)
    if isinstance(bought, UpstreamImages):
        assert bought.images[0].source == URL
    else:
        assert bought.id == "1"
    assert len(upstream.requests) == 1
