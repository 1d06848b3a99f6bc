"""What holds for any stack that serves, seen from outside alone: the local one, or by `make verify` a deployed one.

`deployed(images=…)` says how many images a test has made at most; of the local stack that is checked.
"""

import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import boto3
import openai
import pytest
import urllib3

from imagegen.credentials import BearerKey
from local.stack import STACK_NAME
from tests.e2e.conftest import Service, serve

FILE_SECONDS = 60  # how long a file with one bad line may take
SECONDS = 600  # how long an image may take, as OpenAI's clients wait
FOUR_KEYS = {"message", "type", "param", "code"}
IMAGE_TYPES = {"image/png", "image/jpeg", "image/webp", "image/gif"}
Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> Json:
        error = self.body["error"]
        assert set(error) - {"images"} == FOUR_KEYS
        assert self.headers["x-request-id"]
        return dict(error)


@dataclass(frozen=True)
class Deployment:
    """A stack by its name, its base URL and keys; `request` is what has one cheap image made."""

    stack: str
    base_url: str
    key: str = field(repr=False)
    other_key: str = field(repr=False)
    request: Json

    def ask(self, method: str, path: str, body: Any = None, *, key: str | None = None, **headers: str) -> Answer:
        """One request, redirects not followed. `body` is JSON, or bytes that are sent as they are."""
        given = self.key if key is None else key
        sent = {"Authorization": f"Bearer {given}"} if given else {}
        sent |= {"Content-Type": "application/json"} if body is not None else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        response = urllib3.request(
            method,
            path if path.startswith("http") else self.base_url + path,
            body=body if isinstance(body, bytes) or body is None else json.dumps(body).encode(),
            headers=sent,
            redirect=False,
            retries=False,
            timeout=60,
        )
        return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, response.data)

    def make(self, fields: Json, **headers: str) -> Answer:
        """Has images made, and waits for them as a client that follows redirects does."""
        answer = self.ask("POST", "/images/generations", fields, **headers)
        deadline = time.monotonic() + SECONDS
        while answer.status == 303 and time.monotonic() < deadline:
            answer = self.ask("GET", f"/images/generations/{answer.headers['x-generation-id']}/result")
        return answer

    def begin(self) -> str:
        """The id of a generation that was not waited for."""
        answer = self.ask("POST", "/images/generations", self.asked(), Prefer="respond-async")
        assert answer.status == 202, answer
        assert answer.headers["location"] == f"generations/{answer.body['id']}"
        return str(answer.body["id"])

    def until_ended(self, generation_id: str) -> Json:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            generation: Json = self.ask("GET", f"/images/generations/{generation_id}").body
            if generation["status"] not in ("queued", "in_progress"):
                return generation
            time.sleep(0.5)
        raise AssertionError(f"{generation_id} did not end in {SECONDS} s")

    def until_batch_ended(self, file: str) -> Json:
        """The batch of a file, by its key in the inbox."""
        listed: list[Json] = []
        deadline = time.monotonic() + FILE_SECONDS
        while time.monotonic() < deadline:
            listed = self.ask("GET", "/batches?limit=100").body["data"]
            for batch in listed:
                if batch["input_file_id"] == file and batch["status"] in ("completed", "cancelled"):
                    return batch
            time.sleep(0.5)
        raise AssertionError(
            f"{file} has no batch that ended in {FILE_SECONDS} s: {[each['input_file_id'] for each in listed]}"
        )

    def asked(self, **fields: Any) -> Json:
        """A request that nobody has made before."""
        return {**self.request, "prompt": f"A small red circle on white, number {uuid4().hex}", **fields}

    def ids(self) -> list[str]:
        return [each["id"] for each in self.ask("GET", "/images/generations?limit=100").body["data"]]


def fetch(url: str) -> Answer:
    """What a browser gets: redirects are followed, and no key is sent."""
    response = urllib3.request("GET", url, retries=3, timeout=60)
    return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, response.data)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service | None]:
    if os.environ.get("BASE_URL"):
        yield None
    else:
        with serve("stage", tmp_path_factory.mktemp("deployed")) as service:
            yield service


@pytest.fixture
def deployment(local: Service | None, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    if local is None:
        given = os.environ
        model = given.get("MODEL") or "dall-e-2"
        size = given.get("SIZE") or ("256x256" if model == "dall-e-2" else "")
        wanted = {"model": model, **({"size": size} if size else {})}
        stack = given.get("STACK", "")
        deployed = Deployment(stack, given["BASE_URL"].rstrip("/"), given["KEY"], given.get("OTHER_KEY", ""), wanted)
    else:
        cheap = {"model": "dall-e-2", "size": "256x256"}
        deployed = Deployment(STACK_NAME, local.base_url, local.key, local.stack.keys["other"], cheap)
        local.upstream.calls.clear()
    yield deployed
    if local is not None:
        made = sum(call["n"] for call in local.upstream.calls)
        assert made <= request.node.get_closest_marker("deployed").kwargs.get("images", 0), "it costs more than it says"


@pytest.fixture
def aws(local: Service | None, deployment: Deployment) -> Callable[[str], Any]:
    """Gives boto3's client of a service, with an operator's credentials."""
    if local is not None:
        return local.stack.client
    if not deployment.stack:
        pytest.skip("STACK is not given: what needs AWS credentials is not verified")
    session = boto3.session.Session()
    if session.get_credentials() is None or session.region_name is None:
        pytest.skip("AWS credentials or a region are not set: what needs them is not verified")

    def client(service: str) -> Any:
        return session.client(service)  # type: ignore[call-overload]

    return client


@pytest.fixture
def kept(deployment: Deployment) -> Iterator[Callable[[Answer], Json]]:
    """Gives the body of an answer whose images are to be deleted in the end."""
    ids = set()

    def keep(answer: Answer) -> Json:
        assert answer.status == 200, answer
        ids.add(answer.body["id"])
        return dict(answer.body)

    yield keep
    for generation_id in ids:
        deployment.ask("DELETE", f"/images/generations/{generation_id}")


@pytest.mark.deployed
def test_it_is_healthy_without_a_key(deployment: Deployment) -> None:
    answer = deployment.ask("GET", deployment.base_url.removesuffix("/v1") + "/health", key="")
    assert (answer.status, answer.body) == (200, {"status": "ok"})


@pytest.mark.deployed
def test_models_are_listed_the_one_that_is_verified_by_among_them(deployment: Deployment) -> None:
    listed = deployment.ask("GET", "/models").body
    assert listed["object"] == "list"
    assert deployment.request["model"] in {model["id"] for model in listed["data"]}


@pytest.mark.deployed
def test_the_gateway_leaves_what_is_unknown_to_the_functions(deployment: Deployment) -> None:
    """With a key it would otherwise answer by itself, about a missing AWS signature."""
    unknown = deployment.ask("GET", "/nothing")
    assert (unknown.status, unknown.error["code"]) == (404, "unknown_url")
    other_method = deployment.ask("DELETE", "/models")
    assert (other_method.status, other_method.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert deployment.ask("GET", "/nothing", key="").status == 401
    assert deployment.ask("GET", "/models/").body == deployment.ask("GET", "/models").body
    assert deployment.ask("HEAD", "/models").status == 200


@pytest.mark.deployed
@pytest.mark.parametrize("key", ["", "nonsense", "ig_nobody_" + "x" * 43, "sk-other"])
def test_nobody_gets_in_without_a_good_key(deployment: Deployment, key: str) -> None:
    for method, path in (("POST", "/images/generations"), ("GET", "/images/generations"), ("GET", "/models")):
        answer = deployment.ask(method, path, {"prompt": "x"} if method == "POST" else None, key=key)
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


@pytest.mark.deployed
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "a" * 32_001}, "prompt"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "n": 11}, "n"),
        ({"prompt": "x", "model": "dall-e-4"}, "model"),
        ({"prompt": "x", "model": "dall-e-3", "size": "512x512"}, "size"),
        ({"prompt": "x", "response_format": "png"}, "response_format"),
        ({"prompt": "x", "steps": 50}, "steps"),
    ],
)
def test_a_bad_field_is_400_with_its_name_and_begins_nothing(deployment: Deployment, fields: Json, param: str) -> None:
    before = deployment.ids()
    answer = deployment.ask("POST", "/images/generations", fields)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert deployment.ids() == before


@pytest.mark.deployed
@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/images/generations", b"{", {}, 400),
        ("POST", "/images/generations", b"[]", {}, 400),
        ("POST", "/images/generations", b'{"prompt":"x"}', {"Content_Type": "text/plain"}, 415),
        ("POST", "/images/generations", b"a" * 600_000, {}, 413),
        ("GET", "/images/generations?limit=0", None, {}, 400),
        ("GET", "/images/generations/gen_nobodys", None, {}, 404),
        ("GET", "/images/img_short", None, {}, 404),
        ("GET", "/batches/batch_nobodys", None, {}, 404),
        ("POST", "/images/edits", b"{}", {}, 404),
        ("PUT", "/images/generations", b"{}", {}, 405),
        ("GET", "/nothing/of/the/kind", None, {}, 404),
    ],
)
def test_what_is_no_request_of_ours_is_told_so_in_openais_shape(
    deployment: Deployment, method: str, path: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    answer = deployment.ask(method, path, body, **headers)
    assert answer.status == status, answer
    assert answer.error["message"]


@pytest.mark.deployed
@pytest.mark.parametrize("path", ["/images/generations", "/images/generations/gen_x", "/models", "/batches"])
def test_a_browser_may_ask(deployment: Deployment, path: str) -> None:
    asks = {"Origin": "https://example.com", "Access_Control_Request_Method": "POST"}
    headers = "authorization,content-type,idempotency-key"
    answer = deployment.ask("OPTIONS", path, key="", **asks, Access_Control_Request_Headers=headers)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"]
    assert {"DELETE", "GET", "HEAD", "POST"} <= set(answer.headers["access-control-allow-methods"].split(","))
    assert {"authorization", "*"} <= set(answer.headers["access-control-allow-headers"].lower().split(","))
    refused = deployment.ask("GET", path, key="nonsense", Origin="https://example.com")
    assert refused.headers["access-control-allow-origin"] == answer.headers["access-control-allow-origin"]


@pytest.mark.deployed(images=1)
def test_openais_client_gets_an_image_by_its_url_and_by_a_link_that_does_not_expire(
    deployment: Deployment, kept: Callable[[Answer], Json]
) -> None:
    client = openai.OpenAI(base_url=deployment.base_url, api_key=deployment.key)
    fields = deployment.asked(response_format="url")
    raw = client.images.with_raw_response.generate(**fields)
    kept(Answer(raw.status_code, {}, raw.content))
    (image,) = raw.parse().data or []
    told = image.model_extra or {}
    assert told["expires_at"] > time.time() if "expires_at" in told else image.url == told["permalink"]  # DurableUrls
    signed = fetch(image.url or "")
    assert signed.headers["content-type"] in IMAGE_TYPES

    # The stage, a custom domain or a proxy: the durable link leads there all the same.
    assert told["permalink"].endswith(f"/v1/images/{told['id']}")
    durable = deployment.ask("GET", f"/images/{told['id']}", key="")
    assert durable.status == 302
    assert durable.headers["cache-control"] == "no-store"
    assert fetch(told["permalink"]).content == fetch(durable.headers["location"]).content == signed.content

    # What S3 makes of a URL that is signed for GET, as the local stack has it.
    location = durable.headers["location"]
    assert urllib3.request("HEAD", location).status == 403
    with_key = urllib3.request("GET", location, headers={"Authorization": "Bearer any"})
    assert (with_key.status, b"<Code>InvalidArgument</Code>" in with_key.data) == (400, True)

    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(model="dall-e-3", prompt="x", size="512x512")
    assert (refused.value.param, refused.value.code) == ("size", "invalid_value")


@pytest.mark.deployed(images=1)
def test_base64_is_the_image_that_the_durable_link_leads_to(
    deployment: Deployment, kept: Callable[[Answer], Json]
) -> None:
    made = kept(deployment.make(deployment.asked(response_format="b64_json")))
    (image,) = made["data"]
    assert "url" not in image
    assert base64.b64decode(image["b64_json"]) == fetch(image["permalink"]).content


@pytest.mark.deployed(images=1)
def test_an_idempotency_key_is_one_generation_however_often_it_comes(
    deployment: Deployment, kept: Callable[[Answer], Json]
) -> None:
    fields, key = deployment.asked(response_format="url"), uuid4().hex
    first = kept(deployment.make(fields, Idempotency_Key=key))
    again = kept(deployment.make(fields, Idempotency_Key=key))
    assert again["id"] == first["id"]
    assert [image["id"] for image in again["data"]] == [image["id"] for image in first["data"]]
    other = deployment.ask("POST", "/images/generations", deployment.asked(), Idempotency_Key=key)
    assert (other.status, other.error["code"]) == (422, "idempotency_key_reused")


@pytest.mark.deployed(images=1)
def test_a_retry_of_openais_clients_attaches_without_a_key(
    deployment: Deployment, kept: Callable[[Answer], Json]
) -> None:
    fields = deployment.asked(response_format="url")
    first = kept(deployment.make(fields, X_Stainless_Retry_Count="0"))
    retried = kept(deployment.make(fields, X_Stainless_Retry_Count="1"))
    assert retried["id"] == first["id"]


@pytest.mark.deployed(images=1)
def test_a_generation_is_polled_listed_hidden_from_others_and_deleted(deployment: Deployment) -> None:
    generation_id = deployment.begin()
    path = f"/images/generations/{generation_id}"
    generation = deployment.until_ended(generation_id)
    assert (generation["object"], generation["status"]) == ("image.generation", "completed"), generation
    (image,) = generation["data"]
    assert fetch(image["url"]).headers["content-type"] in IMAGE_TYPES
    assert generation_id in deployment.ids()
    assert deployment.ask("GET", f"{path}/result").body["id"] == generation_id
    ended = deployment.ask("POST", f"{path}/cancel", b"")
    assert (ended.status, ended.error["code"]) == (409, "generation_ended")

    if deployment.other_key:
        for method, suffix in (("GET", ""), ("GET", "/result"), ("POST", "/cancel"), ("DELETE", "")):
            others = deployment.ask(method, path + suffix, key=deployment.other_key)
            assert (others.status, others.error["code"]) == (404, "generation_not_found")
        listed = deployment.ask("GET", "/images/generations?limit=100", key=deployment.other_key).body["data"]
        assert generation_id not in {each["id"] for each in listed}

    deleted = deployment.ask("DELETE", path)
    assert (deleted.status, deleted.body["deleted"]) == (200, True)
    assert deployment.ask("GET", path).status == 404
    assert fetch(image["permalink"]).status in (403, 404)  # S3's own word


@pytest.mark.deployed(images=1)
def test_a_generation_is_cancelled_or_has_ended_already(deployment: Deployment) -> None:
    generation_id = deployment.begin()
    answer = deployment.ask("POST", f"/images/generations/{generation_id}/cancel", b"")
    if answer.status == 200:
        assert answer.body["status"] == "cancelled"
        result = deployment.ask("GET", f"/images/generations/{generation_id}/result")
        assert (result.status, result.error["code"]) == (424, "generation_cancelled")
    else:
        assert (answer.status, answer.error["code"]) == (409, "generation_ended")
    assert deployment.ask("DELETE", f"/images/generations/{generation_id}").status == 200


@pytest.mark.deployed
def test_the_bus_that_is_told_of_every_end_is_there(deployment: Deployment, aws: Callable[[str], Any]) -> None:
    """AWS answers success to an event for a bus that is not there, so nothing else says that it is lost."""
    assert aws("events").describe_event_bus(Name=deployment.stack)["Name"] == deployment.stack


@pytest.mark.deployed
def test_a_file_is_answered_beside_it_whose_key_would_look_different_url_encoded(
    deployment: Deployment, aws: Callable[[str], Any]
) -> None:
    """Its one line is bad, so that nothing is spent."""
    key = BearerKey.parse(deployment.key)
    if key is None:
        pytest.skip("KEY is a token, whose caller has no folder in the inbox")
    found = aws("cloudformation").describe_stack_resource(StackName=deployment.stack, LogicalResourceId="InboxBucket")
    s3, bucket = aws("s3"), found["StackResourceDetail"]["PhysicalResourceId"]
    name = f"{key.client}/verify {uuid4().hex} 1+1 50%20"
    dropped, errors = f"inbox/{name}.jsonl", f"outbox/{name}.errors.jsonl"
    s3.put_object(Bucket=bucket, Key=dropped, Body=b"{")
    try:
        batch = deployment.until_batch_ended(dropped)
        assert (batch["status"], batch["output_file_id"], batch["error_file_id"]) == ("completed", None, errors)
        (line,) = s3.get_object(Bucket=bucket, Key=errors)["Body"].read().splitlines()
        assert json.loads(line)["response"]["status_code"] == 400
    finally:
        for each in (dropped, errors):
            s3.delete_object(Bucket=bucket, Key=each)
