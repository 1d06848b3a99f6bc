"""Reads the SAM template as a deployment does: transformed by AWS's own translator."""

import copy
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

from tools.streaming import switched

logging.getLogger("samtranslator").setLevel(logging.ERROR)

_PACKAGED = "s3://packaged/code.zip"  # the translator accepts only code in S3
_CODE_PROPERTY = {"AWS::Serverless::Function": "CodeUri", "AWS::Serverless::LayerVersion": "ContentUri"}
# Types that moto's CloudFormation does not support. The local stack handles them itself or does without them.
_NOT_FOR_MOTO = (
    "AWS::ApiGateway::",
    "AWS::CloudWatch::",
    "AWS::Lambda::EventSourceMapping",
    "AWS::Lambda::LayerVersion",
    "AWS::Lambda::Permission",
    "AWS::S3::BucketPolicy",
    "AWS::SQS::QueuePolicy",
)


@dataclass(frozen=True)
class Template:
    """`document` is the SAM template, `resources` its translation for CloudFormation.

    `code` is the source folder of each function and layer. `parameters` are those given to `read`, without defaults.
    """

    document: dict[str, Any]
    resources: dict[str, Any]
    code: dict[str, Path]
    parameters: dict[str, str]

    @classmethod
    def read(cls, path: Path, parameters: dict[str, str], region: str, *, streaming: bool = True) -> "Template":
        document = yaml_parse(switched(path.read_text(), streaming=streaming))
        code = {}
        packaged = copy.deepcopy(document)
        for name, resource in packaged["Resources"].items():
            code_property = _CODE_PROPERTY.get(resource["Type"])
            if code_property:
                code[name] = (path.parent / resource["Properties"][code_property]).resolve()
                resource["Properties"][code_property] = _PACKAGED
        session = boto3.session.Session(region_name=region)
        translated = Translator({}, Parser(), boto_session=session).translate(packaged, dict(parameters))
        return cls(document, translated["Resources"], code, dict(parameters))

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """The properties of each resource of a CloudFormation type, by logical id."""
        return {
            name: resource.get("Properties", {})
            for name, resource in self.resources.items()
            if resource["Type"] == kind
        }

    def layers_of(self, function: str) -> list[Path]:
        """The source folders of a function's layers, in order."""
        properties = self.document["Resources"][function]["Properties"]
        layers = properties.get("Layers") or self.document["Globals"]["Function"].get("Layers", [])
        return [self.code[layer["Ref"]] for layer in layers]

    def for_moto(self, api_url: str) -> dict[str, Any]:
        """The template for moto's CloudFormation: without API, layers and code. `api_url` replaces the API's URL."""
        resources = {}
        for name, resource in _with_api_url(self.resources, api_url).items():
            if resource["Type"].startswith(_NOT_FOR_MOTO):
                continue
            if resource["Type"] == "AWS::Lambda::Function":
                resource["Properties"]["Code"] = {"ZipFile": "# runs from the source tree"}
                resource["Properties"].pop("Layers", None)
            resources[name] = resource
        kept: dict[str, Any] = {
            key: self.document[key] for key in ("Parameters", "Conditions", "Mappings") if key in self.document
        }
        # moto's look-up of a resource fails at the first one whose condition is false, so resources with conditions
        # come last.
        resources = dict(sorted(resources.items(), key=lambda item: "Condition" in item[1]))
        return {"AWSTemplateFormatVersion": "2010-09-09", **kept, "Resources": resources}

    def value(self, value: Any) -> Any:
        """A property's value. A reference to a parameter is replaced by the parameter's value."""
        if isinstance(value, dict) and value.get("Ref") in self.document["Parameters"]:
            name = value["Ref"]
            return self.parameters.get(name, self.document["Parameters"][name].get("Default"))
        return value

    def api_body(self) -> dict[str, Any]:
        """The OpenAPI document of the REST API, with API Gateway's extensions and the parameters' values."""
        (api,) = self.of_type("AWS::ApiGateway::RestApi").values()
        body: dict[str, Any] = self._with_parameters(api["Body"])
        return body

    def throttling(self) -> tuple[float, int]:
        """Rate and burst of the stage."""
        (stage,) = self.of_type("AWS::ApiGateway::Stage").values()
        (settings,) = stage["MethodSettings"]
        return float(self.value(settings["ThrottlingRateLimit"])), int(self.value(settings["ThrottlingBurstLimit"]))

    def _with_parameters(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._with_parameters(each) for each in value]
        if not isinstance(value, dict):
            return value
        text = value.get("Fn::Sub")
        names = re.findall(r"\$\{(.*?)\}", text) if isinstance(text, str) else []
        if names and all(name in self.document["Parameters"] for name in names):
            return re.sub(r"\$\{(.*?)\}", lambda match: str(self.value({"Ref": match[1]})), str(text))
        return {name: self._with_parameters(each) for name, each in value.items()}


def _with_api_url(value: Any, api_url: str) -> Any:
    """A copy in which `api_url` replaces every text that contains the API's id."""
    if isinstance(value, dict):
        if "${Api}.execute-api" in str(value.get("Fn::Sub", "")):
            return api_url
        return {name: _with_api_url(each, api_url) for name, each in value.items()}
    if isinstance(value, list):
        return [_with_api_url(each, api_url) for each in value]
    return value
