"""Images and answers in S3: the fake and the real store, on moto, pass one contract.

If moto differs from S3, a server of the test stands in for S3.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen
from uuid import uuid4

import pytest
from botocore.credentials import ReadOnlyCredentials

from imagegen.aws.bucket import S3Answer, S3Bucket, bucket_url
from imagegen.aws.files import S3FileContents
from imagegen.aws.image_store import S3ImageStore
from imagegen.domain import errors
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    FileUnavailableError,
    ImagegenError,
    ImageStorageError,
    ImageStorageInterruptedError,
    UnknownFileError,
)
from imagegen.domain.files import StoredObject
from imagegen.domain.generations import StoredImage
from imagegen.domain.images import ImageBody, new_image_id
from imagegen.outbound.pool import HttpPool
from imagegen.ports import ImageStore
from local.serving import HungUpError, Reply, Request, serving
from tests.fakes import image_store
from tests.fakes.image_store import FakeImageStore
from tests.fakes.provider import png
from tests.support.odd_hosts import SlowHost
from tests.support.stores import ACCESS_KEY, SECRET, Connect, closed_url

REGION = "eu-central-1"
LINK_SECONDS = image_store.LINK_SECONDS
AT_MOST_SECONDS = 30.0  # reached only if a test fails
CREDENTIALS = ReadOnlyCredentials(ACCESS_KEY, SECRET, None)
SMALL, LARGE = png("small"), png("x" * 1_000_000)
Objects = dict[str, tuple[str, bytes]]


def a_store(url: str, credentials: Callable[[], ReadOnlyCredentials] = lambda: CREDENTIALS) -> S3ImageStore:
    return S3ImageStore(HttpPool(), bucket_url=url, region=REGION, credentials=credentials, link_seconds=LINK_SECONDS)


def a_body(content: bytes = SMALL, media_type: str = "image/png") -> ImageBody:
    blocks = (content[at : at + 65_536] for at in range(0, len(content), 65_536))
    return ImageBody(media_type, len(content), blocks)


def soon() -> Deadline:
    return Deadline.after(AT_MOST_SECONDS)


def breaking(failure: Exception, *blocks: bytes) -> Iterator[bytes]:
    yield from blocks
    raise failure


def query_of(url: str) -> dict[str, list[str]]:
    return parse_qs(urlsplit(url).query)


# The contract.


@dataclass
class Twin:
    """`objects` returns the type and the bytes of every object, by key."""

    store: ImageStore
    objects: Callable[[], Objects]


@pytest.fixture
def on_moto(connect: Connect, aws_url: str) -> Twin:
    client, name = connect("s3", aws_url, region=REGION), f"images-{uuid4().hex}"
    client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})

    def objects() -> Objects:
        keys = [each["Key"] for each in client.list_objects_v2(Bucket=name).get("Contents", [])]
        found = {key: client.get_object(Bucket=name, Key=key) for key in keys}
        return {key: (each["ContentType"], each["Body"].read()) for key, each in found.items()}

    return Twin(a_store(bucket_url(name, REGION, aws_url)), objects)


@pytest.fixture(params=["fake", "real"])
def twin(request: pytest.FixtureRequest) -> Twin:
    if request.param == "real":
        return request.getfixturevalue("on_moto")  # type: ignore[no-any-return]
    fake = FakeImageStore()
    return Twin(
        fake,
        lambda: (
            {f"images/{image_id}": saved for image_id, saved in fake.saved.items()}
            | {f"answers/{each}.json": ("application/json", answer) for each, answer in fake.answers.items()}
        ),
    )


def test_a_saved_image_is_stored_whole_with_its_type_and_is_not_overwritten(twin: Twin) -> None:
    image_id = new_image_id()
    assert (
        twin.store.save(image_id, ImageBody("image/webp", 6, iter([b"one", b"two"])), soon(), generation_id="gen_1")
        is True
    )
    assert twin.store.save(image_id, a_body(LARGE, "image/gif"), soon(), generation_id="gen_1") is False
    assert twin.objects() == {f"images/{image_id}": ("image/webp", b"onetwo")}


@pytest.mark.parametrize("content", [b"x", LARGE], ids=["tiny", "large"])
def test_a_saved_image_is_found_and_read_until_it_is_deleted(twin: Twin, content: bytes) -> None:
    store, image_id, other = twin.store, new_image_id(), new_image_id()
    store.save(other, a_body(b"other"), soon(), generation_id="gen_1")
    store.save(image_id, a_body(content, "image/webp"), soon(), generation_id="gen_1")
    assert store.find(image_id, soon()) == StoredImage("image/webp", len(content))
    with store.read(image_id, soon()) as blocks:  # not to its end
        assert next(blocks)[:1] == content[:1]
    for _ in range(2):
        with store.read(image_id, soon()) as blocks:
            assert b"".join(blocks) == content
    for _ in range(2):
        store.delete(image_id, soon())
        assert twin.objects() == {f"images/{other}": ("image/png", b"other")}
    assert store.find(image_id, soon()) is None
    with pytest.raises(ImageStorageError), store.read(image_id, soon()):
        pass


@pytest.mark.parametrize("before", [(), (b"one",), (LARGE,)], ids=["nothing", "a block", "much"])
@pytest.mark.parametrize("kind", [errors.ImageTruncatedError, errors.ImageDownloadInterruptedError, ImageStorageError])
def test_an_error_of_the_blocks_stores_nothing(
    twin: Twin, before: tuple[bytes, ...], kind: type[errors.MoneySpentError]
) -> None:
    image_id, length, failure = new_image_id(), len(b"".join(before)) + 100, kind("cut")
    with pytest.raises(kind) as caught:
        twin.store.save(
            image_id, ImageBody("image/png", length, breaking(failure, *before)), soon(), generation_id="gen_1"
        )
    assert caught.value is failure
    with pytest.raises(kind) as caught:
        twin.store.save_answer("gen_1", length, breaking(failure, *before), soon())
    assert caught.value is failure
    assert twin.objects() == {}
    twin.store.save(image_id, a_body(), soon(), generation_id="gen_1")
    assert twin.objects() == {f"images/{image_id}": ("image/png", SMALL)}


def test_a_newer_answer_replaces_an_older_one_and_stays_until_it_is_deleted(twin: Twin) -> None:
    twin.store.save("gen_1", a_body(), soon(), generation_id="gen_1")
    image = {"images/gen_1": ("image/png", SMALL)}
    twin.store.save_answer("gen_1", 2, iter([b"{}"]), soon())
    twin.store.save_answer("gen_1", 9, iter([b'{"a":', b" 1}", b"", b"\n"]), soon())
    assert twin.objects() == image | {"answers/gen_1.json": ("application/json", b'{"a": 1}\n')}
    for _ in range(2):
        twin.store.delete_answer("gen_1", soon())
        assert twin.objects() == image


def test_without_time_left_nothing_is_stored_or_deleted(twin: Twin) -> None:
    over, store = Deadline.after(0), twin.store
    store.save("img_1", a_body(), soon(), generation_id="gen_1")
    store.save_answer("gen_1", 2, iter([b"{}"]), soon())
    before = twin.objects()
    calls: tuple[Callable[[], object], ...] = (
        lambda: store.save("img_2", a_body(), over, generation_id="gen_1"),
        lambda: store.find("img_1", over),
        lambda: store.read("img_1", over).__enter__(),
        lambda: store.delete("img_1", over),
        lambda: store.save_answer("gen_1", 3, iter([b"[1]"]), over),
        lambda: store.delete_answer("gen_1", over),
    )
    for call in calls:
        with pytest.raises(ImageStorageError):
            call()
    assert twin.objects() == before


def test_a_signed_url_has_its_object_and_expiry(twin: Twin) -> None:
    before = int(time.time())
    image, answer = twin.store.signed_url("img_1"), twin.store.signed_answer_url("img_1")
    after = int(time.time())
    assert [urlsplit(signed.url).path.partition("img_1")[2] for signed in (image, answer)] == ["", ".json"]
    for signed in (image, answer):
        assert before + LINK_SECONDS <= signed.expires_at <= after + LINK_SECONDS


# The real store.


def test_a_signed_url_gives_the_stored_object(on_moto: Twin) -> None:
    on_moto.store.save("img_1", a_body(LARGE, "image/webp"), soon(), generation_id="gen_1")
    on_moto.store.save_answer("gen_1", 2, iter([b"{}"]), soon())
    for signed, media_type, content in (
        (on_moto.store.signed_url("img_1"), "image/webp", LARGE),
        (on_moto.store.signed_answer_url("gen_1"), "application/json", b"{}"),
    ):
        assert query_of(signed.url)["X-Amz-Expires"] == [str(LINK_SECONDS)]
        with urlopen(signed.url, timeout=AT_MOST_SECONDS) as response:
            assert (response.headers["Content-Type"], response.read()) == (media_type, content)
    with pytest.raises(HTTPError) as caught:
        urlopen(on_moto.store.signed_url("img_none").url, timeout=AT_MOST_SECONDS)
    with caught.value as refusal:
        assert refusal.status == 404


@pytest.mark.parametrize(
    ("region", "endpoint", "url"),
    [
        ("us-gov-west-1", None, "https://b.s3.us-gov-west-1.amazonaws.com"),
        ("cn-northwest-1", "", "https://b.s3.cn-northwest-1.amazonaws.com.cn"),
        ("us-east-1", "http://127.0.0.1:5000", "http://127.0.0.1:5000/b"),
        ("cn-north-1", "http://127.0.0.1:5000/", "http://127.0.0.1:5000/b"),
    ],
)
def test_a_bucket_has_its_own_host_or_a_path_of_the_endpoint(region: str, endpoint: str | None, url: str) -> None:
    assert bucket_url("b", region, endpoint) == url


# Requests.


@dataclass
class StandIn:
    """Stands in for S3: sends `reply` and keeps the requests. With status 0 it hangs up."""

    reply: Reply = field(default_factory=lambda: Reply(200))
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def respond(self, request: Request) -> Reply:
        self.requests.append(request)
        if self.reply.status == 0:
            raise HungUpError
        return self.reply


@pytest.fixture
def s3() -> Iterator[StandIn]:
    s3 = StandIn()
    with serving(s3.respond) as port:
        s3.url = f"http://127.0.0.1:{port}/a-bucket"
        yield s3


FILE = StoredObject("inbox/alice/secret.jsonl", "version", 10)
HTTP_FILE = StoredObject("files/0f/file-secret", "", 10)
IMAGE, ANSWER = "images/img_secret", "answers/gen_secret.json"


class Bucket:
    """All classes that call a bucket, at one URL."""

    def __init__(self, url: str) -> None:
        self.images = a_store(url)
        bucket = S3Bucket(HttpPool(), url=url, region=REGION, credentials=lambda: CREDENTIALS)
        self.files = S3FileContents(inbox=bucket, images=bucket, link_seconds=60, upload_seconds=60)

    def read(self) -> bytes:
        with self.images.read("img_secret", soon()) as blocks:
            return b"".join(blocks)


def some_json() -> Iterator[bytes]:
    return iter([b"[1,", b" 2]"])


# Every request to S3: its method, its path, and the call that sends it.
CALLS: dict[str, tuple[str, str, Callable[[Bucket], object]]] = {
    "save": ("PUT", IMAGE, lambda s3: s3.images.save("img_secret", a_body(LARGE), soon(), generation_id="gen_1")),
    "save_answer": ("PUT", ANSWER, lambda s3: s3.images.save_answer("gen_secret", 6, some_json(), soon())),
    "find": ("GET", IMAGE, lambda s3: s3.images.find("img_secret", soon())),
    "read": ("GET", IMAGE, lambda s3: s3.read()),
    "delete": ("DELETE", IMAGE, lambda s3: s3.images.delete("img_secret", soon())),
    "delete_answer": ("DELETE", ANSWER, lambda s3: s3.images.delete_answer("gen_secret", soon())),
    "read from the inbox": ("GET", FILE.key, lambda s3: s3.files.read(FILE, 5, 10, soon())),
    "look into the inbox": ("HEAD", FILE.key, lambda s3: s3.files.find(FILE.key, FILE.version, soon())),
    "save to the outbox": ("PUT", "secret.jsonl", lambda s3: s3.files.save("secret.jsonl", 6, some_json(), soon())),
    "delete from the outbox": ("DELETE", "secret", lambda s3: s3.files.delete(StoredObject("secret", "", 0), soon())),
    "read a file": ("GET", HTTP_FILE.key, lambda s3: s3.files.read(HTTP_FILE, 5, 10, soon())),
    "look for a file": ("HEAD", HTTP_FILE.key, lambda s3: s3.files.find(HTTP_FILE.key, "", soon())),
    "save a file": ("PUT", HTTP_FILE.key, lambda s3: s3.files.save(HTTP_FILE.key, 6, some_json(), soon())),
    "delete a file": ("DELETE", HTTP_FILE.key, lambda s3: s3.files.delete(HTTP_FILE, soon())),
}
FILE_CALLS = [how for how in CALLS if how.endswith((" file", "box"))]
SENT: dict[str, tuple[str | None, bytes]] = {
    "save": ("image/png", LARGE),
    "save_answer": ("application/json", b"[1, 2]"),
    "save to the outbox": ("application/jsonl", b"[1, 2]"),
    "save a file": ("application/octet-stream", b"[1, 2]"),
}
RANGES = {"find": "bytes=0-0", "read from the inbox": "bytes=5-14", "read a file": "bytes=5-14"}
GIVEN: dict[str, Reply] = {
    "find": Reply(206, b"x", {"Content-Type": "image/png", "Content-Range": "bytes 0-0/1000"}),
    "read from the inbox": Reply(206, b"0123456789"),
    "read a file": Reply(206, b"0123456789"),
}


@pytest.mark.parametrize("how", CALLS)
def test_a_call_is_one_request_signed_for_a_minute(s3: StandIn, how: str) -> None:
    method, path, call = CALLS[how]
    s3.reply = GIVEN.get(how, Reply(200))
    call(Bucket(s3.url))
    (request,) = s3.requests
    query, signed = query_of(request.target), {"host"}
    assert (request.method, urlsplit(request.target).path) == (method, f"/a-bucket/{path}")
    media_type, content = SENT.get(how, (None, b""))
    assert (request.header("Content-Type"), request.body) == (media_type, content)
    if content:
        assert request.header("Content-Length") == str(len(content))
        signed |= {"content-type", "content-length"} | ({"if-none-match"} if how == "save" else set())
    assert [request.header(each) for each in ("Authorization", "Transfer-Encoding")] == [None, None]
    assert request.header("If-None-Match") == ("*" if how == "save" else None)
    assert request.header("Range") == RANGES.get(how)
    assert query.get("versionId") == (["version"] if "inbox" in how else None)
    assert signed <= set(query["X-Amz-SignedHeaders"][0].split(";"))
    assert (query["X-Amz-Algorithm"], query["X-Amz-Expires"]) == (["AWS4-HMAC-SHA256"], ["60"])


def test_a_session_token_is_part_of_the_signature(s3: StandIn) -> None:
    store = a_store(s3.url, lambda: ReadOnlyCredentials(ACCESS_KEY, SECRET, "a+token/of=a role"))
    store.save(new_image_id(), a_body(), soon(), generation_id="gen_1")
    for url in (s3.requests[0].target, store.signed_url(new_image_id()).url):
        assert query_of(url)["X-Amz-Security-Token"] == ["a+token/of=a role"]


def test_a_url_is_signed_by_fresh_credentials_without_a_call(s3: StandIn) -> None:
    keys = iter(["AKIAFIRST", "AKIASECOND"])
    store = a_store(s3.url, lambda: ReadOnlyCredentials(next(keys), SECRET, None))
    signed, answer = store.signed_url("img_1"), store.signed_answer_url("gen_1")
    assert signed.url.startswith(f"{s3.url}/images/img_1?")
    assert answer.url.startswith(f"{s3.url}/answers/gen_1.json?")
    used = [query_of(each.url)["X-Amz-Credential"][0].partition("/")[0] for each in (signed, answer)]
    assert used == ["AKIAFIRST", "AKIASECOND"]
    assert s3.requests == []


def test_calls_share_a_connection(s3: StandIn) -> None:
    store = a_store(s3.url)
    for _ in range(2):
        store.save("img_1", a_body(), soon(), generation_id="gen_1")
        store.delete("img_1", soon())
    assert len({request.connection for request in s3.requests}) == 1


# Refusals.


def an_error(code: str, message: str = "Words.") -> bytes:
    """An error as S3 sends it."""
    text = f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>R</RequestId><HostId>H</HostId></Error>"
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + text.encode()


@pytest.mark.parametrize(
    ("kind", "status", "code", "message"),
    [
        (ImageStorageInterruptedError, 400, "ExpiredToken", "The provided token has expired."),
        (ImageStorageInterruptedError, 400, "IncompleteBody", "You did not provide the number of bytes."),
        (ImageStorageInterruptedError, 400, "RequestTimeout", "Your socket connection to the server was not read."),
        (ImageStorageInterruptedError, 400, "TokenRefreshRequired", "The provided token must be refreshed."),
        (ImageStorageInterruptedError, 403, "AccessDenied", "Request has expired"),
        (ImageStorageInterruptedError, 403, "RequestTimeTooSkewed", "The difference of the times is too large."),
        *((ImageStorageInterruptedError, status, "", "") for status in (408, 409, 429, 500, 502, 503, 504)),
        (ImageStorageError, 400, "InvalidRequest", "Words."),
        (ImageStorageError, 400, "KMS.DisabledException", "Words."),
        (ImageStorageError, 403, "AccessDenied", "Access Denied"),
        (ImageStorageError, 403, "SignatureDoesNotMatch", "Words."),
        *((ImageStorageError, status, "", "") for status in (301, 307, 400, 401, 403, 404, 405, 410, 411, 413, 499)),
    ],
)
def test_a_transient_refusal_is_an_interruption(
    kind: type[ImageStorageError], status: int, code: str, message: str
) -> None:
    assert type(S3Answer(status, an_error(code, message)).refusal("")) is kind


Kinds = dict[str, type[ImagegenError]]
OF_IMAGES: Kinds = {
    "any other": ImageStorageInterruptedError,
    "not allowed": ImageStorageError,
    "elsewhere": ImageStorageError,
}
OF_FILES: Kinds = {"any other": FileUnavailableError}
OF_READ_FILES: Kinds = {**OF_FILES, "not allowed": UnknownFileError}
# What the calls raise, by the name of the reply, if not that of images.
RAISED: dict[str, Kinds] = {
    # An image that `find` does not find may be bought again, so each of its errors is an interruption.
    "find": {"any other": ImageStorageInterruptedError},
    **dict.fromkeys(FILE_CALLS, OF_FILES),
    **dict.fromkeys(("read from the inbox", "read a file"), OF_READ_FILES),
}


@pytest.mark.parametrize("how", CALLS)
def test_a_failed_call_raises_after_one_attempt_without_a_secret(s3: StandIn, how: str) -> None:
    method, _, call = CALLS[how]
    replies = {
        "closed port": Reply(0),
        "hung up": Reply(0),
        "too fast": Reply(503, an_error("SlowDown")),
        "too slow": Reply(400, an_error("RequestTimeout")),
        "broken off": Reply(400, b"<Error><Co", declared_length=1000),
        "not allowed": Reply(405, an_error("MethodNotAllowed")),
        "elsewhere": Reply(307, b"<Error/>", {"Location": s3.url}),
    }
    if method == "HEAD":  # without a body there is no code, so the object is missing
        replies = {name: reply for name, reply in replies.items() if reply.status not in (400, 405)}
    kinds: Kinds = {}
    for name, s3.reply in replies.items():
        s3.requests.clear()
        with pytest.raises(ImagegenError) as caught:
            call(Bucket(f"{closed_url()}/a-bucket" if name == "closed port" else s3.url))
        kinds[name] = type(caught.value)
        assert len(s3.requests) == (name != "closed port")
        assert not any(secret in caught.value.message for secret in ("secret", "a-bucket"))
    raised = RAISED.get(how, OF_IMAGES)
    assert kinds == {name: raised.get(name, raised["any other"]) for name in replies}


@pytest.mark.parametrize(
    ("status", "code", "message", "missing"),
    [
        (404, "NoSuchKey", "", True),
        (403, "AccessDenied", "Access Denied", True),  # without permission to list the bucket
        (403, "AccessDenied", "Request has expired", False),
        (403, "SignatureDoesNotMatch", "", False),
        (403, "InvalidAccessKeyId", "", False),
        (403, "", "", False),
    ],
)
def test_an_image_is_missing_only_if_s3_says_so(
    s3: StandIn, status: int, code: str, message: str, missing: bool
) -> None:
    s3.reply = Reply(status, an_error(code, message))
    if missing:
        assert a_store(s3.url).find("img_secret", soon()) is None
    else:
        with pytest.raises(ImageStorageInterruptedError):
            a_store(s3.url).find("img_secret", soon())


def test_a_file_is_missing_if_s3_refuses_its_version(s3: StandIn) -> None:
    for status in (400, 403, 404, 405):
        s3.reply = Reply(status)
        assert Bucket(s3.url).files.find(FILE.key, FILE.version, soon()) is None


@pytest.mark.parametrize(
    ("status", "code", "message", "kind"),
    [
        (400, "InvalidArgument", "Invalid version id specified", UnknownFileError),
        (403, "AccessDenied", "Access Denied", UnknownFileError),  # without permission to list the bucket
        (404, "NoSuchKey", "", UnknownFileError),
        (404, "NoSuchVersion", "", UnknownFileError),
        (405, "MethodNotAllowed", "", UnknownFileError),  # the version is a delete marker
        (400, "ExpiredToken", "The provided token has expired.", FileUnavailableError),
        (403, "AccessDenied", "Request has expired", FileUnavailableError),
        (403, "RequestTimeTooSkewed", "", FileUnavailableError),
        *((status, "", "", FileUnavailableError) for status in (307, 416, 429, 500, 503)),
    ],
)
def test_a_file_that_is_read_is_unknown_only_if_s3_may_have_no_such_object(
    s3: StandIn, status: int, code: str, message: str, kind: type[ImagegenError]
) -> None:
    s3.reply = Reply(status, an_error(code, message))
    with pytest.raises(kind) as caught:
        Bucket(s3.url).files.read(FILE, 0, 10, soon())
    assert caught.type is kind


@pytest.mark.parametrize("how", ["delete", "delete_answer", "delete from the outbox", "delete a file"])
def test_deleting_a_missing_object_succeeds_and_a_refused_deletion_raises(s3: StandIn, how: str) -> None:
    for status in (200, 204, 404):
        s3.reply = Reply(status)
        CALLS[how][2](Bucket(s3.url))
    s3.reply = Reply(403, b"<Error/>")
    kind = FileUnavailableError if how in FILE_CALLS else ImageStorageError
    with pytest.raises(kind) as caught:
        CALLS[how][2](Bucket(s3.url))
    assert caught.type is kind


def test_a_piece_of_a_file_must_have_the_requested_length(s3: StandIn) -> None:
    for length in (9, 11):
        s3.reply = Reply(206, b"x" * length)
        with pytest.raises(FileUnavailableError) as caught:
            Bucket(s3.url).files.read(FILE, 0, 10, soon())
        assert caught.type is FileUnavailableError


def test_an_image_that_ends_before_its_length_is_not_whole(s3: StandIn) -> None:
    s3.reply = Reply(200, SMALL, declared_length=len(SMALL) + 1)
    with pytest.raises(ImageStorageInterruptedError):
        Bucket(s3.url).read()


def test_no_block_is_returned_after_the_deadline(s3: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a connection is cut off, a TLS socket may return ciphertext."""
    s3.reply = Reply(200, SMALL)
    with a_store(s3.url).read("img_1", soon()) as blocks:
        over = time.monotonic() + AT_MOST_SECONDS
        monkeypatch.setattr("imagegen.domain.deadline.time", SimpleNamespace(monotonic=lambda: over))
        with pytest.raises(ImageStorageInterruptedError):
            next(blocks)


# Broken connections.


@dataclass
class RawS3:
    """Accepts one connection and keeps its bytes. Sends `answer` when it has the headers."""

    url: str
    answer: bytes
    received: bytearray = field(default_factory=bytearray)
    answered: threading.Event = field(default_factory=threading.Event)


@contextmanager
def raw_s3(answer: bytes = b"", *, hang_up: bool = True) -> Iterator[RawS3]:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(AT_MOST_SECONDS)
    s3 = RawS3(f"http://127.0.0.1:{listener.getsockname()[1]}/a-bucket", answer)

    def serve() -> None:
        with suppress(OSError), listener.accept()[0] as connection:
            connection.settimeout(AT_MOST_SECONDS)
            while data := connection.recv(65_536):
                s3.received += data
                if b"\r\n\r\n" in s3.received and s3.answer and not s3.answered.is_set():
                    connection.sendall(s3.answer)
                    if hang_up:
                        connection.shutdown(socket.SHUT_WR)
                    s3.answered.set()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield s3
    finally:
        thread.join()
        listener.close()


def http(status: str, content: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        *((failure, type(failure)) for failure in (errors.NotAnImageError("HTML"), KeyError("a bug"))),
        (OSError("no space left on device"), ImageStorageInterruptedError),
    ],
)
def test_a_failed_body_is_never_sent_whole_and_ends_the_connection(failure: Exception, kind: type[Exception]) -> None:
    sent = b"x" * 100_000
    with raw_s3() as s3:
        with pytest.raises(kind) as caught:
            a_store(s3.url).save(
                "img_1", ImageBody("image/png", len(sent) + 1, breaking(failure, sent)), soon(), generation_id="gen_1"
            )
        assert kind is ImageStorageInterruptedError or caught.value is failure
    headers, _, body = bytes(s3.received).partition(b"\r\n\r\n")
    assert b"content-length: 100001" in headers.lower()
    assert body == sent[: len(body)]


def test_an_answer_before_the_end_of_the_body_is_used() -> None:
    with raw_s3(http("412 Precondition Failed")) as s3:
        assert a_store(s3.url).save("img_1", a_body(LARGE), soon(), generation_id="gen_1") is False
    for status, kind in (("403 Forbidden", ImageStorageError), ("503 Slow Down", ImageStorageInterruptedError)):
        with raw_s3(http(status)) as s3, pytest.raises(kind):
            a_store(s3.url).save("img_1", a_body(LARGE), soon(), generation_id="gen_1")


def test_an_upload_that_s3_cuts_can_be_retried() -> None:
    with raw_s3(http("400 Bad Request", an_error("RequestTimeout"))) as s3:

        def blocks() -> Iterator[bytes]:
            yield SMALL[:10]
            assert s3.answered.wait(AT_MOST_SECONDS)
            yield SMALL[10:]

        with pytest.raises(ImageStorageInterruptedError):
            a_store(s3.url).save("img_1", ImageBody("image/png", len(SMALL), blocks()), soon(), generation_id="gen_1")


def test_a_transfer_that_stalls_is_cut_at_the_deadline() -> None:
    begun = time.monotonic()
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 10\r\n\r\nonly"
    with raw_s3(answer, hang_up=False) as s3:
        reading = a_store(s3.url).read("img_1", Deadline.after(0.2))
        with pytest.raises(ImageStorageInterruptedError), reading as blocks:
            b"".join(blocks)
    with raw_s3(answer, hang_up=False) as s3, pytest.raises(FileUnavailableError) as caught:
        Bucket(s3.url).files.read(FILE, 0, 10, Deadline.after(0.2))
    assert caught.type is FileUnavailableError
    with raw_s3() as s3, pytest.raises(ImageStorageInterruptedError):
        a_store(s3.url).save("img_1", a_body(), Deadline.after(0.2), generation_id="gen_1")
    calls: tuple[Callable[[S3FileContents, Deadline], object], ...] = (
        lambda files, until: files.find(FILE.key, FILE.version, until),
        lambda files, until: files.save("secret.jsonl", 6, some_json(), until),
        lambda files, until: files.delete(FILE, until),
    )
    for call in calls:
        with raw_s3() as s3, pytest.raises(FileUnavailableError) as caught:
            call(Bucket(s3.url).files, Deadline.after(0.2))
        assert caught.type is FileUnavailableError
    assert time.monotonic() - begun < AT_MOST_SECONDS


def test_a_file_that_drips_is_cut_at_the_deadline() -> None:
    """A socket's time-out restarts with every byte."""
    slow, requests = SlowHost(), list[Request]()
    drips = slow.drips(b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1000000\r\n\r\n", b"x")

    def respond(request: Request) -> Reply:
        requests.append(request)
        return drips(request)

    with serving(respond) as port:

        def attempt(seconds: float) -> type[Exception]:
            files = Bucket(f"http://127.0.0.1:{port}/a-bucket").files
            with pytest.raises(FileUnavailableError) as caught:
                files.read(FILE, 0, 1_000_000, Deadline.after(seconds))
            return caught.type

        try:
            assert slow.cuts(attempt, requests, too_soon=lambda _: not requests) is FileUnavailableError
        finally:
            slow.over.set()
