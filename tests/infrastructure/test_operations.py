"""Alarms and dashboard: their metrics exist, and each alarm has its section in the documents."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from imagegen.aws.cloudwatch import NAMESPACE, UNITS, CloudWatchJournal
from imagegen.wire.errors import ROWS
from local.template import Template
from tests.conftest import ROOT
from tests.support.journal_lines import write_every_line

Metric = tuple[str, str, frozenset[str]]  # namespace, name, names of the dimensions

# AWS's metrics with their dimensions.
AWS = (
    ("AWS/ApiGateway", {"ApiName", "Stage"}, {"4XXError", "5XXError", "Count", "Latency"}),
    ("AWS/DynamoDB", {"TableName"}, {"ReadThrottleEvents", "WriteThrottleEvents"}),
    ("AWS/DynamoDB", {"TableName", "GlobalSecondaryIndexName"}, {"ReadThrottleEvents", "WriteThrottleEvents"}),
    ("AWS/Lambda", {"FunctionName"}, {"ConcurrentExecutions", "Errors", "Invocations", "Throttles"}),
    ("AWS/SQS", {"QueueName"}, {"ApproximateAgeOfOldestMessage", "ApproximateNumberOfMessagesVisible"}),
)


@pytest.fixture(scope="module")
def known() -> set[Metric]:
    """The metrics that exist: those of the journal, and AWS's metrics that are used."""
    lines: list[str] = []
    write_every_line(CloudWatchJournal("any", "any", lines.append))
    own = {
        (directive["Namespace"], metric["Name"], frozenset(dimensions))
        for line in map(json.loads, lines)
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", ())
        for metric in directive["Metrics"]
        for dimensions in directive["Dimensions"]
    }
    assert {name for _, name, _ in own} == set(UNITS)
    return own | {(namespace, name, frozenset(dimensions)) for namespace, dimensions, names in AWS for name in names}


def alarms(template: Template) -> dict[str, dict[str, Any]]:
    return template.of_type("AWS::CloudWatch::Alarm")


def watched(alarm: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The metrics of an alarm, with Namespace, MetricName and Dimensions."""
    if "Metrics" not in alarm:
        yield alarm
    for each in alarm.get("Metrics", ()):
        if "MetricStat" in each:
            yield each["MetricStat"]["Metric"]


def named(metric: dict[str, Any]) -> Metric:
    return metric["Namespace"], metric["MetricName"], frozenset(each["Name"] for each in metric["Dimensions"])


def widgets(template: Template) -> list[dict[str, Any]]:
    (dashboard,) = template.of_type("AWS::CloudWatch::Dashboard").values()
    found: list[dict[str, Any]] = json.loads(dashboard["DashboardBody"]["Fn::Sub"])["widgets"]
    return found


def drawn(template: Template) -> Iterator[list[Any]]:
    """The rows of the dashboard's graphs."""
    for widget in widgets(template):
        yield from widget["properties"].get("metrics", ())


def test_the_metrics_and_codes_of_an_alarm_exist(template: Template, known: set[Metric]) -> None:
    codes = set()
    for name, alarm in alarms(template).items():
        found = {named(metric) for metric in watched(alarm)}
        assert found, name
        assert found <= known, name
        dimensions = [each for metric in watched(alarm) for each in metric["Dimensions"]]
        codes |= {each["Value"] for each in dimensions if each["Name"] == "code"}
    assert "upstream_key_refused" in codes
    assert codes <= set(ROWS)


def test_the_dashboard_shows_all_own_metrics_and_only_existing_ones(template: Template, known: set[Metric]) -> None:
    found: set[Metric] = set()
    for row in drawn(template):
        if isinstance(row[0], dict):
            search = re.fullmatch(
                r"SEARCH\('\{(\w+),([\w,]+)\} MetricName=\"(\w+)\" stack=\"\$\{AWS::StackName\}\"', '\w+', \d+\)",
                row[0]["expression"],
            )
            assert search, row
            found.add((search[1], search[3], frozenset(search[2].split(","))))
        else:
            namespace, name, *dimensions = [each for each in row if isinstance(each, str)]
            found.add((namespace, name, frozenset(dimensions[::2])))
    assert found <= known
    assert {name for namespace, name, _ in found if namespace == NAMESPACE} == set(UNITS)


def test_the_dashboard_shows_every_alarm_and_its_widgets_do_not_overlap(template: Template) -> None:
    shown = [alarm for widget in widgets(template) for alarm in widget["properties"].get("alarms", ())]
    assert sorted(shown) == sorted(f"${{{name}.Arn}}" for name in alarms(template))
    taken: set[tuple[int, int]] = set()
    for widget in widgets(template):
        across, down = range(widget["width"]), range(widget["height"])
        here = {(widget["x"] + right, widget["y"] + below) for right in across for below in down}
        assert not here & taken, widget["properties"]["title"]
        assert max(right for right, _ in here) < 24
        taken |= here
    (dashboard,) = template.of_type("AWS::CloudWatch::Dashboard").values()
    references = set(re.findall(r"\$\{(\w+)[.\w]*\}", dashboard["DashboardBody"]["Fn::Sub"]))
    assert references <= set(template.resources) | set(template.document["Parameters"])


def test_errors_and_throttles_of_every_function_have_an_alarm(template: Template) -> None:
    functions = set(template.of_type("AWS::Lambda::Function"))
    for name, metric in (("FunctionsDieAlarm", "Errors"), ("ThrottlesAlarm", "Throttles")):
        seen = {each["Dimensions"][0]["Value"]["Ref"] for each in watched(alarms(template)[name])}
        assert functions <= seen, name
        drawn_for = {row[3] for row in drawn(template) if row[:2] == ["AWS/Lambda", metric]}
        assert drawn_for == {f"${{{function}}}" for function in functions}


def test_throttles_of_the_table_and_each_index_have_an_alarm(template: Template) -> None:
    ((name, table),) = template.of_type("AWS::DynamoDB::Table").items()
    indexes = {index["IndexName"] for index in table["GlobalSecondaryIndexes"]}
    expected = {
        (metric, ("TableName", name), *(("GlobalSecondaryIndexName", index) for index in of))
        for metric in ("ReadThrottleEvents", "WriteThrottleEvents")
        for of in ((), *((index,) for index in indexes))
    }
    seen = {
        (metric["MetricName"], *((each["Name"], _plain(each["Value"])) for each in metric["Dimensions"]))
        for metric in watched(alarms(template)["ThrottlesAlarm"])
        if metric["Namespace"] == "AWS/DynamoDB"
    }
    assert seen == expected
    rows = [[each for each in row if isinstance(each, str)] for row in drawn(template) if row[0] == "AWS/DynamoDB"]
    shown = {(row[1], *zip(row[2::2], (each.strip("${}") for each in row[3::2]), strict=True)) for row in rows}
    assert shown == expected


def _plain(value: Any) -> str:
    """The name of a referenced resource, or the text."""
    return str(value["Ref"]) if isinstance(value, dict) else str(value)


def test_the_dashboard_shows_the_age_of_each_queue(template: Template) -> None:
    queues = template.of_type("AWS::SQS::Queue")
    worked = {name for name, queue in queues.items() if "RedrivePolicy" in queue}
    drawn_for = {row[3] for row in drawn(template) if row[1:2] == ["ApproximateAgeOfOldestMessage"]}
    assert drawn_for == {f"${{{name}.QueueName}}" for name in worked}


def test_an_alarm_notifies_the_topic_and_can_be_switched_off(template: Template) -> None:
    for name, alarm in alarms(template).items():
        assert template.resources[name]["Condition"] == "IsMonitored"
        for actions in (alarm["AlarmActions"], alarm["OKActions"]):
            assert actions == {"Fn::If": ["HasAlarmTopic", [{"Ref": "AlarmTopicArn"}], {"Ref": "AWS::NoValue"}]}
    assert template.resources["Dashboard"]["Condition"] == "IsMonitored"


def test_an_expression_uses_all_metrics_of_its_alarm(template: Template) -> None:
    about_dynamodb = 0
    for name, alarm in alarms(template).items():
        if "Metrics" not in alarm:
            assert alarm["Namespace"] != "AWS/DynamoDB", name
            continue
        (expression,) = [each["Expression"] for each in alarm["Metrics"] if each.get("ReturnData", True)]
        metrics = {each["Id"]: each["MetricStat"] for each in alarm["Metrics"] if "MetricStat" in each}
        used = set(re.findall(r"\b[a-z]\w*\b", expression))
        assert "METRICS()" in expression or used == set(metrics), name
        assert len(metrics) <= 10, name  # CloudWatch's limit
        assert len({each["Period"] for each in metrics.values()}) == 1
        if "AWS/DynamoDB" in {each["Metric"]["Namespace"] for each in metrics.values()}:
            # Without it, CloudWatch keeps such an alarm's state on missing data, in spite of TreatMissingData.
            assert "FILL(METRICS(), 0)" in expression
            about_dynamodb += 1
    assert about_dynamodb


def headings(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_operations_md_has_a_section_for_each_alarm_and_every_metric(template: Template) -> None:
    page = (ROOT / "docs/operations.md").read_text()
    for name, alarm in alarms(template).items():
        description = alarm["AlarmDescription"]
        anchor = re.search(r"docs/operations\.md#([\w-]+)$", description)
        assert anchor, name
        assert anchor[1] in headings(page), name
        assert len(description) <= 1024  # CloudWatch's limit
        section = next(text for text in page.split("\n## ") if headings(f"## {text}") >= {anchor[1]})
        assert f"`{name}`" in section, name
    assert all(f"`{name}`" in page for name in UNITS)
