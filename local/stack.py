"""Deploys template.yaml on this machine: moto for AWS, Lambda's own runtime interface client for the functions."""

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import msgspec

from imagegen.bootstrap.models_toml import CONFIGURATION
from imagegen.domain.credentials import BearerKey
from local.aws_door import REGION, DoorControl
from local.event_source import DEFAULT_CONCURRENCY, EventSource, polling
from local.gateway import IDLE_SECONDS, INTEGRATION_SECONDS, MOST_BODY_BYTES, Gateway
from local.lambda_host import MOST_PROCESSES, Account, Function, FunctionHost
from local.serving import Reply, Request, serving

if TYPE_CHECKING:
    from local.template import Template

ROOT = Path(__file__).parent.parent
BUILT = ROOT / ".aws-sam" / "build"
RUNTIME_PYTHON = ROOT / ".venv-3.13" / "bin" / "python"
STACK_NAME = "imagegen"
# The operator's credentials, which are no secrets. A function's access key is its name: the door finds its role by it.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",
    "AWS_SESSION_TOKEN": "local",
}
# Local callers have no effective quota unless `Options.parameters` sets one. The numbers are the template's MaxValue.
_NO_QUOTAS = {"ImagesPerDay": "1000000000", "ImagesPerClientPerDay": "1000000000"}


@dataclass(frozen=True)
class Options:
    """`upstream_api_key` is the key of the default upstream, `other_upstream_keys` are those of others by name.

    `parameters` are the template's. `environment` is added to that of every function.

    `clients` are the callers that get a key. `most_processes` limits the processes of each function, `concurrency` the
    concurrent executions of all functions together; None means no limit. `throttle` enforces the template's rate and
    burst. `delays` are those of `DoorControl.delay`. `built` runs the result of `sam build` under Python 3.13.
    `streaming` is whether the api function streams its answers; a stream without a byte is cut after `idle_seconds`.
    """

    upstream_base_url: str
    upstream_api_key: str | None = field(repr=False)
    other_upstream_keys: Mapping[str, str] = field(default_factory=dict, repr=False)
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
    idle_seconds: float = IDLE_SECONDS
    streaming: bool = True
    throttle: bool = False
    on_answer: Callable[[str, str, int, float], None] = lambda *_: None


@dataclass(frozen=True)
class LocalStack:
    """A running stack. `url` is the base URL without `/v1`; `keys` are by caller.

    `roles` are the statements of each function's role.
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
        """A boto3 client of the local AWS."""
        return _client(service, self.aws_url)


@contextmanager
def running(options: Options, logs: Path | None = None) -> Iterator[LocalStack]:
    """Serves the stack until the block ends, then ends everything that it started. `logs` is a folder."""
    with ExitStack() as closing:
        if logs is None:
            logs = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="imagegen-")))
        logs.mkdir(parents=True, exist_ok=True)
        # The deployment needs the address of the gateway. Listening first also fails at once if the port is in use.
        front = _Front()
        port = closing.enter_context(serving(front.respond, options.port, most_body_bytes=MOST_BODY_BYTES))
        url = f"http://127.0.0.1:{port}" + (f"/{options.stage}" if options.stage else "")
        with ThreadPoolExecutor() as starting:  # the two slow starts in parallel
            aws = starting.submit(closing.enter_context, moto_server(logs / "aws.log"))
            template = read_template(options)
            aws_url = aws.result()
        keys = {client: BearerKey.new(client) for client in options.clients}
        deployed = deploy(template, aws_url, url, _upstream_keys(options), keys.values())
        functions, account = {}, Account(options.concurrency)
        for name in template.of_type("AWS::Lambda::Function"):
            function = deployed_function(template, name, deployed, aws_url, options)
            functions[name] = FunctionHost(function, logs / f"{name}.log", options.most_processes, account)
            closing.callback(functions[name].close)
        door, roles = enforce_roles(template, deployed, aws_url, options)
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
            idle_seconds=options.idle_seconds,
            throttle=template.throttling() if options.throttle else None,
        )
        yield LocalStack(
            url=url,
            keys={client: key.key for client, key in keys.items()},
            aws_url=aws_url,
            bucket=deployed["ImageBucket"],
            inbox=deployed["InboxBucket"],
            functions=functions,
            roles=roles,
            door=door,
            logs=logs,
        )


@contextmanager
def moto_server(log: Path) -> Iterator[str]:
    """Runs moto in its own process. Yields its URL."""
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


def read_template(options: Options) -> "Template":
    """The source or built template with the parameters of `options`."""
    from local.template import Template  # noqa: PLC0415  # takes a second, in which moto starts

    parameters = {**_NO_QUOTAS, "UpstreamBaseUrl": options.upstream_base_url, **options.parameters}
    path = (BUILT if options.built else ROOT) / "template.yaml"
    return Template.read(path, parameters, REGION, streaming=options.streaming)


def deploy(
    template: "Template", aws_url: str, url: str, upstream_keys: Mapping[str, str], keys: Iterable[BearerKey]
) -> dict[str, str]:
    """Creates the template's resources and the secrets in moto. Returns the physical ids by logical id."""
    cloudformation = _client("cloudformation", aws_url)
    cloudformation.create_stack(
        StackName=STACK_NAME,
        TemplateBody=json.dumps(template.for_moto(url)),
        Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in template.parameters.items()],
    )
    resources = cloudformation.list_stack_resources(StackName=STACK_NAME)["StackResourceSummaries"]
    deployed = {
        resource["LogicalResourceId"]: resource["PhysicalResourceId"]
        for resource in resources
        if "LogicalResourceId" in resource
    }
    _configure_buckets(template, deployed, aws_url)
    _put_secrets(aws_url, upstream_keys, keys)
    return deployed


def deployed_function(
    template: "Template", name: str, deployed: Mapping[str, str], aws_url: str, options: Options
) -> Function:
    """A function's configuration as deployed in moto, with the variables that Lambda adds."""
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
        # moto does not keep RecursiveLoop
        allows_loops=template.of_type("AWS::Lambda::Function")[name].get("RecursiveLoop") == "Allow",
    )


def enforce_roles(
    template: "Template", deployed: Mapping[str, str], aws_url: str, options: Options
) -> tuple[DoorControl, dict[str, list[dict[str, Any]]]]:
    """Sets the functions' roles in the door, as deployed in moto. Returns the statements by function, too."""
    iam = _client("iam", aws_url)
    roles = {}
    for name, function in template.of_type("AWS::Lambda::Function").items():
        role = deployed[function["Role"]["Fn::GetAtt"][0]]
        policies = [
            iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"]
            for policy in iam.list_role_policies(RoleName=role)["PolicyNames"]
        ]
        # moto's CloudFormation stores a role's own policy as Python's text of it, not as JSON.
        documents = (each if isinstance(each, dict) else ast.literal_eval(each) for each in policies)
        roles[name] = [statement for document in documents for statement in document["Statement"]]
    secret = options.environment.get("AWS_SECRET_ACCESS_KEY", CREDENTIALS["AWS_SECRET_ACCESS_KEY"])
    door = DoorControl(aws_url)
    door.let_in(
        {name: {"function": name, "statements": statements, "secret": secret} for name, statements in roles.items()}
    )
    return door, roles


class _Front:
    """Answers 503 until there is a gateway."""

    gateway: Gateway | None = None

    def respond(self, request: Request) -> Reply:
        return self.gateway.respond(request) if self.gateway else Reply(503)


def _client(service: str, aws_url: str, access_key: str = CREDENTIALS["AWS_ACCESS_KEY_ID"]) -> Any:
    return boto3.client(
        service,  # type: ignore[call-overload]
        endpoint_url=aws_url,
        region_name=REGION,
        aws_access_key_id=access_key,
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )


def _configure_buckets(template: "Template", deployed: Mapping[str, str], aws_url: str) -> None:
    """Sets what moto's CloudFormation ignores."""
    s3 = _client("s3", aws_url)
    for name, bucket in template.of_type("AWS::S3::Bucket").items():
        if rules := bucket.get("CorsConfiguration", {}).get("CorsRules"):
            cors = {"CORSRules": [_cors_rule(rule, template) for rule in rules]}
            s3.put_bucket_cors(Bucket=deployed[name], CORSConfiguration=cors)
        if versioning := bucket.get("VersioningConfiguration"):
            s3.put_bucket_versioning(Bucket=deployed[name], VersioningConfiguration=versioning)
        if "EventBridgeConfiguration" in bucket.get("NotificationConfiguration", {}):
            s3.put_bucket_notification_configuration(
                Bucket=deployed[name], NotificationConfiguration={"EventBridgeConfiguration": {}}
            )


def _cors_rule(rule: Mapping[str, Any], template: "Template") -> dict[str, Any]:
    """A rule of the template as S3 has it."""
    names = {"ExposedHeaders": "ExposeHeaders", "MaxAge": "MaxAgeSeconds"}
    values = {names.get(name, name): value for name, value in rule.items()}
    return {**values, "AllowedOrigins": [template.value(origin) for origin in rule["AllowedOrigins"]]}


def _upstream_keys(options: Options) -> dict[str, str]:
    """The keys of the upstreams, by the name of the upstream."""
    default = {CONFIGURATION.default_upstream: options.upstream_api_key} if options.upstream_api_key is not None else {}
    return {**options.other_upstream_keys, **default}


def _put_secrets(aws_url: str, upstream_keys: Mapping[str, str], keys: Iterable[BearerKey]) -> None:
    ssm = _client("ssm", aws_url)
    for name, value in upstream_keys.items():
        parameter = f"/{STACK_NAME}/upstreams/{CONFIGURATION.upstreams[name].key}"
        ssm.put_parameter(Name=parameter, Type="SecureString", Value=value)
    for key in keys:
        record = msgspec.json.encode(key.record()).decode()
        ssm.put_parameter(Name=f"/{STACK_NAME}/clients/{key.caller}", Type="String", Value=record)


def _event_sources(
    template: "Template", functions: Mapping[str, FunctionHost], deployed: Mapping[str, str], aws_url: str
) -> Iterator[tuple[str, EventSource]]:
    """Each with the name of its function, because Lambda polls with the function's role."""
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
                concurrency=int(template.value(scaling.get("MaximumConcurrency", DEFAULT_CONCURRENCY))),
            ),
        )
