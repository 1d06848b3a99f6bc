"""The operator's tools against the local stack: `make key`, `keys` and `revoke`, and the errors of `make retry`."""

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

import tools.keys
import tools.retry
from imagegen.domain.credentials import BearerKey
from local.aws_door import REGION
from local.stack import CREDENTIALS, ROOT, STACK_NAME
from tests.support.client import Client
from tests.support.programs import Done, called, needs, operator
from tests.support.world import World

pytestmark = pytest.mark.thorough

MAINS = {"key": tools.keys.main, "list": tools.keys.main, "revoke": tools.keys.main, "retry": tools.retry.main}
GENERATION = "gen_AAECAwQFBgcICQoLDA0ODw"
NO_CONFIG = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
NO_CONFIG["AWS_EC2_METADATA_DISABLED"] = "true"
each_tool = pytest.mark.parametrize("name", MAINS)


def tool(world: World, name: str, *arguments: str, stack: str = STACK_NAME, **environment: str) -> Done:
    """Runs a tool as `make` calls it, with the options that it needs."""
    needed = {"key": ["--client=unknown"], "list": [], "revoke": ["--client=unknown"], "retry": [f"--id={GENERATION}"]}
    command = [] if name == "retry" else [name]
    given = {name: value for name, value in {**operator(world), **NO_CONFIG, **environment}.items() if value}
    return called(MAINS[name], *command, f"--stack={stack}", *needed[name], *arguments, **given)


def make(*arguments: str, **environment: str) -> Done:
    """Runs a target as an operator does, but without an update of the virtual environment."""
    needs("make")
    command, env = ["make", "--old-file=.venv/ready", *arguments], {"PATH": os.environ["PATH"], **NO_CONFIG}
    done = subprocess.run(command, cwd=ROOT, env=env | environment, capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def refused(done: Done, code: int = 1) -> str:
    """The one line of the error, below argparse's usage."""
    assert (done.returncode, done.stdout) == (code, ""), done
    message = [line for line in done.stderr.splitlines() if not line.startswith(("usage:", " "))]
    assert len(message) == 1, done.stderr
    return message[0]


def new(caller: str = "web") -> str:
    return f"{caller}-{uuid4().hex[:8]}"


def made(world: World, caller: str, *arguments: str, stack: str = STACK_NAME, before: bool = False) -> str:
    """The key, which is the whole output of `make key`."""
    done = tool(world, "key", f"--client={caller}", *arguments, stack=stack)
    assert done.returncode == 0, done.stderr
    key = BearerKey.parse(done.stdout.removesuffix("\n"))
    assert key
    assert key.caller == caller
    assert key.key not in done.stderr
    assert "shown once" in done.stderr
    assert ("the old key stops working" in done.stderr) is before
    return key.key


def parameter(world: World, caller: str) -> Any:
    return world.aws("ssm").get_parameter(Name=f"/{STACK_NAME}/clients/{caller}")["Parameter"]


def record(world: World, caller: str) -> Any:
    return json.loads(parameter(world, caller)["Value"])


def put(world: World, caller: str, value: str) -> str:
    world.aws("ssm").put_parameter(Name=f"/{STACK_NAME}/clients/{caller}", Type="String", Value=value)
    return caller


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def status(world: World, key: str, blanks: str = "") -> int:
    return Client(world.base_url, "").get("/models", Authorization=f"Bearer {blanks}{key}").status


def in_five_minutes(world: World, *keys: str) -> list[int]:
    """The answers to the keys when both caches are empty.

    A new process has no cache. A blank changes the header, which is the key of the gateway's cache.
    """
    world.kill("AuthorizerFunction")
    return [status(world, key, blanks=" ") for key in keys]


@pytest.fixture
def other_stack(world: World) -> Iterator[str]:
    """A stack with one resource and no callers."""
    name, topic = new("other-stack"), {"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}}
    world.aws("cloudformation").create_stack(StackName=name, TemplateBody=json.dumps(topic))
    yield name
    world.aws("cloudformation").delete_stack(StackName=name)


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("key CLIENT=web IMAGES_PER_DAY=0", 'keys key --stack="s" --client="web" --images-per-day="0"'),
        ("key CLIENT=web USD_PER_DAY=0.5", 'keys key --stack="s" --client="web" --usd-per-day="0.5"'),
        ("key CLIENT=web REPLACE=1", 'keys key --stack="s" --client="web" --replace'),
        ("key CLIENT=web REPLACE=0", 'keys key --stack="s" --client="web"'),
        ("key REPLACE=no", 'keys key --stack="s" --client=""'),
        ("keys", 'keys list --stack="s"'),
        ("revoke CLIENT=web", 'keys revoke --stack="s" --client="web"'),
        ("retry ID=gen_x", 'retry --stack="s" --id="gen_x"'),
    ],
)
def test_the_targets_call_the_tools(target: str, command: str) -> None:
    done = make("--dry-run", *target.split(), "STACK=s")
    assert " ".join(done.stdout.replace("\\\n", " ").split()) == f".venv/bin/python -m tools.{command}"


def test_make_fails_if_a_tool_refuses(world: World) -> None:
    done = make("revoke", f"STACK={STACK_NAME}", "CLIENT=unknown", **operator(world))
    message, end = done.stderr.splitlines()
    assert (done.returncode, done.stdout, message) == (2, "", f"there is no caller unknown in {STACK_NAME}")
    assert end.endswith("Error 1")


@pytest.mark.parametrize(
    ("base_url", "key"),
    [("", "ig_a"), ("https://a.example/v1", ""), ("a.example/v1", "ig_a"), ("https://a.example", "ig_a")],
)
def test_a_deployment_that_cannot_be_verified_is_refused(base_url: str, key: str) -> None:
    done = make("verify", f"BASE_URL={base_url}", f"KEY={key}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "make verify needs BASE_URL=https://…/v1" in done.stderr.splitlines()[0]


def test_a_new_key_works_and_ssm_has_only_its_hash(world: World) -> None:
    caller = new()
    key = made(world, caller)
    assert status(world, key) == 200
    assert record(world, caller) == {"key_sha256": digest(key)}
    assert parameter(world, caller)["Type"] == "String"
    ssm = world.aws("ssm")
    held = ssm.get_parameters_by_path(Path="/", Recursive=True, WithDecryption=True)["Parameters"]
    described = ssm.describe_parameters()["Parameters"]
    assert key.removeprefix(f"ig_{caller}_") not in repr([held, described])
    assert made(world, new())[-43:] != key[-43:]


@pytest.mark.parametrize("images", [0, 50, 1_000_000_000])
def test_a_key_and_its_quota_stay_without_replace(world: World, images: int) -> None:
    caller = new()
    key = made(world, caller, f"--images-per-day={images}")
    assert record(world, caller) == {"key_sha256": digest(key), "images_per_day": images}
    again = tool(world, "key", f"--client={caller}", "--images-per-day=4")
    assert f"{caller} already has a key: REPLACE=1" in refused(again)
    assert record(world, caller) == {"key_sha256": digest(key), "images_per_day": images}
    assert status(world, key) == 200


def test_a_replaced_or_revoked_key_stops_working_and_the_new_one_works(world: World) -> None:
    turns, gone = new("turns"), new("gone")
    old, left = made(world, turns, "--images-per-day=7"), made(world, gone)
    assert [status(world, old), status(world, left)] == [200, 200]
    before = parameter(world, turns)["LastModifiedDate"]
    key = made(world, turns, "--replace", before=True)
    revoked = tool(world, "revoke", f"--client={gone}")
    assert (revoked.returncode, revoked.stdout) == (0, f"the key of {gone} stops working within five minutes\n")
    assert in_five_minutes(world, old, left, key) == [401, 401, 200]
    assert record(world, turns) == {"key_sha256": digest(key), "images_per_day": 7}
    assert parameter(world, turns)["LastModifiedDate"] > before
    assert refused(tool(world, "revoke", f"--client={gone}")) == f"there is no caller {gone} in {STACK_NAME}"


def test_replace_also_makes_a_first_key_and_changes_the_quota(world: World) -> None:
    caller = new()
    assert status(world, made(world, caller, "--replace", "--images-per-day=7")) == 200
    key = made(world, caller, "--images-per-day=0", "--usd-per-day=0.034", "--replace", before=True)
    quotas = {"images_per_day": 0, "usd_per_day": 34_000}
    assert record(world, caller) == {"key_sha256": digest(key), **quotas}
    key = made(world, caller, "--replace", before=True)
    assert record(world, caller) == {"key_sha256": digest(key), **quotas}


@pytest.mark.parametrize("value", ["no json", "[]", '{"images_per_day": 5}', '{"key_sha256": "x", "barred": true}'])
def test_replacing_an_unreadable_record_warns_that_it_is_lost(world: World, value: str) -> None:
    caller = put(world, new("odd"), value)
    done = tool(world, "key", f"--client={caller}", "--replace")
    assert done.returncode == 0
    assert "the old record was unreadable, so none of it was kept" in done.stderr
    assert record(world, caller) == {"key_sha256": digest(done.stdout.strip())}


def test_callers_are_listed_with_their_quotas_and_without_their_keys(world: World) -> None:
    of = new("of")
    keys = {f"{of}-{number:02}": made(world, f"{of}-{number:02}", f"--images-per-day={number}") for number in range(2)}
    keys[f"{of}-02"] = made(world, f"{of}-02", "--usd-per-day=5")
    keys[f"{of}-03"] = made(world, f"{of}-03", "--usd-per-day=0.5", "--images-per-day=7")
    for number in range(4, 25):  # more than one answer of SSM holds
        key = BearerKey.new(f"{of}-{number:02}")
        keys[put(world, key.caller, json.dumps({"key_sha256": digest(key.key)}))] = key.key
    put(world, f"{of}-unread", "{" + keys[f"{of}-00"])
    done = tool(world, "list")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if line.startswith(of)]
    assert [line.split()[0] for line in lines] == [*sorted(keys), f"{of}-unread"]
    written = re.compile(r"\S+ +20\d\d-\d\d-\d\d \d\d:\d\d UTC  (.*)")
    quotas = [match[1] if (match := written.fullmatch(line)) else line for line in lines]
    own = ["0 images a day", "1 image a day", "5 USD a day", "7 images a day, 0.5 USD a day"]
    assert quotas == [*own, *["the stack's quota"] * 21, "unreadable: no key works"]
    for shown in (*keys.values(), *world.stack.keys.values()):
        assert shown[-43:] not in done.stdout  # the secret
        assert digest(shown) not in done.stdout
    assert "sha256" not in done.stdout


def test_a_stack_without_callers_has_an_empty_list(world: World, other_stack: str) -> None:
    done = tool(world, "list", stack=other_stack)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"there are no callers under /{other_stack}/clients\n"


def test_a_caller_belongs_to_one_stack(world: World, other_stack: str) -> None:
    caller = new("abroad")
    key = made(world, caller, stack=other_stack)
    assert status(world, key) == 401
    assert caller not in tool(world, "list").stdout
    assert refused(tool(world, "revoke", f"--client={caller}")).startswith("there is no caller")


@pytest.mark.parametrize("name", ["key", "revoke"])
@pytest.mark.parametrize("caller", ["", "Web", "-web", "../upstream-api-key"])
def test_an_invalid_name_is_refused(world: World, name: str, caller: str) -> None:
    message = refused(tool(world, name, f"--client={caller}"), code=2)
    assert message.endswith("a caller's name is 1 to 32 of a-z, 0-9 and -, and begins with a letter or a digit")


@pytest.mark.parametrize("images", ["-1", "many", "1000000001"])
def test_an_invalid_quota_is_refused(world: World, images: str) -> None:
    assert "a whole number from 0" in refused(tool(world, "key", f"--images-per-day={images}"), code=2)


@pytest.mark.parametrize("usd", ["-1", "many", "1000000.000001", "0.0000001", "5,50", "1e3", ".5", ""])
def test_an_invalid_quota_in_money_is_refused(world: World, usd: str) -> None:
    assert "an amount in USD from 0 to 1000000" in refused(tool(world, "key", f"--usd-per-day={usd}"), code=2)


@pytest.mark.parametrize("generation_id", ["", "gen_", "batch_AAECAwQFBgcICQoLDA0ODw"])
def test_an_invalid_generation_id_is_refused(world: World, generation_id: str) -> None:
    assert "a generation's id is gen_" in refused(tool(world, "retry", f"--id={generation_id}"), code=2)


def test_a_missing_generation_or_a_stack_without_any_is_refused(world: World, other_stack: str) -> None:
    assert refused(tool(world, "retry")).startswith(f"{GENERATION} cannot be tried again")
    assert refused(tool(world, "retry", stack=other_stack)).startswith(f"{other_stack} has no generations")


@each_tool
@pytest.mark.parametrize("stack", ["", "no_stack", "AWS-images", "ssm"])
def test_an_invalid_stack_name_is_refused(world: World, name: str, stack: str) -> None:
    reserved = stack[:3].lower() in ("aws", "ssm")
    message = "a stack cannot be named" if reserved else "a stack's name has 1 to 128"
    assert message in refused(tool(world, name, stack=stack), code=2)


@each_tool
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"stack": "no-such-stack"}, f"there is no stack no-such-stack in {REGION}"),
        ({"AWS_DEFAULT_REGION": ""}, "region"),
        (dict.fromkeys(CREDENTIALS, ""), "credentials"),
        ({"AWS_PROFILE": "unknown"}, "unknown"),
        ({"AWS_ACCESS_KEY_ID": "AuthorizerFunction"}, "AccessDenied"),  # may only read a caller's record
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}, "127.0.0.1:9"),
    ],
    ids=["no such stack", "no region", "no credentials", "no such profile", "denied", "no answer"],
)
def test_each_error_is_one_line(world: World, name: str, changed: dict[str, str], message: str) -> None:
    assert message in refused(tool(world, name, **changed))
    assert world.aws("ssm").get_parameters_by_path(Path="/no-such-stack", Recursive=True)["Parameters"] == []
