"""`make preflight` against moto, and against an AWS that answers what moto cannot: quotas and broken stacks."""

import io
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch
from uuid import uuid4

import boto3
import pytest

from local.serving import Reply, Request, serving
from local.template import Template
from tests.conftest import ROOT
from tools.preflight import ENVIRONMENTS, executions_needed, main

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
NO_STACK = (
    b"<ErrorResponse><Error><Type>Sender</Type><Code>ValidationError</Code>"
    b"<Message>Stack with id x does not exist</Message></Error></ErrorResponse>"
)


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


@dataclass
class Account:
    """What the AWS that stands in has. `status` is the stack's, None where it is not there; `quota` Lambda's."""

    aws_url: str
    config: Path
    stack: str
    quota: int = 1000
    status: str | None = None
    parameters: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=lambda: ["UpstreamBaseUrl=https://api.example.com/v1"])

    def put_key(self, kind: str = "SecureString") -> None:
        ssm = boto3.client(
            "ssm",
            endpoint_url=self.aws_url,
            region_name=REGION,
            aws_access_key_id="operator",
            aws_secret_access_key="secret",
        )
        ssm.put_parameter(Name=f"/{self.stack}/upstream-api-key", Type=kind, Value=SECRET)  # type: ignore[arg-type]

    def answer(self, request: Request) -> Reply:
        """CloudFormation's and Lambda's."""
        if request.target.startswith("/2016-08-19/account-settings"):
            limit = {"UnreservedConcurrentExecutions": self.quota, "ConcurrentExecutions": 5000}
            return Reply(200, json.dumps({"AccountLimit": limit}).encode())
        if self.status is None:
            return Reply(400, NO_STACK)
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
            yield {
                **kept,
                **CREDENTIALS,
                "PYTHONPATH": str(ROOT / "layers/imagegen"),
                "AWS_DEFAULT_REGION": REGION,
                "AWS_ENDPOINT_URL": self.aws_url,
                "AWS_ENDPOINT_URL_CLOUDFORMATION": url,
                "AWS_ENDPOINT_URL_LAMBDA": url,
            }

    def preflight(
        self, environment: str = "dev", *, without: tuple[str, ...] = (), profile: str | None = None, **other: str
    ) -> Done:
        """What the tool says, in this process: one of its own takes a second to start."""
        tools = self.config.parent
        (tools / "python3.13").touch(0o755)
        options = {"sam": sys.executable, "python": str(tools), "config": str(self.config), **other}
        arguments = ["preflight", environment, *(f"--{name}={value}" for name, value in options.items())]
        out, err = io.StringIO(), io.StringIO()
        with self.environment() as variables:
            given = {name: value for name, value in variables.items() if name not in without}
            given |= {"AWS_PROFILE": profile} if profile else {}
            told = (redirect_stdout(out), redirect_stderr(err))
            with patch.dict(os.environ, given, clear=True), patch.object(sys, "argv", arguments), told[0], told[1]:
                try:
                    code = main()
                except SystemExit as end:
                    code = int(end.code or 0)
        assert SECRET not in out.getvalue() + err.getvalue()
        return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture
def account(aws_url: str, tmp_path: Path) -> Account:
    return Account(aws_url, tmp_path / "samconfig.toml", f"imagegen-{uuid4().hex[:8]}")


def missing(done: Done) -> list[str]:
    """What is missing, each with its mending on one line."""
    assert (done.returncode, done.stdout) == (1, ""), done
    return done.stderr.replace("\n    ", " → ").splitlines()


def test_where_nothing_is_missing_it_says_so(account: Account) -> None:
    account.put_key()
    done = account.preflight()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"nothing is missing for {account.stack} in {REGION}\n"


def test_all_that_is_missing_is_told_at_once_each_with_what_mends_it(account: Account) -> None:
    account.overrides, account.quota, account.status = ["ImagePerDay=5"], 10, "ROLLBACK_COMPLETE"
    told = missing(account.preflight(sam="/nowhere/sam", python="/nowhere"))
    mended = [each.partition(" → ")[2] for each in told]
    assert all(mended), told
    assert "make .venv-sam/ready" in mended[0]
    assert "docs/configuration.md" in mended[2]
    assert f"aws cloudformation delete-stack --stack-name {account.stack}" in mended[3]
    name = f"/{account.stack}/upstream-api-key"
    assert mended[4] == f'aws ssm put-parameter --name {name} --type SecureString --value "$UPSTREAM_API_KEY"'
    assert "UpstreamBaseUrl=…" in mended[5]
    assert "[dev.deploy.parameters]" in mended[5]
    assert "aws service-quotas request-service-quota-increase" in mended[6]
    assert len(told) == 7


def test_a_key_that_is_not_encrypted_is_to_be_put_anew(account: Account) -> None:
    account.put_key("String")
    (told,) = missing(account.preflight())
    assert "is no SecureString → aws ssm delete-parameter" in told


def test_what_the_deployed_stack_has_need_not_be_given_again(account: Account) -> None:
    account.put_key()
    account.overrides, account.status = [], "UPDATE_COMPLETE"
    account.parameters = {"UpstreamBaseUrl": "https://api.example.com/v1"}
    assert account.preflight().returncode == 0


@pytest.mark.parametrize(
    ("status", "mend"),
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
def test_a_stack_that_cannot_be_deployed_to_is_told_with_the_way_out(
    account: Account, status: str, mend: str | None
) -> None:
    account.put_key()
    account.status = status
    done = account.preflight()
    if mend is None:
        assert done.returncode == 0, done.stderr
    else:
        (told,) = missing(done)
        assert f"aws cloudformation {mend} --stack-name {account.stack}" in told


@pytest.mark.parametrize(
    ("overrides", "quota", "enough"),
    [([], 121, True), ([], 120, False), (["MostWaiters=0", "WorkerConcurrency=2", "BatchConcurrency='2'"], 10, True)],
)
def test_lambdas_quota_is_held_against_what_the_parameters_may_need(
    account: Account, overrides: list[str], quota: int, enough: bool
) -> None:
    account.put_key()
    account.overrides, account.quota = [*account.overrides, *overrides], quota
    done = account.preflight()
    assert (done.returncode == 0) is enough, done.stderr
    if not enough:
        assert f"at most {quota} functions" in missing(done)[0]


@pytest.mark.parametrize("stack", ["aws-images", "SSMimages", "images_dev", "1images"])
def test_a_stack_whose_name_is_none_or_can_hold_no_parameter_is_to_be_named_anew(account: Account, stack: str) -> None:
    account.stack = stack
    (told,) = missing(account.preflight())
    assert told.startswith(f"samconfig.toml names the stack for dev {stack}: a stack is ")
    assert told.endswith('stack_name = "imagegen-dev"')


def test_a_profile_that_is_not_there_is_named(account: Account) -> None:
    (told,) = missing(account.preflight(profile="nobodys"))
    assert told.startswith("nothing in AWS was looked at: ")
    assert "nobodys" in told


@pytest.mark.parametrize(
    ("without", "told"),
    [
        (("AWS_DEFAULT_REGION",), "no region is set"),
        (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "no credentials are set"),
    ],
)
def test_what_is_missing_to_reach_aws_is_told(account: Account, without: tuple[str, ...], told: str) -> None:
    (line,) = missing(account.preflight(without=without))
    assert line.startswith(told)


def test_credentials_that_aws_does_not_take_are_told_in_a_line(account: Account) -> None:
    account.aws_url = "http://127.0.0.1:9"
    (line,) = missing(account.preflight())
    assert line.startswith("the credentials are not good: ")


def test_what_whoever_deploys_may_not_ask_is_told_with_the_action_to_allow(account: Account) -> None:
    account.put_key()
    refusal = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
    account.answer = lambda request: Reply(403, refusal)  # type: ignore[method-assign]
    told = missing(account.preflight())
    assert [line.partition(" → ")[2].split()[1] for line in told] == [
        "cloudformation:DescribeStacks",
        "lambda:GetAccountSettings",
    ]


@pytest.mark.parametrize("environment", ["production", "default", "", "Dev"])
def test_an_environment_that_is_none_is_refused(account: Account, environment: str) -> None:
    done = account.preflight(environment)
    assert done.returncode == 2
    assert "choose from" in done.stderr


def test_an_environment_without_a_section_is_told(account: Account) -> None:
    (line, *_) = missing(account.preflight("staging"))
    assert line.startswith("samconfig.toml names no stack for staging → ")


@pytest.mark.parametrize("target", ["preflight", "deploy"])
def test_make_deploys_nothing_where_something_is_missing(account: Account, target: str) -> None:
    with account.environment() as variables:
        done = subprocess.run(
            ["make", "--old-file=.venv/ready", "--old-file=.venv-sam/ready", target, "ENV=staging"],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "aws ssm put-parameter --name /imagegen-staging/upstream-api-key" in done.stderr
    assert "UpstreamBaseUrl has no value" in done.stderr
    assert "sam build" not in done.stdout + done.stderr


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_environment_is_ready_but_for_what_only_its_deployer_knows(environment: str) -> None:
    config = tomllib.loads((ROOT / "samconfig.toml").read_text())[environment]
    assert config["global"]["parameters"]["stack_name"]
    # A person looks at what changes in production; elsewhere a deployment is one command.
    assert config["deploy"]["parameters"]["confirm_changeset"] is (environment == "prod")


def test_every_consumer_of_a_queue_is_counted() -> None:
    template = Template.read(ROOT / "template.yaml", {"UpstreamBaseUrl": "https://api.example.com/v1"}, REGION)
    mappings = template.of_type("AWS::Lambda::EventSourceMapping").values()
    bounded = [each["ScalingConfig"]["MaximumConcurrency"] for each in mappings if "ScalingConfig" in each]

    def counted(waiters: int) -> int:
        return executions_needed(
            template.document, {"MostWaiters": waiters, "WorkerConcurrency": 40, "BatchConcurrency": 40}
        )

    assert counted(7) - counted(0) == 7
    assert counted(0) - sum(40 if isinstance(most, dict) else int(most) for most in bounded) == 2
