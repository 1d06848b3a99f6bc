"""What every twin of a port promises, checked against the fake and the real one alike.

The twins of the stores have files of their own.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from imagegen.aws.ssm import SsmParameters
from imagegen.domain import errors
from imagegen.domain.deadline import Deadline
from imagegen.domain.images import ImageRequest
from imagegen.outbound.image_source import HttpImageSource
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.url_guard import UrlGuard
from imagegen.ports import ImageProvider, ImageSource, Parameters
from imagegen.providers.openai_compatible import OpenAICompatibleProvider
from local.serving import Reply, serving
from local.upstream import StandInUpstream
from tests.fakes.image_source import FakeImageSource
from tests.fakes.parameters import FakeParameters
from tests.fakes.provider import FakeProvider, png
from tests.support.stores import Connect, closed_url

Why = Literal["policy", "broken", "busy"]


def soon() -> Deadline:
    return Deadline.after(60)  # only ever waited for in full if a test fails


# The upstream.


@dataclass
class ProviderTwin:
    """`fail_next` has the upstream refuse the next call; `calls` is how many reached it."""

    provider: ImageProvider
    fail_next: Callable[[Why], None]
    calls: Callable[[], int]


@pytest.fixture(params=["fake", "real"])
def upstream(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProviderTwin]:
    if request.param == "fake":
        fake = FakeProvider()
        failures: dict[Why, Exception] = {
            "policy": errors.PromptRejectedError("no"),
            "broken": errors.UpstreamFailedError("no"),
            "busy": errors.UpstreamRateLimitedError("no"),
        }
        yield ProviderTwin(fake, lambda why: fake.failures.append(failures[why]), lambda: len(fake.calls))
        return
    monkeypatch.setattr("imagegen.providers.openai_compatible._FIRST_PAUSE_SECONDS", 0)
    stand_in, pool = StandInUpstream("sk-test"), HttpPool()
    refusals: dict[Why, Reply] = {
        "policy": Reply(400, b'{"error": {"code": "content_policy_violation"}}'),
        "broken": Reply(500),
        "busy": Reply(429, headers={"Retry-After": "60"}),
    }
    with serving(stand_in.respond) as port:
        url = f"http://127.0.0.1:{port}/v1"
        real = OpenAICompatibleProvider(
            pool, base_url=url, key=lambda _: "sk-test", timeout=60, max_image_bytes=10_000_000
        )
        yield ProviderTwin(
            real, lambda why: stand_in.script.append(lambda _: refusals[why]), lambda: len(stand_in.calls)
        )


@pytest.mark.parametrize(
    ("asked", "n", "kind"),
    [
        (ImageRequest("a cat", "dall-e-2", "url", n=3, size="256x256"), 3, str),
        (ImageRequest("a cat", "dall-e-2", "b64_json", n=3, size="256x256"), 3, bytes),
        (ImageRequest("a cat", "flux", "url", n=3, size="768x512"), 1, str),  # that of the call counts
    ],
)
def test_exactly_as_many_images_come_as_one_call_asks_for(
    upstream: ProviderTwin, asked: ImageRequest, n: int, kind: type
) -> None:
    images = upstream.provider.generate(asked, n, soon()).images
    assert len({image.source for image in images}) == len(images) == n
    assert {type(image.source) for image in images} == {kind}
    assert upstream.calls() == 1


@pytest.mark.parametrize(
    ("why", "kind"),
    [("policy", errors.NothingSpentError), ("busy", errors.NothingSpentError), ("broken", errors.MoneySpentError)],
)
def test_a_failure_says_whether_an_image_may_have_been_bought_and_nobody_asks_again(
    upstream: ProviderTwin, why: Why, kind: type[errors.ImagegenError]
) -> None:
    upstream.fail_next(why)
    with pytest.raises(kind):
        upstream.provider.generate(ImageRequest("a cat", "dall-e-3", "url"), 1, soon())
    assert upstream.calls() == 1


def test_with_no_time_left_nothing_is_bought(upstream: ProviderTwin) -> None:
    with pytest.raises(errors.NothingSpentError):
        upstream.provider.generate(ImageRequest("a cat", "dall-e-3", "url"), 1, Deadline.after(0))
    assert upstream.calls() == 0


def test_many_may_ask_at_once(upstream: ProviderTwin) -> None:
    request = ImageRequest("a cat", "dall-e-2", "b64_json", size="256x256")
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: upstream.provider.generate(request, 1, soon()), range(5)))
    assert len({answer.images[0].source for answer in answers}) == 5


# Image hosts.


@dataclass
class SourceTwin:
    """`put` places something on an image host and gives its URL."""

    source: ImageSource
    put: Callable[[bytes], str]


@pytest.fixture(params=["fake", "real"])
def images(request: pytest.FixtureRequest) -> Iterator[SourceTwin]:
    files: dict[str, bytes] = {}
    with serving(lambda asked: Reply(200, files[asked.target]) if asked.target in files else Reply(404)) as port:
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
def test_an_image_comes_whole_with_its_type_and_length_as_often_as_it_is_opened(
    images: SourceTwin, by: str, content: bytes
) -> None:
    what = images.put(content) if by == "url" else content
    for _ in range(2):
        with images.source.open(what, soon()) as body:
            assert (body.media_type, body.length) == ("image/png", len(content))
            assert b"".join(body.blocks) == content


@BY
@pytest.mark.parametrize("content", [b"<html></html>", b'{"error": "gone"}', b"%PDF-1.7"])
def test_what_is_no_image_is_refused_at_once(images: SourceTwin, by: str, content: bytes) -> None:
    what = images.put(content) if by == "url" else content
    with pytest.raises(errors.NotAnImageError), images.source.open(what, soon()):
        pass


@BY
def test_an_image_that_ends_too_early_never_comes_to_its_end(images: SourceTwin, by: str) -> None:
    cut = png("a cat")[:-12]
    what = images.put(cut) if by == "url" else cut
    got: list[bytes] = []
    with pytest.raises(errors.ImageTruncatedError), images.source.open(what, soon()) as body:
        got.extend(body.blocks)
    assert len(b"".join(got)) < len(cut)


def test_an_image_that_is_not_there_yet_or_not_in_time_may_be_asked_for_again(images: SourceTwin) -> None:
    url = images.put(png("a"))
    for asked, deadline in ((f"{url}0", soon()), (url, Deadline.after(0))):
        with pytest.raises(errors.ImageDownloadInterruptedError), images.source.open(asked, deadline):
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
def test_a_value_comes_decrypted_and_as_it_was_put(secrets: ParametersTwin, name: str, value: str) -> None:
    secrets.put(name, value)
    assert [secrets.parameters.get(name, fresh=fresh) for fresh in (False, True)] == [value, value]


def test_fresh_passes_by_the_cache_and_renews_it(secrets: ParametersTwin, name: str) -> None:
    secrets.put(name, "old")
    secrets.parameters.get(name)
    secrets.put(name, "new")
    assert [secrets.parameters.get(name, fresh=fresh) for fresh in (False, True, False)] == ["old", "new", "new"]
    secrets.delete(name)
    assert [secrets.parameters.get(name, fresh=fresh) for fresh in (False, True, False)] == ["new", None, None]


def test_that_something_is_missing_is_remembered_too_until_asked_afresh(secrets: ParametersTwin, name: str) -> None:
    assert [secrets.parameters.get(name, fresh=fresh) for fresh in (False, True)] == [None, None]
    secrets.put(name, "there now")
    assert [secrets.parameters.get(name, fresh=fresh) for fresh in (False, True)] == [None, "there now"]


@pytest.mark.parametrize("twin", ["fake", "real"])
def test_a_parameter_store_that_cannot_be_asked_says_so_and_is_asked_again_the_next_time(
    connect: Connect, twin: str
) -> None:
    fake, closed = FakeParameters(), closed_url()
    fake.failures.extend([errors.SecretUnavailableError("down")] * 2)
    real = SsmParameters(lambda: connect("ssm", closed), cache_seconds=3600)
    parameters: Parameters = fake if twin == "fake" else real
    for _ in range(2):
        with pytest.raises(errors.SecretUnavailableError):
            parameters.get("/imagegen/key")
