"""The whole stack on one machine, deployed from template.yaml: moto for AWS, Lambda's own runtime for the functions."""

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import msgspec

from imagegen.domain.credentials import BearerKey
from local.aws_door import REGION, DoorControl
from local.event_source import EventSource, polling
from local.gateway import INTEGRATION_SECONDS, Gateway
from local.lambda_host import MOST_PROCESSES, Account, Function, FunctionHost
from local.serving import Reply, Request, serving

if TYPE_CHECKING:
    from local.template import Template

ROOT = Path(__file__).parent.parent
BUILT = ROOT / ".aws-sam" / "build"
RUNTIME_PYTHON = ROOT / ".venv-3.13" / "bin" / "python"
STACK_NAME = "imagegen"
# What bounds spending does not bind the local clients unless it is set.
_UNBOUND = {"ImagesPerDay": "1000000000", "ImagesPerClientPerDay": "1000000000"}
# The operator's; a function's access key is its name, by which the door tells whose role holds. These are no secrets.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",
    "AWS_SESSION_TOKEN": "local",
}


@dataclass(frozen=True)
class Options:
    """`parameters` are the template's; `environment` is added to every function's; `most_processes` are each one's.

    `concurrency` is how many executions all functions together may have at once, None for any number.
    `throttle` has the gateway hold the template's rate and burst. `delays` are those of `DoorControl.delay`, from when
    the stack is deployed. `built` runs what `sam build` made, under the runtime's own Python.
    """

    upstream_base_url: str
    upstream_api_key: str | None = field(repr=False)
    port: int = 0
    stage: str = ""
    built: bool = False
    clients: tuple[str, ...] = ("local", "other")
    parameters: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    delays: Mapping[str, int] = field(default_factory=dict)
    most_processes: int = MOST_PROCESSES
    concurrency: int | None = None
    integration_seconds: float = INTEGRATION_SECONDS
    throttle: bool = False
    on_answer: Callable[[str, str, int, float], None] = lambda *_: None


@dataclass(frozen=True)
class LocalStack:
    """A stack that serves. `url` is what a client's base URL is but for `/v1`; `keys` are by client.

    `roles` are the statements of each function's role, as AWS would evaluate them.
    """

    url: str
    keys: Mapping[str, str] = field(repr=False)
    aws_url: str
    bucket: str
    inbox: str
    functions: Mapping[str, FunctionHost]
    roles: Mapping[str, list[dict[str, Any]]]
    door: DoorControl
    logs: Path

    def client(self, service: str) -> Any:  # boto3's clients have no common type
        """A boto3 client of the AWS that stands in."""
        return _client(service, self.aws_url)


@contextmanager
def running(options: Options, logs: Path | None = None) -> Iterator[LocalStack]:
    """Serves from here until the block is left, and ends all that it started. `logs` is a folder."""
    with ExitStack() as closing:
        if logs is None:
            logs = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="imagegen-")))
        logs.mkdir(parents=True, exist_ok=True)
        # The address is needed before there is anything to answer at it; a port that is taken costs no start.
        front = _Front()
        port = closing.enter_context(serving(front.respond, options.port))
        url = f"http://127.0.0.1:{port}" + (f"/{options.stage}" if options.stage else "")
        with ThreadPoolExecutor() as starting:  # the two slow starts side by side
            aws = starting.submit(closing.enter_context, moto_server(logs / "aws.log"))
            from local.template import Template  # noqa: PLC0415  # a second of imports, while moto starts

            parameters = {**_UNBOUND, "UpstreamBaseUrl": options.upstream_base_url, **options.parameters}
            source = (BUILT if options.built else ROOT) / "template.yaml"
            template = Template.read(source, parameters, REGION)
            aws_url = aws.result()
        deployed = _deploy(template, aws_url, parameters, url)
        keys = {client: BearerKey.new(client) for client in options.clients}
        _configure_buckets(template, deployed, aws_url)
        _put_secrets(aws_url, options.upstream_api_key, keys.values())
        functions, account = {}, Account(options.concurrency)
        for name in template.of_type("AWS::Lambda::Function"):
            function = _function(template, name, deployed, aws_url, options)
            functions[name] = FunctionHost(function, logs / f"{name}.log", options.most_processes, account)
            closing.callback(functions[name].close)
        door = DoorControl(aws_url)
        roles = _roles(template, deployed, aws_url)
        secret = options.environment.get("AWS_SECRET_ACCESS_KEY", CREDENTIALS["AWS_SECRET_ACCESS_KEY"])
        door.let_in({name: {**role, "secret": secret} for name, role in roles.items()})
        door.delay(options.delays)
        for name, event_source in _event_sources(template, functions, deployed, aws_url):
            closing.enter_context(polling(event_source, _client("sqs", aws_url, name)))
        with ThreadPoolExecutor() as starting:
            for started in [starting.submit(host.warm_up) for host in functions.values()]:
                started.result()
        front.gateway = Gateway(
            template.api_body(),
            functions,
            stage=options.stage,
            on_answer=options.on_answer,
            integration_seconds=options.integration_seconds,
            throttle=template.throttling() if options.throttle else None,
        )
        yield LocalStack(
            url=url,
            keys={client: key.key for client, key in keys.items()},
            aws_url=aws_url,
            bucket=deployed["ImageBucket"],
            inbox=deployed["InboxBucket"],
            functions=functions,
            roles={name: role["statements"] for name, role in roles.items()},
            door=door,
            logs=logs,
        )


class _Front:
    """Answers once there is a gateway."""

    gateway: Gateway | None = None

    def respond(self, request: Request) -> Reply:
        return self.gateway.respond(request) if self.gateway else Reply(503)


@contextmanager
def moto_server(log: Path) -> Iterator[str]:
    """AWS as far as moto has it; gives its address."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "local.moto_process"],
            cwd=ROOT,
            env={**os.environ, **CREDENTIALS},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=out,
            start_new_session=True,
        )
    try:
        port = process.stdout.readline().strip() if process.stdout else b""
        if not port:
            raise RuntimeError(f"moto did not start: see {log}")
        yield f"http://127.0.0.1:{int(port)}"
    finally:
        process.kill()
        process.communicate()


def _client(service: str, aws_url: str, access_key: str = CREDENTIALS["AWS_ACCESS_KEY_ID"]) -> Any:
    return boto3.client(
        service,  # type: ignore[call-overload]
        endpoint_url=aws_url,
        region_name=REGION,
        aws_access_key_id=access_key,
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )


def _deploy(template: "Template", aws_url: str, parameters: Mapping[str, str], url: str) -> dict[str, str]:
    """Has moto make the template's resources; gives their physical ids by their logical ones."""
    cloudformation = _client("cloudformation", aws_url)
    cloudformation.create_stack(
        StackName=STACK_NAME,
        TemplateBody=json.dumps(template.for_moto(url)),
        Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()],
    )
    resources = cloudformation.list_stack_resources(StackName=STACK_NAME)["StackResourceSummaries"]
    return {
        resource["LogicalResourceId"]: resource["PhysicalResourceId"]
        for resource in resources
        if "LogicalResourceId" in resource
    }


def _configure_buckets(template: "Template", deployed: Mapping[str, str], aws_url: str) -> None:
    """What moto's CloudFormation leaves out of a bucket."""
    s3 = _client("s3", aws_url)
    for name, bucket in template.of_type("AWS::S3::Bucket").items():
        if versioning := bucket.get("VersioningConfiguration"):
            s3.put_bucket_versioning(Bucket=deployed[name], VersioningConfiguration=versioning)
        if "EventBridgeConfiguration" in bucket.get("NotificationConfiguration", {}):
            s3.put_bucket_notification_configuration(
                Bucket=deployed[name], NotificationConfiguration={"EventBridgeConfiguration": {}}
            )


def _put_secrets(aws_url: str, upstream_api_key: str | None, keys: Any) -> None:
    ssm = _client("ssm", aws_url)
    if upstream_api_key is not None:
        ssm.put_parameter(Name=f"/{STACK_NAME}/upstream-api-key", Type="SecureString", Value=upstream_api_key)
    for key in keys:
        record = msgspec.json.encode(key.record()).decode()
        ssm.put_parameter(Name=f"/{STACK_NAME}/clients/{key.client}", Type="String", Value=record)


def _roles(template: "Template", deployed: Mapping[str, str], aws_url: str) -> dict[str, dict[str, Any]]:
    """What each function may do, as moto's IAM knows it after the deployment; by access key."""
    iam = _client("iam", aws_url)
    roles = {}
    for name, function in template.of_type("AWS::Lambda::Function").items():
        role = deployed[function["Role"]["Fn::GetAtt"][0]]
        policies = [
            iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"]
            for policy in iam.list_role_policies(RoleName=role)["PolicyNames"]
        ]
        # moto's CloudFormation keeps a policy as Python's text of it, not as JSON.
        statements = [statement for policy in policies for statement in ast.literal_eval(policy)["Statement"]]
        roles[name] = {"function": name, "statements": statements}
    return roles


def _event_sources(
    template: "Template", functions: Mapping[str, FunctionHost], deployed: Mapping[str, str], aws_url: str
) -> Iterator[tuple[str, EventSource]]:
    """Each with the name of its function, whose role Lambda polls under."""
    for mapping in template.of_type("AWS::Lambda::EventSourceMapping").values():
        name = mapping["FunctionName"]["Ref"]
        queue_url = deployed[mapping["EventSourceArn"]["Fn::GetAtt"][0]]
        sqs = _client("sqs", aws_url, name)
        attributes = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])["Attributes"]
        scaling = mapping.get("ScalingConfig", {})
        yield (
            name,
            EventSource(
                queue_url=queue_url,
                queue_arn=attributes["QueueArn"],
                function=functions[name],
                batch_size=mapping["BatchSize"],
                concurrency=int(template.value(scaling.get("MaximumConcurrency", 5))),
            ),
        )


def _function(template: "Template", name: str, deployed: Mapping[str, str], aws_url: str, options: Options) -> Function:
    """A function as moto's Lambda knows it after the deployment, with what Lambda adds by itself."""
    configuration = _client("lambda", aws_url).get_function_configuration(FunctionName=deployed[name])
    layers = (layer / "python" if options.built else layer for layer in template.layers_of(name))
    return Function(
        name=deployed[name],
        handler=configuration["Handler"],
        code=template.code[name],
        layers=tuple(layers),
        timeout=configuration["Timeout"],
        memory=configuration["MemorySize"],
        environment={
            **{variable: str(value) for variable, value in configuration["Environment"]["Variables"].items()},
            **CREDENTIALS,
            "AWS_ACCESS_KEY_ID": name,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": aws_url,
            **options.environment,
        },
        python=str(RUNTIME_PYTHON) if options.built else sys.executable,
    )
