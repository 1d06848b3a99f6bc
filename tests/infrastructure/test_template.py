"""What the template promises, checked on what the SAM translator makes of it."""

import ast
import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from imagegen.bootstrap.authorizer import CLIENT_CACHE_SECONDS
from imagegen.manage import LEASE_SECONDS
from imagegen.openai_wire.openapi import GATEWAY, GATEWAY_KEY, openapi_document
from imagegen.settings import (
    ApiSettings,
    AuthorizerSettings,
    IntakeSettings,
    SettingsError,
    SiteSettings,
    WorkerSettings,
)
from local.template import Template
from tests.conftest import ROOT
from tests.support.limits import MOST_RECEIPTS

SETTINGS: dict[str, type[ApiSettings | AuthorizerSettings | IntakeSettings | SiteSettings | WorkerSettings]] = {
    "ApiFunction": ApiSettings,
    "AuthorizerFunction": AuthorizerSettings,
    "WorkerFunction": WorkerSettings,
    "DeadLetterFunction": WorkerSettings,
    "IntakeFunction": IntakeSettings,
    "SiteFunction": SiteSettings,
}
UNDELIVERED = "UndeliveredEvents"
HANDLERS = {"ApiFunction": "functions/api/app.py", "SiteFunction": "functions/site/app.py"}
ANY = "x-amazon-apigateway-any-method"
OPEN_ROUTES = {
    (ANY, "/"),
    (ANY, "/{proxy+}"),
    (ANY, "/health"),
    ("get", "/v1/images/{image_id}"),
    ("head", "/v1/images/{image_id}"),
}
OPEN_OPERATIONS = {
    ("get", "/"),
    ("get", "/docs"),
    ("get", "/docs/{file}"),
    ("get", "/openapi.json"),
    ("get", "/health"),
    ("get", "/playground.css"),
    ("get", "/playground.js"),
    ("get", "/v1/images/{image_id}"),
}
NOT_SUPPORTED = {(method, path) for method in ("get", "post") for path in ("/v1/images/edits", "/v1/images/variations")}
POLICY_BYTES = 20_480  # Lambda's limit for a function's resource policy


@pytest.fixture(scope="module")
def template() -> Template:
    return Template.read(ROOT / "template.yaml", {"UpstreamBaseUrl": "https://api.example.com/v1"}, "us-east-1")


class Recorded(Mapping[str, str]):
    """An environment that remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize("function", SETTINGS)
def test_a_functions_variables_are_exactly_its_settings(template: Template, function: str) -> None:
    environment = Recorded()
    with pytest.raises(SettingsError):
        SETTINGS[function].from_env(environment)
    from_the_runtime = {name for name in environment.asked if name.startswith("AWS_")}
    variables = template.of_type("AWS::Lambda::Function")[function]["Environment"]["Variables"]
    assert set(variables) == environment.asked - from_the_runtime


def test_every_function_has_its_settings_tested(template: Template) -> None:
    assert set(template.of_type("AWS::Lambda::Function")) == set(SETTINGS)


def test_every_function_has_a_log_of_its_own_that_expires(template: Template) -> None:
    functions = template.of_type("AWS::Lambda::Function")
    groups = [function["LoggingConfig"]["LogGroup"]["Ref"] for function in functions.values()]
    assert len(set(groups)) == len(functions)
    for group in groups:
        assert template.of_type("AWS::Logs::LogGroup")[group]["RetentionInDays"] == {"Ref": "LogRetentionDays"}


def statements(template: Template) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, role in template.of_type("AWS::IAM::Role").items():
        assert "ManagedPolicyArns" not in role, name
        for policy in role["Policies"]:
            for statement in policy["PolicyDocument"]["Statement"]:
                yield name, statement


def test_every_function_and_the_schedule_has_a_role_of_its_own(template: Template) -> None:
    roles = [function["Role"]["Fn::GetAtt"][0] for function in template.of_type("AWS::Lambda::Function").values()]
    roles += [
        each["Target"]["RoleArn"]["Fn::GetAtt"][0] for each in template.of_type("AWS::Scheduler::Schedule").values()
    ]
    assert sorted(roles) == sorted(template.of_type("AWS::IAM::Role"))


def test_no_role_is_granted_a_wildcard(template: Template) -> None:
    found = list(statements(template))
    assert found
    for name, statement in found:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert all(re.fullmatch(r"[a-z0-9]+:[A-Za-z]+", action) for action in actions), (name, actions)
        resource = json.dumps(statement["Resource"])
        assert resource.count("*") <= 1, (name, resource)
        assert "*" not in resource or resource.endswith('/*"}'), (name, resource)


def test_the_api_is_regional(template: Template) -> None:
    (api,) = template.of_type("AWS::ApiGateway::RestApi").values()
    assert api["EndpointConfiguration"] == {"Types": ["REGIONAL"]}


def routes_of(template: Template) -> set[tuple[str, str]]:
    """All but the preflights, which the gateway answers by itself."""
    paths = template.api_body()["paths"]
    return {(method, path) for path, methods in paths.items() for method in methods if method != "options"}


def test_every_route_but_the_open_ones_asks_for_a_key(template: Template) -> None:
    operations = template.api_body()["paths"]
    routes = {(method, path): operations[path][method]["security"] for method, path in routes_of(template)}
    assert set(routes) >= OPEN_ROUTES
    for route, security in routes.items():
        assert security == [{"NONE": []}] if route in OPEN_ROUTES else security == [{"BearerKey": []}], route


def test_every_resource_has_all_methods_since_the_gateway_picks_the_resource_first(template: Template) -> None:
    paths = template.api_body()["paths"]
    assert all(ANY in methods for methods in paths.values())
    for path in paths:  # a resource on the way to another one catches its own path, too
        segments = path.split("/")
        assert {"/".join(segments[:count]) for count in range(2, len(segments))} <= set(paths), path


def test_every_function_fits_its_resource_policy(template: Template) -> None:
    """The longest names that AWS lets them have: a stack's 128 characters, a function's 64, a stage's 128."""
    arn = f"arn:aws-us-gov:lambda:ap-southeast-1:123456789012:function:{'f' * 64}"
    statements: dict[str, list[dict[str, Any]]] = {}
    for name, permission in template.of_type("AWS::Lambda::Permission").items():
        function = permission["FunctionName"].get("Ref") or permission["FunctionName"]["Fn::GetAtt"][0]
        text = permission["SourceArn"]["Fn::Sub"][0]
        source = re.sub(r"\$\{.*?\}", lambda match: {"${__Stage__}": "*"}.get(match[0], "x" * 16), text)
        statements.setdefault(function, []).append(
            {
                "Sid": f"{'s' * 128}-{name}-{'X' * 13}",
                "Effect": "Allow",
                "Principal": {"Service": permission["Principal"]},
                "Action": permission["Action"],
                "Resource": arn,
                "Condition": {"ArnLike": {"AWS:SourceArn": source}},
            }
        )
    sizes = {
        function: len(json.dumps({"Version": "2012-10-17", "Id": "default", "Statement": all_of_it}))
        for function, all_of_it in statements.items()
    }
    assert set(sizes) == {"ApiFunction", "AuthorizerFunction", "SiteFunction"}
    assert all(size < POLICY_BYTES for size in sizes.values()), sizes


def test_every_deployment_reaches_the_stage(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """SAM names a deployment by a hash, by default of the paths alone. A name that stays is no new deployment."""
    tomorrow = time.time() + 86_400
    monkeypatch.setattr("samtranslator.model.apigateway.time.time", lambda: tomorrow)
    again = Template.read(ROOT / "template.yaml", template.parameters, "us-east-1")
    assert set(again.of_type("AWS::ApiGateway::Deployment")).isdisjoint(template.of_type("AWS::ApiGateway::Deployment"))


def handled() -> set[tuple[str, str]]:
    """The routes of the handlers, by their decorators."""
    sources = [ast.parse((ROOT / source).read_text()) for source in HANDLERS.values()]
    return {
        (decorator.func.attr, re.sub(r"<(\w+)>", r"{\1}", decorator.args[0].value))
        for source in sources
        for definition in ast.walk(source)
        if isinstance(definition, ast.FunctionDef)
        for decorator in definition.decorator_list
        if isinstance(decorator, ast.Call)
        and isinstance(decorator.func, ast.Attribute)
        and decorator.args
        and isinstance(decorator.args[0], ast.Constant)
        and isinstance(decorator.args[0].value, str)
    }


def test_the_site_may_do_nothing_but_write_its_log(template: Template) -> None:
    (granted,) = [statement for role, statement in statements(template) if role == "SiteRole"]
    assert granted["Action"] == ["logs:CreateLogStream", "logs:PutLogEvents"]


def test_every_gateway_response_is_openai_shaped_and_carries_the_request_id(template: Template) -> None:
    responses = template.api_body()["x-amazon-apigateway-gateway-responses"]
    assert {"DEFAULT_4XX", "DEFAULT_5XX", "INTEGRATION_TIMEOUT", "THROTTLED", "UNAUTHORIZED"} <= set(responses)
    for kind, response in responses.items():
        body = response["responseTemplates"]["application/json"].replace("$context.error.messageString", '"text"')
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}, kind
        assert response["responseParameters"]["gatewayresponse.header.x-request-id"] == "context.extendedRequestId", (
            kind
        )


def test_a_browsers_page_may_call_every_route_and_read_every_answer(template: Template) -> None:
    body = template.api_body()
    for path, methods in body["paths"].items():
        preflight = methods["options"]
        assert not preflight.get("security"), path  # a preflight carries no key
        told = preflight["x-amazon-apigateway-integration"]["responses"]["default"]["responseParameters"]
        assert told["method.response.header.Access-Control-Allow-Origin"] == "'*'"
        allowed = told["method.response.header.Access-Control-Allow-Methods"].strip("'").split(",")
        assert set(allowed) == {"OPTIONS", "HEAD"} | {method.upper() for method, _ in handled()}
        headers = told["method.response.header.Access-Control-Allow-Headers"].strip("'").lower().split(",")
        assert headers == ["authorization", "*"]  # the star does not cover it
    for kind, response in body["x-amazon-apigateway-gateway-responses"].items():
        assert response["responseParameters"]["gatewayresponse.header.Access-Control-Allow-Origin"] == "'*'", kind


def test_the_description_of_the_api_has_every_route_and_no_other_and_says_which_are_open() -> None:
    described = {
        (method, path): operation.get("security") == []
        for path, methods in openapi_document("", 1000)["paths"].items()
        for method, operation in methods.items()
    }
    assert set(described) == handled() - NOT_SUPPORTED
    assert {route for route, is_open in described.items() if is_open} == OPEN_OPERATIONS


def test_the_description_tells_what_the_gateway_answers_by_itself(template: Template) -> None:
    responses = template.api_body()["x-amazon-apigateway-gateway-responses"]
    statuses = {"DEFAULT_4XX": 400}  # the gateway's own status, of which this is the usual
    told = set()
    for kind, response in responses.items():
        body = response["responseTemplates"]["application/json"].replace("$context.error.messageString", '"text"')
        error = json.loads(body)["error"]
        told.add((int(response.get("statusCode") or statuses[kind]), error["type"], error["code"]))
    elsewhere = (404, "invalid_request_error", "unknown_url")  # of paths that are not there
    of_all = {*GATEWAY, *GATEWAY_KEY}
    assert told == of_all | {elsewhere}
    for path, methods in openapi_document("", 1000)["paths"].items():
        for method, operation in methods.items():
            expected = set(GATEWAY) if (method, path) in OPEN_OPERATIONS else of_all
            for status, _, code in expected:
                examples = operation["responses"][str(status)]["content"]["application/json"]["examples"]
                assert f"{code}-{status}" in examples, (method, path)


def test_the_gateway_throttles_by_parameter(template: Template) -> None:
    given = {"UpstreamBaseUrl": "https://api.example.com/v1", "RequestsPerSecond": "7", "RequestBurst": "9"}
    assert Template.read(ROOT / "template.yaml", given, "us-east-1").throttling() == (7, 9)
    assert all(limit > 0 for limit in template.throttling())


def test_a_gateway_answer_after_which_money_may_be_spent_tells_clients_not_to_retry(template: Template) -> None:
    responses = template.api_body()["x-amazon-apigateway-gateway-responses"]
    assert responses["DEFAULT_5XX"]["responseParameters"]["gatewayresponse.header.x-should-retry"] == "'false'"
    assert str(responses["DEFAULT_5XX"]["statusCode"]) == "424"


def test_what_lambda_does_not_take_is_retried_by_clients_whose_retries_attach_and_by_no_other(
    template: Template,
) -> None:
    response = template.api_body()["x-amazon-apigateway-gateway-responses"]["INTEGRATION_FAILURE"]
    headers = response["responseParameters"]
    assert str(response["statusCode"]) == "424"
    assert headers["gatewayresponse.header.x-should-retry"] == "'true'"
    assert int(headers["gatewayresponse.header.Retry-After"].strip("'")) >= 1


def test_the_gateways_504_tells_clients_to_retry_since_a_retry_attaches(template: Template) -> None:
    response = template.api_body()["x-amazon-apigateway-gateway-responses"]["INTEGRATION_TIMEOUT"]
    assert response["responseParameters"]["gatewayresponse.header.x-should-retry"] == "'true'"
    assert str(response["statusCode"]) == "504"


def test_work_that_overruns_the_gateway_ends_stored_before_the_function_does(template: Template) -> None:
    functions, parameters = template.of_type("AWS::Lambda::Function"), template.document["Parameters"]
    # Time to store the images, and to tell.
    assert functions["ApiFunction"]["Timeout"] - parameters["QuickUpstreamTimeoutSeconds"]["MaxValue"] >= 20
    assert functions["WorkerFunction"]["Timeout"] - parameters["UpstreamTimeoutSeconds"]["MaxValue"] >= 60


def test_a_claim_outlasts_the_function_that_ends_what_no_worker_could_deal_with(template: Template) -> None:
    assert template.of_type("AWS::Lambda::Function")["DeadLetterFunction"]["Timeout"] <= LEASE_SECONDS


def test_every_queue_has_dead_letters_and_every_queue_but_those_for_people_a_consumer(template: Template) -> None:
    queues = template.of_type("AWS::SQS::Queue")
    dead = {
        queue["RedrivePolicy"]["deadLetterTargetArn"]["Fn::GetAtt"][0]
        for queue in queues.values()
        if "RedrivePolicy" in queue
    }
    assert dead | {UNDELIVERED} == {name for name, queue in queues.items() if "RedrivePolicy" not in queue}
    consumed = {mapping["EventSourceArn"]["Fn::GetAtt"][0] for mapping in mappings(template)}
    assert consumed == set(queues) - {"IntakeDeadLetters", UNDELIVERED}
    assert all(queue["SqsManagedSseEnabled"] for queue in queues.values())


def mappings(template: Template) -> list[dict[str, Any]]:
    return list(template.of_type("AWS::Lambda::EventSourceMapping").values())


def test_a_consumer_tells_its_failures_and_its_queue_hides_what_it_works_on(template: Template) -> None:
    functions, queues = template.of_type("AWS::Lambda::Function"), template.of_type("AWS::SQS::Queue")
    for mapping in mappings(template):
        assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
        timeout = functions[mapping["FunctionName"]["Ref"]]["Timeout"]
        assert queues[mapping["EventSourceArn"]["Fn::GetAtt"][0]]["VisibilityTimeout"] >= timeout


def test_the_table_costs_nothing_while_idle_and_can_be_restored(template: Template) -> None:
    (table,) = template.of_type("AWS::DynamoDB::Table").values()
    assert table["BillingMode"] == "PAY_PER_REQUEST"
    assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert table["TimeToLiveSpecification"] == {"AttributeName": "expires_at", "Enabled": True}
    assert table["SSESpecification"]["SSEEnabled"]
    assert template.resources["GenerationTable"]["DeletionPolicy"] == "Retain"


@pytest.mark.parametrize(
    ("authorization", "asked"),
    [
        (f"Bearer ig_web_{'x' * 43}", True),
        (f"bearer  ig_web_{'x' * 43}", True),
        ("Bearer eyJh.eyJz.c2ln", True),
        ("Bearer a.b", False),
        ("Bearer a.b.c.d", False),
        ("Bearer a.b.", False),
        ("Bearer a.b.c=", False),
        ("Bearer sk-other", False),
        ("Bearer ig_web", False),
        ("Basic eyJh.eyJz.c2ln", False),
        ("eyJh.eyJz.c2ln", False),
        ("", False),
    ],
)
def test_only_what_may_be_a_key_or_a_token_costs_a_call_of_the_authorizer(
    template: Template, authorization: str, asked: bool
) -> None:
    scheme = template.api_body()["components"]["securitySchemes"]["BearerKey"]
    expression = scheme["x-amazon-apigateway-authorizer"]["identityValidationExpression"]
    assert bool(re.search(expression, authorization)) is asked


def test_a_stack_with_an_issuer_is_not_deployed_without_an_audience(template: Template) -> None:
    (rule,) = template.document["Rules"].values()
    assert "OidcIssuer" in json.dumps(rule["RuleCondition"])
    assert "OidcAudience" in json.dumps(rule["Assertions"][0]["Assert"])


def test_a_revoked_key_is_dead_within_five_minutes(template: Template) -> None:
    scheme = template.api_body()["components"]["securitySchemes"]["BearerKey"]
    gateway_cache = scheme["x-amazon-apigateway-authorizer"]["authorizerResultTtlInSeconds"]
    assert gateway_cache + CLIENT_CACHE_SECONDS <= 300


@pytest.mark.parametrize("name", ["ImageBucket", "InboxBucket"])
def test_a_bucket_is_private_encrypted_and_refuses_plain_http(template: Template, name: str) -> None:
    bucket = template.of_type("AWS::S3::Bucket")[name]
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert bucket["BucketEncryption"]
    (statement,) = template.of_type("AWS::S3::BucketPolicy")[f"{name}Policy"]["PolicyDocument"]["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert template.resources[name]["DeletionPolicy"] == "Retain"


def test_with_snapstart_the_gateway_calls_published_versions_alone(tmp_path: Path) -> None:
    """With what docs/deploying.md says to put into the template."""
    section = (ROOT / "docs/deploying.md").read_text().partition("### SnapStart")[2]
    change = yaml_parse(section.partition("```yaml")[2].partition("```")[0])
    changed = merged(yaml_parse((ROOT / "template.yaml").read_text()), change)
    path = tmp_path / "template.yaml"
    path.write_text(json.dumps(changed))
    template = Template.read(path, {"UpstreamBaseUrl": "https://api.example.com/v1"}, "us-east-1")
    body = template.api_body()
    authorizer = body["components"]["securitySchemes"]["BearerKey"]["x-amazon-apigateway-authorizer"]
    called = json.dumps([authorizer["authorizerUri"], body["paths"]])
    for function in ("AuthorizerFunction", "ApiFunction"):
        assert f"{function}Alias" in called
        assert f"{function}.Arn" not in called
        assert f'["{function}", "Arn"]' not in called
    invoked = {each["FunctionName"]["Ref"] for each in template.of_type("AWS::Lambda::Permission").values()}
    assert invoked == {"AuthorizerFunctionAliaslive", "ApiFunctionAliaslive", "SiteFunction"}


def merged(document: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    result = dict(document)
    for name, value in change.items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = merged(result[name], value) if both and "Fn::GetAtt" not in result[name] else value
    return result


def test_what_is_dropped_into_the_inbox_and_nothing_else_comes_to_the_intake(template: Template) -> None:
    bucket = template.of_type("AWS::S3::Bucket")["InboxBucket"]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert bucket["NotificationConfiguration"] == {"EventBridgeConfiguration": {"EventBridgeEnabled": True}}
    rule = template.of_type("AWS::Events::Rule")["InboxRule"]
    assert "EventBusName" not in rule  # S3 tells the default bus alone
    assert rule["EventPattern"]["detail"]["object"] == {"key": [{"prefix": "inbox/"}]}


def test_an_event_goes_to_the_intake_or_to_the_undelivered_and_is_never_dropped(template: Template) -> None:
    rules = template.of_type("AWS::Events::Rule")
    for name, rule in rules.items():
        (target,) = rule["Targets"]
        assert target["Arn"] == {"Fn::GetAtt": ["IntakeQueue", "Arn"]}, name
        assert target["DeadLetterConfig"] == {"Arn": {"Fn::GetAtt": [UNDELIVERED, "Arn"]}}, name
    policies = template.of_type("AWS::SQS::QueuePolicy").values()
    assert sorted(policy["Queues"][0]["Ref"] for policy in policies) == ["IntakeQueue", UNDELIVERED]
    for policy in policies:
        (statement,) = policy["PolicyDocument"]["Statement"]
        assert statement["Principal"] == {"Service": "events.amazonaws.com"}
        assert statement["Action"] == "sqs:SendMessage"
        assert statement["Resource"] == {"Fn::GetAtt": [policy["Queues"][0]["Ref"], "Arn"]}
        sources = statement["Condition"]["ArnEquals"]["aws:SourceArn"]
        assert {source["Fn::GetAtt"][0] for source in sources} == set(rules)


def test_a_key_of_ones_own_encrypts_the_images_and_whoever_touches_them_may_use_it(template: Template) -> None:
    (encryption,) = template.of_type("AWS::S3::Bucket")["ImageBucket"]["BucketEncryption"][
        "ServerSideEncryptionConfiguration"
    ]
    condition, own, others = encryption["Fn::If"]
    assert condition == "OwnKeyEncrypts"
    assert own["ServerSideEncryptionByDefault"]["KMSMasterKeyID"] == {"Ref": "EncryptionKeyArn"}
    assert others["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    buckets = template.of_type("AWS::S3::Bucket")
    assert all(bucket["BucketEncryption"] == buckets["ImageBucket"]["BucketEncryption"] for bucket in buckets.values())
    touch = {
        role
        for role, statement in statements(template)
        if any(bucket in json.dumps(statement["Resource"]) for bucket in buckets)
    }
    policy = template.of_type("AWS::IAM::Policy")["UseOfEncryptionKey"]
    assert {role["Ref"] for role in policy["Roles"]} == touch
    (statement,) = policy["PolicyDocument"]["Statement"]
    assert statement["Resource"] == {"Ref": "EncryptionKeyArn"}


def test_every_parameter_is_described_and_used(template: Template) -> None:
    text = (ROOT / "template.yaml").read_text()
    for name, parameter in template.document["Parameters"].items():
        assert parameter["Description"], name
        assert re.search(rf"!Ref {name}\b|\$\{{{name}\}}", text), name


def test_every_parameter_is_bounded_and_its_default_within(template: Template) -> None:
    for name, parameter in template.document["Parameters"].items():
        default = parameter.get("Default")
        if "AllowedValues" in parameter:
            assert default in parameter["AllowedValues"], name
        elif parameter["Type"] == "Number":
            assert parameter["MinValue"] <= default <= parameter["MaxValue"], name
        else:
            assert parameter["ConstraintDescription"], name
            assert default is None or re.fullmatch(parameter["AllowedPattern"], default), name


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            "UpstreamBaseUrl",
            ["https://api.example.com/v1", "http://127.0.0.1:9/v1"],
            ["", "api.example.com", "https://u:p@x"],
        ),
        ("PublicBaseUrl", ["", "https://images.example.com"], ["https://images.example.com/", "https://x?y"]),
        ("CorsOrigin", ["*", "https://app.example.com"], ["https://app.example.com/path", "*.example.com"]),
        ("StageName", ["prod"], ["a-b", "", "a/b"]),
        ("EncryptionKeyArn", ["", "arn:aws:kms:eu-central-1:123456789012:key/1-a"], ["alias/images"]),
    ],
)
def test_a_value_that_cannot_work_is_refused_before_anything_is_deployed(
    template: Template, name: str, good: list[str], bad: list[str]
) -> None:
    pattern = template.document["Parameters"][name]["AllowedPattern"]
    assert all(re.fullmatch(pattern, value) for value in good)
    assert not any(re.fullmatch(pattern, value) for value in bad)


def test_the_console_shows_every_parameter_in_one_group(template: Template) -> None:
    groups = template.document["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    shown = [name for group in groups for name in group["Parameters"]]
    assert sorted(shown) == sorted(template.document["Parameters"])


def test_the_configuration_page_lists_the_parameters_and_their_defaults(template: Template) -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    rows = re.findall(r"^\| `([A-Z]\w+)` \| (.+?) \|", page, re.MULTILINE)
    shown = {"\N{EN DASH}": None, "empty": "", "`*`": "*"}
    told = {name: shown.get(default, default) for name, default in rows}
    defaults = {name: parameter.get("Default") for name, parameter in template.document["Parameters"].items()}
    assert len(rows) == len(told)
    assert told == {name: default if default is None else str(default) for name, default in defaults.items()}


def test_every_entry_point_has_an_example_event(template: Template) -> None:
    events = [json.loads(path.read_text()) for path in (ROOT / "events").glob("*.json")]
    shown = [event for event in events if "httpMethod" in event]
    assert {event["resource"] for event in shown} == {path for _, path in routes_of(template)} - {"/v1", "/v1/images"}
    for method, path in handled() - NOT_SUPPORTED:
        pattern = re.sub(r"\{\w+\}", "[^/]+", path)
        assert any(event["httpMethod"] == method.upper() and re.fullmatch(pattern, event["path"]) for event in shown)
    assert any(event.get("type") == "TOKEN" for event in events)
    sources = {event["Records"][0]["eventSourceARN"].rpartition("-")[2] for event in events if "Records" in event}
    assert sources == {mapping["EventSourceArn"]["Fn::GetAtt"][0] for mapping in mappings(template)}


def test_lambda_does_not_stop_the_intake_that_sends_itself_the_rest_of_a_file(template: Template) -> None:
    """Without leave it drops a message that has led back to the same function 16 times: `RecursiveLoop`."""
    functions = template.of_type("AWS::Lambda::Function")
    assert {name for name, function in functions.items() if "RecursiveLoop" in function} == {"IntakeFunction"}
    assert functions["IntakeFunction"]["RecursiveLoop"] == "Allow"


def test_each_queue_lets_a_message_come_as_often_as_its_pauses_are_made_for(template: Template) -> None:
    queues = template.of_type("AWS::SQS::Queue").values()
    counts = [queue["RedrivePolicy"]["maxReceiveCount"] for queue in queues if "RedrivePolicy" in queue]
    assert counts == [MOST_RECEIPTS] * 3


def test_a_record_outlives_every_message_about_it(template: Template) -> None:
    longest = max(queue.get("MessageRetentionPeriod", 0) for queue in template.of_type("AWS::SQS::Queue").values())
    assert template.document["Parameters"]["RecordDays"]["MinValue"] * 86_400 > longest
