"""The rules of the template, checked on the output of the SAM translator."""

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from aws_lambda_powertools.event_handler.api_gateway import Router
from samtranslator.yaml_helper import yaml_parse

from imagegen import settings
from imagegen.bootstrap.authorizer import CALLER_CACHE_SECONDS
from imagegen.routes.batches import BatchRoutes
from imagegen.routes.files import FileRoutes
from imagegen.routes.generations import GenerationRoutes
from imagegen.routes.images import ImageRoutes
from imagegen.routes.models import ModelRoutes
from imagegen.routes.site import SiteRoutes
from imagegen.routes.uploads import UploadRoutes
from imagegen.usecases.manage_generation import LEASE_SECONDS
from imagegen.wire.openapi import GATEWAY, GATEWAY_KEY, openapi_document
from local.template import Template
from tests.conftest import ROOT
from tests.support.limits import MOST_RECEIPTS
from tests.support.models import catalog

Json = dict[str, Any]
Route = tuple[str, str]  # method and path

SETTINGS: dict[str, Any] = {
    "ApiFunction": settings.ApiSettings,
    "AuthorizerFunction": settings.AuthorizerSettings,
    "WorkerFunction": settings.WorkerSettings,
    "DeadLetterFunction": settings.WorkerSettings,
    "IntakeFunction": settings.IntakeSettings,
    "SiteFunction": settings.SiteSettings,
}
UNDELIVERED = "UndeliveredEvents"
ANY = "x-amazon-apigateway-any-method"
IMAGE = "/v1/images/{image_id}"
OPEN_ROUTES = {(ANY, "/"), (ANY, "/{proxy+}"), (ANY, "/health"), ("get", IMAGE), ("head", IMAGE)}
OPEN_PATHS = ("/", "/docs", "/docs/{file}", "/openapi.json", "/health", "/playground.css", "/playground.js", IMAGE)
OPEN_OPERATIONS = {("get", path) for path in OPEN_PATHS}
POLICY_BYTES = 20_480  # Lambda's limit for a function's resource policy


def functions(template: Template) -> Json:
    return template.of_type("AWS::Lambda::Function")


def queues(template: Template) -> Json:
    return template.of_type("AWS::SQS::Queue")


def buckets(template: Template) -> Json:
    return template.of_type("AWS::S3::Bucket")


def mappings(template: Template) -> list[Json]:
    return list(template.of_type("AWS::Lambda::EventSourceMapping").values())


def statements(template: Template) -> Iterator[tuple[str, Json]]:
    """The statements of all roles, with the role's name."""
    for name, role in template.of_type("AWS::IAM::Role").items():
        assert "ManagedPolicyArns" not in role, name
        for policy in role["Policies"]:
            for statement in policy["PolicyDocument"]["Statement"]:
                yield name, statement


def routes_of(template: Template) -> set[Route]:
    """All routes except the preflights, which the gateway answers itself."""
    paths = template.api_body()["paths"]
    return {(method, path) for path, methods in paths.items() for method in methods if method != "options"}


def handled() -> set[Route]:
    """The routes of the functions' routers."""
    found = set()
    kinds: list[Any] = [GenerationRoutes, FileRoutes, BatchRoutes, ImageRoutes, UploadRoutes, ModelRoutes, SiteRoutes]
    for kind in kinds:
        router = Router()
        kind(
            **{each.name: router if each.name == "router" else None for each in msgspec.structs.fields(kind)}
        ).register()
        for path, methods, *_ in router._routes:
            found |= {(method.lower(), re.sub(r"<(\w+)>", r"{\1}", path)) for method in methods}
    return found


def gateway_responses(template: Template) -> Iterator[tuple[str, int | None, dict[str, str], Json]]:
    """The kind, the status if any, the headers and the error of each response."""
    for kind, response in template.api_body()["x-amazon-apigateway-gateway-responses"].items():
        body = response["responseTemplates"]["application/json"].replace("$context.error.messageString", '"text"')
        prefix, parameters = "gatewayresponse.header.", response["responseParameters"]
        headers = {name.removeprefix(prefix): value.strip("'") for name, value in parameters.items()}
        status = response.get("statusCode")
        yield kind, status and int(status), headers, json.loads(body)["error"]


def api_key_scheme(template: Template) -> Json:
    scheme = template.api_body()["components"]["securitySchemes"]["BearerKey"]
    authorizer: Json = scheme["x-amazon-apigateway-authorizer"]
    return authorizer


# Functions and roles.


def test_a_functions_variables_are_exactly_its_settings(template: Template) -> None:
    assert set(functions(template)) == set(SETTINGS)
    for name, function in functions(template).items():
        environment = Mock(get=Mock(return_value=None))
        with pytest.raises(settings.SettingsError):
            SETTINGS[name].from_env(environment)
        read = {call.args[0] for call in environment.get.call_args_list}
        own = {variable for variable in read if not variable.startswith("AWS_")}  # the runtime sets the others
        # Lambda and the C library read these.
        given = set(function["Environment"]["Variables"]) - {"AWS_LAMBDA_EXEC_WRAPPER", "MALLOC_ARENA_MAX"}
        assert given == own, name


def test_every_function_has_its_own_expiring_log_and_its_own_role(template: Template) -> None:
    found = functions(template).values()
    groups = [function["LoggingConfig"]["LogGroup"]["Ref"] for function in found]
    assert len(set(groups)) == len(found)
    for group in groups:
        assert template.of_type("AWS::Logs::LogGroup")[group]["RetentionInDays"] == {"Ref": "LogRetentionDays"}
    schedules = template.of_type("AWS::Scheduler::Schedule").values()
    roles = [function["Role"] for function in found] + [each["Target"]["RoleArn"] for each in schedules]
    assert sorted(role["Fn::GetAtt"][0] for role in roles) == sorted(template.of_type("AWS::IAM::Role"))


def test_no_role_has_a_wildcard_and_the_site_can_only_write_its_log(template: Template) -> None:
    of_site = []
    for name, statement in statements(template):
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert all(re.fullmatch(r"[a-z0-9]+:[A-Za-z]+", action) for action in actions), (name, actions)
        resource = json.dumps(statement["Resource"])
        assert resource.count("*") <= 1, (name, resource)
        assert "*" not in resource or resource.endswith('/*"}'), (name, resource)
        of_site += [actions] if name == "SiteRole" else []
    assert of_site == [["logs:CreateLogStream", "logs:PutLogEvents"]]


def test_a_function_outlasts_its_upstream_calls(template: Template) -> None:
    found, parameters = functions(template), template.document["Parameters"]
    # The time to store the images and to record them.
    for function in ("ApiFunction", "WorkerFunction"):
        assert found[function]["Timeout"] - parameters["UpstreamTimeoutSeconds"]["MaxValue"] >= 60
    # A claim outlasts the function that ends the generations of dead letters.
    assert found["DeadLetterFunction"]["Timeout"] <= LEASE_SECONDS


def test_every_function_fits_its_resource_policy(template: Template) -> None:
    """With the longest names that AWS allows: a stack's 128 characters, a function's 64, a stage's 128."""
    arn = f"arn:aws-us-gov:lambda:ap-southeast-1:123456789012:function:{'f' * 64}"
    granted: dict[str, list[Json]] = defaultdict(list)
    for name, permission in template.of_type("AWS::Lambda::Permission").items():
        function = permission["FunctionName"].get("Ref") or permission["FunctionName"]["Fn::GetAtt"][0]
        text = permission["SourceArn"]["Fn::Sub"][0]
        source = re.sub(r"\$\{.*?\}", lambda match: {"${__Stage__}": "*"}.get(match[0], "x" * 16), text)
        rest = {"Action": permission["Action"], "Resource": arn, "Condition": {"ArnLike": {"AWS:SourceArn": source}}}
        principal = {"Effect": "Allow", "Principal": {"Service": permission["Principal"]}}
        granted[function].append({"Sid": f"{'s' * 128}-{name}-{'X' * 13}", **principal, **rest})
    policies = {name: {"Version": "2012-10-17", "Id": "default", "Statement": all_} for name, all_ in granted.items()}
    sizes = {function: len(json.dumps(policy)) for function, policy in policies.items()}
    assert set(sizes) == {"ApiFunction", "AuthorizerFunction", "SiteFunction"}
    assert all(size < POLICY_BYTES for size in sizes.values()), sizes


def test_exactly_the_functions_whose_messages_can_lead_back_to_them_allow_it(template: Template) -> None:
    """Otherwise Lambda refuses the message after some 16 invocations. A dead letter continues its message's chain."""
    leads_to: dict[str, set[str]] = defaultdict(set)
    for name, function in functions(template).items():
        sends = [each for role, each in statements(template) if role == function["Role"]["Fn::GetAtt"][0]]
        for resource in (each["Resource"] for each in sends if "sqs:SendMessage" in each["Action"]):
            leads_to[name] |= {
                each["Fn::GetAtt"][0] for each in (resource if isinstance(resource, list) else [resource])
            }
    for name, queue in queues(template).items():
        if redrive := queue.get("RedrivePolicy"):
            leads_to[name].add(redrive["deadLetterTargetArn"]["Fn::GetAtt"][0])
    for mapping in mappings(template):
        leads_to[mapping["EventSourceArn"]["Fn::GetAtt"][0]].add(mapping["FunctionName"]["Ref"])

    def reached_from(name: str) -> set[str]:
        reached = set(leads_to[name])
        while further := {beyond for each in reached for beyond in leads_to[each]} - reached:
            reached |= further
        return reached

    loops = {name for name in functions(template) if name in reached_from(name)}
    found = {name: each["RecursiveLoop"] for name, each in functions(template).items() if "RecursiveLoop" in each}
    assert found == dict.fromkeys(loops, "Allow")


# The gateway.


def test_the_api_is_regional_and_only_open_routes_need_no_key(template: Template) -> None:
    (api,) = template.of_type("AWS::ApiGateway::RestApi").values()
    assert api["EndpointConfiguration"] == {"Types": ["REGIONAL"]}
    paths = template.api_body()["paths"]
    assert routes_of(template) >= OPEN_ROUTES
    for method, path in routes_of(template):
        scheme = "NONE" if (method, path) in OPEN_ROUTES else "BearerKey"
        assert paths[path][method]["security"] == [{scheme: []}], (method, path)


def test_every_resource_has_all_methods(template: Template) -> None:
    paths = template.api_body()["paths"]
    assert all(ANY in methods for methods in paths.values())
    for path in paths:  # each prefix of a path is a resource too
        segments = path.split("/")
        assert {"/".join(segments[:count]) for count in range(2, len(segments))} <= set(paths), path


def test_every_change_makes_a_new_deployment(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """SAM names a deployment by a hash, by default of only the paths. The same name makes no new deployment."""
    tomorrow = time.time() + 86_400
    monkeypatch.setattr("samtranslator.model.apigateway.time.time", lambda: tomorrow)
    given = {"UpstreamBaseUrl": "https://api.example.com/v1", "RequestsPerSecond": "7", "RequestBurst": "9"}
    again = Template.read(ROOT / "template.yaml", given, "us-east-1")
    kind = "AWS::ApiGateway::Deployment"
    assert set(again.of_type(kind)).isdisjoint(template.of_type(kind))
    assert again.throttling() == (7, 9)
    assert all(limit > 0 for limit in template.throttling())


def test_a_web_page_can_call_every_route_and_read_every_answer(template: Template) -> None:
    for path, methods in template.api_body()["paths"].items():
        preflight = methods["options"]
        assert not preflight.get("security"), path  # a preflight carries no key
        answer = preflight["x-amazon-apigateway-integration"]["responses"]["default"]["responseParameters"]
        origin, allowed, headers = (
            answer[f"method.response.header.Access-Control-Allow-{name}"].strip("'")
            for name in ("Origin", "Methods", "Headers")
        )
        assert origin == "*"
        assert set(allowed.split(",")) == {"OPTIONS", "HEAD"} | {method.upper() for method, _ in handled()}
        assert headers.lower().split(",") == ["authorization", "*"]  # the star does not cover authorization
    for kind, _, headers, _ in gateway_responses(template):
        assert headers["Access-Control-Allow-Origin"] == "*", kind


def test_the_openapi_document_has_exactly_the_routes_and_marks_the_open_ones() -> None:
    paths = openapi_document("", catalog(1000, {}))["paths"].items()
    described = {
        (method, path): each.get("security") == [] for path, methods in paths for method, each in methods.items()
    }
    assert set(described) == handled()
    assert {route for route, is_open in described.items() if is_open} == OPEN_OPERATIONS


def test_a_gateway_error_has_openais_shape_and_a_retry_header(template: Template) -> None:
    answered = set()
    by_kind: dict[str, tuple[int | None, dict[str, str]]] = {}
    for kind, status, headers, error in gateway_responses(template):
        assert set(error) == {"message", "type", "param", "code"}, kind
        assert headers["x-request-id"] == "context.extendedRequestId", kind
        by_kind[kind] = status, headers
        usual = 400 if kind == "DEFAULT_4XX" else None  # the gateway's own status, mostly 400
        answered.add((status or usual, error["type"], error["code"]))
    assert {"DEFAULT_4XX", "THROTTLED", "UNAUTHORIZED"} <= set(by_kind)
    assert answered == {*GATEWAY, *GATEWAY_KEY, (404, "invalid_request_error", "unknown_url")}
    for kind, status, retry in (
        ("DEFAULT_5XX", 424, "false"),  # money may be spent
        ("INTEGRATION_TIMEOUT", 504, "true"),  # a retry attaches
        ("INTEGRATION_FAILURE", 424, "true"),  # only clients whose retries attach follow it
    ):
        assert (by_kind[kind][0], by_kind[kind][1]["x-should-retry"]) == (status, retry)
    assert int(by_kind["INTEGRATION_FAILURE"][1]["Retry-After"]) >= 1


def test_the_openapi_document_has_the_gateways_errors() -> None:
    for path, methods in openapi_document("", catalog(1000, {}))["paths"].items():
        for method, operation in methods.items():
            expected = set(GATEWAY) if (method, path) in OPEN_OPERATIONS else {*GATEWAY, *GATEWAY_KEY}
            for status, _, code in expected:
                examples = operation["responses"][str(status)]["content"]["application/json"]["examples"]
                assert f"{code}-{status}" in examples, (method, path)


def test_only_the_shape_of_a_key_or_token_reaches_the_authorizer(template: Template) -> None:
    authorizer = api_key_scheme(template)
    expression = re.compile(authorizer["identityValidationExpression"])
    for credential in (f"Bearer ig_web_{'x' * 43}", f"bearer  ig_web_{'x' * 43}", "Bearer eyJh.eyJz.c2ln"):
        assert expression.search(credential), credential
    for other in ("a.b", "a.b.c.d", "a.b.", "a.b.c=", "sk-other", "ig_web"):
        assert not expression.search(f"Bearer {other}"), other
    for other in ("Basic eyJh.eyJz.c2ln", "eyJh.eyJz.c2ln", ""):
        assert not expression.search(other), other
    # A revoked key stops working within five minutes.
    assert authorizer["authorizerResultTtlInSeconds"] + CALLER_CACHE_SECONDS <= 300


def test_with_snapstart_the_gateway_calls_only_published_versions_of_the_authorizer(tmp_path: Path) -> None:
    """With the change in docs/deploying.md."""
    section = (ROOT / "docs/deploying.md").read_text().partition("### SnapStart")[2]
    change = yaml_parse(section.partition("```yaml")[2].partition("```")[0])
    path = tmp_path / "template.yaml"
    path.write_text(json.dumps(merged(yaml_parse((ROOT / "template.yaml").read_text()), change)))
    template = Template.read(path, {"UpstreamBaseUrl": "https://api.example.com/v1"}, "us-east-1")
    called = json.dumps([api_key_scheme(template)["authorizerUri"], template.api_body()["paths"]])
    assert "AuthorizerFunctionAlias" in called
    assert "AuthorizerFunction.Arn" not in called
    assert '["AuthorizerFunction", "Arn"]' not in called
    invoked = {each["FunctionName"]["Ref"] for each in template.of_type("AWS::Lambda::Permission").values()}
    assert invoked == {"AuthorizerFunctionAliaslive", "ApiFunction", "SiteFunction"}


def merged(document: Json, change: Json) -> Json:
    result = dict(document)
    for name, value in change.items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = merged(result[name], value) if both and "Fn::GetAtt" not in result[name] else value
    return result


# Queues and events.


def test_every_queue_has_a_dead_letter_queue_and_a_consumer(template: Template) -> None:
    found = queues(template)
    redrive = [queue["RedrivePolicy"] for queue in found.values() if "RedrivePolicy" in queue]
    dead = {each["deadLetterTargetArn"]["Fn::GetAtt"][0] for each in redrive}
    assert dead | {UNDELIVERED} == {name for name, queue in found.items() if "RedrivePolicy" not in queue}
    consumed = {mapping["EventSourceArn"]["Fn::GetAtt"][0] for mapping in mappings(template)}
    assert consumed == set(found) - {"IntakeDeadLetters", UNDELIVERED}
    assert all(queue["SqsManagedSseEnabled"] for queue in found.values())
    # The pauses between receipts are made for this number of them.
    assert [each["maxReceiveCount"] for each in redrive] == [MOST_RECEIPTS] * 4
    # A record exists longer than every message about it.
    longest = max(queue.get("MessageRetentionPeriod", 0) for queue in found.values())
    assert template.document["Parameters"]["RecordDays"]["MinValue"] * 86_400 > longest


def test_a_consumer_reports_batch_failures_within_the_visibility_time_out(template: Template) -> None:
    for mapping in mappings(template):
        assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
        timeout = functions(template)[mapping["FunctionName"]["Ref"]]["Timeout"]
        assert queues(template)[mapping["EventSourceArn"]["Fn::GetAtt"][0]]["VisibilityTimeout"] >= timeout


def test_an_event_or_a_file_goes_to_the_intake_or_the_undelivered_events(template: Template) -> None:
    bucket, rules = buckets(template)["InboxBucket"], template.of_type("AWS::Events::Rule")
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert bucket["NotificationConfiguration"] == {"EventBridgeConfiguration": {"EventBridgeEnabled": True}}
    assert "EventBusName" not in rules["InboxRule"]  # S3 sends only to the default bus
    assert rules["InboxRule"]["EventPattern"]["detail"]["object"] == {"key": [{"prefix": "inbox/"}]}
    for name, rule in rules.items():
        (target,) = rule["Targets"]
        assert target["Arn"] == {"Fn::GetAtt": ["IntakeQueue", "Arn"]}, name
        assert target["DeadLetterConfig"] == {"Arn": {"Fn::GetAtt": [UNDELIVERED, "Arn"]}}, name
    policies = template.of_type("AWS::SQS::QueuePolicy").values()
    assert sorted(policy["Queues"][0]["Ref"] for policy in policies) == ["IntakeQueue", UNDELIVERED]
    for policy in policies:
        (statement,) = policy["PolicyDocument"]["Statement"]
        assert statement["Action"] == "sqs:SendMessage"
        assert statement["Principal"] == {"Service": "events.amazonaws.com"}
        assert statement["Resource"] == {"Fn::GetAtt": [policy["Queues"][0]["Ref"], "Arn"]}
        sources = statement["Condition"]["ArnEquals"]["aws:SourceArn"]
        assert {source["Fn::GetAtt"][0] for source in sources} == set(rules)


# Table and buckets.


def test_the_table_costs_nothing_while_idle_and_can_be_restored(template: Template) -> None:
    (table,) = template.of_type("AWS::DynamoDB::Table").values()
    assert table["BillingMode"] == "PAY_PER_REQUEST"
    assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert table["TimeToLiveSpecification"] == {"AttributeName": "expires_at", "Enabled": True}
    assert table["SSESpecification"]["SSEEnabled"]
    assert template.resources["GenerationTable"]["DeletionPolicy"] == "Retain"


def test_a_bucket_is_private_encrypted_and_refuses_plain_http(template: Template) -> None:
    assert set(buckets(template)) == {"ImageBucket", "InboxBucket"}
    for name, bucket in buckets(template).items():
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
        (statement,) = template.of_type("AWS::S3::BucketPolicy")[f"{name}Policy"]["PolicyDocument"]["Statement"]
        assert statement["Effect"] == "Deny"
        assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        assert template.resources[name]["DeletionPolicy"] == "Retain"


def test_an_own_key_encrypts_the_images_and_their_roles_may_use_it(template: Template) -> None:
    for bucket in buckets(template).values():
        (encryption,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        condition, own, others = encryption["Fn::If"]
        assert condition == "OwnKeyEncrypts"
        assert own["ServerSideEncryptionByDefault"]["KMSMasterKeyID"] == {"Ref": "EncryptionKeyArn"}
        assert others["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    granted = [(role, json.dumps(statement["Resource"])) for role, statement in statements(template)]
    touch = {role for role, resource in granted if any(bucket in resource for bucket in buckets(template))}
    policy = template.of_type("AWS::IAM::Policy")["UseOfEncryptionKey"]
    assert {role["Ref"] for role in policy["Roles"]} == touch
    (statement,) = policy["PolicyDocument"]["Statement"]
    assert statement["Resource"] == {"Ref": "EncryptionKeyArn"}


# Parameters.


def test_every_parameter_is_described_used_bounded_and_in_one_group(template: Template) -> None:
    text, parameters = (ROOT / "template.yaml").read_text(), template.document["Parameters"]
    for name, parameter in parameters.items():
        default = parameter.get("Default")
        assert parameter["Description"], name
        assert re.search(rf"!Ref {name}\b|\$\{{{name}\}}", text), name
        if "AllowedValues" in parameter:
            assert default in parameter["AllowedValues"], name
        elif parameter["Type"] == "Number":
            assert parameter["MinValue"] <= default <= parameter["MaxValue"], name
        else:
            assert parameter["ConstraintDescription"], name
            assert default is None or re.fullmatch(parameter["AllowedPattern"], default), name
    groups = template.document["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    assert sorted(name for group in groups for name in group["Parameters"]) == sorted(parameters)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            "UpstreamBaseUrl",
            "https://api.example.com/v1 http://127.0.0.1:9/v1",
            ["", "api.example.com", "https://u:p@x"],
        ),
        ("PublicBaseUrl", "https://images.example.com", ["https://images.example.com/", "https://x?y"]),
        ("CorsOrigin", "* https://app.example.com", ["https://app.example.com/path", "*.example.com"]),
        ("StageName", "prod", ["a-b", "", "a/b"]),
        ("EncryptionKeyArn", "arn:aws:kms:eu-central-1:123456789012:key/1-a", ["alias/images"]),
    ],
)
def test_an_invalid_parameter_is_refused(template: Template, name: str, good: str, bad: list[str]) -> None:
    (rule,) = template.document["Rules"].values()  # an issuer needs an audience
    assert "OidcIssuer" in json.dumps(rule["RuleCondition"])
    assert "OidcAudience" in json.dumps(rule["Assertions"][0]["Assert"])
    pattern = template.document["Parameters"][name]["AllowedPattern"]
    assert all(re.fullmatch(pattern, value) for value in good.split())
    assert not any(re.fullmatch(pattern, value) for value in bad)


def test_the_configuration_page_lists_the_parameters_and_their_defaults(template: Template) -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    rows = re.findall(r"^\| `([A-Z]\w+)` \| (.+?) \|", page, re.MULTILINE)
    shown = {"\N{EN DASH}": None, "empty": "", "`*`": "*"}
    listed = {name: shown.get(default, default) for name, default in rows}
    defaults = {name: parameter.get("Default") for name, parameter in template.document["Parameters"].items()}
    assert len(rows) == len(listed)
    assert listed == {name: default if default is None else str(default) for name, default in defaults.items()}


def test_every_entry_point_has_an_example_event(template: Template) -> None:
    events = [json.loads(path.read_text()) for path in (ROOT / "events").glob("*.json")]
    shown = [event for event in events if "httpMethod" in event]
    assert {event["resource"] for event in shown} == {path for _, path in routes_of(template)} - {"/v1", "/v1/images"}
    for method, path in handled():
        pattern = re.sub(r"\{\w+\}", "[^/]+", path)
        assert any(event["httpMethod"] == method.upper() and re.fullmatch(pattern, event["path"]) for event in shown)
    assert any(event.get("type") == "TOKEN" for event in events)
    sources = {event["Records"][0]["eventSourceARN"].rpartition("-")[2] for event in events if "Records" in event}
    assert sources == {mapping["EventSourceArn"]["Fn::GetAtt"][0] for mapping in mappings(template)}
