"""The rules that the local stack enforces in front of moto: roles, S3's signatures and CORS, faults, delays."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from threading import Barrier
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import pytest
import urllib3
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError

from local.aws_door import ACCOUNT, REGION, AwsCall, DoorControl, Fault, read_delays
from tests.support.stores import SECRET, Connect

TABLE = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/records"
KEY = {"pk": {"S": "a"}}
Client = Callable[..., Any]


@pytest.fixture(scope="module")
def client(connect: Connect, moto_url: str) -> Client:
    def client(service: str, key: str = "operator", secret: str = SECRET) -> Any:
        return connect(service, moto_url, key=key, secret=secret, region=REGION, attempts=2)

    return client


@pytest.fixture(scope="module", autouse=True)
def _resources(client: Client) -> None:
    client("dynamodb").create_table(
        TableName="records",
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
    )
    client("s3").create_bucket(Bucket="pictures")
    client("s3").put_object(Bucket="pictures", Key="images/a", Body=b"a")
    client("ssm").put_parameter(Name="/stack/key", Type="String", Value="v")


@pytest.fixture
def door(moto_url: str) -> Iterator[DoorControl]:
    control = DoorControl(moto_url)
    control.fail()
    yield control
    control.fail()
    control.let_in({})
    control.delay({})


@pytest.fixture
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK repeats a call without a pause."""
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _: None))


def grant(door: DoorControl, *grants: tuple[str, str]) -> None:
    statements = [{"Effect": "Allow", "Action": action, "Resource": resource} for action, resource in grants]
    door.let_in({"Function": {"function": "Function", "statements": statements}})


def put(client: Client, name: str) -> None:
    client("dynamodb", "Function").put_item(TableName="records", Item={"pk": {"S": name}})


def exists(client: Client, name: str) -> bool:
    return "Item" in client("dynamodb").get_item(TableName="records", Key={"pk": {"S": name}})


# Roles.


def test_an_operator_has_all_permissions(door: DoorControl, client: Client) -> None:
    grant(door)
    assert client("ssm").get_parameter(Name="/stack/key")["Parameter"]["Value"] == "v"
    assert door.calls() == set()


def transact(client: Client, kind: str, item: str) -> None:
    writes = [{kind: {"TableName": "records", item: {"pk": {"S": "transacted"}}}}]
    client("dynamodb", "Function").transact_write_items(TransactItems=writes)


CALLS: dict[str, Callable[[Client], object]] = {
    "put": lambda client: put(client, "granted"),
    "transact a put": lambda client: transact(client, "Put", "Item"),
    "transact a delete": lambda client: transact(client, "Delete", "Key"),
    "get many": lambda client: client("dynamodb", "Function").batch_get_item(RequestItems={"records": {"Keys": [KEY]}}),
    "describe": lambda client: client("cloudformation", "Function").describe_stacks(),
    "list": lambda client: client("cloudformation", "Function").list_stacks(),
}


@pytest.mark.parametrize(
    ("call", "action", "resource", "allowed"),
    [
        ("put", "dynamodb:PutItem", TABLE, True),
        ("put", "dynamodb:GetItem", TABLE, False),
        ("put", "dynamodb:PutItem", TABLE + "s", False),
        ("put", "dynamodb:PutItem", TABLE + "/index/x", False),
        ("transact a put", "dynamodb:PutItem", TABLE, True),
        ("transact a delete", "dynamodb:PutItem", TABLE, False),
        ("get many", "dynamodb:BatchGetItem", TABLE, True),
        ("get many", "dynamodb:GetItem", TABLE, False),
        ("describe", "cloudformation:DescribeStacks", "*", True),  # the request is a form
        ("list", "cloudformation:DescribeStacks", "*", False),
    ],
)
def test_a_function_has_the_permissions_of_its_role(
    door: DoorControl, client: Client, call: str, action: str, resource: str, allowed: bool
) -> None:
    client("dynamodb").delete_item(TableName="records", Key={"pk": {"S": "granted"}})
    grant(door, (action, resource))
    if allowed:
        CALLS[call](client)
    else:
        with pytest.raises(ClientError, match="AccessDenied"):
            CALLS[call](client)
    assert exists(client, "granted") is (allowed and call == "put")
    if call == "put":
        assert AwsCall("Function", "dynamodb:PutItem", TABLE) in door.calls()


def test_a_call_is_recorded_with_its_resource(door: DoorControl, client: Client, moto_url: str) -> None:
    grant(door)
    entry = {"Source": "s", "DetailType": "t", "Detail": "{}", "EventBusName": "bus"}
    query = {"TableName": "records", "IndexName": "by-age", "KeyConditionExpression": "pk = pk"}
    calls: dict[str, tuple[str, Callable[[Any], object]]] = {
        "dynamodb:Query": ("table/records/index/by-age", lambda dynamodb: dynamodb.query(**query)),
        "sqs:DeleteMessage": ("q", lambda sqs: sqs.delete_message(QueueUrl=f"{moto_url}/1/q", ReceiptHandle="r")),
        "events:PutEvents": ("event-bus/bus", lambda events: events.put_events(Entries=[entry])),
        "ssm:GetParameter": ("parameter/stack/key", lambda ssm: ssm.get_parameter(Name="/stack/key")),
    }
    for action, (resource, call) in calls.items():
        service = action.partition(":")[0]
        with pytest.raises(ClientError, match="AccessDenied"):
            call(client(service, "Function"))
        assert AwsCall("Function", action, f"arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}") in door.calls()


@pytest.mark.parametrize(("resource", "status"), [("images/*", 200), ("answers/*", 403)])
def test_a_signed_url_has_its_signers_permissions(
    door: DoorControl, client: Client, resource: str, status: int
) -> None:
    grant(door, ("s3:GetObject", f"arn:aws:s3:::pictures/{resource}"))
    params = {"Bucket": "pictures", "Key": "images/a"}
    url = client("s3", "Function").generate_presigned_url("get_object", Params=params)
    assert urllib3.request("GET", url).status == status


@pytest.mark.parametrize(
    ("listing", "status", "code"), [(False, 403, "AccessDenied"), (True, 404, "NoSuchKey")], ids=["hidden", "listed"]
)
def test_without_list_permission_a_missing_object_is_denied(
    door: DoorControl, client: Client, listing: bool, status: int, code: str
) -> None:
    listed = [("s3:ListBucket", "arn:aws:s3:::pictures/*")] if listing else []
    grant(door, ("s3:GetObject", "arn:aws:s3:::pictures/images/*"), *listed)
    s3 = client("s3", "Function")
    with pytest.raises(ClientError) as head:
        s3.head_object(Bucket="pictures", Key="images/none")
    assert head.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    with pytest.raises(ClientError) as get:
        s3.get_object(Bucket="pictures", Key="images/none")
    assert get.value.response["Error"]["Code"] == code


def test_an_event_for_a_missing_bus_is_lost_without_an_error(client: Client) -> None:
    entry = {"Source": "shop", "DetailType": "Ordered", "Detail": "{}", "EventBusName": "none"}
    answer = client("events").put_events(Entries=[entry, {**entry, "EventBusName": "default"}])
    assert (answer["FailedEntryCount"], len({each["EventId"] for each in answer["Entries"]})) == (0, 2)
    assert client("events").put_events(Entries=[{**entry, "Source": ""}])["FailedEntryCount"] == 1


# S3's signatures.


def signed(
    url: str,
    method: str = "GET",
    key: str = "images/a",
    *,
    headers: dict[str, str] | None = None,
    token: str | None = None,
    secret: str = SECRET,
) -> str:
    request = AWSRequest(method, f"{url}/pictures/{quote(key)}", headers or {})
    S3SigV4QueryAuth(Credentials("operator", secret, token), "s3", REGION, expires=60).add_auth(request)
    return str(request.url)


def with_query(url: str, **changes: str | None) -> str:
    query = dict(parse_qsl(urlsplit(url).query)) | {name.replace("_", "-"): value for name, value in changes.items()}
    return f"{url.partition('?')[0]}?{urlencode({name: value for name, value in query.items() if value is not None})}"


def status_and_code(method: str, url: str, **more: Any) -> tuple[int, str]:
    """The status, and the code of an error."""
    answer = urllib3.request(method, url, **more)
    return answer.status, answer.data.decode().partition("<Code>")[2].partition("</Code>")[0]


@pytest.mark.parametrize("key", ["images/new", "images/a b+c=ä~(d)", "images/a//b"])
@pytest.mark.parametrize("token", [None, "a+token/of=a role"])
def test_a_presigned_url_works_for_any_key(moto_url: str, client: Client, key: str, token: str | None) -> None:
    headers = {"Content-Type": "image/png", "If-None-Match": "*"}
    put_url = signed(moto_url, "PUT", key, headers=headers, token=token)
    put = urllib3.request("PUT", put_url, body=b"a", headers=headers)
    got = urllib3.request("GET", signed(moto_url, "GET", key, token=token))
    client("s3").delete_object(Bucket="pictures", Key=key)
    assert (put.status, got.status, got.data) == (200, 200, b"a")


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"X_Amz_Signature": "0" * 64}, 403, "SignatureDoesNotMatch"),
        ({"X_Amz_Expires": "3600"}, 403, "SignatureDoesNotMatch"),
        ({"X_Amz_SignedHeaders": "host;range"}, 403, "SignatureDoesNotMatch"),
        ({"versionId": "1"}, 403, "SignatureDoesNotMatch"),
        ({"X_Amz_Security_Token": None}, 403, "SignatureDoesNotMatch"),
        ({"X_Amz_Date": "20200101T000000Z"}, 403, "AccessDenied"),
        ({"X_Amz_Expires": None}, 400, "AuthorizationQueryParametersError"),
        ({"X_Amz_Date": "today"}, 400, "AuthorizationQueryParametersError"),
        ({"X_Amz_Algorithm": None}, 403, "AccessDenied"),
    ],
    ids=str,
)
def test_a_changed_presigned_url_fails(moto_url: str, changes: dict[str, str | None], status: int, code: str) -> None:
    assert status_and_code("GET", with_query(signed(moto_url, token="token"), **changes)) == (status, code)


@pytest.mark.parametrize(("ago", "status", "text"), [(50, 200, b"a"), (61, 403, b"<Message>Request has expired</")])
def test_a_presigned_url_works_until_it_expires(
    moto_url: str, ago: int, status: int, text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = datetime.now(UTC) - timedelta(seconds=ago)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: then)
    answer = urllib3.request("GET", signed(moto_url))
    assert (answer.status, text in answer.data) == (status, True)


def test_a_signed_url_works_only_for_its_method_key_headers_and_secret(moto_url: str, client: Client) -> None:
    denied, get = (403, "SignatureDoesNotMatch"), signed(moto_url)
    assert status_and_code("HEAD", signed(moto_url, "HEAD")) == (200, "")
    assert status_and_code("HEAD", get)[0] == 403
    assert status_and_code("GET", signed(moto_url, "HEAD")) == denied
    assert status_and_code("GET", get.replace("/images/a", "/images/b")) == denied
    assert status_and_code("GET", signed(moto_url, secret="guessed")) == denied
    put_url = signed(moto_url, "PUT", "images/unsigned", headers={"If-None-Match": "*"})
    assert status_and_code("PUT", put_url, body=b"a") == denied
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client("s3", secret="guessed").put_object(Bucket="pictures", Key="images/unsigned", Body=b"a")
    assert client("s3").list_objects_v2(Bucket="pictures", Prefix="images/unsigned")["KeyCount"] == 0
    assert status_and_code("GET", f"{moto_url}/pictures/images/a") == (403, "AccessDenied")


def test_a_function_can_have_its_own_secret(moto_url: str, door: DoorControl) -> None:
    role = {"function": "Function", "secret": "of its own"}
    door.let_in({"operator": role | {"statements": [{"Action": "s3:GetObject", "Resource": "*"}]}})
    assert status_and_code("GET", signed(moto_url, secret="of its own"))[0] == 200
    assert status_and_code("GET", signed(moto_url))[0] == 403


@pytest.mark.parametrize("authorization", ["Bearer ig_web_key", "AWS4-HMAC-SHA256 Credential=a/20260101/b/s3/d"])
def test_a_request_with_two_signatures_is_refused(moto_url: str, authorization: str) -> None:
    answer = urllib3.request("GET", signed(moto_url), headers={"Authorization": authorization})
    assert (answer.status, b"Only one auth mechanism allowed" in answer.data) == (400, True)


# Uploads.

UPLOAD = {"Content-Type": "image/png", "Content-Length": "3", "If-None-Match": "*"}


@pytest.fixture
def upload_url(moto_url: str, client: Client) -> Iterator[str]:
    yield signed(moto_url, "PUT", "uploads/a", headers=UPLOAD)
    client("s3").delete_object(Bucket="pictures", Key="uploads/a")


@pytest.mark.parametrize(
    ("body", "changes", "answer"),
    [
        (b"abc", {}, (200, "")),
        (b"abcd", {}, (403, "SignatureDoesNotMatch")),
        (b"ab", {}, (403, "SignatureDoesNotMatch")),
        (b"", {}, (403, "SignatureDoesNotMatch")),
        (b"abc", {"Content-Type": "image/jpeg"}, (403, "SignatureDoesNotMatch")),
        (b"abc", {"Content-Type": "image/png; charset=utf-8"}, (403, "SignatureDoesNotMatch")),
        (b"abc", {"Content-Type": None}, (403, "SignatureDoesNotMatch")),
        (b"abc", {"If-None-Match": "x"}, (403, "SignatureDoesNotMatch")),
        (b"abc", {"If-None-Match": None}, (403, "SignatureDoesNotMatch")),
        (b"abc", {"Cache-Control": "no-store", "Origin": "https://app.example.com"}, (200, "")),
        (b"abc", {"x-amz-meta-generation-id": "gen_a"}, (403, "AccessDenied")),
        (b"abc", {"x-amz-acl": "public-read"}, (403, "AccessDenied")),
        (b"abc", {"x-amz-content-sha256": "UNSIGNED-PAYLOAD"}, (200, "")),
    ],
    ids=str,
)
def test_an_upload_must_be_what_its_url_was_signed_for(
    upload_url: str, client: Client, body: bytes, changes: dict[str, str | None], answer: tuple[int, str]
) -> None:
    sent = UPLOAD | {"Content-Length": str(len(body))} | changes
    headers = {name: value for name, value in sent.items() if value is not None}
    assert status_and_code("PUT", upload_url, body=body, headers=headers) == answer
    stored = client("s3").list_objects_v2(Bucket="pictures", Prefix="uploads/")["KeyCount"]
    assert stored == (1 if answer[0] == 200 else 0)


def test_an_upload_in_chunks_has_no_length_and_so_not_the_signed_one(upload_url: str) -> None:
    headers = {name: value for name, value in UPLOAD.items() if name != "Content-Length"}
    answer = status_and_code("PUT", upload_url, body=iter([b"abc"]), headers=headers)
    assert answer == (403, "SignatureDoesNotMatch")


def test_an_upload_cannot_be_replaced(upload_url: str, client: Client) -> None:
    assert status_and_code("PUT", upload_url, body=b"abc", headers=UPLOAD) == (200, "")
    assert status_and_code("PUT", upload_url, body=b"xyz", headers=UPLOAD) == (412, "PreconditionFailed")
    assert client("s3").get_object(Bucket="pictures", Key="uploads/a")["Body"].read() == b"abc"


def test_metadata_of_a_signed_put_comes_back_with_its_object(moto_url: str, client: Client) -> None:
    headers = {"Content-Type": "image/png", "x-amz-meta-generation-id": "gen_a", "x-amz-meta-size": "1024x1024"}
    url = signed(moto_url, "PUT", "images/described", headers=headers)
    assert urllib3.request("PUT", url, body=b"abc", headers=headers).status == 200
    for method in ("GET", "HEAD"):
        got = urllib3.request(method, signed(moto_url, method, "images/described"))
        assert {name: got.headers.get(name) for name in headers} == headers
    client("s3").delete_object(Bucket="pictures", Key="images/described")


# CORS.

PAGE = "https://app.example.com"
CORS = [
    {"AllowedMethods": ["GET", "HEAD"], "AllowedOrigins": ["*"], "AllowedHeaders": ["*"]},
    {
        "AllowedMethods": ["PUT"],
        "AllowedOrigins": [PAGE, "https://*.pages.example.com"],
        "AllowedHeaders": ["Content-Type", "x-amz-*"],
        "ExposeHeaders": ["ETag", "x-amz-request-id"],
        "MaxAgeSeconds": 600,
    },
]


@pytest.fixture
def shared(moto_url: str, client: Client) -> Iterator[str]:
    """The URL of an object that exists, in a bucket with CORS rules."""
    client("s3").put_bucket_cors(Bucket="pictures", CORSConfiguration={"CORSRules": CORS})
    yield f"{moto_url}/pictures/images/a"
    client("s3").delete_bucket_cors(Bucket="pictures")
    client("s3").delete_object(Bucket="pictures", Key="pages/a")


def cors_headers(answer: urllib3.BaseHTTPResponse) -> dict[str, str]:
    prefix = "access-control-"
    return {
        name.lower().removeprefix(prefix): value
        for name, value in answer.headers.items()
        if name.lower().startswith(prefix)
    }


def preflight(url: str, origin: str | None, method: str | None, headers: str | None = None) -> Any:
    asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return urllib3.request("OPTIONS", url, headers={name: value for name, value in asked.items() if value is not None})


@pytest.mark.parametrize(
    ("origin", "method", "headers", "allowed"),
    [
        ("null", "GET", "x-anything", {"origin": "*", "methods": "GET, HEAD", "headers": "x-anything"}),
        (PAGE, "PUT", None, {"origin": PAGE, "methods": "PUT"}),
        (PAGE, "PUT", "Content-Type,X-Amz-Meta-A", {"origin": PAGE, "headers": "content-type, x-amz-meta-a"}),
        ("https://a.pages.example.com", "PUT", None, {"origin": "https://a.pages.example.com"}),
    ],
)
def test_a_preflight_is_answered_by_the_first_rule_that_matches(
    shared: str, origin: str, method: str, headers: str | None, allowed: dict[str, str]
) -> None:
    answer = preflight(shared, origin, method, headers)
    assert (answer.status, answer.data) == (200, b"")
    found = cors_headers(answer)
    assert {name: found.get(f"allow-{name}") for name in allowed} == allowed
    of_put = {"allow-credentials": "true", "expose-headers": "ETag, x-amz-request-id", "max-age": "600"}
    assert {name: found.get(name) for name in of_put} == (of_put if method == "PUT" else dict.fromkeys(of_put))


@pytest.mark.parametrize(
    ("origin", "method", "headers"),
    [
        ("https://other.example.com", "PUT", None),
        ("http://app.example.com", "PUT", None),
        (PAGE.upper(), "PUT", None),
        (f"{PAGE}.evil.example", "PUT", None),
        ("https://.pages.example.co", "PUT", None),
        ("null", "PUT", None),
        (PAGE, "DELETE", None),
        (PAGE, "put", None),
        (PAGE, "PUT", "content-type, authorization"),
        (PAGE, "PUT", "if-none-match"),
    ],
)
def test_a_preflight_that_no_rule_allows_is_a_403(shared: str, origin: str, method: str, headers: str | None) -> None:
    answer = preflight(shared, origin, method, headers)
    assert (answer.status, b"<Code>AccessForbidden</Code>" in answer.data) == (403, True)
    assert cors_headers(answer) == {}


@pytest.mark.parametrize("bucket", ["plain", "none"])
def test_without_rules_or_a_bucket_every_preflight_is_a_403(moto_url: str, client: Client, bucket: str) -> None:
    client("s3").create_bucket(Bucket="plain")
    answer = preflight(f"{moto_url}/{bucket}/a", PAGE, "GET")
    assert (answer.status, b"CORS is not enabled for this bucket" in answer.data) == (403, True)
    assert cors_headers(answer) == {}


@pytest.mark.parametrize(("origin", "method"), [(None, "PUT"), (PAGE, None), (None, None)])
def test_a_preflight_without_its_headers_is_a_400(shared: str, origin: str | None, method: str | None) -> None:
    assert preflight(shared, origin, method).status == 400


@pytest.mark.parametrize(
    ("method", "key", "origin", "allowed"),
    [
        ("GET", "images/a", "null", "*"),
        ("GET", "images/none", "null", "*"),  # a 404
        ("PUT", "pages/a", PAGE, PAGE),
        ("PUT", "pages/a", "https://other.example.com", None),
        ("DELETE", "pages/a", PAGE, None),
        ("GET", "images/a", None, None),
    ],
)
@pytest.mark.parametrize("secret", [SECRET, "guessed"])
def test_a_page_can_read_the_answers_that_a_rule_allows(
    shared: str, moto_url: str, method: str, key: str, origin: str | None, allowed: str | None, secret: str
) -> None:
    """S3 carries out the request of any page, and refuses none for its origin."""
    headers = {"Origin": origin} if origin else {}
    answer = urllib3.request(method, signed(moto_url, method, key, secret=secret), headers=headers)
    assert (answer.status == 403) == (secret == "guessed")
    found = cors_headers(answer)
    assert found.get("allow-origin") == allowed
    if allowed is None:
        assert found == {}
    if allowed == PAGE:
        assert found["expose-headers"] == "ETag, x-amz-request-id"


# Faults.


@pytest.mark.parametrize(
    ("when", "error"),
    [("before", "InternalServerError"), ("after", "ThrottlingException"), ("before", "hang-up"), ("after", "hang-up")],
)
@pytest.mark.usefixtures("_no_pause")
def test_a_fault_fails_a_call_and_its_repetitions(door: DoorControl, client: Client, when: str, error: str) -> None:
    grant(door, ("dynamodb:PutItem", TABLE))
    name = f"{error} {when} "
    door.fail(Fault(2, when, error))
    put(client, name + "1")
    with pytest.raises((ClientError, BotoCoreError)):
        put(client, name + "2")
    put(client, name + "3")
    assert [exists(client, name + number) for number in "123"] == [True, when == "after", True]
    assert door.fail() == 3


@pytest.mark.usefixtures("_no_pause")
def test_the_sdk_repeats_a_call_that_fails_once(door: DoorControl, client: Client) -> None:
    grant(door, ("dynamodb:PutItem", TABLE))
    door.fail(Fault(1, "after", once=True))
    put(client, "once")
    assert exists(client, "once")


@pytest.mark.usefixtures("_no_pause")
def test_a_fault_can_be_limited_to_one_service(door: DoorControl, client: Client) -> None:
    grant(door, ("dynamodb:PutItem", TABLE), ("s3:PutObject", "arn:aws:s3:::pictures/*"))
    door.fail(Fault(1, service="s3"))
    put(client, "not s3")
    with suppress(ClientError):
        client("s3", "Function").put_object(Bucket="pictures", Key="broken", Body=b"x" * 100_000)
    objects = client("s3").list_objects_v2(Bucket="pictures")["Contents"]
    assert [each["Key"] for each in objects] == ["images/a"]


# Requests that DynamoDB refuses and moto accepts.


@pytest.mark.parametrize("argument", ["ExpressionAttributeNames", "ExpressionAttributeValues"])
def test_an_empty_expression_argument_is_refused(client: Client, argument: str) -> None:
    dynamodb, condition = client("dynamodb"), {"ConditionExpression": "attribute_exists(pk)"}
    empty: dict[str, Any] = {argument: {}}
    update = {"TableName": "records", "Key": KEY, "UpdateExpression": "REMOVE b", **empty}
    calls: tuple[Callable[[], object], ...] = (
        lambda: dynamodb.update_item(**update),
        lambda: dynamodb.put_item(TableName="records", Item=KEY, **condition, **empty),
        lambda: dynamodb.delete_item(TableName="records", Key=KEY, **condition, **empty),
        lambda: dynamodb.query(TableName="records", KeyConditionExpression="pk = pk", **empty),
        lambda: dynamodb.scan(TableName="records", **empty),
        lambda: dynamodb.transact_write_items(TransactItems=[{"Update": update}]),
    )
    for call in calls:
        with pytest.raises(ClientError, match=f"{argument} must not be empty") as refused:
            call()
        assert refused.value.response["Error"]["Code"] == "ValidationException"


def test_an_attribute_can_have_the_name_of_an_argument(client: Client) -> None:
    item = {"pk": {"S": "named"}, "ExpressionAttributeNames": {"M": {}}}
    client("dynamodb").put_item(TableName="records", Item=item)
    assert client("dynamodb").get_item(TableName="records", Key={"pk": {"S": "named"}})["Item"] == item


# Trace headers.


def test_sqs_keeps_the_header_of_a_function_with_its_message(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    sqs = client("sqs")
    url = sqs.create_queue(QueueName="traced")["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="by an operator")
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "Function")
    monkeypatch.setenv("_X_AMZN_TRACE_ID", "Root=1-a;Lineage=Function:1")
    sqs.send_message(QueueUrl=url, MessageBody="ü")
    own = {"AWSTraceHeader": {"DataType": "String", "StringValue": "Root=1-b"}}
    sqs.send_message(QueueUrl=url, MessageBody="with its own", MessageSystemAttributes=own)
    found = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, MessageSystemAttributeNames=["AWSTraceHeader"])
    assert {message["Body"]: message.get("Attributes", {}).get("AWSTraceHeader") for message in found["Messages"]} == {
        "by an operator": None,
        "ü": "Root=1-a;Lineage=Function:1",
        "with its own": "Root=1-b",
    }


# Delays.


def test_an_operation_has_its_own_delay(door: DoorControl, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    dynamodb, ssm, s3 = client("dynamodb"), client("ssm"), client("s3")
    door.delay({"dynamodb": 500, "dynamodb.GetItem": 0, "s3.HeadObject": 700})
    delays = list[float]()
    monkeypatch.setattr("local.aws_door.time", SimpleNamespace(sleep=delays.append, monotonic=time.monotonic))
    dynamodb.put_item(TableName="records", Item=KEY)
    dynamodb.get_item(TableName="records", Key=KEY)
    s3.head_object(Bucket="pictures", Key="images/a")
    s3.get_object(Bucket="pictures", Key="images/a")
    ssm.get_parameter(Name="/stack/key")
    assert delays == [0.5, 0, 0.7, 0, 0]


def test_delayed_calls_run_concurrently(door: DoorControl, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    dynamodb, all_delayed = client("dynamodb"), Barrier(5)
    door.delay({"dynamodb": 500})
    monkeypatch.setattr(
        "local.aws_door.time", SimpleNamespace(sleep=lambda _: all_delayed.wait(60), monotonic=time.monotonic)
    )
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda _: dynamodb.put_item(TableName="records", Item=KEY), range(5)))


def test_delays_are_read_from_text() -> None:
    assert read_delays("") == {}
    delays = {"dynamodb": 100, "sqs.SendMessage": 20, "s3.PutObject": 0}
    assert read_delays("dynamodb=100,sqs.SendMessage=20, s3.PutObject=0") == delays


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("dynamo=100", "dynamo=100"),
        ("dynamodb", "dynamodb"),
        ("dynamodb=", "milliseconds"),
        ("dynamodb=1.5", "milliseconds"),
        ("dynamodb=-1", "milliseconds"),
        ("dynamodb=100 ms", "milliseconds"),
        ("sqs.sendMessage=20", "operation"),
        ("s3.ListBuckets=20", "operation"),
        ("dynamodb=100,", "''"),
    ],
)
def test_an_invalid_delay_is_refused(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match="has ") as refused:
        read_delays(text)
    assert wrong in str(refused.value)
