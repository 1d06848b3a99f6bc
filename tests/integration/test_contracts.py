"""The contracts of the ports: the fake and the real implementation pass the same tests.

The contracts of the stores are in test_*_store.py, test_counters.py and test_queues.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from imagegen.aws.ssm import SsmParameters
from imagegen.domain import errors
from imagegen.domain.deadline import Deadline
from imagegen.domain.images import ImageRequest, UpstreamImages, UpstreamTask
from imagegen.outbound.image_source import HttpImageSource
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.url_guard import UrlGuard
from imagegen.ports import ImageProvider, ImageSource, Parameters
from local.serving import Reply, serving
from local.upstream import StandInUpstream
from tests.fakes.image_source import FakeImageSource
from tests.fakes.parameters import FakeParameters
from tests.fakes.provider import FakeProvider, png
from tests.support.models import upstream_request
from tests.support.stores import Connect, closed_url
from tests.support.upstream_host import KEY, UpstreamHost

Cause = Literal["policy", "broken", "busy"]
# By protocol: a model, and the answer of an upstream that rejects the prompt.
POLICY_ERROR = Reply(400, b'{"error": {"code": "content_policy_violation"}}')
REAL = {
    "openai": ("dall-e-3", POLICY_ERROR),
    "gemini-chat": ("gemini-2.5-flash-image", POLICY_ERROR),
    "ideogram": ("ideogram-v3", Reply(422, b'{"error": "The prompt failed the safety check."}')),
    "kling": ("kling-v1", Reply(400, b'{"code": 1301, "message": "The prompt violates our policy."}')),
    "midjourney": ("mj_imagine", Reply(200, b'{"code": 24, "description": "May contain sensitive words"}')),
}
WITH_TASKS = ("fake with tasks", "kling", "midjourney")


def soon() -> Deadline:
    return Deadline.after(60)  # reached only if a test fails


# The upstream.


@dataclass
class ProviderTwin:
    """`fail_next` makes the next call fail; `calls` is the number of calls that reached the upstream."""

    provider: ImageProvider
    fail_next: Callable[[Cause], None]
    calls: Callable[[], int]
    model: str = "dall-e-3"

    @property
    def request(self) -> ImageRequest:
        return ImageRequest("a cat", self.model, "url")

    def images(self, request: ImageRequest, n: int = 1, deadline: Deadline | None = None) -> UpstreamImages:
        """The images of a call, or of the task with which it was answered."""
        call = upstream_request(request, n)
        result = self.provider.start(call, deadline or soon())
        if isinstance(result, UpstreamTask):
            result = self.provider.poll(result.id, call, soon())
        assert isinstance(result, UpstreamImages)
        return result


@pytest.fixture(params=["fake", "fake with tasks", *REAL])
def upstream(request: pytest.FixtureRequest) -> Iterator[ProviderTwin]:
    if request.param.startswith("fake"):
        fake = FakeProvider()
        fake.polls = int(request.param in WITH_TASKS)
        failures: dict[Cause, Exception] = {
            "policy": errors.PromptRejectedError("no"),
            "broken": errors.UpstreamFailedError("no"),
            "busy": errors.UpstreamRateLimitedError("no"),
        }
        yield ProviderTwin(fake, lambda cause: fake.failures.append(failures[cause]), lambda: len(fake.calls))
        return
    stand_in = StandInUpstream(KEY)
    stand_in.task_seconds = 0
    model, rejection = REAL[request.param]
    refusals: dict[Cause, Reply] = {
        "policy": rejection,
        "broken": Reply(500),
        "busy": Reply(429, headers={"Retry-After": "60"}),
    }
    with serving(stand_in.respond) as port:
        yield ProviderTwin(
            UpstreamHost(port, stand_in).provider(model),
            lambda cause: stand_in.script.append(lambda _: refusals[cause]),
            lambda: len(stand_in.calls),
            model,
        )


SMALL = ImageRequest("a cat", "dall-e-2", "url", n=3, options={"size": "256x256"})
AS_BASE64 = ImageRequest("a cat", "dall-e-2", "b64_json", n=3, options={"response_format": "b64_json"})
FLUX = ImageRequest("a cat", "flux", "url", n=3, options={"size": "768x512"})


@pytest.mark.parametrize(
    ("upstream", "image_request", "n", "kind"),
    [
        *((twin, SMALL, 3, str) for twin in ("fake", "openai")),
        *((twin, AS_BASE64, 3, bytes) for twin in ("fake", "openai")),
        *((twin, FLUX, 1, str) for twin in ("fake", "openai")),  # `n` of the call counts
        ("gemini-chat", ImageRequest("a cat", "gemini-2.5-flash-image", "url", n=3), 1, bytes),
        ("gemini-chat", ImageRequest("a cat", "gemini-3-pro-image", "b64_json"), 1, bytes),
        ("ideogram", ImageRequest("a cat", "ideogram-v3", "url", n=10), 3, str),
        ("ideogram", ImageRequest("a cat", "ideogram-v3", "b64_json", n=10), 2, str),
        ("fake with tasks", SMALL, 3, str),
        ("kling", ImageRequest("a cat", "kling-v1", "url", n=10), 9, str),
        ("midjourney", ImageRequest("a cat", "mj_imagine", "b64_json", n=10), 1, str),
    ],
    indirect=["upstream"],
)
def test_a_call_returns_n_images(upstream: ProviderTwin, image_request: ImageRequest, n: int, kind: type) -> None:
    images = upstream.images(image_request, n).images
    assert len({image.source for image in images}) == len(images) == n
    assert {type(image.source) for image in images} == {kind}
    assert upstream.calls() == 1


@pytest.mark.parametrize(
    ("cause", "kind"),
    [("policy", errors.NothingSpentError), ("busy", errors.NothingSpentError), ("broken", errors.MoneySpentError)],
)
def test_a_failure_says_if_money_was_spent(
    upstream: ProviderTwin, cause: Cause, kind: type[errors.ImagegenError]
) -> None:
    upstream.fail_next(cause)
    with pytest.raises(kind):
        upstream.images(upstream.request)
    assert upstream.calls() == 1


@pytest.mark.parametrize("upstream", WITH_TASKS, indirect=True)
def test_a_repeated_call_is_answered_with_the_same_task(upstream: ProviderTwin) -> None:
    call = upstream_request(upstream.request)
    first = upstream.provider.start(call, soon())
    assert isinstance(first, UpstreamTask)
    again = upstream.provider.start(replace(call, repeats=True), soon())
    other = upstream.provider.start(replace(call, reference="another"), soon())
    assert isinstance(again, UpstreamTask)
    assert isinstance(other, UpstreamTask)
    assert again.id == first.id != other.id


def test_without_time_left_no_call_is_made(upstream: ProviderTwin) -> None:
    with pytest.raises(errors.NothingSpentError):
        upstream.images(upstream.request, deadline=Deadline.after(0))
    assert upstream.calls() == 0


# Image hosts.


@dataclass
class SourceTwin:
    """`put` stores content on an image host and returns its URL."""

    source: ImageSource
    put: Callable[[bytes], str]


@pytest.fixture(params=["fake", "real"])
def images(request: pytest.FixtureRequest) -> Iterator[SourceTwin]:
    files: dict[str, bytes] = {}
    with serving(lambda request: Reply(200, files[request.target]) if request.target in files else Reply(404)) as port:
        origin = f"http://127.0.0.1:{port}"
        fake, real = FakeImageSource(files), HttpImageSource(HttpPool(), UrlGuard(origin), max_bytes=10_000_000)

        def put(content: bytes) -> str:
            url = f"{origin}/{len(files)}"
            files[url] = files[urlsplit(url).path] = content
            return url

        yield SourceTwin(fake if request.param == "fake" else real, put)


BY = pytest.mark.parametrize("by", ["url", "bytes"])


@BY
@pytest.mark.parametrize("content", [png("small"), png("x" * 1_000_000)], ids=["small", "large"])
def test_each_opening_gives_the_whole_image_its_type_and_length(images: SourceTwin, by: str, content: bytes) -> None:
    source = images.put(content) if by == "url" else content
    for _ in range(2):
        with images.source.open(source, soon()) as body:
            assert (body.media_type, body.length) == ("image/png", len(content))
            assert b"".join(body.blocks) == content


@BY
@pytest.mark.parametrize("content", [b"<html></html>", b'{"error": "gone"}', b"%PDF-1.7"])
def test_content_that_is_no_image_is_refused_on_opening(images: SourceTwin, by: str, content: bytes) -> None:
    source = images.put(content) if by == "url" else content
    with pytest.raises(errors.NotAnImageError), images.source.open(source, soon()):
        pass


@BY
def test_a_truncated_image_never_gives_its_last_block(images: SourceTwin, by: str) -> None:
    cut = png("a cat")[:-12]
    source = images.put(cut) if by == "url" else cut
    got: list[bytes] = []
    with pytest.raises(errors.ImageTruncatedError), images.source.open(source, soon()) as body:
        got.extend(body.blocks)
    assert len(b"".join(got)) < len(cut)


def test_a_missing_or_late_image_can_be_retried(images: SourceTwin) -> None:
    url = images.put(png("a"))
    for source, deadline in ((f"{url}0", soon()), (url, Deadline.after(0))):
        with pytest.raises(errors.ImageDownloadInterruptedError), images.source.open(source, deadline):
            pass


# Parameters.


@dataclass
class ParametersTwin:
    parameters: Parameters
    put: Callable[[str, str], object]
    delete: Callable[[str], object]


@pytest.fixture(params=["fake", "real"])
def secrets(request: pytest.FixtureRequest, connect: Connect) -> ParametersTwin:
    if request.param == "fake":
        fake = FakeParameters()
        return ParametersTwin(fake, fake.values.__setitem__, fake.values.__delitem__)
    client = connect("ssm", request.getfixturevalue("aws_url"))
    return ParametersTwin(
        SsmParameters(lambda: client, cache_seconds=3600),
        lambda name, value: client.put_parameter(Name=name, Value=value, Type="SecureString", Overwrite=True),
        lambda name: client.delete_parameter(Name=name),
    )


@pytest.fixture
def name() -> str:
    return f"/imagegen/{uuid4().hex}/key"


@pytest.mark.parametrize("value", ["sk-test", '{"key_sha256": "00"}', "한국어", "with\na line break"])
def test_a_value_is_decrypted_and_unchanged(secrets: ParametersTwin, name: str, value: str) -> None:
    secrets.put(name, value)
    assert [secrets.parameters.get(name, fresh=fresh) for fresh in (False, True)] == [value, value]


def test_fresh_bypasses_the_cache_and_renews_it(secrets: ParametersTwin, name: str) -> None:
    secrets.put(name, "old")
    secrets.parameters.get(name)
    secrets.put(name, "new")
    assert [secrets.parameters.get(name, fresh=fresh) for fresh in (False, True, False)] == ["old", "new", "new"]
    secrets.delete(name)
    assert [secrets.parameters.get(name, fresh=fresh) for fresh in (False, True, False)] == ["new", None, None]


def test_a_missing_parameter_is_cached_too(secrets: ParametersTwin, name: str) -> None:
    assert [secrets.parameters.get(name, fresh=fresh) for fresh in (False, True)] == [None, None]
    secrets.put(name, "there now")
    assert [secrets.parameters.get(name, fresh=fresh) for fresh in (False, True)] == [None, "there now"]


@pytest.mark.parametrize("twin", ["fake", "real"])
def test_an_unreachable_parameter_store_is_an_error_that_is_not_cached(connect: Connect, twin: str) -> None:
    fake, closed = FakeParameters(), closed_url()
    fake.failures.extend([errors.SecretUnavailableError("down")] * 2)
    real = SsmParameters(lambda: connect("ssm", closed), cache_seconds=3600)
    parameters: Parameters = fake if twin == "fake" else real
    for _ in range(2):
        with pytest.raises(errors.SecretUnavailableError):
            parameters.get("/imagegen/key")
