"""The template with and without streaming. SAM writes a buffered integration, without a word, if it does not know the
value of ResponseTransferMode. So these tests look at its translation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local.stack import BUILT
from local.template import Template
from tests.conftest import ROOT
from tools import streaming
from tools.streaming import switched

SOURCE = ROOT / "template.yaml"
MODE = "ResponseTransferMode: RESPONSE_STREAM"
EVENTS = 9  # of the api function
Integration = dict[str, Any]


def read(path: Path, *, on: bool) -> Template:
    return Template.read(path, {"UpstreamBaseUrl": "https://api.example.com/v1"}, "us-east-1", streaming=on)


def integrations(template: Template) -> Iterator[tuple[bool, Integration]]:
    """The integrations with functions, each with whether it calls the api function."""
    for methods in template.api_body()["paths"].values():
        for operation in methods.values():
            integration = operation["x-amazon-apigateway-integration"]
            if integration["type"] != "mock":
                yield "${ApiFunction.Arn}" in integration["uri"]["Fn::Sub"], integration


def streams(integration: Integration) -> bool:
    """Raises AssertionError if a part of the integration contradicts the others."""
    mode = integration.get("responseTransferMode", "BUFFERED")
    uri, milliseconds = integration["uri"]["Fn::Sub"], integration.get("timeoutInMillis", 29_000)
    assert (mode, uri.rpartition("/")[2], milliseconds) in (
        ("STREAM", "response-streaming-invocations", 900_000),
        ("BUFFERED", "invocations", 29_000),
    )
    return bool(mode == "STREAM")


def check(template: Template, *, on: bool) -> None:
    """Raises AssertionError if an integration or a function differs from the rest."""
    found = list(integrations(template))
    assert [streams(each) for of_api, each in found if of_api] == [on] * EVENTS
    assert {streams(each) for of_api, each in found if not of_api} == {False}
    # For requests, both modes have the same events (API Gateway developer guide, response-transfer-mode-lambda).
    assert template.api_body()["x-amazon-apigateway-binary-media-types"] == ["multipart/form-data"]
    variables = {
        name: function["Environment"]["Variables"].get("STREAMING")
        for name, function in template.of_type("AWS::Lambda::Function").items()
    }
    said = {name: value for name, value in variables.items() if value is not None}
    assert said.keys() >= {"ApiFunction", "WorkerFunction"}
    assert set(said.values()) == {"on" if on else "off"}


needs_build = pytest.mark.skipif(not BUILT.is_dir(), reason="nothing is built: `make build` needs python3.13")


@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
@pytest.mark.parametrize(
    "path", [SOURCE, pytest.param(BUILT / "template.yaml", marks=needs_build)], ids=["source", "built"]
)
def test_the_integrations_of_the_api_function_stream_exactly_if_its_variable_says_so(path: Path, on: bool) -> None:
    check(read(path, on=on), on=on)


@pytest.mark.parametrize(
    ("change", "to"),
    [
        (MODE, "ResponseTransferMode: !If [IsMonitored, RESPONSE_STREAM, BUFFERED]"),
        (MODE, "ResponseTransferMode: !Ref StageName"),
        (MODE + ", ", ""),
        (", TimeoutInMillis: 900000", ""),
        ('STREAMING: "on"', 'STREAMING: "no"'),
    ],
)
def test_a_template_whose_parts_disagree_is_noticed(change: str, to: str, tmp_path: Path) -> None:
    text = SOURCE.read_text()
    assert change in text
    (tmp_path / "template.yaml").write_text(text.replace(change, to, 1))
    with pytest.raises(AssertionError):
        check(read(tmp_path / "template.yaml", on=True), on=True)


def test_the_template_in_the_repository_streams_and_can_be_switched_there_and_back() -> None:
    text = SOURCE.read_text()
    assert switched(text, streaming=True) == text
    off = switched(text, streaming=False)
    assert off != text
    assert switched(off, streaming=False) == off
    assert switched(off, streaming=True) == text


@needs_build
def test_the_built_template_is_switched_as_a_whole() -> None:
    text = (BUILT / "template.yaml").read_text()
    assert text in [switched(text, streaming=on) for on in (True, False)]


def test_the_program_changes_only_the_template_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "template.yaml"
    path.write_text(text := SOURCE.read_text())
    for mode in ("off", "on"):
        monkeypatch.setattr("sys.argv", ["streaming", mode, str(path)])
        streaming.main()
        assert path.read_text() == switched(text, streaming=mode == "on")
    monkeypatch.setattr("sys.argv", ["streaming", "maybe", str(path)])
    with pytest.raises(SystemExit, match="STREAMING must be on or off"):
        streaming.main()
    assert path.read_text() == text
