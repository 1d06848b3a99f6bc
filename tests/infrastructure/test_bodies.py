"""What the template says about the bodies of requests: forms, their size, and uploads that take another way."""

import json
from base64 import b64encode
from typing import Any

import pytest

from local.gateway import Gateway
from local.lambda_host import MOST_EVENT_BYTES, Function, FunctionHost
from local.serving import Request
from local.template import Template

MB = 1024 * 1024
FORM_BYTES = int(4.4 * MB)  # that always fit, says the template
# API Gateway developer guide, "Quotas for configuring and running a REST API": all headers together. An event has them
# twice.
MOST_HEADER_BYTES = 10_240


def messages(template: Template) -> dict[str, tuple[int, dict[str, Any]]]:
    """Status and error of the gateway's own answers to a request that is too large."""
    responses = template.api_body()["x-amazon-apigateway-gateway-responses"]
    return {
        kind: (int(responses[kind]["statusCode"]), json.loads(responses[kind]["responseTemplates"]["application/json"]))
        for kind in ("REQUEST_TOO_LARGE", "INTEGRATION_FAILURE")
    }


def test_only_forms_are_binary(template: Template) -> None:
    """API Gateway merges both lists. With a star, the mock integrations of the preflights would fail."""
    assert template.api_body()["x-amazon-apigateway-binary-media-types"] == ["multipart/form-data"]
    (api,) = template.of_type("AWS::ApiGateway::RestApi").values()
    assert [kind.replace("~1", "/") for kind in api["BinaryMediaTypes"]] == ["multipart/form-data"]
    for methods in template.api_body()["paths"].values():
        for operation in methods.values():  # nothing converts a body a second time
            assert "contentHandling" not in operation["x-amazon-apigateway-integration"]


@pytest.mark.parametrize("headers", [[], [("Content-Type", "application/json")]], ids=["browser", "with a type"])
def test_every_preflight_is_answered(template: Template, headers: list[tuple[str, str]]) -> None:
    body = template.api_body()
    gateway = Gateway(body, {}, stage="")
    for path in body["paths"]:
        target = path.replace("{proxy+}", "other").replace("{", "").replace("}", "")
        reply = gateway.respond(Request("OPTIONS", target, headers, b"", None))  # type: ignore[arg-type]
        assert (reply.status, reply.headers["Access-Control-Allow-Origin"]) == (200, "*"), path


def test_the_answers_to_a_request_that_is_too_large_name_the_way_out(template: Template) -> None:
    found = messages(template)
    codes = {kind: (status, answer["error"]["code"]) for kind, (status, answer) in found.items()}
    assert codes == {
        "REQUEST_TOO_LARGE": (413, "request_too_large"),
        "INTEGRATION_FAILURE": (424, "request_not_answered"),
    }
    for _, answer in found.values():
        assert "a form over 4.4 MB does not fit" in answer["error"]["message"]
        assert "POST /v1/images/uploads" in answer["error"]["message"]


def test_a_form_of_that_size_fits_with_the_longest_headers() -> None:
    rest = 16 * 1024  # the path, the caller and the rest of the request's context
    assert len(b64encode(b"x" * FORM_BYTES)) + 2 * MOST_HEADER_BYTES + rest < MOST_EVENT_BYTES


@pytest.mark.parametrize(("kind", "status"), [("INTEGRATION_FAILURE", 424), ("REQUEST_TOO_LARGE", 413)])
def test_a_larger_form_gets_such_an_answer_whichever_the_gateway_chooses(
    template: Template, monkeypatch: pytest.MonkeyPatch, kind: str, status: int, tmp_path: Any
) -> None:
    monkeypatch.setattr("local.gateway.EVENT_TOO_LARGE", kind)
    nothing = FunctionHost(Function("own", "app.handler", tmp_path, (), 60, 128, {}), tmp_path / "log")
    gateway = Gateway(template.api_body(), {"SiteFunction": nothing}, stage="")
    headers = [("Content-Type", "multipart/form-data; boundary=b"), ("Host", "127.0.0.1")]
    request = Request("POST", "/other", headers, b"x" * 5 * MB, None)  # type: ignore[arg-type]
    reply = gateway.respond(request)
    assert reply.status == status
    assert json.loads(reply.body) == messages(template)[kind][1]
    assert reply.headers["Access-Control-Allow-Origin"] == "*"


def test_a_page_of_the_apis_origin_can_upload(template: Template) -> None:
    """With the headers for which the URL of an upload is signed, and that a page may set."""
    by_method: dict[str, Any] = {}
    for rule in template.of_type("AWS::S3::Bucket")["ImageBucket"]["CorsConfiguration"]["CorsRules"]:
        by_method |= dict.fromkeys(rule["AllowedMethods"], rule)
    assert set(by_method) == {"GET", "HEAD", "PUT"}
    assert by_method["PUT"]["AllowedOrigins"] == [{"Ref": "CorsOrigin"}]
    assert by_method["PUT"]["AllowedHeaders"] == ["Content-Type", "If-None-Match"]
    assert by_method["GET"]["AllowedOrigins"] == ["*"]
    assert "CorsConfiguration" not in template.of_type("AWS::S3::Bucket")["InboxBucket"]
