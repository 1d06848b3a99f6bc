"""The README's commands, run as they stand there but for the address."""

import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64decode, b64encode
from urllib.request import urlopen

import msgspec
import pytest
from samtranslator.yaml_helper import yaml_parse

from imagegen.credentials import BearerKey, ClientRecord
from local.aws_door import REGION
from local.serving import Reply
from local.stack import CREDENTIALS
from tests.conftest import ROOT
from tests.e2e.conftest import Service

README = (ROOT / "README.md").read_text()


def block(language: str, holding: str) -> str:
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (found,) = [text for text in blocks if holding in text]
    return found


def needs(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not there")


def run(command: list[str], **environment: str) -> str:
    env = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout


def test_the_curl_command_makes_an_image(service: Service) -> None:
    needs("bash", "curl")
    command = block("bash", "curl").replace("http://127.0.0.1:8000/v1", service.base_url)
    (image,) = json.loads(run(["bash", "-c", command], KEY=service.key))["data"]
    with urlopen(image["permalink"]) as response:
        assert response.read(8) == b"\x89PNG\r\n\x1a\n"


def test_the_curl_command_gets_ten_images_as_base64_however_heavy_they_are(service: Service) -> None:
    """The answer is in the bucket, and a redirect leads there: its URL is signed for GET alone."""
    needs("bash", "curl")
    image = b"\x89PNG\r\n\x1a\n" + os.urandom(500_000) + b"\x00\x00\x00\x00IEND\xaeB`\x82"
    answer = json.dumps({"created": 1, "data": [{"b64_json": b64encode(image).decode()}]}).encode()
    service.upstream.script += [lambda _: Reply(200, answer, {"Content-Type": "application/json"})] * 10
    command = block("bash", "curl").replace("http://127.0.0.1:8000/v1", service.base_url)
    command = command.replace('"n": 1,', '"n": 10, "response_format": "b64_json",')
    images = json.loads(run(["bash", "-c", command], KEY=service.key))["data"]
    assert [b64decode(each["b64_json"]) for each in images] == [image] * 10


def test_the_curl_command_that_a_deployment_prints_makes_an_image(service: Service) -> None:
    needs("bash", "curl")
    text, _ = yaml_parse((ROOT / "template.yaml").read_text())["Outputs"]["Curl"]["Value"]["Fn::Sub"]
    command = text.replace("${Base}/v1", service.base_url)
    assert "${" not in command
    assert len(json.loads(run(["bash", "-c", command], KEY=service.key))["data"]) == 1


def test_the_python_program_prints_both_links(service: Service) -> None:
    program = block("python", "OpenAI(").replace("http://127.0.0.1:8000/v1", service.base_url)
    url, permalink = run([sys.executable, "-c", program], KEY=service.key).split()
    with urlopen(url) as first, urlopen(permalink) as second:
        assert first.read() == second.read()


def test_the_command_that_lets_a_client_in_stores_the_hash_of_the_key_that_it_shows(service: Service) -> None:
    needs("bash", "make")
    nothing = {"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}}
    service.stack.client("cloudformation").create_stack(StackName="imagegen-dev", TemplateBody=json.dumps(nothing))
    aws = {"AWS_ENDPOINT_URL": service.stack.aws_url, "AWS_DEFAULT_REGION": REGION, **CREDENTIALS}
    as_it_is_set_up = 'make() { command make --old-file=.venv/ready "$@"; }\n'
    shown = run(["bash", "-c", as_it_is_set_up + block("bash", "make key")], **aws).strip()
    stored = service.stack.client("ssm").get_parameter(Name="/imagegen-dev/clients/web")["Parameter"]["Value"]
    key = BearerKey.parse(shown)
    assert key
    assert key.client == "web"
    assert key.opens(msgspec.json.decode(stored, type=ClientRecord))
