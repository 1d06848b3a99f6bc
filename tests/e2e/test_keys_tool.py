"""The targets for a stack's operator, run as they stand against the local stack."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagegen.credentials import BearerKey
from local.aws_door import REGION
from local.stack import CREDENTIALS, ROOT, STACK_NAME
from tests.e2e.conftest import Service, serve
from tests.e2e.test_failures import post
from tests.e2e.test_generations import kill_workers

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not there")

TARGETS = ["key", "keys", "revoke", "retry"]
GENERATION = "gen_AAECAwQFBgcICQoLDA0ODw"
NO_CONFIG = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serve("source", tmp_path_factory.mktemp("keys")) as service:
        yield service


def stack_of_another_name(service: Service, name: str) -> str:
    """A stack that is there, with one resource and no clients."""
    topic = {"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}}
    service.stack.client("cloudformation").create_stack(StackName=name, TemplateBody=json.dumps(topic))
    return name


def operator(service: Service, **other: str) -> dict[str, str]:
    return {"AWS_ENDPOINT_URL": service.stack.aws_url, "AWS_DEFAULT_REGION": REGION, **CREDENTIALS, **other}


def make(target: str, environment: dict[str, str], **variables: object) -> subprocess.CompletedProcess[str]:
    """The target as an operator calls it, but that the virtual environment is taken as it is."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_") or name == "PATH"}
    given = [f"{name}={value}" for name, value in ({"STACK": STACK_NAME} | variables).items()]
    return subprocess.run(
        ["make", "--old-file=.venv/ready", target, *given],
        cwd=ROOT,
        env={**kept, **NO_CONFIG, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def made(service: Service, client: str, **variables: object) -> str:
    """The key that `make key` shows, and nothing but the key."""
    done = make("key", operator(service), CLIENT=client, **variables)
    assert done.returncode == 0, done.stderr
    key = BearerKey.parse(done.stdout.removesuffix("\n"))
    assert key
    assert key.client == client
    assert key.key not in done.stderr
    assert "shown once" in done.stderr
    return key.key


def refused(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """What the tool said, without what make adds: one line, and no traceback."""
    assert done.returncode == 2  # make's own, whatever failed
    assert done.stdout == ""
    *said, last = done.stderr.splitlines()
    assert last.endswith(f"Error {code}"), done.stderr
    assert "Traceback" not in done.stderr
    said = [line for line in said if not line.startswith(("usage:", " "))]
    assert len(said) == 1, done.stderr
    return said[0]


def parameter(service: Service, client: str) -> dict[str, Any]:
    name = f"/{STACK_NAME}/clients/{client}"
    found: dict[str, Any] = service.stack.client("ssm").get_parameter(Name=name)["Parameter"]
    return found


def record(service: Service, client: str) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(parameter(service, client)["Value"])
    return stored


def put(service: Service, client: str, value: str) -> None:
    service.stack.client("ssm").put_parameter(Name=f"/{STACK_NAME}/clients/{client}", Type="String", Value=value)


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def status(service: Service, key: str) -> int:
    return post(service, b"", path="/models", method="GET", Authorization=f"Bearer {key}")[0]


def in_five_minutes(service: Service, key: str) -> int:
    """What a key gets once both caches have forgotten.

    The function's goes with its process. The gateway's is by the header's text, to which blanks make a difference.
    """
    kill_workers(service, "AuthorizerFunction")
    time.sleep(0.3)  # until the host has seen that it is gone
    return post(service, b"", path="/models", method="GET", Authorization=f"Bearer {' ' * next(BLANKS)}{key}")[0]


BLANKS = iter(range(1, 1000))


def test_a_key_that_was_made_opens_the_api_and_ssm_holds_only_its_hash(service: Service) -> None:
    key = made(service, "web")
    assert status(service, key) == 200
    assert record(service, "web") == {"key_sha256": digest(key)}
    assert parameter(service, "web")["Type"] == "String"
    ssm = service.stack.client("ssm")
    held = ssm.get_parameters_by_path(Path="/", Recursive=True, WithDecryption=True)["Parameters"]
    told = ssm.describe_parameters()["Parameters"]
    assert key.removeprefix("ig_web_") not in repr([held, told])


def test_two_keys_are_never_the_same(service: Service) -> None:
    assert made(service, "one").removeprefix("ig_one_") != made(service, "two").removeprefix("ig_two_")


@pytest.mark.parametrize("images", [0, 50, 1_000_000_000])
def test_the_allowance_that_was_given_is_in_the_record(service: Service, images: int) -> None:
    client = f"with-{images}"
    key = made(service, client, IMAGES_PER_DAY=images)
    assert record(service, client) == {"key_sha256": digest(key), "images_per_day": images}
    assert status(service, key) == 200


def test_a_client_that_has_a_key_keeps_it_unless_it_is_to_be_replaced(service: Service) -> None:
    key = made(service, "kept", IMAGES_PER_DAY=3)
    for replace in ("", "0", "no"):
        done = make("key", operator(service), CLIENT="kept", IMAGES_PER_DAY=4, REPLACE=replace)
        assert "kept has a key already: REPLACE=1" in refused(done)
    assert record(service, "kept") == {"key_sha256": digest(key), "images_per_day": 3}
    assert in_five_minutes(service, key) == 200


def test_a_replaced_key_is_dead_the_new_one_opens_and_the_allowance_stays(service: Service) -> None:
    old = made(service, "turns", IMAGES_PER_DAY=7)
    assert status(service, old) == 200
    new = made(service, "turns", REPLACE=1)
    assert in_five_minutes(service, old) == 401
    assert in_five_minutes(service, new) == 200
    assert record(service, "turns") == {"key_sha256": digest(new), "images_per_day": 7}


def test_an_allowance_that_is_given_anew_replaces_the_one_before(service: Service) -> None:
    made(service, "anew", IMAGES_PER_DAY=7)
    made(service, "anew", IMAGES_PER_DAY=0, REPLACE=1)
    assert record(service, "anew")["images_per_day"] == 0


def test_a_key_may_be_replaced_that_was_never_made(service: Service) -> None:
    key = made(service, "first", REPLACE=1)
    assert status(service, key) == 200


@pytest.mark.parametrize("value", ["no json", "[]", '{"images_per_day": 5}', '{"key_sha256": "x", "barred": true}'])
def test_replacing_a_record_that_nobody_can_read_says_that_nothing_of_it_was_kept(service: Service, value: str) -> None:
    client = f"odd-{len(value)}"
    put(service, client, value)
    done = make("key", operator(service), CLIENT=client, REPLACE=1)
    assert done.returncode == 0
    assert "could not be read, so nothing of it was kept" in done.stderr
    assert record(service, client) == {"key_sha256": digest(done.stdout.strip())}


def test_a_revoked_key_is_dead_and_cannot_be_revoked_again(service: Service) -> None:
    key = made(service, "gone")
    assert status(service, key) == 200
    done = make("revoke", operator(service), CLIENT="gone")
    assert (done.returncode, done.stdout) == (0, "the key of gone is dead within five minutes\n")
    assert in_five_minutes(service, key) == 401
    again = make("revoke", operator(service), CLIENT="gone")
    assert refused(again) == f"there is no client gone in {STACK_NAME}"


def test_who_has_a_key_is_listed_with_its_allowance_and_nothing_of_any_key(service: Service) -> None:
    keys = {f"of-{number:02}": made(service, f"of-{number:02}", IMAGES_PER_DAY=number) for number in range(2)}
    for number in range(2, 25):  # more than SSM tells at once
        key = BearerKey.new(f"of-{number:02}")
        keys[key.client] = key.key
        put(service, key.client, json.dumps({"key_sha256": digest(key.key)}))
    put(service, "of-unread", "{" + keys["of-00"])
    done = make("keys", operator(service))
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if line.startswith("of-")]
    assert [line.split()[0] for line in lines] == [*sorted(keys), "of-unread"]
    written = re.compile(r"\S+ +20\d\d-\d\d-\d\d \d\d:\d\d UTC  (.*)")
    told = [match[1] if (match := written.fullmatch(line)) else line for line in lines]
    assert told == [
        "0 images a day",
        "1 image a day",
        *["the stack's allowance"] * 23,
        "unreadable: lets nobody in",
    ]
    for key_ in (*keys.values(), *service.stack.keys.values()):
        assert key_[-43:] not in done.stdout  # the secret
        assert digest(key_) not in done.stdout
    assert "sha256" not in done.stdout


def test_a_key_was_written_when_it_was_replaced(service: Service) -> None:
    made(service, "dated")
    before = parameter(service, "dated")["LastModifiedDate"]
    made(service, "dated", REPLACE=1)
    assert parameter(service, "dated")["LastModifiedDate"] > before


def test_a_stack_without_clients_lists_none_and_says_so(service: Service) -> None:
    done = make("keys", operator(service), STACK=stack_of_another_name(service, "other-stack"))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "there is no client under /other-stack/clients\n"


def test_one_stacks_clients_are_not_anothers(service: Service) -> None:
    key = made(service, "abroad", STACK=stack_of_another_name(service, "other-stack-2"))
    assert status(service, key) == 401
    assert "abroad" not in make("keys", operator(service)).stdout
    assert refused(make("revoke", operator(service), CLIENT="abroad")).startswith("there is no client")


@pytest.mark.parametrize("target", ["key", "revoke"])
@pytest.mark.parametrize("client", ["", "Web", "-web", "../upstream-api-key"])
def test_a_name_that_no_key_can_carry_is_refused_clearly(service: Service, target: str, client: str) -> None:
    said = refused(make(target, operator(service), CLIENT=client), code=2)
    assert said.endswith("a client is 1 to 32 of a-z, 0-9 and -, and begins with a letter or a digit")


@pytest.mark.parametrize("images", ["-1", "many", "1000000001"])
def test_an_allowance_that_is_no_number_is_refused_clearly(service: Service, images: str) -> None:
    said = refused(make("key", operator(service), CLIENT="numbers", IMAGES_PER_DAY=images), code=2)
    assert "a whole number from 0" in said


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("stack", ["", "no_stack", "AWS-images", "ssm"])
def test_a_stack_whose_name_is_none_or_can_hold_no_parameter_is_refused(
    service: Service, target: str, stack: str
) -> None:
    said = refused(make(target, operator(service), STACK=stack, CLIENT="web", ID=GENERATION), code=2)
    assert "a stack is not named" in said if stack[:3].lower() in ("aws", "ssm") else "a stack is 1 to 128" in said


@pytest.mark.parametrize("target", TARGETS)
def test_a_stack_that_is_not_there_is_refused_by_its_name(service: Service, target: str) -> None:
    done = make(target, operator(service), STACK="no-such-stack", CLIENT="web", ID=GENERATION)
    assert refused(done) == f"there is no stack no-such-stack in {REGION}"
    ssm = service.stack.client("ssm")
    assert ssm.get_parameters_by_path(Path="/no-such-stack", Recursive=True)["Parameters"] == []


@pytest.mark.parametrize("generation_id", ["", "gen_", "batch_AAECAwQFBgcICQoLDA0ODw"])
def test_a_generation_that_is_none_is_refused(service: Service, generation_id: str) -> None:
    assert "a generation's id is gen_" in refused(make("retry", operator(service), ID=generation_id), code=2)


@pytest.mark.parametrize(
    ("base_url", "key"),
    [("", "ig_a"), ("https://a.example/v1", ""), ("a.example/v1", "ig_a"), ("https://a.example", "ig_a")],
)
def test_a_deployment_that_cannot_be_verified_is_refused(base_url: str, key: str) -> None:
    assert "make verify needs BASE_URL=https://…/v1" in refused(make("verify", {}, BASE_URL=base_url, KEY=key))


def test_a_generation_that_is_not_there_and_a_stack_without_any_are_refused(service: Service) -> None:
    assert refused(make("retry", operator(service), ID=GENERATION)).startswith(f"{GENERATION} cannot be tried again")
    stack = stack_of_another_name(service, "without-generations")
    assert refused(make("retry", operator(service), STACK=stack, ID=GENERATION)).startswith(
        f"{stack} has no generations"
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("taken", "said"),
    [
        (["AWS_DEFAULT_REGION"], "region"),
        (list(CREDENTIALS), "credentials"),
    ],
)
def test_what_is_missing_to_reach_aws_is_told_in_a_line(
    service: Service, target: str, taken: list[str], said: str
) -> None:
    environment = {name: value for name, value in operator(service).items() if name not in taken}
    assert said in refused(make(target, environment, CLIENT="nobody", ID=GENERATION))


@pytest.mark.parametrize("target", TARGETS)
def test_a_profile_that_is_not_there_is_named(service: Service, target: str) -> None:
    done = make(target, operator(service, AWS_PROFILE="nobodys"), CLIENT="nobody", ID=GENERATION)
    assert "nobodys" in refused(done)


@pytest.mark.parametrize("target", TARGETS)
def test_whoever_may_not_is_told_so_in_a_line(service: Service, target: str) -> None:
    """The authorizer's role may read a client's record and nothing else."""
    environment = operator(service, AWS_ACCESS_KEY_ID="AuthorizerFunction")
    done = make(target, environment, CLIENT="denied", ID=GENERATION)
    assert "AccessDenied" in refused(done)


@pytest.mark.parametrize("target", TARGETS)
def test_a_region_without_an_answer_is_told_in_a_line(service: Service, target: str, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("[default]\nmax_attempts = 1\n")
    elsewhere = operator(service, AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_CONFIG_FILE=str(config))
    assert "127.0.0.1:9" in refused(make(target, elsewhere, CLIENT="nobody", ID=GENERATION))
