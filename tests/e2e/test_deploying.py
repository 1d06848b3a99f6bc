"""docs/deploying.md's commands, run as they stand there but for the stack's name, from the first key to the removal."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from local.aws_door import REGION
from local.stack import CREDENTIALS, STACK_NAME
from local.template import Template
from tests.conftest import ROOT
from tests.e2e.conftest import Service, serve
from tests.e2e.test_generations import get, until_ended

PAGE = (ROOT / "docs/deploying.md").read_text()
UPSTREAM = {"UpstreamBaseUrl": "https://api.example.com/v1"}


def block(language: str, holding: str) -> str:
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if holding in text]
    return str(found).replace("imagegen-dev", STACK_NAME)


def as_operator(service: Service, folder: Path) -> Callable[..., str]:
    """Runs a shell text with the local stack's AWS; gives what it prints."""
    environment = {
        "PATH": os.environ["PATH"],
        "AWS_ENDPOINT_URL": service.stack.aws_url,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": os.devnull,
        "KEY": service.key,
        "BASE_URL": service.base_url,
        **CREDENTIALS,
    }

    def run(text: str, typed: str = "") -> str:
        command = ["bash", "-euo", "pipefail", "-c", text.replace(".venv/bin/python", sys.executable)]
        done = subprocess.run(
            command, cwd=folder, env=environment, input=typed, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.soak  # fifteen starts of the AWS CLI
@pytest.mark.skipif(None in map(shutil.which, ("bash", "curl", "aws")), reason="bash, curl or the AWS CLI is not there")
def test_a_newcomers_path_from_the_first_key_to_the_removal(tmp_path: Path) -> None:
    with serve("source", tmp_path / "logs") as service:
        run = as_operator(service, tmp_path)
        aws = service.stack.client

        secret = block("bash", "put-parameter").replace(f"/{STACK_NAME}/", "/another/")  # ours has its key already
        run(secret, typed="sk-typed\n")
        stored = aws("ssm").get_parameter(Name="/another/upstream-api-key", WithDecryption=True)["Parameter"]
        assert (stored["Type"], stored["Value"]) == ("SecureString", "sk-typed")

        ask = block("bash", "put-events").replace('\\"web\\"', '\\"local\\"')
        put_events, listing = ask.split("curl", 1)
        assert json.loads(run(put_events))["FailedEntryCount"] == 0
        while not json.loads(run("curl --silent " + listing))["data"]:
            time.sleep(0.2)
        (begun,) = json.loads(run("curl --silent " + listing))["data"]
        assert until_ended(service, begun["id"])["status"] == "completed"
        made = json.loads(run(block("bash", "curl --location").replace("curl ", "curl --silent ")))
        assert get(service, f"/images/{made['data'][0]['id']}")[0] == 302

        run(block("bash", "create-open-id-connect-provider"))
        (tmp_path / "trust.json").write_text(block("json", "sts:AssumeRoleWithWebIdentity"))
        run(block("bash", "create-role"))

        for body in (b"first", b"second"):
            aws("s3").put_object(Bucket=service.stack.inbox, Key="kept/twice.txt", Body=body)
        aws("s3").delete_object(Bucket=service.stack.inbox, Key="kept/twice.txt")
        names, left = block("bash", "name() {"), block("bash", "delete-bucket")
        table = aws("dynamodb").list_tables()["TableNames"]
        assert run(names).split() == [service.stack.bucket, service.stack.inbox, *table]
        run(f"{names}\n{left}")
        assert aws("s3").list_buckets()["Buckets"] == []
        assert aws("dynamodb").list_tables()["TableNames"] == []
        assert aws("ssm").get_parameters_by_path(Path=f"/{STACK_NAME}", Recursive=True)["Parameters"] == []


def test_what_is_left_of_a_removed_stack_is_what_the_page_removes() -> None:
    template = Template.read(ROOT / "template.yaml", UPSTREAM, REGION)
    kept = {name for name, each in template.resources.items() if each.get("DeletionPolicy") == "Retain"}
    assert kept == set(re.findall(r"\$\(name (\w+)\)", PAGE))


def merged(base: Any, added: Any) -> Any:
    if isinstance(base, dict) and isinstance(added, dict):
        return {**base, **{name: merged(base.get(name), value) for name, value in added.items()}}
    return added


@pytest.mark.parametrize(
    ("heading", "made"),
    [
        ("A custom domain", {"AWS::ApiGateway::DomainName", "AWS::ApiGateway::BasePathMapping"}),
        ("WAF", {"AWS::WAFv2::WebACL", "AWS::WAFv2::WebACLAssociation"}),
        ("SnapStart", {"AWS::Lambda::Alias", "AWS::Lambda::Version"}),
    ],
)
def test_what_may_be_added_to_the_template_fits_it(heading: str, made: set[str], tmp_path: Path) -> None:
    section = PAGE.partition(f"### {heading}\n")[2]
    snippet = yaml_parse(section.partition("```yaml\n")[2].partition("```")[0])
    template = tmp_path / "template.yaml"
    template.write_text(json.dumps(merged(yaml_parse((ROOT / "template.yaml").read_text()), snippet)))
    kinds = {each["Type"] for each in Template.read(template, UPSTREAM, REGION).resources.values()}
    plain = {each["Type"] for each in Template.read(ROOT / "template.yaml", UPSTREAM, REGION).resources.values()}
    assert made <= kinds - plain
