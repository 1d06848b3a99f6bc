"""`make preflight ENV=…`: lists missing prerequisites of a deployment, each with the fix. It changes nothing.

It reads only the type of the SSM parameter with the upstream's key, never the value.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from samtranslator.yaml_helper import yaml_parse

from tools.models_file import SOURCE, ModelsFileError, read
from tools.stacks import find_stack, on_one_line, read_stack_name, refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from boto3.session import Session

    from imagegen.domain.configuration import Configuration

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = ("dev", "staging", "prod")
_CONCURRENT_EXECUTIONS = "L-B99A9384"  # code of Lambda's "Concurrent executions" in Service Quotas
_DEFAULT_EXECUTIONS = 1000  # "Lambda quotas": the usual default of that quota
_BRIEF_EXECUTIONS = 2  # an authorizer and an api function that do not wait
_BROKEN = ("CREATE_FAILED", "DELETE_FAILED", "ROLLBACK_COMPLETE", "ROLLBACK_FAILED")  # can only be deleted
_NEW = "REVIEW_IN_PROGRESS"  # has only an unexecuted change set; can be deployed to


@dataclass(frozen=True)
class Missing:
    """A missing prerequisite. `fix` is a command or an instruction."""

    what: str
    fix: str


@dataclass(frozen=True)
class Target:
    """An environment of `samconfig.toml`. `overrides` are its values for the template's parameters."""

    environment: str
    stack: str
    region: str | None
    overrides: Mapping[str, str]

    @classmethod
    def read(cls, config: Mapping[str, Any], environment: str) -> Target:
        section = config.get(environment, {})
        given = {
            **section.get("global", {}).get("parameters", {}),
            **section.get("deploy", {}).get("parameters", {}),
        }
        overrides = given.get("parameter_overrides", [])
        pairs = shlex.split(overrides) if isinstance(overrides, str) else overrides
        return cls(
            environment,
            given.get("stack_name", ""),
            given.get("region"),
            {name: _unquoted(value) for name, _, value in (pair.partition("=") for pair in pairs)},
        )


def _unquoted(value: str) -> str:
    """The value without one pair of surrounding quotation marks, as SAM reads it."""
    quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value


def main() -> int:
    arguments = _parser().parse_args()
    template = yaml_parse((ROOT / "template.yaml").read_text())
    try:
        configuration = read((ROOT / SOURCE).read_text())
    except ModelsFileError as error:
        return refuse(f"{error}\n    correct {SOURCE}; docs/models.md explains its keys")
    target = Target.read(tomllib.loads(arguments.config.read_text()), arguments.environment)
    missing = [*of_tools(arguments.sam, arguments.python), *of_config(target, template, configuration)]
    region = target.region
    try:
        session = boto3.session.Session(region_name=region)
    except BotoCoreError as error:  # for example a profile that does not exist
        missing.append(Missing(f"AWS was not checked: {on_one_line(error)}", "aws configure sso"))
    else:
        region = session.region_name
        missing += of_aws(session, target, template, configuration)
    for each in missing:
        print(f"{each.what}\n    {each.fix}", file=sys.stderr)
    if missing:
        return 1
    print(f"nothing is missing for {target.stack} in {region}")
    return 0


def of_tools(sam: str, python: str) -> Iterator[Missing]:
    if shutil.which(sam) is None:
        yield Missing("the AWS SAM CLI is not installed", "make .venv-sam/ready")
    if shutil.which("python3.13", path=python) is None:
        yield Missing("python3.13, which builds the functions, is not installed", "pyenv install 3.13")


def of_config(target: Target, template: Mapping[str, Any], configuration: Configuration) -> Iterator[Missing]:
    wrong = _wrong_name(target) if target.stack else f"samconfig.toml names no stack for {target.environment}"
    if wrong:
        yield Missing(
            wrong,
            f"add in samconfig.toml, below [{target.environment}.global.parameters]: "
            f'stack_name = "imagegen-{target.environment}"',
        )
    for name in target.overrides:
        if name not in template["Parameters"]:
            yield Missing(
                f"{name} is not a parameter of template.yaml",
                f"correct its name in samconfig.toml, below {_overrides_of(target)}; "
                "docs/configuration.md lists all parameters",
            )
    for parameter, known in (
        ("DisabledModels", configuration.catalog.models.keys() - {configuration.catalog.default}),
        ("UpstreamOverrides", configuration.upstreams.keys()),
    ):
        for each in filter(None, target.overrides.get(parameter, "").split(",")):
            name = each.partition(".")[0] if parameter == "UpstreamOverrides" else each
            if name not in known:
                yield Missing(
                    f"{parameter} has {name}, which it cannot have by {SOURCE}",
                    f"correct it in samconfig.toml, below {_overrides_of(target)}",
                )


def _wrong_name(target: Target) -> str | None:
    try:
        read_stack_name(target.stack)
    except argparse.ArgumentTypeError as error:
        return f"samconfig.toml names the stack for {target.environment} {target.stack}: {error}"
    return None


def of_aws(
    session: Session, target: Target, template: Mapping[str, Any], configuration: Configuration
) -> list[Missing]:
    """What is missing in the account and the region."""
    if session.region_name is None:
        return [Missing("no region is set, so AWS was not checked", "export AWS_DEFAULT_REGION=eu-central-1")]
    if session.get_credentials() is None:
        return [Missing("no credentials are set, so AWS was not checked", "aws configure sso")]
    try:
        session.client("sts").get_caller_identity()
    except (BotoCoreError, ClientError) as error:
        return [Missing(f"the credentials do not work: {on_one_line(error)}", "aws sso login")]
    missing: list[Missing] = []
    deployed: dict[str, str] = {}
    if target.stack and not _wrong_name(target):
        with_stack: list[tuple[str, Callable[[], Iterator[Missing]]]] = [
            ("cloudformation:DescribeStacks", lambda: of_stack(session, target, deployed)),
            ("ssm:DescribeParameters", lambda: of_secret(session, target, configuration)),
        ]
        for action, check in with_stack:
            missing += _checked(action, check)
    values = {name: parameter.get("Default") for name, parameter in template["Parameters"].items()}
    values |= {**deployed, **target.overrides}
    missing += of_values(target, values)
    missing += _checked("lambda:GetAccountSettings", lambda: of_executions(session, template, values))
    return missing


def of_stack(session: Session, target: Target, deployed: dict[str, str]) -> Iterator[Missing]:
    """Fills `deployed` with the parameters of the deployed stack, if it exists."""
    stack = find_stack(session, target.stack)
    if stack is None:
        return
    deployed |= {each["ParameterKey"]: each["ParameterValue"] for each in stack.get("Parameters", [])}
    status, name = stack["StackStatus"], f"--stack-name {target.stack}"
    if status in _BROKEN:
        fix = f"aws cloudformation delete-stack {name} && aws cloudformation wait stack-delete-complete {name}"
    elif status == "UPDATE_ROLLBACK_FAILED":
        fix = f"aws cloudformation continue-update-rollback {name}"
    elif status.endswith("_IN_PROGRESS") and status != _NEW:
        what = "delete" if status.startswith("DELETE") else "rollback" if "ROLLBACK" in status else "update"
        what = "create" if status.startswith("CREATE") else what
        fix = f"aws cloudformation wait stack-{what}-complete {name}"
    else:
        return
    yield Missing(f"the stack {target.stack} is {status}", fix)


def of_secret(session: Session, target: Target, configuration: Configuration) -> Iterator[Missing]:
    """Checks the key of the default upstream. Without the key of another one, only its routes are not used."""
    name = f"/{target.stack}/upstreams/{configuration.upstreams[configuration.default_upstream].key}"
    old = f"/{target.stack}/upstream-api-key"  # of versions without models.toml
    put = f'aws ssm put-parameter --name {name} --type SecureString --value "$UPSTREAM_API_KEY"'
    named = [{"Key": "Name", "Option": "Equals", "Values": [name, old]}]
    parameters = session.client("ssm").describe_parameters(ParameterFilters=named)["Parameters"]  # type: ignore[arg-type]
    types = {each["Name"]: each.get("Type") for each in parameters}
    if name not in types and old in types:
        read = f"aws ssm get-parameter --name {old} --with-decryption --query Parameter.Value --output text"
        # The deployed version reads the old parameter until the new one has replaced it.
        yield Missing(
            f"{name}, the upstream's API key, is not in SSM; it is still in {old}",
            f"UPSTREAM_API_KEY=$({read}) && {put}\n    and after the deployment: aws ssm delete-parameter --name {old}",
        )
    elif name not in types:
        yield Missing(f"{name}, the upstream's API key, is not in SSM", put)
    elif types[name] != "SecureString":
        # SSM cannot change the type of a parameter
        yield Missing(f"{name} is not a SecureString", f"aws ssm delete-parameter --name {name} && {put}")


def of_values(target: Target, values: Mapping[str, Any]) -> Iterator[Missing]:
    for name, value in values.items():
        if value is None:
            yield Missing(
                f"{name} has no value",
                f'add "{name}=…" to parameter_overrides in samconfig.toml, below {_overrides_of(target)}',
            )


def of_executions(session: Session, template: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[Missing]:
    """Checks Lambda's concurrency quota in this region. It may be as low as 10 in a new account."""
    limit = session.client("lambda").get_account_settings()["AccountLimit"]["UnreservedConcurrentExecutions"]
    needed = executions_needed(template, values)
    if limit < needed:
        yield Missing(
            f"Lambda runs at most {limit} executions at once in this region; MostWaiters, WorkerConcurrency,"
            f" BatchConcurrency, PollConcurrency and IntakeConcurrency can need {needed}",
            f"aws service-quotas request-service-quota-increase --service-code lambda"
            f" --quota-code {_CONCURRENT_EXECUTIONS} --desired-value {max(_DEFAULT_EXECUTIONS, needed)}"
            f"\n    or lower these parameters in samconfig.toml;"
            f" with WaitSeconds=0 no request waits",
        )


def executions_needed(template: Mapping[str, Any], values: Mapping[str, Any]) -> int:
    """The number of concurrent executions with the maximum of waiting requests and all queues full."""
    consumers = 0
    for resource in template["Resources"].values():
        for event in resource.get("Properties", {}).get("Events", {}).values():
            most = event["Properties"].get("ScalingConfig", {}).get("MaximumConcurrency", 0)
            consumers += int(values[most["Ref"]] if isinstance(most, dict) else most)
    waiting = int(values["MostWaiters"]) if int(values["WaitSeconds"]) else 0
    # A first worker works on after its wait, while its client waits again.
    working_on = waiting if values["ApiIsFirstWorker"] == "true" else 0
    return waiting + working_on + consumers + _BRIEF_EXECUTIONS


def _checked(action: str, check: Callable[[], Iterator[Missing]]) -> list[Missing]:
    try:
        return list(check())
    except (BotoCoreError, ClientError) as error:
        return [Missing(f"AWS could not be checked: {on_one_line(error)}", f"allow {action} for the deploying role")]


def _overrides_of(target: Target) -> str:
    return f"[{target.environment}.deploy.parameters]"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make preflight", description=__doc__)
    parser.add_argument("environment", choices=ENVIRONMENTS)
    parser.add_argument("--sam", required=True, help="path of the SAM CLI")
    parser.add_argument("--python", required=True, help="folder of python3.13")
    parser.add_argument("--config", type=Path, default=ROOT / "samconfig.toml")
    return parser


if __name__ == "__main__":
    sys.exit(main())
