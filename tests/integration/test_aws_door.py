"""What the local stack enforces in front of moto: roles, S3's signatures, injected faults, delays."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import boto3
import pytest
import urllib3
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from imagegen.aws.bucket import bucket_url
from imagegen.aws.s3 import S3ImageStore
from imagegen.outbound.pool import HttpPool
from local.aws_door import ACCOUNT, REGION, AwsCall, AwsDoor, DoorControl, Fault, read_delays

SECRET = "a/secret+of=all"
TABLE = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/records"
Client = Callable[..., Any]


@contextmanager
def a_door() -> Iterator[str]:
    """Gives its address."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    door = AwsDoor(DomainDispatcherApplication(create_backend_app), SECRET)
    server = make_server("127.0.0.1", 0, door, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with a_door() as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    def client(service: str, key: str = "operator") -> Any:
        return boto3.client(
            service,  # type: ignore[call-overload]
            endpoint_url=url,
            region_name=REGION,
            aws_access_key_id=key,
            aws_secret_access_key=SECRET,
            config=Config(
                signature_version="s3v4" if service == "s3" else "v4",
                retries={"mode": "standard", "total_max_attempts": 2},
            ),
        )

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
def door(url: str) -> Iterator[DoorControl]:
    control = DoorControl(url)
    control.fail()
    yield control
    control.fail()
    control.let_in({})
    control.delay({})


def let(door: DoorControl, *grants: tuple[str, str]) -> None:
    statements = [{"Effect": "Allow", "Action": action, "Resource": resource} for action, resource in grants]
    door.let_in({"Function": {"function": "Function", "statements": statements}})


def put(client: Client, name: str) -> None:
    client("dynamodb", "Function").put_item(TableName="records", Item={"pk": {"S": name}})


def there(client: Client, name: str) -> bool:
    return "Item" in client("dynamodb").get_item(TableName="records", Key={"pk": {"S": name}})


def test_an_operator_may_do_everything(door: DoorControl, client: Client) -> None:
    let(door)
    assert client("ssm").get_parameter(Name="/stack/key")["Parameter"]["Value"] == "v"
    assert door.calls() == set()


@pytest.mark.parametrize(
    ("grant", "allowed"),
    [
        (("dynamodb:PutItem", TABLE), True),
        (("dynamodb:GetItem", TABLE), False),
        (("dynamodb:PutItem", TABLE + "s"), False),
        (("dynamodb:PutItem", TABLE + "/index/x"), False),
    ],
)
def test_a_function_may_do_what_its_role_grants(
    door: DoorControl, client: Client, grant: tuple[str, str], allowed: bool
) -> None:
    let(door, grant)
    if allowed:
        put(client, "granted")
    else:
        with pytest.raises(ClientError, match="AccessDenied"):
            put(client, "refused")
        assert not there(client, "refused")
    assert AwsCall("Function", "dynamodb:PutItem", TABLE) in door.calls()


def test_a_transaction_asks_for_each_of_its_writes(door: DoorControl, client: Client) -> None:
    let(door, ("dynamodb:PutItem", TABLE))
    item = {"pk": {"S": "transacted"}}
    put, delete = {"Put": {"TableName": "records", "Item": item}}, {"Delete": {"TableName": "records", "Key": item}}
    client("dynamodb", "Function").transact_write_items(TransactItems=[put])
    with pytest.raises(ClientError, match="AccessDenied"):
        client("dynamodb", "Function").transact_write_items(TransactItems=[delete])


@pytest.mark.parametrize(("grant", "allowed"), [("BatchGetItem", True), ("GetItem", False)])
def test_a_batch_of_reads_needs_a_grant_of_its_own(
    door: DoorControl, client: Client, grant: str, allowed: bool
) -> None:
    let(door, (f"dynamodb:{grant}", TABLE))
    reads = {"records": {"Keys": [{"pk": {"S": "none"}}]}}
    if allowed:
        assert client("dynamodb", "Function").batch_get_item(RequestItems=reads)["Responses"] == {"records": []}
    else:
        with pytest.raises(ClientError, match="AccessDenied"):
            client("dynamodb", "Function").batch_get_item(RequestItems=reads)


@pytest.mark.parametrize(("resource", "status"), [("images/*", 200), ("answers/*", 403)])
def test_a_signed_url_works_as_far_as_the_role_of_who_signed_it(
    door: DoorControl, client: Client, resource: str, status: int
) -> None:
    let(door, ("s3:GetObject", f"arn:aws:s3:::pictures/{resource}"))
    signer = client("s3", "Function")
    url = signer.generate_presigned_url("get_object", Params={"Bucket": "pictures", "Key": "images/a"})
    assert urllib3.request("GET", url).status == status


@pytest.mark.parametrize(("listing", "status"), [(False, 403), (True, 404)])
def test_of_what_is_missing_s3_says_403_to_whoever_may_not_list(
    door: DoorControl, client: Client, listing: bool, status: int
) -> None:
    grants = [("s3:GetObject", "arn:aws:s3:::pictures/images/*")]
    if listing:
        grants.append(("s3:ListBucket", "arn:aws:s3:::pictures/*"))
    let(door, *grants)
    with pytest.raises(ClientError) as refused:
        client("s3", "Function").head_object(Bucket="pictures", Key="images/none")
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == status


def test_an_event_for_a_bus_that_is_not_there_is_lost_and_that_is_a_success(client: Client) -> None:
    entry = {"Source": "shop", "DetailType": "Asked", "Detail": "{}", "EventBusName": "none"}
    answer = client("events").put_events(Entries=[entry, {**entry, "EventBusName": "default"}])
    assert (answer["FailedEntryCount"], len({each["EventId"] for each in answer["Entries"]})) == (0, 2)
    assert client("events").put_events(Entries=[{**entry, "Source": ""}])["FailedEntryCount"] == 1


def test_who_is_asked_by_a_form_is_held_to_its_role_too(door: DoorControl, client: Client) -> None:
    let(door, ("cloudformation:DescribeStacks", "*"))
    assert client("cloudformation", "Function").describe_stacks()["Stacks"] == []
    with pytest.raises(ClientError, match="AccessDenied"):
        client("cloudformation", "Function").list_stacks()


def test_of_what_is_missing_s3_says_access_denied_to_whoever_may_not_list(door: DoorControl, client: Client) -> None:
    let(door, ("s3:GetObject", "arn:aws:s3:::pictures/images/*"))
    with pytest.raises(ClientError) as refused:
        client("s3", "Function").get_object(Bucket="pictures", Key="images/none")
    assert refused.value.response["Error"]["Code"] == "AccessDenied"


def signed(
    url: str,
    method: str = "GET",
    key: str = "images/a",
    *,
    seconds: int = 60,
    ago: float = 0,
    headers: dict[str, str] | None = None,
    token: str | None = None,
    secret: str = SECRET,
    monkeypatch: pytest.MonkeyPatch | None = None,
) -> str:
    request = AWSRequest(method, f"{url}/pictures/{quote(key)}", headers or {})
    signer = S3SigV4QueryAuth(Credentials("operator", secret, token), "s3", REGION, expires=seconds)
    if monkeypatch:
        then = datetime.now(UTC) - timedelta(seconds=ago)
        monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: then)
    signer.add_auth(request)
    return str(request.url)


def with_query(url: str, **changes: str | None) -> str:
    query = dict(parse_qsl(urlsplit(url).query)) | {name.replace("_", "-"): value for name, value in changes.items()}
    return f"{url.partition('?')[0]}?{urlencode({name: value for name, value in query.items() if value is not None})}"


def error_code(answer: urllib3.BaseHTTPResponse) -> str:
    return answer.data.decode().partition("<Code>")[2].partition("</Code>")[0]


@pytest.mark.parametrize("key", ["images/a", "images/a b+c=ä~(d)", "images/a//b"])
@pytest.mark.parametrize("token", [None, "a+token/of=a role"])
def test_a_presigned_url_works_for_what_it_was_signed_for(
    url: str, client: Client, key: str, token: str | None
) -> None:
    headers = {"Content-Type": "image/png", "If-None-Match": "*"}
    client("s3").delete_object(Bucket="pictures", Key=key)

    put = urllib3.request("PUT", signed(url, "PUT", key, headers=headers, token=token), body=b"a", headers=headers)
    got = urllib3.request("GET", signed(url, "GET", key, token=token))

    assert (put.status, got.status, got.data) == (200, 200, b"a")
    if key != "images/a":
        client("s3").delete_object(Bucket="pictures", Key=key)


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        pytest.param({"X_Amz_Signature": "0" * 64}, 403, "SignatureDoesNotMatch", id="signature"),
        pytest.param({"X_Amz_Expires": "3600"}, 403, "SignatureDoesNotMatch", id="longer life"),
        pytest.param({"X_Amz_SignedHeaders": "host;range"}, 403, "SignatureDoesNotMatch", id="another header"),
        pytest.param({"versionId": "1"}, 403, "SignatureDoesNotMatch", id="more in the query"),
        pytest.param({"X_Amz_Security_Token": None}, 403, "SignatureDoesNotMatch", id="token"),
        pytest.param({"X_Amz_Date": "20200101T000000Z"}, 403, "AccessDenied", id="date"),
        pytest.param({"X_Amz_Expires": None}, 400, "AuthorizationQueryParametersError", id="no life"),
        pytest.param({"X_Amz_Date": "today"}, 400, "AuthorizationQueryParametersError", id="no date"),
        pytest.param({"X_Amz_Algorithm": None}, 403, "AccessDenied", id="algorithm"),
    ],
)
def test_a_presigned_url_that_was_changed_does_not_work(
    url: str, changes: dict[str, str | None], status: int, code: str
) -> None:
    answer = urllib3.request("GET", with_query(signed(url, token="token"), **changes))

    assert (answer.status, error_code(answer)) == (status, code)


@pytest.mark.parametrize(("ago", "status"), [(59, 200), (61, 403)])
def test_a_presigned_url_works_until_it_expires(
    url: str, ago: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = urllib3.request("GET", signed(url, ago=ago - 0.5, monkeypatch=monkeypatch))

    assert answer.status == status
    if status == 403:
        assert error_code(answer) == "AccessDenied"
        assert b"<Message>Request has expired</Message>" in answer.data


def test_a_url_signed_for_get_does_not_work_for_head_and_the_reverse(url: str) -> None:
    assert urllib3.request("HEAD", signed(url)).status == 403
    assert urllib3.request("HEAD", signed(url, "HEAD")).status == 200
    answer = urllib3.request("GET", signed(url, "HEAD"))
    assert (answer.status, error_code(answer)) == (403, "SignatureDoesNotMatch")


def test_the_image_store_signs_for_head_what_works_for_head(url: str) -> None:
    store = S3ImageStore(
        HttpPool(),
        bucket_url=bucket_url("pictures", REGION, url),
        region=REGION,
        credentials=lambda: Credentials("operator", SECRET, "token"),
        link_seconds=60,
    )

    assert urllib3.request("HEAD", store.signed_url("a", "HEAD").url).status == 200
    assert urllib3.request("HEAD", store.signed_url("a").url).status == 403
    assert urllib3.request("GET", store.signed_url("a").url).data == b"a"


def test_a_url_does_not_work_for_another_key(url: str) -> None:
    answer = urllib3.request("GET", signed(url).replace("/images/a", "/images/b"))

    assert (answer.status, error_code(answer)) == (403, "SignatureDoesNotMatch")


def test_a_url_signed_with_another_secret_does_not_work(url: str) -> None:
    answer = urllib3.request("GET", signed(url, secret="guessed"))

    assert (answer.status, error_code(answer)) == (403, "SignatureDoesNotMatch")


def test_a_functions_secret_may_be_another_than_the_operators(url: str, door: DoorControl) -> None:
    role = {"function": "Function", "statements": [], "secret": "of its own"}
    door.let_in({"operator": role | {"statements": [{"Action": "s3:GetObject", "Resource": "*"}]}})

    assert urllib3.request("GET", signed(url, secret="of its own")).status == 200
    assert urllib3.request("GET", signed(url)).status == 403


def test_a_put_without_a_header_that_was_signed_stores_nothing(url: str, client: Client) -> None:
    target = signed(url, "PUT", "images/unsigned", headers={"If-None-Match": "*"})

    answer = urllib3.request("PUT", target, body=b"a")

    assert (answer.status, error_code(answer)) == (403, "SignatureDoesNotMatch")
    assert client("s3").list_objects_v2(Bucket="pictures", Prefix="images/unsigned")["KeyCount"] == 0


@pytest.mark.parametrize("authorization", ["Bearer ig_web_key", "AWS4-HMAC-SHA256 Credential=a/20260101/b/s3/d"])
def test_a_request_with_two_signatures_is_refused(url: str, authorization: str) -> None:
    answer = urllib3.request("GET", signed(url), headers={"Authorization": authorization})

    assert (answer.status, error_code(answer)) == (400, "InvalidArgument")
    assert b"Only one auth mechanism allowed" in answer.data


def test_s3_gives_nothing_to_whoever_does_not_sign(url: str) -> None:
    answer = urllib3.request("GET", f"{url}/pictures/images/a")

    assert (answer.status, error_code(answer)) == (403, "AccessDenied")


def test_a_header_signed_with_another_secret_is_refused(url: str) -> None:
    s3 = boto3.client(
        "s3", endpoint_url=url, region_name=REGION, aws_access_key_id="operator", aws_secret_access_key="guessed"
    )
    with pytest.raises(ClientError) as refused:
        s3.put_object(Bucket="pictures", Key="images/forged", Body=b"a")
    assert refused.value.response["Error"]["Code"] == "SignatureDoesNotMatch"


@pytest.mark.parametrize("error", ["InternalServerError", "ThrottlingException", "hang-up"])
@pytest.mark.parametrize(("when", "effect"), [("before", False), ("after", True)])
def test_a_call_fails_with_all_its_repetitions(
    door: DoorControl, client: Client, error: str, when: str, effect: bool
) -> None:
    let(door, ("dynamodb:PutItem", TABLE))
    name = quote(f"{error} {when}")
    door.fail(Fault(2, when, error))
    put(client, name + "1")
    with pytest.raises((ClientError, BotoCoreError)):
        put(client, name + "2")
    put(client, name + "3")
    assert [there(client, name + number) for number in "123"] == [True, effect, True]
    assert door.fail() == 3


def test_a_call_that_fails_once_is_repeated_by_the_sdk(door: DoorControl, client: Client) -> None:
    let(door, ("dynamodb:PutItem", TABLE))
    door.fail(Fault(1, "after", once=True))
    put(client, "once")
    assert there(client, "once")


def test_a_fault_may_be_one_services_alone(door: DoorControl, client: Client) -> None:
    let(door, ("dynamodb:PutItem", TABLE), ("s3:PutObject", "arn:aws:s3:::pictures/*"))
    door.fail(Fault(1, service="s3"))
    put(client, "not s3")
    with suppress(ClientError):
        client("s3", "Function").put_object(Bucket="pictures", Key="broken", Body=b"x" * 100_000)
    objects = client("s3").list_objects_v2(Bucket="pictures")["Contents"]
    assert [each["Key"] for each in objects] == ["images/a"]


@pytest.mark.parametrize("argument", ["ExpressionAttributeNames", "ExpressionAttributeValues"])
@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("update_item", {"Key": {"pk": {"S": "a"}}, "UpdateExpression": "REMOVE b"}),
        ("put_item", {"Item": {"pk": {"S": "a"}}, "ConditionExpression": "attribute_exists(pk)"}),
        ("delete_item", {"Key": {"pk": {"S": "a"}}, "ConditionExpression": "attribute_exists(pk)"}),
        ("query", {"KeyConditionExpression": "pk = pk"}),
        ("scan", {}),
    ],
)
def test_an_expression_argument_that_is_empty_is_refused_as_dynamodb_refuses_it(
    client: Client, operation: str, arguments: dict[str, Any], argument: str
) -> None:
    with pytest.raises(ClientError, match=f"{argument} must not be empty") as refused:
        getattr(client("dynamodb"), operation)(TableName="records", **arguments, **{argument: {}})

    assert refused.value.response["Error"]["Code"] == "ValidationException"


def test_an_empty_expression_argument_inside_a_transaction_is_refused(client: Client) -> None:
    update = {
        "TableName": "records",
        "Key": {"pk": {"S": "a"}},
        "UpdateExpression": "REMOVE b",
        "ExpressionAttributeNames": {},
    }

    with pytest.raises(ClientError, match="ExpressionAttributeNames must not be empty"):
        client("dynamodb").transact_write_items(TransactItems=[{"Update": update}])


def test_an_attribute_may_be_called_like_an_argument(client: Client) -> None:
    item = {"pk": {"S": "named"}, "ExpressionAttributeNames": {"M": {}}}

    client("dynamodb").put_item(TableName="records", Item=item)

    assert client("dynamodb").get_item(TableName="records", Key={"pk": {"S": "named"}})["Item"] == item


def seconds(call: Callable[[], object]) -> float:
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


def test_a_service_is_delayed_and_an_operation_otherwise_than_its_service(door: DoorControl, client: Client) -> None:
    dynamodb, ssm, s3 = client("dynamodb"), client("ssm"), client("s3")

    door.delay({"dynamodb": 500, "dynamodb.GetItem": 0, "s3.HeadObject": 500})

    assert seconds(lambda: dynamodb.put_item(TableName="records", Item={"pk": {"S": "late"}})) >= 0.5
    assert seconds(lambda: s3.head_object(Bucket="pictures", Key="images/a")) >= 0.5
    assert seconds(lambda: dynamodb.get_item(TableName="records", Key={"pk": {"S": "late"}})) < 0.5
    assert seconds(lambda: ssm.get_parameter(Name="/stack/key")) < 0.5
    assert seconds(lambda: s3.get_object(Bucket="pictures", Key="images/a")) < 0.5


def test_delayed_calls_do_not_wait_for_each_other(door: DoorControl, client: Client) -> None:
    dynamodb = client("dynamodb")
    door.delay({"dynamodb": 500})

    def put_ten() -> None:
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(lambda n: dynamodb.put_item(TableName="records", Item={"pk": {"S": str(n)}}), range(10)))

    assert seconds(put_ten) < 10 * 0.5


def test_delays_are_read_as_the_environment_gives_them() -> None:
    assert read_delays("") == {}
    assert read_delays("dynamodb=100,sqs.SendMessage=20, s3.PutObject=0") == {
        "dynamodb": 100,
        "sqs.SendMessage": 20,
        "s3.PutObject": 0,
    }


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
def test_a_delay_that_would_not_hold_is_refused(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match="has ") as refused:
        read_delays(text)
    assert wrong in str(refused.value)
