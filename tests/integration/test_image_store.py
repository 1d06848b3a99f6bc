"""Images into S3 and out again: against moto, and against a server of our own for what moto does not do."""

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen
from uuid import uuid4

import boto3
import pytest
from botocore.credentials import ReadOnlyCredentials
from moto.server import ThreadedMotoServer

from imagegen.aws.bucket import S3Bucket, bucket_url
from imagegen.aws.inbox import S3Inbox, S3Outbox
from imagegen.aws.s3 import S3ImageStore
from imagegen.batches import InboxFile
from imagegen.deadline import Deadline
from imagegen.errors import (
    ImageDownloadInterruptedError,
    ImageStorageError,
    ImageStorageInterruptedError,
    ImageTruncatedError,
    MoneySpentError,
    NotAnImageError,
)
from imagegen.generations import StoredImage
from imagegen.images import ImageBody, new_image_id
from imagegen.outbound.pool import HttpPool
from local.serving import HungUpError, Reply, Request, serving
from tests.fakes.provider import png

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

REGION: Literal["eu-central-1"] = "eu-central-1"
LINK_SECONDS = 1234
AT_MOST_SECONDS = 3.0
CREDENTIALS = ReadOnlyCredentials("AKIATESTTESTTESTTEST", "secret/of+a=test", None)
SMALL = png("small")
LARGE = png("x" * 1_000_000)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@dataclass
class Bucket:
    name: str
    endpoint: str
    client: "S3Client"

    def store(self) -> S3ImageStore:
        return a_store(bucket_url(self.name, REGION, self.endpoint))

    def content(self, image_id: str) -> tuple[str, bytes]:
        found = self.client.get_object(Bucket=self.name, Key=f"images/{image_id}")
        return found["ContentType"], found["Body"].read()

    def keys(self) -> list[str]:
        return [found["Key"] for found in self.client.list_objects_v2(Bucket=self.name).get("Contents", [])]


@pytest.fixture
def bucket(s3_endpoint: str) -> Iterator[Bucket]:
    client = boto3.client(
        "s3",
        endpoint_url=s3_endpoint,
        region_name=REGION,
        aws_access_key_id=CREDENTIALS.access_key,
        aws_secret_access_key=CREDENTIALS.secret_key,
    )
    name = f"images-{uuid4().hex}"
    client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    yield Bucket(name, s3_endpoint, client)
    client.close()


def a_store(url: str, credentials: ReadOnlyCredentials = CREDENTIALS, link_seconds: int = LINK_SECONDS) -> S3ImageStore:
    return S3ImageStore(
        HttpPool(), bucket_url=url, region=REGION, credentials=lambda: credentials, link_seconds=link_seconds
    )


def a_body(content: bytes = SMALL, media_type: str = "image/png") -> ImageBody:
    blocks = (content[at : at + 65_536] for at in range(0, len(content), 65_536))
    return ImageBody(media_type, len(content), blocks)


def soon() -> Deadline:
    return Deadline.after(10)


class TestAgainstMoto:
    @pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
    @pytest.mark.parametrize("media_type", ["image/png", "image/jpeg", "image/webp", "image/gif"])
    def test_an_image_is_stored_whole_under_its_id_with_its_type(
        self, bucket: Bucket, content: bytes, media_type: str
    ) -> None:
        image_id = new_image_id()

        bucket.store().save(image_id, a_body(content, media_type), soon())

        assert bucket.keys() == [f"images/{image_id}"]
        assert bucket.content(image_id) == (media_type, content)

    def test_a_second_save_keeps_the_first_and_is_no_error(self, bucket: Bucket) -> None:
        image_id = new_image_id()
        bucket.store().save(image_id, a_body(), soon())

        bucket.store().save(image_id, a_body(LARGE, "image/webp"), soon())

        assert bucket.content(image_id) == ("image/png", SMALL)

    def test_a_bucket_that_is_not_there_is_final(self, s3_endpoint: str) -> None:
        store = a_store(bucket_url("no-such-bucket", REGION, s3_endpoint))

        with pytest.raises(ImageStorageError) as caught:
            store.save(new_image_id(), a_body(), soon())

        assert not isinstance(caught.value, ImageStorageInterruptedError)

    @pytest.mark.parametrize("failure", [ImageTruncatedError("cut"), ImageDownloadInterruptedError("lost")])
    @pytest.mark.parametrize("before", [b"", LARGE])
    def test_what_the_blocks_raise_comes_through_and_leaves_nothing_stored(
        self, bucket: Bucket, failure: MoneySpentError, before: bytes
    ) -> None:
        def blocks() -> Iterator[bytes]:
            if before:
                yield before
            raise failure

        image_id = new_image_id()
        store = bucket.store()

        with pytest.raises(MoneySpentError) as caught:
            store.save(image_id, ImageBody("image/png", len(before) + 100, blocks()), soon())

        assert caught.value is failure
        assert bucket.keys() == []
        store.save(image_id, a_body(), soon())
        assert bucket.content(image_id) == ("image/png", SMALL)

    def test_a_signed_url_gives_the_image_to_whoever_asks(self, bucket: Bucket) -> None:
        image_id = new_image_id()
        bucket.store().save(image_id, a_body(), soon())

        with urlopen(bucket.store().signed_url(image_id).url, timeout=10) as response:
            assert response.headers["Content-Type"] == "image/png"
            assert response.read() == SMALL

    def test_a_signed_url_of_an_image_that_is_not_there_gives_nothing(self, bucket: Bucket) -> None:
        with pytest.raises(HTTPError) as caught:
            urlopen(bucket.store().signed_url(new_image_id()).url, timeout=10)

        with caught.value as refusal:
            assert refusal.status == 404

    def test_a_signed_url_tells_when_it_ends(self, bucket: Bucket) -> None:
        before = int(time.time())
        signed = bucket.store().signed_url(new_image_id())
        after = int(time.time())

        assert before + LINK_SECONDS <= signed.expires_at <= after + LINK_SECONDS
        assert parse_qs(urlsplit(signed.url).query)["X-Amz-Expires"] == [str(LINK_SECONDS)]

    @pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
    def test_what_is_stored_is_found_and_read_and_deleted(self, bucket: Bucket, content: bytes) -> None:
        image_id = new_image_id()
        store = bucket.store()
        store.save(image_id, a_body(content, "image/webp"), soon())

        assert store.find(image_id, soon()) == StoredImage("image/webp", len(content))
        with store.read(image_id, soon()) as blocks:
            assert b"".join(blocks) == content
        store.delete(image_id, soon())
        assert bucket.keys() == []

    def test_a_signed_url_gives_the_answer_as_json_to_whoever_asks(self, bucket: Bucket) -> None:
        store = bucket.store()
        store.save_answer("gen_abc", 11, iter([b'{"data"', b": []", b""]), soon())

        assert bucket.keys() == ["answers/gen_abc.json"]
        with urlopen(store.signed_answer_url("gen_abc").url, timeout=10) as response:
            assert response.headers["Content-Type"] == "application/json"
            assert response.read() == b'{"data": []'
        store.delete_answer("gen_abc", soon())
        assert bucket.keys() == []

    def test_a_signed_url_of_an_answer_tells_when_it_ends(self, bucket: Bucket) -> None:
        before = int(time.time())
        signed = bucket.store().signed_answer_url("gen_abc")
        after = int(time.time())

        assert before + LINK_SECONDS <= signed.expires_at <= after + LINK_SECONDS
        assert parse_qs(urlsplit(signed.url).query)["X-Amz-Expires"] == [str(LINK_SECONDS)]


@dataclass
class Counter:
    """A stand-in for S3 that says what it is told to, and remembers what it was asked."""

    reply: Reply = field(default_factory=lambda: Reply(200))
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def respond(self, request: Request) -> Reply:
        self.requests.append(request)
        if self.reply.status == 0:
            raise HungUpError
        return self.reply


@pytest.fixture
def s3() -> Iterator[Counter]:
    counter = Counter()
    with serving(counter.respond) as port:
        counter.url = f"http://127.0.0.1:{port}/a-bucket"
        yield counter


def read_whole(store: S3ImageStore) -> bytes:
    with store.read("img_secret", soon()) as blocks:
        return b"".join(blocks)


# How the store asks, by name: the method, the path, and the asking itself.
ASKING: dict[str, tuple[str, str, Callable[[S3ImageStore], object]]] = {
    "find": ("GET", "/images/img_secret", lambda store: store.find("img_secret", soon())),
    "read": ("GET", "/images/img_secret", read_whole),
    "delete": ("DELETE", "/images/img_secret", lambda store: store.delete("img_secret", soon())),
    "delete_answer": ("DELETE", "/answers/gen_secret.json", lambda store: store.delete_answer("gen_secret", soon())),
}


def an_error(code: str, message: str = "Words.") -> bytes:
    """S3's, as it is sent."""
    declaration = b'<?xml version="1.0" encoding="UTF-8"?>\n'
    told = f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>R</RequestId><HostId>H</HostId></Error>"
    return declaration + told.encode()


def a_bucket(url: str) -> S3Bucket:
    return S3Bucket(HttpPool(), url=url, region=REGION, credentials=lambda: CREDENTIALS)


FILE = InboxFile("inbox/alice/a.jsonl", "version", 10)
# Every request that the product sends to S3, by name; each gets the address of a bucket.
EVERY_CALL: dict[str, Callable[[str], object]] = {
    **{name: partial(lambda ask, url: ask(a_store(url)), ask) for name, (_, _, ask) in ASKING.items()},
    "save": lambda url: a_store(url).save("img_secret", a_body(), soon()),
    "save_answer": lambda url: a_store(url).save_answer("gen_secret", 2, iter([b"{}"]), soon()),
    "read from the inbox": lambda url: S3Inbox(a_bucket(url)).read(FILE, 0, 10, soon()),
    "save to the outbox": lambda url: S3Outbox(a_bucket(url)).save("outbox/a.jsonl", 2, iter([b"{}"]), soon()),
}
PASSING = [
    (400, "ExpiredToken", "The provided token has expired."),
    (400, "IncompleteBody", "You did not provide the number of bytes."),
    (400, "RequestTimeout", "Your socket connection to the server was not read from or written to in time."),
    (400, "TokenRefreshRequired", "The provided token must be refreshed."),
    (403, "AccessDenied", "Request has expired"),
    (403, "RequestTimeTooSkewed", "The difference between the request time and the server's time is too large."),
    (409, "ConditionalRequestConflict", "A conflicting operation is in progress."),
    (409, "OperationAborted", "A conflicting operation is in progress."),
    (500, "InternalError", "We encountered an internal error."),
    (503, "ServiceUnavailable", "Reduce your request rate."),
    (503, "SlowDown", "Please reduce your request rate for operations involving AWS KMS."),
]
FINAL = [
    (400, "InvalidRequest"),
    (400, "KMS.DisabledException"),
    (403, "AccessDenied"),
    (403, "SignatureDoesNotMatch"),
    (405, "MethodNotAllowed"),
]


class TestRequests:
    def test_a_save_is_one_put_of_the_whole_body_with_its_length(self, s3: Counter) -> None:
        a_store(s3.url).save("img_abcdefghijklmnopqrstuv", a_body(LARGE), soon())

        (request,) = s3.requests
        assert request.method == "PUT"
        assert urlsplit(request.target).path == "/a-bucket/images/img_abcdefghijklmnopqrstuv"
        assert request.header("Content-Length") == str(len(LARGE))
        assert request.header("Transfer-Encoding") is None
        assert request.header("Content-Type") == "image/png"
        assert request.header("If-None-Match") == "*"
        assert request.header("Authorization") is None
        assert request.body == LARGE

    def test_the_headers_that_matter_are_signed(self, s3: Counter) -> None:
        a_store(s3.url).save(new_image_id(), a_body(), soon())

        query = parse_qs(urlsplit(s3.requests[0].target).query)
        signed = set(query["X-Amz-SignedHeaders"][0].split(";"))
        assert {"host", "if-none-match", "content-type", "content-length"} <= signed
        assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
        assert int(query["X-Amz-Expires"][0]) <= 60

    def test_a_session_token_travels_with_what_it_signs(self, s3: Counter) -> None:
        store = a_store(s3.url, ReadOnlyCredentials("AKIATESTTESTTESTTEST", "secret", "a+token/of=a role"))

        store.save(new_image_id(), a_body(), soon())

        saved = parse_qs(urlsplit(s3.requests[0].target).query)
        linked = parse_qs(urlsplit(store.signed_url(new_image_id()).url).query)
        assert saved["X-Amz-Security-Token"] == linked["X-Amz-Security-Token"] == ["a+token/of=a role"]

    def test_credentials_are_asked_for_anew_each_time(self, s3: Counter) -> None:
        keys = iter(["AKIAFIRST", "AKIASECOND"])
        store = S3ImageStore(
            HttpPool(),
            bucket_url=s3.url,
            region=REGION,
            credentials=lambda: ReadOnlyCredentials(next(keys), "secret", None),
            link_seconds=60,
        )

        used = [parse_qs(urlsplit(store.signed_url("img_a").url).query)["X-Amz-Credential"][0] for _ in range(2)]

        assert [one.split("/")[0] for one in used] == ["AKIAFIRST", "AKIASECOND"]

    def test_a_signed_url_is_made_without_any_call(self, s3: Counter) -> None:
        signed = a_store(s3.url).signed_url("img_abcdefghijklmnopqrstuv")
        answer = a_store(s3.url).signed_answer_url("gen_abcdefghijklmnopqrstuv")

        assert signed.url.startswith(f"{s3.url}/images/img_abcdefghijklmnopqrstuv?")
        assert answer.url.startswith(f"{s3.url}/answers/gen_abcdefghijklmnopqrstuv.json?")
        assert s3.requests == []

    def test_an_answer_is_one_put_with_its_length_that_replaces_what_is_there(self, s3: Counter) -> None:
        a_store(s3.url).save_answer("gen_abcdefghijklmnopqrstuv", 6, iter([b"[1,", b" 2]"]), soon())

        (request,) = s3.requests
        assert request.method == "PUT"
        assert urlsplit(request.target).path == "/a-bucket/answers/gen_abcdefghijklmnopqrstuv.json"
        assert request.header("Content-Length") == "6"
        assert request.header("Transfer-Encoding") is None
        assert request.header("Content-Type") == "application/json"
        assert request.header("If-None-Match") is None
        assert request.body == b"[1, 2]"

    @pytest.mark.parametrize("how", ASKING)
    def test_to_ask_is_one_signed_request_without_a_body(self, s3: Counter, how: str) -> None:
        method, path, ask = ASKING[how]
        if how == "find":
            s3.reply = Reply(206, b"x", {"Content-Type": "image/png", "Content-Range": "bytes 0-0/1000"})

        ask(a_store(s3.url))

        (request,) = s3.requests
        assert (request.method, urlsplit(request.target).path) == (method, f"/a-bucket{path}")
        query = parse_qs(urlsplit(request.target).query)
        assert query["X-Amz-Signature"]
        assert int(query["X-Amz-Expires"][0]) <= 60
        assert request.header("Authorization") is None
        assert request.body == b""

    def test_two_saves_share_a_connection(self, s3: Counter) -> None:
        s3.reply = Reply(200, b"<xml/>")
        store = a_store(s3.url)

        store.save(new_image_id(), a_body(), soon())
        store.save(new_image_id(), a_body(), soon())

        assert s3.requests[0].connection is s3.requests[1].connection


class TestFailures:
    @pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
    def test_a_status_that_may_pass_is_one_try_that_may_be_repeated(self, s3: Counter, status: int) -> None:
        s3.reply = Reply(status, b"<Error/>")

        with pytest.raises(ImageStorageInterruptedError):
            a_store(s3.url).save(new_image_id(), a_body(), soon())

        assert len(s3.requests) == 1

    @pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404, 405, 410, 411, 413])
    def test_a_status_that_will_not_pass_is_final_and_names_no_secret(self, s3: Counter, status: int) -> None:
        s3.reply = Reply(status, b"<Error/>", {"Location": s3.url})

        with pytest.raises(ImageStorageError) as caught:
            a_store(s3.url).save("img_secret", a_body(), soon())

        assert not isinstance(caught.value, ImageStorageInterruptedError)
        assert len(s3.requests) == 1
        assert "img_secret" not in caught.value.message
        assert "a-bucket" not in caught.value.message

    def test_an_image_that_is_there_already_is_no_failure(self, s3: Counter) -> None:
        s3.reply = Reply(412, b"<Error><Code>PreconditionFailed</Code></Error>")

        a_store(s3.url).save(new_image_id(), a_body(), soon())

        assert len(s3.requests) == 1

    def test_a_dropped_connection_may_be_tried_again(self, s3: Counter) -> None:
        s3.reply = Reply(0)

        with pytest.raises(ImageStorageInterruptedError):
            a_store(s3.url).save(new_image_id(), a_body(), soon())

        assert len(s3.requests) == 1

    def test_a_closed_port_may_be_tried_again(self) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]

        with pytest.raises(ImageStorageInterruptedError):
            a_store(f"http://127.0.0.1:{port}/a-bucket").save(new_image_id(), a_body(), soon())

    def test_with_no_time_left_nothing_is_sent(self, s3: Counter) -> None:
        with pytest.raises(ImageStorageError):
            a_store(s3.url).save(new_image_id(), a_body(), Deadline.after(0))

        assert s3.requests == []

    @pytest.mark.parametrize("how", ASKING)
    @pytest.mark.parametrize("status", [301, 307, 400, 405, 408, 429, 500, 502, 503, 504])
    def test_what_the_bucket_does_not_answer_is_told_without_a_secret(self, s3: Counter, status: int, how: str) -> None:
        s3.reply = Reply(status, b"<Error/>", {"Location": s3.url})

        with pytest.raises(ImageStorageError) as caught:
            ASKING[how][2](a_store(s3.url))

        assert len(s3.requests) == 1
        assert "secret" not in caught.value.message
        assert "a-bucket" not in caught.value.message

    @pytest.mark.parametrize("status", [403, 404])
    def test_what_is_not_there_is_not_found_with_the_right_to_list_the_bucket_or_without(
        self, s3: Counter, status: int
    ) -> None:
        s3.reply = Reply(status, an_error("AccessDenied" if status == 403 else "NoSuchKey"))

        assert a_store(s3.url).find("img_secret", soon()) is None

    @pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "InvalidAccessKeyId", ""])
    def test_an_image_is_not_taken_for_missing_if_s3_refuses_the_request_for_another_reason(
        self, s3: Counter, code: str
    ) -> None:
        s3.reply = Reply(403, an_error(code))

        with pytest.raises(ImageStorageInterruptedError):
            a_store(s3.url).find("img_secret", soon())

    @pytest.mark.parametrize("how", EVERY_CALL)
    @pytest.mark.parametrize(("status", "code", "message"), PASSING)
    def test_what_may_pass_is_an_interruption(
        self, s3: Counter, how: str, status: int, code: str, message: str
    ) -> None:
        s3.reply = Reply(status, an_error(code, message))

        with pytest.raises(ImageStorageInterruptedError):
            EVERY_CALL[how](s3.url)

        assert len(s3.requests) == 1

    @pytest.mark.parametrize(
        "how", [how for how in EVERY_CALL if how != "find"]
    )  # what it does not find may be bought again
    @pytest.mark.parametrize(("status", "code"), FINAL)
    def test_what_will_not_pass_is_final(self, s3: Counter, how: str, status: int, code: str) -> None:
        s3.reply = Reply(status, an_error(code))

        with pytest.raises(ImageStorageError) as caught:
            EVERY_CALL[how](s3.url)

        assert not isinstance(caught.value, ImageStorageInterruptedError)

    def test_an_error_that_breaks_off_may_be_any(self, s3: Counter) -> None:
        s3.reply = Reply(400, b"<Error><Co", declared_length=1000)

        with pytest.raises(ImageStorageInterruptedError):
            a_store(s3.url).save(new_image_id(), a_body(), soon())

    @pytest.mark.parametrize("status", [403, 404])
    def test_what_is_not_there_cannot_be_read(self, s3: Counter, status: int) -> None:
        s3.reply = Reply(status, b"<Error/>")

        with pytest.raises(ImageStorageError):
            read_whole(a_store(s3.url))

    @pytest.mark.parametrize("how", ["delete", "delete_answer"])
    @pytest.mark.parametrize("status", [200, 204, 404])
    def test_what_is_not_there_is_as_good_as_deleted(self, s3: Counter, status: int, how: str) -> None:
        s3.reply = Reply(status)

        ASKING[how][2](a_store(s3.url))

        assert len(s3.requests) == 1

    @pytest.mark.parametrize("how", ["delete", "delete_answer"])
    def test_what_must_not_be_deleted_is_not_said_to_be_gone(self, s3: Counter, how: str) -> None:
        s3.reply = Reply(403, b"<Error/>")

        with pytest.raises(ImageStorageError):
            ASKING[how][2](a_store(s3.url))

    @pytest.mark.parametrize("how", ASKING)
    def test_a_dropped_connection_may_be_asked_again(self, s3: Counter, how: str) -> None:
        s3.reply = Reply(0)

        with pytest.raises(ImageStorageInterruptedError):
            ASKING[how][2](a_store(s3.url))

        assert len(s3.requests) == 1

    def test_an_image_that_ends_before_its_length_is_never_taken_for_whole(self, s3: Counter) -> None:
        s3.reply = Reply(200, SMALL, declared_length=len(SMALL) + 1)

        with pytest.raises(ImageStorageInterruptedError):
            read_whole(a_store(s3.url))

    @pytest.mark.parametrize("status", [500, 503])
    def test_an_answer_that_is_not_taken_may_be_tried_again(self, s3: Counter, status: int) -> None:
        s3.reply = Reply(status, b"<Error/>")

        with pytest.raises(ImageStorageInterruptedError):
            a_store(s3.url).save_answer("gen_secret", 2, iter([b"{}"]), soon())

    def test_with_no_time_left_nothing_else_is_asked_either(self, s3: Counter) -> None:
        store, over = a_store(s3.url), Deadline.after(0)

        with pytest.raises(ImageStorageError):
            store.find("img_secret", over)
        with pytest.raises(ImageStorageError), store.read("img_secret", over):
            pass
        with pytest.raises(ImageStorageError):
            store.delete("img_secret", over)
        with pytest.raises(ImageStorageError):
            store.save_answer("gen_secret", 2, iter([b"{}"]), over)

        assert s3.requests == []

    def test_a_failure_of_the_disk_that_holds_the_image_may_be_tried_again(self) -> None:
        def blocks() -> Iterator[bytes]:
            yield SMALL[:10]
            raise OSError("no space left on device")

        with raw_s3() as raw, pytest.raises(ImageStorageInterruptedError):
            a_store(raw.url).save(new_image_id(), ImageBody("image/png", len(SMALL), blocks()), soon())


@dataclass
class RawS3:
    """Takes one connection and keeps all that comes over it; `answer` goes out as soon as the headers are in."""

    url: str
    answer: bytes
    received: bytearray = field(default_factory=bytearray)
    answered: threading.Event = field(default_factory=threading.Event)

    @property
    def body(self) -> bytes:
        return bytes(self.received.partition(b"\r\n\r\n")[2])


@contextmanager
def raw_s3(answer: bytes = b"", *, hang_up: bool = True, idle_seconds: float | None = None) -> Iterator[RawS3]:
    """With `idle_seconds` the answer goes out once no byte has come for so long."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(AT_MOST_SECONDS)
    s3 = RawS3(f"http://127.0.0.1:{listener.getsockname()[1]}/a-bucket", answer)

    def serve() -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(AT_MOST_SECONDS)
                data = b"a first look"
                while data:
                    idles = bool(idle_seconds) and not select.select([connection], [], [], idle_seconds)[0]
                    if not idles:
                        data = connection.recv(65_536)
                        s3.received += data
                    due = b"\r\n\r\n" in s3.received and (idles or not idle_seconds)
                    if due and s3.answer and not s3.answered.is_set():
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


class TestWithARawServer:
    @pytest.mark.parametrize("failure", [ImageTruncatedError("cut"), NotAnImageError("HTML"), KeyError("a bug")])
    def test_the_last_block_of_a_body_that_failed_is_never_sent_and_the_connection_ends(
        self, failure: Exception
    ) -> None:
        sent = b"x" * 100_000

        def blocks() -> Iterator[bytes]:
            yield sent
            raise failure

        with raw_s3() as s3:
            with pytest.raises(type(failure)) as caught:
                a_store(s3.url).save(new_image_id(), ImageBody("image/png", len(sent) + 1, blocks()), soon())
            assert caught.value is failure

        assert b"content-length: 100001\r\n" in bytes(s3.received).lower()
        assert s3.body == sent[: len(s3.body)]

    @pytest.mark.parametrize(
        ("status", "outcome"),
        [
            (b"412 Precondition Failed", nullcontext()),
            (b"403 Forbidden", pytest.raises(ImageStorageError)),
            (b"503 Slow Down", pytest.raises(ImageStorageInterruptedError)),
        ],
        ids=["412", "403", "503"],
    )
    def test_an_answer_that_comes_before_the_body_is_through_counts(
        self, status: bytes, outcome: AbstractContextManager[object]
    ) -> None:
        answer = b"HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status
        with raw_s3(answer) as s3, outcome:
            a_store(s3.url).save(new_image_id(), a_body(LARGE), soon())

    def test_an_image_that_comes_to_a_halt_is_given_up_at_the_deadline(self) -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 100\r\n\r\nonly so much"
        begun = time.monotonic()

        with raw_s3(answer, hang_up=False) as s3:
            reading = a_store(s3.url).read(new_image_id(), Deadline.after(0.4))
            with pytest.raises(ImageStorageInterruptedError), reading as blocks:
                b"".join(blocks)

        assert time.monotonic() - begun < AT_MOST_SECONDS

    def test_a_server_that_takes_all_and_says_nothing_is_given_up_at_the_deadline(self) -> None:
        begun = time.monotonic()

        with raw_s3() as s3, pytest.raises(ImageStorageInterruptedError):
            a_store(s3.url).save(new_image_id(), a_body(), Deadline.after(0.4))

        assert time.monotonic() - begun < AT_MOST_SECONDS

    def test_an_upload_whose_source_stalls_is_cut_and_may_be_made_again(self) -> None:
        error = an_error("RequestTimeout")
        answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(error), error)

        with raw_s3(answer, idle_seconds=0.2) as s3:  # S3 waits for some 20

            def blocks() -> Iterator[bytes]:
                yield SMALL[:10]
                assert s3.answered.wait(AT_MOST_SECONDS)
                yield SMALL[10:]

            with pytest.raises(ImageStorageInterruptedError):
                a_store(s3.url).save(new_image_id(), ImageBody("image/png", len(SMALL), blocks()), soon())


class TestBucketUrl:
    @pytest.mark.parametrize(
        ("region", "endpoint", "url"),
        [
            ("us-east-1", None, "https://b.s3.us-east-1.amazonaws.com"),
            ("eu-central-1", None, "https://b.s3.eu-central-1.amazonaws.com"),
            ("us-gov-west-1", None, "https://b.s3.us-gov-west-1.amazonaws.com"),
            ("cn-north-1", None, "https://b.s3.cn-north-1.amazonaws.com.cn"),
            ("cn-northwest-1", "", "https://b.s3.cn-northwest-1.amazonaws.com.cn"),
            ("us-east-1", "http://127.0.0.1:5000", "http://127.0.0.1:5000/b"),
            ("cn-north-1", "http://127.0.0.1:5000/", "http://127.0.0.1:5000/b"),
        ],
    )
    def test_a_bucket_answers_at_its_own_name_or_below_the_endpoint(
        self, region: str, endpoint: str | None, url: str
    ) -> None:
        assert bucket_url("b", region, endpoint) == url
