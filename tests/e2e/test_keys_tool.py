"""The operator's tools against the local stack: `make key`, `keys` and `revoke`, and what `make retry` refuses."""

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

MAINS = {"key": tools.keys.main, "list": tools.keys.main, "revoke": tools.keys.main, "retry": tools.retry.main}
GENERATION = "gen_AAECAwQFBgcICQoLDA0ODw"
NO_CONFIG = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
NO_CONFIG["AWS_EC2_METADATA_DISABLED"] = "true"
each_tool = pytest.mark.parametrize("name", MAINS)


def tool(world: World, name: str, *arguments: str, stack: str = STACK_NAME, **environment: str) -> Done:
    """A tool as `make` calls it, with the options that it needs."""
    needed = {"key": ["--client=nobody"], "list": [], "revoke": ["--client=nobody"], "retry": [f"--id={GENERATION}"]}
    command = [] if name == "retry" else [name]
    given = {name: value for name, value in {**operator(world), **NO_CONFIG, **environment}.items() if value}
    return called(MAINS[name], *command, f"--stack={stack}", *needed[name], *arguments, **given)


def make(*arguments: str, **environment: str) -> Done:
    """The target as an operator calls it, but that the virtual environment is taken as it is."""
    needs("make")
    command, env = ["make", "--old-file=.venv/ready", *arguments], {"PATH": os.environ["PATH"], **NO_CONFIG}
    done = subprocess.run(command, cwd=ROOT, env=env | environment, capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def refused(done: Done, code: int = 1) -> str:
    """The one line that it says, below argparse's usage."""
    assert (done.returncode, done.stdout) == (code, ""), done
    said = [line for line in done.stderr.splitlines() if not line.startswith(("usage:", " "))]
    assert len(said) == 1, done.stderr
    return said[0]


def new(client: str = "web") -> str:
    return f"{client}-{uuid4().hex[:8]}"


def made(world: World, client: str, *arguments: str, stack: str = STACK_NAME, before: bool = False) -> str:
    """The key that `make key` shows, and nothing but the key."""
    done = tool(world, "key", f"--client={client}", *arguments, stack=stack)
    assert done.returncode == 0, done.stderr
    key = BearerKey.parse(done.stdout.removesuffix("\n"))
    assert key
    assert key.client == client
    assert key.key not in done.stderr
    assert "shown once" in done.stderr
    assert ("the one before is dead" in done.stderr) is before
    return key.key


def parameter(world: World, client: str) -> Any:
    return world.aws("ssm").get_parameter(Name=f"/{STACK_NAME}/clients/{client}")["Parameter"]


def record(world: World, client: str) -> Any:
    return json.loads(parameter(world, client)["Value"])


def put(world: World, client: str, value: str) -> str:
    world.aws("ssm").put_parameter(Name=f"/{STACK_NAME}/clients/{client}", Type="String", Value=value)
    return client


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def status(world: World, key: str, blanks: str = "") -> int:
    return Client(world.base_url, "").get("/models", Authorization=f"Bearer {blanks}{key}").status


def in_five_minutes(world: World, *keys: str) -> list[int]:
    """What keys get once both caches have forgotten them.

    The function's goes with its process. The gateway's is by the header's text, to which a blank makes a difference.
    """
    world.kill("AuthorizerFunction")
    return [status(world, key, blanks=" ") for key in keys]


@pytest.fixture
def other_stack(world: World) -> Iterator[str]:
    """A stack that is there, with one resource and no clients."""
    name, topic = new("other-stack"), {"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}}
    world.aws("cloudformation").create_stack(StackName=name, TemplateBody=json.dumps(topic))
    yield name
    world.aws("cloudformation").delete_stack(StackName=name)


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("key CLIENT=web IMAGES_PER_DAY=0", 'keys key --stack="s" --client="web" --images-per-day="0"'),
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
    done = make("revoke", f"STACK={STACK_NAME}", "CLIENT=nobody", **operator(world))
    said, end = done.stderr.splitlines()
    assert (done.returncode, done.stdout, said) == (2, "", f"there is no client nobody in {STACK_NAME}")
    assert end.endswith("Error 1")


@pytest.mark.parametrize(
    ("base_url", "key"),
    [("", "ig_a"), ("https://a.example/v1", ""), ("a.example/v1", "ig_a"), ("https://a.example", "ig_a")],
)
def test_a_deployment_that_cannot_be_verified_is_refused(base_url: str, key: str) -> None:
    done = make("verify", f"BASE_URL={base_url}", f"KEY={key}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "make verify needs BASE_URL=https://…/v1" in done.stderr.splitlines()[0]


def test_a_key_that_was_made_opens_the_api_and_ssm_holds_only_its_hash(world: World) -> None:
    client = new()
    key = made(world, client)
    assert status(world, key) == 200
    assert record(world, client) == {"key_sha256": digest(key)}
    assert parameter(world, client)["Type"] == "String"
    ssm = world.aws("ssm")
    held = ssm.get_parameters_by_path(Path="/", Recursive=True, WithDecryption=True)["Parameters"]
    described = ssm.describe_parameters()["Parameters"]
    assert key.removeprefix(f"ig_{client}_") not in repr([held, described])
    assert made(world, new())[-43:] != key[-43:]


@pytest.mark.parametrize("images", [0, 50, 1_000_000_000])
def test_a_key_stays_with_its_allowance_unless_it_is_to_be_replaced(world: World, images: int) -> None:
    client = new()
    key = made(world, client, f"--images-per-day={images}")
    assert record(world, client) == {"key_sha256": digest(key), "images_per_day": images}
    again = tool(world, "key", f"--client={client}", "--images-per-day=4")
    assert f"{client} has a key already: REPLACE=1" in refused(again)
    assert record(world, client) == {"key_sha256": digest(key), "images_per_day": images}
    assert status(world, key) == 200


def test_a_replaced_key_and_a_revoked_one_are_dead_and_the_new_one_opens(world: World) -> None:
    turns, gone = new("turns"), new("gone")
    old, left = made(world, turns, "--images-per-day=7"), made(world, gone)
    assert [status(world, old), status(world, left)] == [200, 200]
    before = parameter(world, turns)["LastModifiedDate"]
    key = made(world, turns, "--replace", before=True)
    revoked = tool(world, "revoke", f"--client={gone}")
    assert (revoked.returncode, revoked.stdout) == (0, f"the key of {gone} is dead within five minutes\n")
    assert in_five_minutes(world, old, left, key) == [401, 401, 200]
    assert record(world, turns) == {"key_sha256": digest(key), "images_per_day": 7}
    assert parameter(world, turns)["LastModifiedDate"] > before
    assert refused(tool(world, "revoke", f"--client={gone}")) == f"there is no client {gone} in {STACK_NAME}"


def test_a_key_may_be_replaced_that_was_never_made_and_the_allowance_with_it(world: World) -> None:
    client = new()
    assert status(world, made(world, client, "--replace", "--images-per-day=7")) == 200
    made(world, client, "--images-per-day=0", "--replace", before=True)
    assert record(world, client)["images_per_day"] == 0


@pytest.mark.parametrize("value", ["no json", "[]", '{"images_per_day": 5}', '{"key_sha256": "x", "barred": true}'])
def test_replacing_a_record_that_nobody_can_read_says_that_nothing_of_it_was_kept(world: World, value: str) -> None:
    client = put(world, new("odd"), value)
    done = tool(world, "key", f"--client={client}", "--replace")
    assert done.returncode == 0
    assert "could not be read, so nothing of it was kept" in done.stderr
    assert record(world, client) == {"key_sha256": digest(done.stdout.strip())}


def test_who_has_a_key_is_listed_with_its_allowance_and_nothing_of_any_key(world: World) -> None:
    of = new("of")
    keys = {f"{of}-{number:02}": made(world, f"{of}-{number:02}", f"--images-per-day={number}") for number in range(2)}
    for number in range(2, 25):  # more than SSM gives at once
        key = BearerKey.new(f"{of}-{number:02}")
        keys[put(world, key.client, json.dumps({"key_sha256": digest(key.key)}))] = key.key
    put(world, f"{of}-unread", "{" + keys[f"{of}-00"])
    done = tool(world, "list")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if line.startswith(of)]
    assert [line.split()[0] for line in lines] == [*sorted(keys), f"{of}-unread"]
    written = re.compile(r"\S+ +20\d\d-\d\d-\d\d \d\d:\d\d UTC  (.*)")
    allowances = [match[1] if (match := written.fullmatch(line)) else line for line in lines]
    stacks = ["the stack's allowance"] * 23
    assert allowances == ["0 images a day", "1 image a day", *stacks, "unreadable: lets nobody in"]
    for shown in (*keys.values(), *world.stack.keys.values()):
        assert shown[-43:] not in done.stdout  # the secret
        assert digest(shown) not in done.stdout
    assert "sha256" not in done.stdout


def test_a_stack_without_clients_lists_none_and_says_so(world: World, other_stack: str) -> None:
    done = tool(world, "list", stack=other_stack)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"there is no client under /{other_stack}/clients\n"


def test_one_stacks_clients_are_not_anothers(world: World, other_stack: str) -> None:
    client = new("abroad")
    key = made(world, client, stack=other_stack)
    assert status(world, key) == 401
    assert client not in tool(world, "list").stdout
    assert refused(tool(world, "revoke", f"--client={client}")).startswith("there is no client")


@pytest.mark.parametrize("name", ["key", "revoke"])
@pytest.mark.parametrize("client", ["", "Web", "-web", "../upstream-api-key"])
def test_a_name_that_no_key_can_carry_is_refused_clearly(world: World, name: str, client: str) -> None:
    said = refused(tool(world, name, f"--client={client}"), code=2)
    assert said.endswith("a client is 1 to 32 of a-z, 0-9 and -, and begins with a letter or a digit")


@pytest.mark.parametrize("images", ["-1", "many", "1000000001"])
def test_an_allowance_that_is_no_number_is_refused_clearly(world: World, images: str) -> None:
    assert "a whole number from 0" in refused(tool(world, "key", f"--images-per-day={images}"), code=2)


@pytest.mark.parametrize("generation_id", ["", "gen_", "batch_AAECAwQFBgcICQoLDA0ODw"])
def test_a_generation_that_is_none_is_refused(world: World, generation_id: str) -> None:
    assert "a generation's id is gen_" in refused(tool(world, "retry", f"--id={generation_id}"), code=2)


def test_a_generation_that_is_not_there_and_a_stack_without_any_are_refused(world: World, other_stack: str) -> None:
    assert refused(tool(world, "retry")).startswith(f"{GENERATION} cannot be tried again")
    assert refused(tool(world, "retry", stack=other_stack)).startswith(f"{other_stack} has no generations")


@each_tool
@pytest.mark.parametrize("stack", ["", "no_stack", "AWS-images", "ssm"])
def test_a_stack_whose_name_is_none_or_can_hold_no_parameter_is_refused(world: World, name: str, stack: str) -> None:
    said = refused(tool(world, name, stack=stack), code=2)
    assert "a stack is not named" in said if stack[:3].lower() in ("aws", "ssm") else "a stack is 1 to 128" in said


@each_tool
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"stack": "no-such-stack"}, f"there is no stack no-such-stack in {REGION}"),
        ({"AWS_DEFAULT_REGION": ""}, "region"),
        (dict.fromkeys(CREDENTIALS, ""), "credentials"),
        ({"AWS_PROFILE": "nobodys"}, "nobodys"),
        ({"AWS_ACCESS_KEY_ID": "AuthorizerFunction"}, "AccessDenied"),  # may read a client's record and nothing else
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}, "127.0.0.1:9"),
    ],
    ids=["no such stack", "no region", "no credentials", "no such profile", "denied", "no answer"],
)
def test_what_keeps_it_from_its_work_is_said_in_a_line(
    world: World, name: str, changed: dict[str, str], said: str
) -> None:
    assert said in refused(tool(world, name, **changed))
    assert world.aws("ssm").get_parameters_by_path(Path="/no-such-stack", Recursive=True)["Parameters"] == []
