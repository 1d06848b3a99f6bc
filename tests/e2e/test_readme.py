"""The commands of the README run as shown, except for the address and the prompt."""

import json
import os
import sys
from base64 import b64decode
from uuid import uuid4

import msgspec
from samtranslator.yaml_helper import yaml_parse

from imagegen.domain.credentials import BearerKey, CallerRecord
from tests.conftest import ROOT
from tests.support.client import Client, fetched
from tests.support.programs import OTTER, bash, block, needs, operator, run
from tests.support.world import World, answering

README = ROOT / "README.md"


def shown(caller: Client, language: str, holding: str) -> str:
    return block(README, language, holding).replace("http://127.0.0.1:8000/v1", caller.base_url)


def test_the_curl_command_makes_an_image(caller: Client) -> None:
    needs("bash", "curl")
    (image,) = json.loads(bash(shown(caller, "bash", "curl"), {"KEY": caller.key}))["data"]
    assert fetched(image["permalink"]).content.startswith(b"\x89PNG\r\n\x1a\n")


def test_the_curl_command_gets_ten_large_images_as_base64(world: World, caller: Client) -> None:
    """The answer exceeds the 6 MB that Lambda accepts without streaming."""
    needs("bash", "curl")
    image = b"\x89PNG\r\n\x1a\n" + os.urandom(500_000) + b"\x00\x00\x00\x00IEND\xaeB`\x82"
    prompt = world.will(uuid4().hex, *[answering(image)] * 10)
    command = shown(caller, "bash", "curl").replace(OTTER, prompt)
    command = command.replace('"n": 1,', '"n": 10, "response_format": "b64_json",')
    images = json.loads(bash(command, {"KEY": caller.key}))["data"]
    assert [b64decode(each["b64_json"]) for each in images] == [image] * 10


def test_the_curl_command_that_a_deployment_prints_makes_an_image(caller: Client) -> None:
    needs("bash", "curl")
    text, _ = yaml_parse((ROOT / "template.yaml").read_text())["Outputs"]["Curl"]["Value"]["Fn::Sub"]
    command = text.replace("${Base}/v1", caller.base_url)
    assert "${" not in command
    assert len(json.loads(bash(command, {"KEY": caller.key}))["data"]) == 1


def test_the_python_program_prints_both_links_and_edits_the_image(world: World, caller: Client) -> None:
    links = run([sys.executable, "-c", shown(caller, "python", "OpenAI(")], {"KEY": caller.key}).split()
    first, same, edited = (fetched(link).content for link in links)
    assert first == same
    assert first != edited
    assert [call["prompt"] for call in world.calls_with(first)] == ["Put a hat on the otter"]


def test_make_key_stores_the_hash_of_the_key_that_it_prints(world: World) -> None:
    needs("bash", "make")
    nothing = {"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}}
    world.aws("cloudformation").create_stack(StackName="imagegen-dev", TemplateBody=json.dumps(nothing))
    as_it_is_set_up = 'make() { command make --old-file=.venv/ready "$@"; }\n'
    printed = bash(as_it_is_set_up + block(README, "bash", "make key"), operator(world)).strip()
    stored = world.aws("ssm").get_parameter(Name="/imagegen-dev/clients/web")["Parameter"]["Value"]
    key = BearerKey.parse(printed)
    assert key
    assert key.caller == "web"
    assert key.opens(msgspec.json.decode(stored, type=CallerRecord))
