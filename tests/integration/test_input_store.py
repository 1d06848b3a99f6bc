"""Input images in S3: the fake and the real store, on moto behind the door, pass one contract. And objects of events.

The door checks signatures as S3 does. If moto differs from S3, a server of the test stands in for S3.
"""

import gzip
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import urllib3
from botocore.credentials import ReadOnlyCredentials

from imagegen.aws.bucket import bucket_url
from imagegen.aws.image_store import S3ImageStore
from imagegen.aws.input_store import S3InputStore
from imagegen.aws.objects import S3Objects
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import InputUnavailableError, InvalidImageError, NothingSpentError
from imagegen.domain.images import ImageBody, new_image_id
from imagegen.domain.inputs import SignedUpload, new_input_id, new_upload_id
from imagegen.outbound.pool import HttpPool
from imagegen.ports import ImageStore, InputStore
from local.serving import HungUpError, Reply, Request
from tests.fakes import image_store
from tests.fakes.image_store import FakeImageStore
from tests.fakes.input_store import FakeInputStore
from tests.fakes.provider import png
from tests.support.odd_hosts import EACH_DRIP, ReusableHost, SlowHost, reusable_host, writes
from tests.support.stores import ACCESS_KEY, SECRET, Connect, closed_url

REGION = "eu-central-1"
UPLOAD_SECONDS = image_store.LINK_SECONDS
AT_MOST_SECONDS = 30.0  # reached only if a test fails
CREDENTIALS = ReadOnlyCredentials(ACCESS_KEY, SECRET, None)
SMALL, LARGE = png("small"), png("x" * 300_000)
HTTP = urllib3.PoolManager(retries=False)
Objects = Mapping[str, bytes]


def a_store(url: str) -> S3InputStore:
    return S3InputStore(
        HttpPool(), bucket_url=url, region=REGION, credentials=lambda: CREDENTIALS, upload_seconds=UPLOAD_SECONDS
    )


def soon() -> Deadline:
    return Deadline.after(AT_MOST_SECONDS)


def put(signed: SignedUpload, content: bytes, **headers: str | None) -> int:
    """The status of a PUT as a client sends it, with the headers of the answer changed."""
    changed = {**signed.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
    sent = {name: value for name, value in changed.items() if value is not None}
    return HTTP.request("PUT", signed.url, body=content, headers=sent, timeout=AT_MOST_SECONDS).status


# The contract.


@dataclass
class Twin:
    """`upload` stores what a caller uploads. `keys` returns the keys of all inputs."""

    store: InputStore
    images: ImageStore
    upload: Callable[[str, str, bytes], object]
    keys: Callable[[], list[str]]

    def read(self, image_id: str, caller: str = "alice", *, offset: int = 0) -> tuple[int, bytes, str] | None:
        """The length, the content and the generation of an image."""
        with self.store.read(image_id, caller, soon(), offset=offset) as found:
            return None if found is None else (found.length, b"".join(found.blocks), found.generation_id)

    def make(self, content: bytes, generation_id: str) -> str:
        image_id = new_image_id()
        body = ImageBody("image/png", len(content), iter([content]))
        self.images.save(image_id, body, soon(), generation_id=generation_id)
        return image_id


@dataclass
class Bucket:
    name: str
    url: str
    client: object


@pytest.fixture
def bucket(connect: Connect, moto_url: str) -> Bucket:
    client, name = connect("s3", moto_url, region=REGION), f"images-{uuid4().hex}"
    client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    return Bucket(name, bucket_url(name, REGION, moto_url), client)


@pytest.fixture
def on_moto(bucket: Bucket) -> Twin:
    store, client = a_store(bucket.url), bucket.client
    images = S3ImageStore(
        HttpPool(), bucket_url=bucket.url, region=REGION, credentials=lambda: CREDENTIALS, link_seconds=60
    )

    def upload(upload_id: str, caller: str, content: bytes) -> None:
        assert put(store.signed_upload(upload_id, caller, "image/png", len(content)), content) == 200

    def keys() -> list[str]:
        listed = client.list_objects_v2(Bucket=bucket.name, Prefix="inputs/")  # type: ignore[attr-defined]
        return [each["Key"] for each in listed.get("Contents", [])]

    return Twin(store, images, upload, keys)


@pytest.fixture(params=["fake", "real"])
def twin(request: pytest.FixtureRequest) -> Twin:
    if request.param == "real":
        return request.getfixturevalue("on_moto")  # type: ignore[no-any-return]
    images = FakeImageStore()
    store = FakeInputStore(images)

    def upload(upload_id: str, caller: str, content: bytes) -> None:
        store.uploads[caller, upload_id] = content

    return Twin(store, images, upload, lambda: [f"inputs/{each}" for each in (*store.saved, *store.uploads)])


@pytest.mark.parametrize("content", [b"x", LARGE, memoryview(LARGE)], ids=["tiny", "large", "a view"])
def test_a_saved_input_is_read_whole_by_any_caller_until_it_is_deleted(twin: Twin, content: bytes | memoryview) -> None:
    input_id, other = new_input_id(), new_input_id()
    twin.store.save(other, "image/png", b"other", soon())
    twin.store.save(input_id, "image/webp", content, soon())
    for _ in range(2):  # its id is on the record of its caller alone
        assert twin.read(input_id) == twin.read(input_id, "bob") == (len(content), content, "")
    for _ in range(2):
        twin.store.delete(input_id, soon())
        assert twin.read(input_id) is None
    assert twin.keys() == [f"inputs/{other}"]
    assert twin.read(other) == (5, b"other", "")


def test_a_reading_begins_at_its_offset_and_knows_the_whole_length(twin: Twin) -> None:
    input_id, upload_id, image_id = new_input_id(), new_upload_id(), twin.make(LARGE, "gen_7")
    twin.store.save(input_id, "image/png", LARGE, soon())
    twin.upload(upload_id, "alice", LARGE)
    for offset in (1, 131_072, len(LARGE) - 1):
        for each, generation_id in ((input_id, ""), (upload_id, ""), (image_id, "gen_7")):
            assert twin.read(each, offset=offset) == (len(LARGE), LARGE[offset:], generation_id)


def test_a_reading_may_end_before_the_image(twin: Twin) -> None:
    input_id = new_input_id()
    twin.store.save(input_id, "image/png", LARGE, soon())
    for _ in range(3):
        with twin.store.read(input_id, "alice", soon()) as found:
            assert found
            assert next(found.blocks)[:8] == LARGE[:8]
    assert twin.read(input_id) == (len(LARGE), LARGE, "")


def test_an_upload_exists_only_for_its_caller(twin: Twin) -> None:
    upload_id = new_upload_id()
    twin.upload(upload_id, "alice", SMALL)
    assert twin.read(upload_id, "alice") == (len(SMALL), SMALL, "")
    for caller in ("bob", "Alice", "alice ", "", "../alice", "oidc:https://issuer.example#alice"):
        assert twin.read(upload_id, caller) is None


def test_the_same_id_of_two_callers_are_two_uploads(twin: Twin) -> None:
    upload_id = new_upload_id()
    twin.upload(upload_id, "alice", SMALL)
    twin.upload(upload_id, "bob", LARGE)
    assert (twin.read(upload_id, "alice"), twin.read(upload_id, "bob")) == (
        (len(SMALL), SMALL, ""),
        (len(LARGE), LARGE, ""),
    )


def test_an_image_made_here_is_read_with_the_generation_that_made_it(twin: Twin) -> None:
    one, other = twin.make(SMALL, "gen_1"), twin.make(LARGE, "gen_2")
    for caller in ("alice", "bob"):
        assert twin.read(one, caller) == (len(SMALL), SMALL, "gen_1")
        assert twin.read(other, caller) == (len(LARGE), LARGE, "gen_2")
    assert twin.keys() == []
    twin.images.delete(one, soon())
    assert twin.read(one) is None


@pytest.mark.parametrize("new_id", [new_input_id, new_upload_id, new_image_id])
def test_what_does_not_exist_is_nothing_at_any_offset(twin: Twin, new_id: Callable[[], str]) -> None:
    assert (twin.read(new_id()), twin.read(new_id(), offset=5)) == (None, None)


def test_a_deletion_of_an_input_leaves_uploads_and_images(twin: Twin) -> None:
    upload_id, image_id = new_upload_id(), twin.make(SMALL, "gen_1")
    twin.upload(upload_id, "alice", SMALL)
    twin.store.delete(new_input_id(), soon())
    assert twin.read(upload_id) == (len(SMALL), SMALL, "")
    assert twin.read(image_id) == (len(SMALL), SMALL, "gen_1")


def test_without_time_left_nothing_is_stored_read_or_deleted(twin: Twin) -> None:
    over, store, saved = Deadline.after(0), twin.store, new_input_id()
    store.save(saved, "image/png", SMALL, soon())
    calls: tuple[Callable[[], object], ...] = (
        lambda: store.save(new_input_id(), "image/png", SMALL, over),
        lambda: store.read(saved, "alice", over).__enter__(),
        lambda: store.delete(saved, over),
    )
    for call in calls:
        with pytest.raises(InputUnavailableError):
            call()
    assert twin.keys() == [f"inputs/{saved}"]


def test_a_signed_upload_has_its_headers_and_its_expiry(twin: Twin) -> None:
    begun = int(time.time())
    signed = twin.store.signed_upload(new_upload_id(), "alice", "image/webp", 7)
    assert signed.headers == {"Content-Type": "image/webp", "If-None-Match": "*"}
    assert begun + UPLOAD_SECONDS <= signed.expires_at <= time.time() + UPLOAD_SECONDS


# Uploads to the real store.


def test_an_upload_works_once_and_only_as_it_was_signed(on_moto: Twin) -> None:
    upload_id = new_upload_id()
    signed = on_moto.store.signed_upload(upload_id, "alice", "image/png", len(SMALL))
    refused = {
        "shorter": put(signed, SMALL[:-1]),
        "longer": put(signed, SMALL + b"x"),
        "empty": put(signed, b""),
        "another type": put(signed, SMALL, Content_Type="image/jpeg"),
        "no type": put(signed, SMALL, Content_Type=None),
        "overwriting": put(signed, SMALL, If_None_Match=None),
        "public": put(signed, SMALL, x_amz_acl="public-read"),
        "metadata": put(signed, SMALL, x_amz_meta_generation_id="gen_1"),
    }
    assert refused == dict.fromkeys(refused, 403)
    assert on_moto.read(upload_id) is None
    assert put(signed, SMALL) == 200
    assert put(signed, bytes(len(SMALL))) == 412
    assert on_moto.read(upload_id) == (len(SMALL), SMALL, "")


def test_a_signed_upload_reads_and_deletes_nothing_and_stores_nothing_elsewhere(on_moto: Twin) -> None:
    upload_id, other = new_upload_id(), new_upload_id()
    signed = on_moto.store.signed_upload(upload_id, "alice", "image/png", len(SMALL))
    assert put(signed, SMALL) == 200
    for method in ("GET", "HEAD", "DELETE", "POST"):
        assert HTTP.request(method, signed.url, headers=dict(signed.headers)).status == 403
    elsewhere = SignedUpload(signed.url.replace(upload_id, other), signed.headers, signed.expires_at)
    assert put(elsewhere, SMALL) == 403
    assert on_moto.read(other) is None


def test_the_key_of_an_input_names_no_caller_and_no_upload_has_the_metadata_of_an_image(on_moto: Twin) -> None:
    input_id, upload_id = new_input_id(), new_upload_id()
    on_moto.store.save(input_id, "image/png", SMALL, soon())
    on_moto.upload(upload_id, "oidc:https://issuer.example#alice@example.com", SMALL)
    own, uploaded = sorted(on_moto.keys(), key=len)
    assert own == f"inputs/{input_id}"
    assert re.fullmatch(rf"inputs/[0-9a-f]{{32}}/{upload_id}", uploaded)


def test_an_upload_that_names_an_encoding_is_read_as_it_is_stored(on_moto: Twin) -> None:
    """S3 signs no Content-Encoding. Decoded, some kilobytes would become gigabytes, or have another length."""
    bomb, upload_id = gzip.compress(bytes(20_000_000)), new_upload_id()
    signed = on_moto.store.signed_upload(upload_id, "alice", "image/png", len(bomb))
    assert put(signed, bomb, Content_Encoding="gzip") == 200
    assert on_moto.read(upload_id) == (len(bomb), bomb, "")
    assert on_moto.read(upload_id, offset=100) == (len(bomb), bomb[100:], "")


# A host that is not as S3 is.


@dataclass
class StandIn:
    """Stands in for S3: sends `reply` and keeps the requests. With status 0 it hangs up."""

    url: str
    reply: Reply = field(default_factory=lambda: Reply(200))
    requests: list[Request] = field(default_factory=list)

    def respond(self, request: Request) -> Reply:
        self.requests.append(request)
        if self.reply.status == 0:
            raise HungUpError
        return self.reply


@pytest.fixture
def s3(host: ReusableHost) -> StandIn:
    s3 = StandIn(f"http://127.0.0.1:{host.port}/a-bucket")
    host.respond = s3.respond
    return s3


def read_all(url: str, seconds: float = AT_MOST_SECONDS) -> bytes | None:
    with a_store(url).read("inp_secret", "alice", Deadline.after(seconds)) as found:
        return None if found is None else b"".join(found.blocks)


Call = Callable[[str, float], object]
CALLS: dict[str, tuple[str, Call]] = {
    "save": ("PUT", lambda url, left: a_store(url).save("inp_secret", "image/png", LARGE, Deadline.after(left))),
    "read": ("GET", read_all),
    "delete": ("DELETE", lambda url, left: a_store(url).delete("inp_secret", Deadline.after(left))),
}


@pytest.mark.parametrize("how", CALLS)
def test_a_call_is_one_request(s3: StandIn, how: str) -> None:
    method, call = CALLS[how]
    call(s3.url, AT_MOST_SECONDS)
    (request,) = s3.requests
    assert (request.method, urlsplit(request.target).path) == (method, "/a-bucket/inputs/inp_secret")
    assert request.body == (LARGE if how == "save" else b"")
    assert "X-Amz-Expires=60" in request.target
    assert [request.header(each) for each in ("Authorization", "Transfer-Encoding", "If-None-Match")] == [None] * 3


def test_an_upload_is_signed_without_a_call(s3: StandIn) -> None:
    a_store(s3.url).signed_upload(new_upload_id(), "alice", "image/png", 7)
    assert s3.requests == []


def an_error(code: str, message: str = "Words.") -> bytes:
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(None, id="closed port"),
        pytest.param(Reply(0), id="hung up"),
        pytest.param(Reply(503, an_error("SlowDown")), id="too fast"),
        pytest.param(Reply(400, an_error("RequestTimeout")), id="too slow"),
        pytest.param(Reply(400, an_error("ExpiredToken")), id="old credentials"),
        pytest.param(Reply(403, an_error("SignatureDoesNotMatch")), id="wrong signature"),
        pytest.param(Reply(403, an_error("AccessDenied", "Request has expired")), id="frozen"),
        pytest.param(Reply(403), id="without a code"),
        pytest.param(Reply(400, b"<Error><Co", declared_length=1000), id="broken off"),
        pytest.param(Reply(307, b"<Error/>", {"Location": "http://127.0.0.1:1/"}), id="elsewhere"),
    ],
)
def test_a_failed_call_is_an_error_that_may_be_tried_again_and_names_nothing(
    s3: StandIn, how: str, reply: Reply | None
) -> None:
    s3.reply = reply or s3.reply
    with pytest.raises(InputUnavailableError) as caught:
        CALLS[how][1](f"{closed_url()}/a-bucket" if reply is None else s3.url, AT_MOST_SECONDS)
    assert len(s3.requests) == (reply is not None)
    assert not any(secret in caught.value.message for secret in ("secret", "a-bucket", "127.0.0.1"))


@pytest.mark.parametrize("reply", [Reply(404, an_error("NoSuchKey")), Reply(403, an_error("AccessDenied"))])
def test_a_missing_input_is_nothing(s3: StandIn, reply: Reply) -> None:
    """Without permission to list the bucket, S3 answers 403."""
    s3.reply = reply
    assert read_all(s3.url) is None


@pytest.mark.parametrize("status", [200, 204, 404])
def test_a_deletion_of_what_is_gone_succeeds(s3: StandIn, status: int) -> None:
    s3.reply = Reply(status)
    a_store(s3.url).delete("inp_secret", soon())


def test_a_range_that_was_ignored_is_not_taken_for_the_rest(s3: StandIn) -> None:
    s3.reply = Reply(200, SMALL)
    with pytest.raises(InputUnavailableError), a_store(s3.url).read("inp_1", "alice", soon(), offset=5):
        pass


@pytest.mark.parametrize("sent", [0, 1, 200_000])
def test_an_input_that_ends_before_its_length_is_an_error(host: ReusableHost, sent: int) -> None:
    host.respond = writes(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE), LARGE[:sent])
    with pytest.raises(InputUnavailableError):
        read_all(f"http://127.0.0.1:{host.port}/a-bucket")


@pytest.fixture
def own_host() -> Iterator[ReusableHost]:
    """Not shared, since a request may arrive after the test."""
    with reusable_host() as host:
        yield host


@pytest.fixture
def slow() -> Iterator[SlowHost]:
    slow = SlowHost()
    yield slow
    slow.over.set()


def read_object(url: str, seconds: float) -> bytes:
    return objects("a-bucket", url.removesuffix("/a-bucket")).fetch("s3://a-bucket/k", 10**6, Deadline.after(seconds))


@EACH_DRIP
@pytest.mark.parametrize("call", [read_all, read_object])
def test_a_host_that_drips_is_cut_at_the_deadline(
    own_host: ReusableHost, slow: SlowHost, call: Call, head: bytes, drop: bytes
) -> None:
    """If it is cut within its headers, they look complete."""
    requests: list[Request] = []

    def respond(request: Request) -> Reply:
        requests.append(request)
        return slow.drips(head, drop)(request)

    def attempt(seconds: float) -> type[Exception]:
        with pytest.raises((NothingSpentError, KeyError, ValueError)) as caught:
            call(f"http://127.0.0.1:{own_host.port}/a-bucket", seconds)
        return type(caught.value)

    own_host.respond = respond
    assert slow.cuts(attempt, requests, too_soon=lambda _: not requests) is InputUnavailableError


# Objects of other buckets.


def objects(bucket: str, endpoint: str) -> S3Objects:
    return S3Objects(
        HttpPool(), buckets=[bucket], region=REGION, endpoint_url=endpoint, credentials=lambda: CREDENTIALS
    )


NO_SUCH = "there is no such object, or this stack may not read it"
NO_URI = "expected s3://BUCKET/KEY with a bucket that this stack may read"


def test_an_object_is_read_by_its_key_whatever_it_is_called(bucket: Bucket, moto_url: str) -> None:
    found = objects(bucket.name, moto_url)
    for key in ("a.png", "a b/ü+?#%41&=.png", "a//b", "a?cors", "k" * 1024, "ü" * 512):
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=SMALL)  # type: ignore[attr-defined]
        assert found.fetch(f"s3://{bucket.name}/{key}", len(SMALL), soon()) == SMALL


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        *((f"s3://BUCKET/{key}", NO_SUCH) for key in ("none", "../OTHER/secret", ".", "%2e%2e/OTHER/secret")),
        *((f"s3://{bucket}/secret", NO_URI) for bucket in ("OTHER", "BUCKET.", ".BUCKET", "BUCKET@x", "a" * 70, "")),
        *((uri, NO_URI) for uri in ("", "s3://", "s3://BUCKET", "s3://BUCKET/", "S3://BUCKET/secret", "BUCKET/secret")),
        *((uri, NO_URI) for uri in ("https://BUCKET/secret", "s3:///secret", "arn:aws:s3:::BUCKET/secret")),
        ("s3://BUCKET/" + "k" * 1025, NO_URI),
        pytest.param("s3://BUCKET/" + "ü" * 513, NO_URI, id="too many bytes"),
    ],
)
def test_an_object_that_may_not_be_read_is_refused(
    bucket: Bucket, connect: Connect, moto_url: str, uri: str, reason: str
) -> None:
    other = f"other-{uuid4().hex}"
    client = connect("s3", moto_url, region=REGION)
    client.create_bucket(Bucket=other, CreateBucketConfiguration={"LocationConstraint": REGION})
    client.put_object(Bucket=other, Key="secret", Body=SMALL)
    uri = uri.replace("BUCKET", bucket.name).replace("OTHER", other)
    with pytest.raises(InvalidImageError) as caught:
        objects(bucket.name, moto_url).fetch(uri, 1000, soon())
    assert caught.value.message == reason


def test_an_object_over_the_limit_is_not_read_and_none_is_decoded(bucket: Bucket, moto_url: str) -> None:
    bomb, found, uri = gzip.compress(bytes(20_000_000)), objects(bucket.name, moto_url), f"s3://{bucket.name}/bomb"
    put_object = bucket.client.put_object  # type: ignore[attr-defined]
    put_object(Bucket=bucket.name, Key="bomb", Body=bomb, ContentEncoding="gzip")
    assert found.fetch(uri, len(bomb), soon()) == bomb
    with pytest.raises(InvalidImageError) as caught:
        found.fetch(uri, len(bomb) - 1, soon())
    assert caught.value.message == f"it has over {len(bomb) - 1} bytes"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(0), InputUnavailableError),
        (Reply(503, an_error("SlowDown")), InputUnavailableError),
        (Reply(400, an_error("ExpiredToken")), InputUnavailableError),
        (Reply(403, an_error("AccessDenied", "Request has expired")), InputUnavailableError),
        (Reply(301, an_error("PermanentRedirect")), InputUnavailableError),
        (Reply(200, SMALL, declared_length=len(SMALL) + 1), InputUnavailableError),
        (Reply(403, an_error("AccessDenied")), InvalidImageError),
        (Reply(404, an_error("NoSuchKey")), InvalidImageError),
        (Reply(404, an_error("NoSuchBucket")), InvalidImageError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value.status),
)
def test_an_object_that_cannot_be_read_now_can_be_read_later(
    s3: StandIn, reply: Reply, kind: type[NothingSpentError]
) -> None:
    s3.reply = reply
    with pytest.raises(kind) as caught:
        objects("a-bucket", s3.url.removesuffix("/a-bucket")).fetch("s3://a-bucket/secret", 10**6, soon())
    assert "secret" not in str(caught.value)
    assert len(s3.requests) == 1


def test_without_time_left_no_object_is_asked_for(s3: StandIn) -> None:
    with pytest.raises(InputUnavailableError):
        objects("a-bucket", s3.url.removesuffix("/a-bucket")).fetch("s3://a-bucket/secret", 10**6, Deadline.after(0))
    assert s3.requests == []
