"""What every twin of a port promises, checked against the fake and the real one alike."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import uuid4

import boto3
import pytest
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials
from moto.server import ThreadedMotoServer

from imagegen.aws.bucket import bucket_url
from imagegen.aws.s3 import S3ImageStore
from imagegen.aws.ssm import SsmParameters
from imagegen.deadline import Deadline
from imagegen.errors import (
    ImageDownloadInterruptedError,
    ImageStorageError,
    ImageTruncatedError,
    MoneySpentError,
    NotAnImageError,
    NothingSpentError,
    PromptRejectedError,
    SecretUnavailableError,
    UpstreamFailedError,
    UpstreamRateLimitedError,
)
from imagegen.generations import StoredImage
from imagegen.images import ImageBody, ImageRequest, ResponseFormat, new_image_id
from imagegen.outbound.image_source import HttpImageSource
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.url_guard import UrlGuard
from imagegen.ports import ImageProvider, ImageSource, ImageStore, Parameters
from imagegen.providers.openai_compatible import OpenAICompatibleProvider
from local.serving import Reply, serving
from local.upstream import StandInUpstream
from tests.fakes.image_source import FakeImageSource
from tests.fakes.image_store import FakeImageStore
from tests.fakes.parameters import FakeParameters
from tests.fakes.provider import FakeProvider, png

REGION: Literal["eu-central-1"] = "eu-central-1"
CREDENTIALS = ReadOnlyCredentials("AKIATESTTESTTESTTEST", "secret", None)
AS_CALLER: dict[str, Any] = {
    "region_name": REGION,
    "aws_access_key_id": CREDENTIALS.access_key,
    "aws_secret_access_key": CREDENTIALS.secret_key,
}


def soon() -> Deadline:
    return Deadline.after(10)


@pytest.fixture(scope="session")
def aws() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@dataclass
class ProviderTwin:
    """`fail_next` has the upstream refuse the next call; `calls` is how many reached it."""

    provider: ImageProvider
    fail_next: Callable[[Literal["policy", "broken", "busy"]], None]
    calls: Callable[[], int]


@pytest.fixture(params=["fake", "real"])
def upstream(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProviderTwin]:
    if request.param == "fake":
        fake = FakeProvider()
        failures = {
            "policy": PromptRejectedError("no"),
            "broken": UpstreamFailedError("no"),
            "busy": UpstreamRateLimitedError("no"),
        }
        yield ProviderTwin(fake, lambda why: fake.failures.append(failures[why]), lambda: len(fake.calls))
        return
    monkeypatch.setattr("imagegen.providers.openai_compatible._FIRST_PAUSE_SECONDS", 0)
    stand_in = StandInUpstream("sk-test")
    refusals = {
        "policy": Reply(400, b'{"error": {"code": "content_policy_violation"}}'),
        "broken": Reply(500),
        "busy": Reply(429, headers={"Retry-After": "60"}),
    }
    with serving(stand_in.respond) as port:
        real = OpenAICompatibleProvider(
            HttpPool(),
            base_url=f"http://127.0.0.1:{port}/v1",
            key=lambda _: "sk-test",
            timeout=10,
            max_image_bytes=10_000_000,
        )
        yield ProviderTwin(
            real, lambda why: stand_in.script.append(lambda _: refusals[why]), lambda: len(stand_in.calls)
        )


class TestImageProvider:
    @pytest.mark.parametrize(("response_format", "kind"), [("url", str), ("b64_json", bytes)])
    @pytest.mark.parametrize("n", [1, 3])
    def test_exactly_as_many_images_come_as_were_asked_for_in_one_call(
        self, upstream: ProviderTwin, n: int, response_format: ResponseFormat, kind: type
    ) -> None:
        request = ImageRequest("a cat", "dall-e-2", response_format, n=n, size="256x256")

        answer = upstream.provider.generate(request, n, soon())

        assert len({image.source for image in answer.images}) == n
        assert all(type(image.source) is kind for image in answer.images)
        assert upstream.calls() == 1

    def test_the_number_of_one_call_counts_and_not_that_of_the_request(self, upstream: ProviderTwin) -> None:
        request = ImageRequest("a cat", "flux", "url", n=3, size="768x512")

        assert len(upstream.provider.generate(request, 1, soon()).images) == 1

    @pytest.mark.parametrize("why", ["policy", "busy"])
    def test_where_no_image_was_bought_the_failure_says_so(
        self, upstream: ProviderTwin, why: Literal["policy", "busy"]
    ) -> None:
        upstream.fail_next(why)

        with pytest.raises(NothingSpentError):
            upstream.provider.generate(ImageRequest("a cat", "dall-e-3", "url"), 1, soon())
        assert upstream.calls() == 1

    def test_where_one_may_have_been_bought_the_failure_says_so_and_nobody_asks_again(
        self, upstream: ProviderTwin
    ) -> None:
        upstream.fail_next("broken")

        with pytest.raises(MoneySpentError):
            upstream.provider.generate(ImageRequest("a cat", "dall-e-3", "url"), 1, soon())
        assert upstream.calls() == 1

    def test_with_no_time_left_nothing_is_bought(self, upstream: ProviderTwin) -> None:
        with pytest.raises(NothingSpentError):
            upstream.provider.generate(ImageRequest("a cat", "dall-e-3", "url"), 1, Deadline.after(0))
        assert upstream.calls() == 0

    def test_many_may_ask_at_once(self, upstream: ProviderTwin) -> None:
        request = ImageRequest("a cat", "dall-e-2", "b64_json", size="256x256")
        with ThreadPoolExecutor(5) as pool:
            answers = [pool.submit(upstream.provider.generate, request, 1, soon()) for _ in range(5)]

        assert len({answer.result().images[0].source for answer in answers}) == 5


@dataclass
class SourceTwin:
    """`put` places something on an image host and gives its URL."""

    source: ImageSource
    put: Callable[[bytes], str]


@pytest.fixture(params=["fake", "real"])
def images(request: pytest.FixtureRequest) -> Iterator[SourceTwin]:
    files: dict[str, bytes] = {}
    with serving(lambda asked: _file(files, asked.target)) as port:
        origin = f"http://127.0.0.1:{port}"
        fake, real = FakeImageSource(files), HttpImageSource(HttpPool(), UrlGuard(origin), max_bytes=10_000_000)

        def put(content: bytes) -> str:
            url = f"{origin}/{len(files)}"
            files[url] = files[urlsplit(url).path] = content
            return url

        yield SourceTwin(fake if request.param == "fake" else real, put)


def _file(files: dict[str, bytes], path: str) -> Reply:
    return Reply(200, files[path]) if path in files else Reply(404)


class TestImageSource:
    @pytest.mark.parametrize("content", [png("small"), png("x" * 1_000_000)], ids=["small", "large"])
    @pytest.mark.parametrize("by", ["url", "bytes"])
    def test_an_image_comes_whole_with_its_type_and_length(self, images: SourceTwin, by: str, content: bytes) -> None:
        what = images.put(content) if by == "url" else content

        with images.source.open(what, soon()) as body:
            assert (body.media_type, body.length) == ("image/png", len(content))
            assert b"".join(body.blocks) == content

    @pytest.mark.parametrize("by", ["url", "bytes"])
    def test_it_may_be_opened_again(self, images: SourceTwin, by: str) -> None:
        what = images.put(png("a")) if by == "url" else png("a")
        for _ in range(2):
            with images.source.open(what, soon()) as body:
                assert b"".join(body.blocks) == png("a")

    @pytest.mark.parametrize("content", [b"<html></html>", b'{"error": "gone"}', b"%PDF-1.7"])
    @pytest.mark.parametrize("by", ["url", "bytes"])
    def test_what_is_no_image_is_refused_at_once(self, images: SourceTwin, by: str, content: bytes) -> None:
        what = images.put(content) if by == "url" else content

        with pytest.raises(NotAnImageError), images.source.open(what, soon()):
            pass

    @pytest.mark.parametrize("by", ["url", "bytes"])
    def test_an_image_that_ends_too_early_never_comes_to_its_end(self, images: SourceTwin, by: str) -> None:
        cut = png("a cat")[:-12]
        what = images.put(cut) if by == "url" else cut
        got: list[bytes] = []

        with pytest.raises(ImageTruncatedError), images.source.open(what, soon()) as body:
            got.extend(body.blocks)

        assert len(b"".join(got)) < len(cut)

    def test_an_image_that_is_not_there_yet_may_be_asked_for_again(self, images: SourceTwin) -> None:
        url = images.put(png("a")) + "0"

        with pytest.raises(ImageDownloadInterruptedError), images.source.open(url, soon()):
            pass

    def test_with_no_time_left_nothing_comes(self, images: SourceTwin) -> None:
        with pytest.raises(ImageDownloadInterruptedError), images.source.open(images.put(png("a")), Deadline.after(0)):
            pass


@dataclass
class StoreTwin:
    """`content` gives the type and the bytes of what is stored under an id, `answer` those of a generation's answer."""

    store: ImageStore
    content: Callable[[str], tuple[str, bytes] | None]
    answer: Callable[[str], tuple[str, bytes] | None]


@pytest.fixture(params=["fake", "real"])
def bucket(request: pytest.FixtureRequest) -> Iterator[StoreTwin]:
    if request.param == "fake":
        fake = FakeImageStore()
        yield StoreTwin(
            fake,
            fake.saved.get,
            lambda generation_id: (
                ("application/json", fake.answers[generation_id]) if generation_id in fake.answers else None
            ),
        )
        return
    endpoint: str = request.getfixturevalue("aws")
    name = f"images-{uuid4().hex}"
    client = boto3.client("s3", endpoint_url=endpoint, **AS_CALLER)
    client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})

    def content(key: str) -> tuple[str, bytes] | None:
        with suppress(client.exceptions.NoSuchKey):
            found = client.get_object(Bucket=name, Key=key)
            return found["ContentType"], found["Body"].read()
        return None

    real = S3ImageStore(
        HttpPool(),
        bucket_url=bucket_url(name, REGION, endpoint),
        region=REGION,
        credentials=lambda: CREDENTIALS,
        link_seconds=3600,
    )
    yield StoreTwin(
        real,
        lambda image_id: content(f"images/{image_id}"),
        lambda generation_id: content(f"answers/{generation_id}.json"),
    )
    client.close()


def a_body(*blocks: bytes) -> ImageBody:
    return ImageBody("image/png", sum(len(block) for block in blocks), iter(blocks))


class TestImageStore:
    def test_what_is_saved_is_there_whole_with_its_type(self, bucket: StoreTwin) -> None:
        image_id = new_image_id()

        bucket.store.save(image_id, replace(a_body(b"one", b"two", b"three"), media_type="image/webp"), soon())

        assert bucket.content(image_id) == ("image/webp", b"onetwothree")

    def test_what_is_there_already_stays(self, bucket: StoreTwin) -> None:
        image_id = new_image_id()
        bucket.store.save(image_id, a_body(b"first"), soon())

        bucket.store.save(image_id, replace(a_body(b"second"), media_type="image/gif"), soon())

        assert bucket.content(image_id) == ("image/png", b"first")

    @pytest.mark.parametrize("failure", [ImageTruncatedError("cut"), ImageDownloadInterruptedError("lost")])
    def test_what_the_blocks_raise_comes_through_and_leaves_nothing_stored(
        self, bucket: StoreTwin, failure: MoneySpentError
    ) -> None:
        def blocks() -> Iterator[bytes]:
            yield b"one"
            raise failure

        image_id = new_image_id()

        with pytest.raises(MoneySpentError) as caught:
            bucket.store.save(image_id, ImageBody("image/png", 6, blocks()), soon())

        assert caught.value is failure
        assert bucket.content(image_id) is None

    def test_with_no_time_left_nothing_is_stored(self, bucket: StoreTwin) -> None:
        image_id = new_image_id()

        with pytest.raises(ImageStorageError):
            bucket.store.save(image_id, a_body(b"one"), Deadline.after(0))

        assert bucket.content(image_id) is None

    def test_a_signed_url_names_the_image_and_ends(self, bucket: StoreTwin) -> None:
        image_id = new_image_id()

        signed = bucket.store.signed_url(image_id)

        assert image_id in urlsplit(signed.url).path
        assert signed.expires_at > 1_700_000_000

    @pytest.mark.parametrize("content", [b"x", b"one" * 100, b"y" * 1_000_000], ids=["tiny", "small", "large"])
    def test_what_is_saved_is_found_with_its_type_and_length(self, bucket: StoreTwin, content: bytes) -> None:
        image_id = new_image_id()
        bucket.store.save(image_id, replace(a_body(content), media_type="image/webp"), soon())

        assert bucket.store.find(image_id, soon()) == StoredImage("image/webp", len(content))

    def test_what_was_never_saved_is_not_found(self, bucket: StoreTwin) -> None:
        bucket.store.save(new_image_id(), a_body(b"another"), soon())

        assert bucket.store.find(new_image_id(), soon()) is None

    @pytest.mark.parametrize("content", [b"x", b"one" * 100, b"y" * 1_000_000], ids=["tiny", "small", "large"])
    def test_what_is_saved_is_read_whole_and_as_often_as_one_likes(self, bucket: StoreTwin, content: bytes) -> None:
        image_id = new_image_id()
        bucket.store.save(image_id, a_body(content), soon())

        for _ in range(2):
            with bucket.store.read(image_id, soon()) as blocks:
                assert b"".join(blocks) == content

    def test_an_image_need_not_be_read_to_its_end(self, bucket: StoreTwin) -> None:
        image_id = new_image_id()
        bucket.store.save(image_id, a_body(b"y" * 1_000_000), soon())

        with bucket.store.read(image_id, soon()) as blocks:
            assert next(blocks)[:1] == b"y"
        with bucket.store.read(image_id, soon()) as blocks:
            assert len(b"".join(blocks)) == 1_000_000

    def test_what_is_not_there_cannot_be_read(self, bucket: StoreTwin) -> None:
        with pytest.raises(ImageStorageError), bucket.store.read(new_image_id(), soon()):
            pass

    def test_what_is_deleted_is_gone_and_may_be_deleted_again(self, bucket: StoreTwin) -> None:
        image_id, other = new_image_id(), new_image_id()
        for saved in (image_id, other):
            bucket.store.save(saved, a_body(b"one"), soon())

        for _ in range(2):
            bucket.store.delete(image_id, soon())
            assert bucket.content(image_id) is None
        assert bucket.store.find(image_id, soon()) is None
        assert bucket.content(other) == ("image/png", b"one")

    def test_an_answer_is_stored_whole_as_json_and_apart_from_the_images(self, bucket: StoreTwin) -> None:
        image_id = new_image_id()
        bucket.store.save(image_id, a_body(b"one"), soon())

        bucket.store.save_answer(image_id, 9, iter([b'{"a":', b" 1}", b"\n"]), soon())

        assert bucket.answer(image_id) == ("application/json", b'{"a": 1}\n')
        assert bucket.content(image_id) == ("image/png", b"one")

    def test_an_answer_that_is_stored_again_is_the_newer_one(self, bucket: StoreTwin) -> None:
        bucket.store.save_answer("gen_1", 2, iter([b"{}"]), soon())

        bucket.store.save_answer("gen_1", 7, iter([b'{"a":1}']), soon())

        assert bucket.answer("gen_1") == ("application/json", b'{"a":1}')

    def test_an_answer_whose_blocks_break_off_is_not_stored(self, bucket: StoreTwin) -> None:
        failure = ImageStorageError("unreadable")

        def blocks() -> Iterator[bytes]:
            yield b'{"data":'
            raise failure

        with pytest.raises(ImageStorageError) as caught:
            bucket.store.save_answer("gen_1", 100, blocks(), soon())

        assert caught.value is failure
        assert bucket.answer("gen_1") is None

    def test_a_signed_url_of_an_answer_names_it_and_ends(self, bucket: StoreTwin) -> None:
        signed = bucket.store.signed_answer_url("gen_1")

        assert "gen_1" in urlsplit(signed.url).path
        assert urlsplit(signed.url).path != urlsplit(bucket.store.signed_url("gen_1").url).path
        assert signed.expires_at > 1_700_000_000

    def test_an_answer_that_is_deleted_is_gone_and_may_be_deleted_again(self, bucket: StoreTwin) -> None:
        bucket.store.save("gen_1", a_body(b"one"), soon())
        bucket.store.save_answer("gen_1", 2, iter([b"{}"]), soon())

        for _ in range(2):
            bucket.store.delete_answer("gen_1", soon())
            assert bucket.answer("gen_1") is None
        assert bucket.content("gen_1") == ("image/png", b"one")

    def test_with_no_time_left_nothing_is_asked(self, bucket: StoreTwin) -> None:
        image_id, over = new_image_id(), Deadline.after(0)
        bucket.store.save(image_id, a_body(b"one"), soon())
        bucket.store.save_answer("gen_1", 2, iter([b"{}"]), soon())

        with pytest.raises(ImageStorageError):
            bucket.store.find(image_id, over)
        with pytest.raises(ImageStorageError), bucket.store.read(image_id, over):
            pass
        with pytest.raises(ImageStorageError):
            bucket.store.delete(image_id, over)
        with pytest.raises(ImageStorageError):
            bucket.store.delete_answer("gen_1", over)
        with pytest.raises(ImageStorageError):
            bucket.store.save_answer("gen_1", 3, iter([b"[1]"]), over)

        assert bucket.content(image_id) == ("image/png", b"one")
        assert bucket.answer("gen_1") == ("application/json", b"{}")

    def test_many_may_save_at_once(self, bucket: StoreTwin) -> None:
        contents = {new_image_id(): f"image {index}".encode() for index in range(10)}
        with ThreadPoolExecutor(10) as pool:
            for saving in [
                pool.submit(bucket.store.save, image_id, a_body(content), soon())
                for image_id, content in contents.items()
            ]:
                saving.result()

        assert {image_id: bucket.content(image_id) for image_id in contents} == {
            image_id: ("image/png", content) for image_id, content in contents.items()
        }


@dataclass
class ParametersTwin:
    parameters: Parameters
    put: Callable[[str, str], object]
    delete: Callable[[str], object]


@pytest.fixture(params=["fake", "real"])
def secrets(request: pytest.FixtureRequest) -> Iterator[ParametersTwin]:
    if request.param == "fake":
        fake = FakeParameters()
        yield ParametersTwin(fake, fake.values.__setitem__, fake.values.__delitem__)
        return
    client = boto3.client("ssm", endpoint_url=request.getfixturevalue("aws"), **AS_CALLER)
    yield ParametersTwin(
        SsmParameters(lambda: client, cache_seconds=3600),
        lambda name, value: client.put_parameter(Name=name, Value=value, Type="SecureString", Overwrite=True),
        lambda name: client.delete_parameter(Name=name),
    )
    client.close()


@pytest.fixture
def name() -> str:
    return f"/imagegen/{uuid4().hex}/key"


class TestParameters:
    @pytest.mark.parametrize("value", ["sk-test", '{"key_sha256": "00"}', "한국어", "with\na line break"])
    def test_a_value_comes_decrypted_and_as_it_was_put(self, secrets: ParametersTwin, name: str, value: str) -> None:
        secrets.put(name, value)

        assert secrets.parameters.get(name) == value
        assert secrets.parameters.get(name, fresh=True) == value

    def test_what_is_not_there_is_none(self, secrets: ParametersTwin, name: str) -> None:
        assert secrets.parameters.get(name) is None
        assert secrets.parameters.get(name, fresh=True) is None

    def test_fresh_passes_by_the_cache_and_renews_it(self, secrets: ParametersTwin, name: str) -> None:
        secrets.put(name, "old")
        secrets.parameters.get(name)
        secrets.put(name, "new")

        assert secrets.parameters.get(name) == "old"
        assert secrets.parameters.get(name, fresh=True) == "new"
        assert secrets.parameters.get(name) == "new"

    def test_that_something_is_missing_is_remembered_too_until_asked_afresh(
        self, secrets: ParametersTwin, name: str
    ) -> None:
        secrets.parameters.get(name)
        secrets.put(name, "there now")

        assert secrets.parameters.get(name) is None
        assert secrets.parameters.get(name, fresh=True) == "there now"

    def test_what_was_deleted_is_gone_when_asked_afresh(self, secrets: ParametersTwin, name: str) -> None:
        secrets.put(name, "old")
        secrets.parameters.get(name)
        secrets.delete(name)

        assert secrets.parameters.get(name, fresh=True) is None
        assert secrets.parameters.get(name) is None


@pytest.mark.parametrize("twin", ["fake", "real"])
def test_a_parameter_store_that_cannot_be_asked_says_so_and_is_asked_again_the_next_time(twin: str) -> None:
    parameters: Parameters
    if twin == "fake":
        parameters = fake = FakeParameters()
        fake.failures.extend([SecretUnavailableError("down")] * 2)
    else:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            closed = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = boto3.client("ssm", endpoint_url=closed, config=Config(retries={"total_max_attempts": 1}), **AS_CALLER)
        parameters = SsmParameters(lambda: client, cache_seconds=3600)

    for _ in range(2):
        with pytest.raises(SecretUnavailableError):
            parameters.get("/imagegen/key")
