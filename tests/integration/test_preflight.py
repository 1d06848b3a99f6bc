"""`make preflight` against moto, and against a server of the test for quotas and broken stacks, which moto lacks."""

import io
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import boto3
import pytest
from botocore.loaders import Loader
from samtranslator.yaml_helper import yaml_parse

from local.serving import Reply, Request, serving
from local.template import Template
from tests.conftest import ROOT
from tools.preflight import ENVIRONMENTS, executions_needed, main

Done = subprocess.CompletedProcess[str]
REGION = "us-east-1"
SECRET = "sk-canary-of-the-preflight"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "operator",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
}
REFUSAL = "<ErrorResponse><Error><Type>Sender</Type><Code>{}</Code><Message>{}</Message></Error></ErrorResponse>"


@dataclass
class Account:
    """The state of the stand-in for AWS. `status` is the stack's, None if it is missing; `quota` is Lambda's."""

    aws_url: str
    config: Path
    stack: str
    quota: int = 1000
    status: str | None = None
    parameters: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=lambda: ["UpstreamBaseUrl=https://api.example.com/v1"])
    refuses: bool = False

    def put_key(self, kind: Any = "SecureString", name: str = "upstreams/upstream-api-key") -> None:
        keys = {"aws_access_key_id": "operator", "aws_secret_access_key": "secret"}
        ssm: Any = boto3.client("ssm", endpoint_url=self.aws_url, region_name=REGION, **keys)  # type: ignore[call-overload]
        ssm.put_parameter(Name=f"/{self.stack}/{name}", Type=kind, Value=SECRET)
        ssm.close()

    def answer(self, request: Request) -> Reply:
        """Answers as CloudFormation and Lambda."""
        if self.refuses:
            return Reply(403, REFUSAL.format("AccessDenied", "no").encode())
        if request.target.startswith("/2016-08-19/account-settings"):
            limit = {"UnreservedConcurrentExecutions": self.quota, "ConcurrentExecutions": 5000}
            return Reply(200, json.dumps({"AccountLimit": limit}).encode())
        if self.status is None:
            return Reply(400, REFUSAL.format("ValidationError", "Stack with id x does not exist").encode())
        parameters = "".join(
            f"<member><ParameterKey>{name}</ParameterKey><ParameterValue>{value}</ParameterValue></member>"
            for name, value in self.parameters.items()
        )
        stack = (
            f"<StackName>{self.stack}</StackName><CreationTime>2026-11-22T12:00:00Z</CreationTime>"
            f"<StackStatus>{self.status}</StackStatus><Parameters>{parameters}</Parameters>"
        )
        result = f"<DescribeStacksResult><Stacks><member>{stack}</member></Stacks></DescribeStacksResult>"
        return Reply(200, f"<DescribeStacksResponse>{result}</DescribeStacksResponse>".encode())

    @contextmanager
    def environment(self) -> Iterator[dict[str, str]]:
        listed = ", ".join(json.dumps(pair) for pair in self.overrides)
        self.config.write_text(
            f'[dev.global.parameters]\nstack_name = "{self.stack}"\n'
            f"[dev.deploy.parameters]\nparameter_overrides = [{listed}]\n"
        )
        with serving(self.answer) as port:
            url = f"http://127.0.0.1:{port}"
            kept = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_") or name == "PATH"}
            stand_in = {"AWS_ENDPOINT_URL_CLOUDFORMATION": url, "AWS_ENDPOINT_URL_LAMBDA": url}
            own = {"PYTHONPATH": str(ROOT / "layers/imagegen"), "AWS_DEFAULT_REGION": REGION}
            yield {**kept, **CREDENTIALS, **own, "AWS_ENDPOINT_URL": self.aws_url, **stand_in}

    def preflight(
        self, environment: str = "dev", *, without: tuple[str, ...] = (), profile: str | None = None, **other: str
    ) -> Done:
        """Runs the tool in this process, since a process takes a second to start."""
        tools = self.config.parent
        (tools / "python3.13").touch(0o755)
        options = {"sam": sys.executable, "python": str(tools), "config": str(self.config), **other}
        arguments = ["preflight", environment, *(f"--{name}={value}" for name, value in options.items())]
        out, err = io.StringIO(), io.StringIO()
        with self.environment() as variables:
            given = {name: value for name, value in variables.items() if name not in without}
            given |= {"AWS_PROFILE": profile} if profile else {}
            surroundings = (patch.dict(os.environ, given, clear=True), patch.object(sys, "argv", arguments))
            with surroundings[0], surroundings[1], redirect_stdout(out), redirect_stderr(err):
                try:
                    code = main()
                except SystemExit as end:
                    code = int(end.code or 0)
        assert SECRET not in out.getvalue() + err.getvalue()
        return Done("preflight", code, out.getvalue(), err.getvalue())

    def missing(self, *arguments: str, **options: Any) -> list[str]:
        """The missing prerequisites, each with its fix on one line."""
        done = self.preflight(*arguments, **options)
        assert (done.returncode, done.stdout) == (1, ""), done
        return done.stderr.replace("\n    ", " → ").splitlines()


@pytest.fixture(scope="module", autouse=True)
def _parsed_once() -> Iterator[None]:
    """Caches the template and botocore's data, which the tool reads in each run."""
    loader = Loader()
    with (
        patch("tools.preflight.yaml_parse", cache(yaml_parse)),
        patch("botocore.session.create_loader", lambda _: loader),
    ):
        yield


@pytest.fixture
def account(aws_url: str, tmp_path: Path) -> Account:
    """Only the upstream's key is missing."""
    return Account(aws_url, tmp_path / "samconfig.toml", f"imagegen-{uuid4().hex[:8]}")


@pytest.fixture
def ready(account: Account) -> Account:
    account.put_key()
    return account


def test_preflight_succeeds_if_nothing_is_missing(ready: Account) -> None:
    message = f"nothing is missing for {ready.stack} in {REGION}\n"
    assert vars(ready.preflight()) == vars(Done("preflight", 0, message, ""))
    # The deployed stack keeps its parameters.
    ready.parameters = {"UpstreamBaseUrl": "https://api.example.com/v1"}
    ready.overrides, ready.status = [], "UPDATE_COMPLETE"
    assert ready.preflight().stdout == message


def test_each_missing_prerequisite_is_listed_with_its_fix(account: Account) -> None:
    account.overrides, account.quota, account.status = ["ImagePerDay=5"], 10, "ROLLBACK_COMPLETE"
    fixes = [each.partition(" → ")[2] for each in account.missing(sam="/nowhere/sam", python="/nowhere")]
    assert all(fixes), fixes
    assert "make .venv-sam/ready" in fixes[0]
    assert "docs/configuration.md" in fixes[2]
    assert f"aws cloudformation delete-stack --stack-name {account.stack}" in fixes[3]
    name = f"/{account.stack}/upstreams/upstream-api-key"
    assert fixes[4] == f'aws ssm put-parameter --name {name} --type SecureString --value "$UPSTREAM_API_KEY"'
    assert "UpstreamBaseUrl=…" in fixes[5]
    assert "[dev.deploy.parameters]" in fixes[5]
    assert "aws service-quotas request-service-quota-increase" in fixes[6]
    assert len(fixes) == 7


def test_a_key_of_an_earlier_version_is_copied_and_deleted_only_after_the_deployment(account: Account) -> None:
    """The deployed version reads the old parameter until it is replaced."""
    account.put_key(name="upstream-api-key")
    old, new = f"/{account.stack}/upstream-api-key", f"/{account.stack}/upstreams/upstream-api-key"
    (line,) = account.missing()
    _, copy, delete = line.split(" → ")
    assert f"aws ssm get-parameter --name {old} --with-decryption" in copy
    assert copy.endswith(f'&& aws ssm put-parameter --name {new} --type SecureString --value "$UPSTREAM_API_KEY"')
    assert delete == f"and after the deployment: aws ssm delete-parameter --name {old}"
    account.put_key()
    assert account.preflight().returncode == 0


def test_an_unencrypted_key_must_be_replaced(account: Account) -> None:
    account.put_key("String")
    (line,) = account.missing()
    assert "is not a SecureString → aws ssm delete-parameter" in line


@pytest.mark.parametrize(
    ("status", "fix"),
    [
        ("UPDATE_ROLLBACK_COMPLETE", None),
        ("REVIEW_IN_PROGRESS", None),
        ("DELETE_FAILED", "delete-stack"),
        ("UPDATE_ROLLBACK_FAILED", "continue-update-rollback"),
        ("CREATE_IN_PROGRESS", "wait stack-create-complete"),
        ("UPDATE_COMPLETE_CLEANUP_IN_PROGRESS", "wait stack-update-complete"),
        ("UPDATE_ROLLBACK_IN_PROGRESS", "wait stack-rollback-complete"),
        ("DELETE_IN_PROGRESS", "wait stack-delete-complete"),
    ],
)
def test_a_stack_in_a_broken_state_has_its_fix(ready: Account, status: str, fix: str | None) -> None:
    ready.status = status
    if fix is None:
        assert ready.preflight().returncode == 0
    else:
        (line,) = ready.missing()
        assert f"aws cloudformation {fix} --stack-name {ready.stack}" in line


@pytest.mark.parametrize(
    ("overrides", "quota", "enough"),
    [
        ([], 231, True),
        ([], 230, False),
        (["ApiIsFirstWorker=false"], 131, True),
        (["ApiIsFirstWorker=false"], 130, False),
        (["WaitSeconds=0", *(f"{part}Concurrency='2'" for part in ("Worker", "Batch", "Poll", "Intake"))], 10, True),
    ],
)
def test_lambdas_quota_must_cover_the_parameters(
    ready: Account, overrides: list[str], quota: int, enough: bool
) -> None:
    ready.overrides, ready.quota = [*ready.overrides, *overrides], quota
    if enough:
        assert ready.preflight().returncode == 0
    else:
        assert f"at most {quota} executions" in ready.missing()[0]


@pytest.mark.parametrize("stack", ["aws-images", "SSMimages", "images_dev", "1images"])
def test_an_invalid_stack_name_must_be_replaced(account: Account, stack: str) -> None:
    account.stack = stack
    (line,) = account.missing()
    assert line.startswith(f"samconfig.toml names the stack for dev {stack}: a stack")
    assert line.endswith('stack_name = "imagegen-dev"')


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"profile": "unknown"}, "AWS was not checked: The config profile (unknown)"),
        ({"without": ("AWS_DEFAULT_REGION",)}, "no region is set"),
        ({"without": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}, "no credentials are set"),
        ({}, "the credentials do not work: "),
    ],
    ids=["profile", "region", "credentials", "refused"],
)
def test_a_missing_credential_or_region_is_named(account: Account, options: dict[str, Any], words: str) -> None:
    account.aws_url = "http://127.0.0.1:9"  # a closed port
    (line,) = account.missing(**options)
    assert line.startswith(words)


def test_a_missing_permission_is_named_with_its_action(ready: Account) -> None:
    ready.refuses = True
    actions = [line.partition(" → ")[2].split()[1] for line in ready.missing()]
    assert actions == ["cloudformation:DescribeStacks", "lambda:GetAccountSettings"]


def test_an_unknown_environment_or_a_missing_section_is_refused(account: Account) -> None:
    for environment in ("production", "default", "", "Dev"):
        done = account.preflight(environment)
        assert done.returncode == 2
        assert "choose from" in done.stderr
    assert account.missing("staging")[0].startswith("samconfig.toml names no stack for staging → ")


def test_make_deploys_nothing_if_something_is_missing(account: Account) -> None:
    make = ["make", "--old-file=.venv/ready", "--old-file=.venv-sam/ready", "deploy", "ENV=staging"]
    with account.environment() as variables:
        done = subprocess.run(make, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "aws ssm put-parameter --name /imagegen-staging/upstreams/upstream-api-key" in done.stderr
    assert "UpstreamBaseUrl has no value" in done.stderr
    assert "sam build" not in done.stdout + done.stderr


def test_each_environment_has_its_own_stack_and_only_prod_confirms_changes() -> None:
    config = tomllib.loads((ROOT / "samconfig.toml").read_text())
    names = {config[environment]["global"]["parameters"]["stack_name"] for environment in ENVIRONMENTS}
    assert len(names) == len(ENVIRONMENTS)
    for environment in ENVIRONMENTS:
        # Changes to production need a confirmation; elsewhere a deployment is one command.
        parameters = config[environment]["deploy"]["parameters"]
        assert parameters["confirm_changeset"] is (environment == "prod")


def test_every_consumer_of_a_queue_is_counted() -> None:
    template = Template.read(ROOT / "template.yaml", {"UpstreamBaseUrl": "https://api.example.com/v1"}, REGION)
    mappings = template.of_type("AWS::Lambda::EventSourceMapping").values()
    bounded = [each["ScalingConfig"]["MaximumConcurrency"] for each in mappings if "ScalingConfig" in each]

    consumers = sum(40 if isinstance(most, dict) else int(most) for most in bounded)
    queues = ("WorkerConcurrency", "BatchConcurrency", "PollConcurrency", "IntakeConcurrency")
    values = {**dict.fromkeys(queues, 40), "MostWaiters": 7, "WaitSeconds": 1}
    assert executions_needed(template.document, {**values, "ApiIsFirstWorker": "true"}) == consumers + 2 * 7 + 2
