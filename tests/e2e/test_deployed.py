"""Tests from outside that pass on any stack: the local one, or with `make verify` a deployed one.

`deployed(images=…)` is the most images that a test makes. On the local stack that is checked.
"""

import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import uuid4

import boto3
import openai
import pytest
import urllib3

from imagegen.aws.generations import DynamoGenerations
from imagegen.domain.credentials import BearerKey
from imagegen.domain.images import ImageRequest
from local.stack import STACK_NAME
from tests.support.client import EDITS, GENERATIONS, SMALL, Answer, Client, Json, fetched
from tests.support.models import admitted
from tests.support.world import World

pytestmark = pytest.mark.thorough

SECONDS = 600  # how long an image may take, as OpenAI's clients wait
IMAGE_TYPES = {"image/png", "image/jpeg", "image/webp", "image/gif"}


@dataclass(frozen=True)
class Deployment(Client):
    """A stack, with a client of it and perhaps an `other` one. `cheap` are the fields of a request for one image."""

    stack: str = ""
    other: Client | None = None
    cheap: Json = field(default_factory=SMALL.copy)
    run: str = field(default_factory=lambda: uuid4().hex)
    made: set[str] = field(default_factory=set)

    def asked(self, **fields: Any) -> Json:
        """A request that nobody has made before."""
        return {**self.cheap, "prompt": f"A small red circle on white, number {self.run} {uuid4().hex}", **fields}

    def keep(self, answer: Answer) -> Json:
        """The body of an answer with images, which are kept until the test ends."""
        assert answer.status == 200, answer.content
        self.made.add(answer.json["id"])
        return dict(answer.json)


@pytest.fixture
def local(request: pytest.FixtureRequest) -> World | None:
    """None: the tests run on a deployed stack."""
    return None if os.environ.get("BASE_URL") else request.getfixturevalue("staged_world")


@pytest.fixture
def deployed(request: pytest.FixtureRequest, local: World | None) -> Iterator[Deployment]:
    if local is None:
        given = os.environ
        base_url, model = given["BASE_URL"].rstrip("/"), given.get("MODEL") or SMALL["model"]
        size = given.get("SIZE") or (SMALL["size"] if model == SMALL["model"] else "")
        cheap = {"model": model, **({"size": size} if size else {})}
        other = Client(base_url, given["OTHER_KEY"]) if given.get("OTHER_KEY") else None
        deployment = Deployment(base_url, given["KEY"], stack=given.get("STACK", ""), other=other, cheap=cheap)
    else:
        deployment = Deployment(local.base_url, local.caller().key, stack=STACK_NAME, other=local.caller())
    yield deployment
    for generation_id in deployment.made:
        deployment.delete(generation_id)
    if local is not None:
        paid = sum(call["n"] for call in list(local.upstream.calls) if deployment.run in call["prompt"])
        most = request.node.get_closest_marker("deployed").kwargs.get("images", 0)
        assert paid <= most, "the test makes more images than its mark says"


@pytest.fixture
def aws(local: World | None, deployed: Deployment) -> Callable[[str], Any]:
    """Makes boto3's client of a service, with an operator's credentials."""
    if local is not None:
        return local.aws
    if not deployed.stack:
        pytest.skip("without STACK, nothing is verified that needs AWS credentials")
    session = boto3.session.Session()
    if session.get_credentials() is None or session.region_name is None:
        pytest.skip("AWS credentials or a region are not set, so nothing is verified that needs them")
    return cast("Callable[[str], Any]", session.client)


@pytest.mark.deployed
def test_health_needs_no_key_and_the_models_include_the_one_of_these_tests(deployed: Deployment) -> None:
    healthy = deployed.get(deployed.base_url.removesuffix("/v1") + "/health", Authorization="")
    assert (healthy.status, healthy.json) == (200, {"status": "ok"})
    assert deployed.cheap["model"] in {model["id"] for model in deployed.get("/models").json["data"]}


@pytest.mark.deployed
def test_the_functions_answer_for_unknown_paths_and_methods(deployed: Deployment) -> None:
    """Otherwise the gateway itself would answer a request with a key, about a missing AWS signature."""
    assert deployed.get("/nothing").failed == (404, "unknown_url")
    other_method = deployed.ask("DELETE", "/models")
    assert (other_method.status, other_method.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert deployed.get("/nothing", Authorization="").status == 401
    assert deployed.get("/models/").json == deployed.get("/models").json
    assert deployed.ask("HEAD", "/models").status == 200


@pytest.mark.deployed
@pytest.mark.parametrize(
    "sent",
    ["", "Bearer nonsense", "Bearer ig_nobody_{wrong}", "Bearer {start}{wrong}", "Bearer sk-other", "Basic ig_a_b"],
)
def test_a_bad_key_opens_nothing(deployed: Deployment, sent: str) -> None:
    sent = sent.format(start=deployed.key[:-43], wrong="x" * 43)
    answers = [deployed.post(deployed.asked(), Authorization=sent)]
    answers += [deployed.get(path, Authorization=sent) for path in (GENERATIONS, "/models")]
    assert [answer.failed for answer in answers] == [(401, "invalid_api_key")] * 3


@pytest.mark.deployed
def test_a_bad_field_is_refused_by_its_name_and_begins_nothing(deployed: Deployment) -> None:
    bad: list[tuple[Json, str]] = [
        ({}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "a" * 32_001}, "prompt"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "n": 11}, "n"),
        ({"prompt": "x", "model": "dall-e-4"}, "model"),
        ({"prompt": "x", "model": "dall-e-3", "size": "512x512"}, "size"),
        ({"prompt": "x", "response_format": "png"}, "response_format"),
        ({"prompt": "x", "steps": 50}, "steps"),
    ]
    before = deployed.newest()
    answers = [deployed.post(fields) for fields, _ in bad]
    assert [(each.status, each.error["param"]) for each in answers] == [(400, param) for _, param in bad]
    assert [each["id"] for each in deployed.newest()] == [each["id"] for each in before]


@pytest.mark.deployed
@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", GENERATIONS, b"{", {}, 400),
        ("POST", GENERATIONS, b"[]", {}, 400),
        ("POST", GENERATIONS, b'{"prompt":"x"}', {"Content_Type": "text/plain"}, 415),
        ("POST", GENERATIONS, b"a" * 600_000, {}, 413),
        ("GET", f"{GENERATIONS}?limit=0", None, {}, 400),
        ("GET", f"{GENERATIONS}/gen_nobodys", None, {}, 404),
        ("GET", "/images/img_short", None, {}, 404),
        ("GET", "/batches/batch_nobodys", None, {}, 404),
        ("POST", EDITS, b"{}", {}, 400),
        ("POST", EDITS, b"{}", {"Content_Type": "image/png"}, 415),
        ("POST", "/images/uploads", b"{}", {}, 400),
        ("POST", f"{EDITS}/x", b"{}", {}, 404),
        ("PUT", GENERATIONS, b"{}", {}, 405),
        ("GET", "/nothing/of/the/kind", None, {}, 404),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value),
)
def test_any_other_request_is_refused_in_openais_shape(
    deployed: Deployment, method: str, path: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    assert deployed.ask(method, path, body, **headers).failed[0] == status


@pytest.mark.deployed
@pytest.mark.parametrize("path", [GENERATIONS, f"{GENERATIONS}/gen_x", EDITS, "/models", "/batches"])
def test_a_browser_may_send_requests(deployed: Deployment, path: str) -> None:
    asks = {"Origin": "https://example.com", "Access_Control_Request_Method": "POST"}
    asks |= {"Authorization": "", "Access_Control_Request_Headers": "authorization,content-type,idempotency-key"}
    answer = deployed.ask("OPTIONS", path, None, **asks)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"]
    assert {"DELETE", "GET", "HEAD", "POST"} <= set(answer.headers["access-control-allow-methods"].split(","))
    assert {"authorization", "*"} <= set(answer.headers["access-control-allow-headers"].lower().split(","))
    refused = deployed.get(path, Authorization="Bearer nonsense", Origin="https://example.com")
    assert refused.headers["access-control-allow-origin"] == answer.headers["access-control-allow-origin"]


@pytest.mark.deployed(images=1)
def test_openais_client_gets_an_image_by_its_url_and_by_its_permalink(deployed: Deployment) -> None:
    client = deployed.openai(max_retries=2)
    raw = client.images.with_raw_response.generate(**deployed.asked(response_format="url"))
    deployed.keep(Answer(raw.status_code, {}, raw.content))
    (image,) = raw.parse().data or []
    more = image.model_extra or {}
    assert more["expires_at"] > time.time() if "expires_at" in more else image.url == more["permalink"]  # DurableUrls
    signed = fetched(image.url)
    assert signed.headers["content-type"] in IMAGE_TYPES

    # The permalink works under a stage, a custom domain and a proxy.
    assert more["permalink"].endswith(f"/v1/images/{more['id']}")
    durable = deployed.get(f"/images/{more['id']}", Authorization="")
    assert (durable.status, durable.headers["cache-control"]) == (302, "no-store")
    location = durable.headers["location"]
    assert fetched(more["permalink"]).content == fetched(location).content == signed.content

    # S3 refuses these for a URL that is signed for GET. So does the local stack.
    assert urllib3.request("HEAD", location).status == 403
    with_key = urllib3.request("GET", location, headers={"Authorization": "Bearer any"})
    assert (with_key.status, b"<Code>InvalidArgument</Code>" in with_key.data) == (400, True)


@pytest.mark.deployed
def test_openais_client_understands_a_refusal(deployed: Deployment) -> None:
    client = deployed.openai(max_retries=2)
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(model="dall-e-3", prompt="x", size="512x512")
    assert (refused.value.param, refused.value.code) == ("size", "invalid_value")
    assert refused.value.request_id
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-other").models.list()


@pytest.mark.deployed(images=1)
def test_base64_is_the_image_behind_the_permalink(deployed: Deployment) -> None:
    (image,) = deployed.keep(deployed.make(deployed.asked(response_format="b64_json")))["data"]
    assert "url" not in image
    assert base64.b64decode(image["b64_json"]) == fetched(image["permalink"]).content


@pytest.mark.deployed(images=1)
def test_requests_with_one_idempotency_key_are_one_generation(deployed: Deployment) -> None:
    fields, key = deployed.asked(response_format="url"), uuid4().hex
    first, again = (deployed.keep(deployed.make(fields, Idempotency_Key=key)) for _ in range(2))
    assert again["id"] == first["id"]
    assert [image["id"] for image in again["data"]] == [image["id"] for image in first["data"]]
    other = deployed.post(deployed.asked(), Idempotency_Key=key)
    assert other.failed == (422, "idempotency_key_reused")


@pytest.mark.deployed(images=1)
def test_a_retry_of_openais_clients_attaches_without_a_key(deployed: Deployment) -> None:
    fields = deployed.asked(response_format="url")
    first, retry = (deployed.keep(deployed.make(fields, X_Stainless_Retry_Count=number)) for number in "01")
    assert retry["id"] == first["id"]


@pytest.mark.deployed(images=1)
def test_a_generation_is_polled_listed_hidden_from_others_and_deleted(deployed: Deployment) -> None:
    begun = deployed.post(deployed.asked(), Prefer="respond-async")
    generation_id = begun.json["id"]
    if begun.status != 200:  # the worker was not faster than the answer
        assert (begun.status, begun.headers["location"]) == (202, f"generations/{generation_id}"), begun.content
    generation = deployed.until_ended(generation_id, SECONDS)
    assert (generation["object"], generation["status"]) == ("image.generation", "completed"), generation
    (image,) = generation["data"]
    assert fetched(image["url"]).headers["content-type"] in IMAGE_TYPES
    assert generation_id in {each["id"] for each in deployed.newest()}
    assert deployed.result(generation_id).json["id"] == generation_id
    assert deployed.cancel(generation_id).failed == (409, "generation_ended")

    if other := deployed.other:
        for ask in (other.see, other.result, other.cancel, other.delete):
            assert ask(generation_id).failed == (404, "generation_not_found"), ask
        assert generation_id not in {each["id"] for each in other.newest()}

    deleted = deployed.delete(generation_id)
    assert (deleted.status, deleted.json["deleted"]) == (200, True)
    assert deployed.see(generation_id).status == 404
    assert fetched(image["permalink"]).status in (403, 404)  # S3 answers


@pytest.mark.deployed(images=1)
def test_a_generation_is_cancelled_or_has_ended_already(deployed: Deployment) -> None:
    generation_id = deployed.begin(**deployed.asked())
    answer = deployed.cancel(generation_id)
    if answer.status == 200:
        assert answer.json["status"] == "cancelled"
        assert deployed.result(generation_id).failed == (424, "generation_cancelled")
    else:
        assert answer.failed == (409, "generation_ended")
    assert deployed.delete(generation_id).status == 200


@pytest.mark.deployed(images=1)
def test_the_work_goes_on_after_the_redirect(deployed: Deployment, local: World | None) -> None:
    """Without a process that works on, a worker would take over, and the upstream would be called a second time."""
    fields = deployed.asked()
    gate = local.hold(fields["prompt"]) if local else None
    answer = deployed.post(fields, Prefer="wait=1")
    if gate:
        gate.open()
    if answer.status == 200:
        deployed.keep(answer)
        pytest.skip("the image arrived within a second, so no request was redirected")
    assert (answer.status, answer.json["status"]) == (303, "in_progress")
    deployed.made.add(answer.json["id"])
    assert f"/v1/images/generations/{answer.json['id']}/result " in answer.json["message"]
    generation = deployed.until_ended(answer.json["id"], SECONDS)
    assert (generation["status"], generation["repeated_calls"]) == ("completed", 0), generation


@pytest.mark.deployed
def test_a_wait_of_40_seconds_is_not_cut(deployed: Deployment, local: World | None, aws: Callable[[str], Any]) -> None:
    """The record is one that nobody works on, so nothing is spent. Its cancellation ends the wait."""
    key = BearerKey.parse(deployed.key)
    if key is None:
        pytest.skip("KEY is a token, and the name of its caller is not known")
    found = aws("cloudformation").describe_stack_resource(StackName=deployed.stack, LogicalResourceId="GenerationTable")
    table = found["StackResourceDetail"]["PhysicalResourceId"]
    records = DynamoGenerations(lambda: aws("dynamodb"), table, retention_seconds=24 * 3600)
    request = ImageRequest(prompt="not made", model="dall-e-2", response_format="url")
    generation = admitted(request, caller=key.caller, base_url=deployed.base_url.removesuffix("/v1"), now=time.time())
    records.create(generation)
    deployed.made.add(generation.id)
    with ThreadPoolExecutor(1) as waiting:
        waited = waiting.submit(deployed.result, generation.id)
        done, _ = wait([waited], timeout=0.5 if local else 40)
        if done and not waited.exception() and waited.result().status == 303:
            pytest.skip("WaitSeconds of this stack is shorter, or it was deployed with STREAMING=off")
        cut = (waited.exception() or waited.result()) if done else None
        assert cut is None, f"the wait was cut: {cut}. Deploy without streaming: make deploy STREAMING=off"
        assert deployed.cancel(generation.id).status == 200
        ended = waited.result()
        if local and ended.status == 303:  # its waits are short
            ended = deployed.result(generation.id)
        assert ended.failed == (424, "generation_cancelled")


@pytest.mark.deployed
def test_the_bus_for_the_events_exists(deployed: Deployment, aws: Callable[[str], Any]) -> None:
    """AWS answers success to an event for a bus that does not exist, so nothing else reports the loss."""
    assert aws("events").describe_event_bus(Name=deployed.stack)["Name"] == deployed.stack


@pytest.mark.deployed
def test_a_file_is_answered_although_its_key_changes_with_url_encoding(
    deployed: Deployment, aws: Callable[[str], Any]
) -> None:
    """Its one line is bad, so nothing is spent."""
    key = BearerKey.parse(deployed.key)
    if key is None:
        pytest.skip("KEY is a token, and its caller has no folder in the inbox")
    found = aws("cloudformation").describe_stack_resource(StackName=deployed.stack, LogicalResourceId="InboxBucket")
    s3, bucket = aws("s3"), found["StackResourceDetail"]["PhysicalResourceId"]
    name = f"{key.caller}/verify {uuid4().hex} 1+1 50%20"
    dropped, errors = f"inbox/{name}.jsonl", f"outbox/{name}.errors.jsonl"
    s3.put_object(Bucket=bucket, Key=dropped, Body=b"{")
    try:
        batch = deployed.until_batch_ended(dropped)
        assert (batch["status"], batch["output_key"], batch["error_key"]) == ("completed", None, errors)
        (line,) = s3.get_object(Bucket=bucket, Key=errors)["Body"].read().splitlines()
        assert json.loads(line)["response"]["status_code"] == 400
    finally:
        for each in (dropped, errors):
            s3.delete_object(Bucket=bucket, Key=each)
