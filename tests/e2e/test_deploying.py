"""The commands of docs/deploying.md run as shown, except for the name of the stack."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from local.aws_door import REGION
from local.stack import STACK_NAME
from local.template import Template
from tests.conftest import ROOT
from tests.support import programs
from tests.support.waiting import until
from tests.support.world import running_world

PAGE = ROOT / "docs/deploying.md"
UPSTREAM = {"UpstreamBaseUrl": "https://api.example.com/v1"}


def block(language: str, holding: str) -> str:
    return programs.block(PAGE, language, holding).replace("imagegen-dev", STACK_NAME)


@pytest.mark.soak  # fifteen starts of the AWS CLI
def test_the_commands_work_from_the_first_key_to_the_removal(tmp_path: Path) -> None:
    programs.needs("bash", "curl", "aws")
    with running_world(tmp_path / "logs") as world:
        caller, aws = world.caller(), world.aws
        environment = {**programs.operator(world), "KEY": caller.key, "BASE_URL": caller.base_url}

        def run(text: str, typed: str = "") -> str:
            text = f"set -euo pipefail\n{text}".replace(".venv/bin/python", sys.executable)
            return programs.bash(text, environment, tmp_path, typed)

        secret = block("bash", "put-parameter").replace(f"/{STACK_NAME}/", "/another/")  # this one has its key already
        run(secret, typed="sk-typed\n")
        stored = aws("ssm").get_parameter(Name="/another/upstreams/upstream-api-key", WithDecryption=True)["Parameter"]
        assert (stored["Type"], stored["Value"]) == ("SecureString", "sk-typed")

        ask = block("bash", "put-events").replace('\\"web\\"', f'\\"{caller.name}\\"').replace("sleep 5", "")
        put_events, listing = ask.split("curl", 1)
        assert json.loads(run(put_events))["FailedEntryCount"] == 0
        until(caller.newest)
        (begun,) = json.loads(run("curl --silent " + listing))["data"]
        assert caller.until_ended(begun["id"])["status"] == "completed"
        made = json.loads(run(block("bash", "curl --location").replace("curl ", "curl --silent ")))
        assert caller.get(f"/images/{made['data'][0]['id']}").status == 302

        run(block("bash", "create-open-id-connect-provider"))
        (tmp_path / "trust.json").write_text(block("json", "sts:AssumeRoleWithWebIdentity"))
        run(block("bash", "create-role"))

        for body in (b"first", b"second"):
            aws("s3").put_object(Bucket=world.stack.inbox, Key="kept/twice.txt", Body=body)
        aws("s3").delete_object(Bucket=world.stack.inbox, Key="kept/twice.txt")
        names, left = block("bash", "name() {"), block("bash", "delete-bucket")
        table = aws("dynamodb").list_tables()["TableNames"]
        assert run(names).split() == [world.stack.bucket, world.stack.inbox, *table]
        run(f"{names}\n{left}")
        assert aws("s3").list_buckets()["Buckets"] == []
        assert aws("dynamodb").list_tables()["TableNames"] == []
        assert aws("ssm").get_parameters_by_path(Path=f"/{STACK_NAME}", Recursive=True)["Parameters"] == []


def test_the_page_removes_what_a_removed_stack_leaves() -> None:
    template = Template.read(ROOT / "template.yaml", UPSTREAM, REGION)
    kept = {name for name, each in template.resources.items() if each.get("DeletionPolicy") == "Retain"}
    assert kept == set(re.findall(r"\$\(name (\w+)\)", PAGE.read_text()))


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
def test_each_addition_of_the_page_fits_the_template(heading: str, made: set[str], tmp_path: Path) -> None:
    section = PAGE.read_text().partition(f"### {heading}\n")[2]
    snippet = yaml_parse(section.partition("```yaml\n")[2].partition("```")[0])
    template = tmp_path / "template.yaml"
    template.write_text(json.dumps(merged(yaml_parse((ROOT / "template.yaml").read_text()), snippet)))
    kinds = {each["Type"] for each in Template.read(template, UPSTREAM, REGION).resources.values()}
    plain = {each["Type"] for each in Template.read(ROOT / "template.yaml", UPSTREAM, REGION).resources.values()}
    assert made <= kinds - plain
