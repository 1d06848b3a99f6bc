"""The items of a DynamoDB table in memory, with the part of its expressions that `aws/places.py` uses."""

import re
from collections.abc import Mapping
from functools import cache
from types import CodeType, SimpleNamespace
from typing import Any

Item = dict[str, Any]
_CLAUSE = re.compile(r"(SET|REMOVE|ADD) (.+?)(?= SET | REMOVE | ADD |$)")


class ConditionalCheckFailedException(Exception):  # noqa: N818  # as boto3 names it
    def __init__(self, item: Item) -> None:
        super().__init__()
        self.response = {"Item": dict(item)}


class FakeDynamoItems:
    """Implements `update_item` of a boto3 client. Passes the contract of `ports.Places` under `DynamoPlaces`."""

    exceptions = SimpleNamespace(ConditionalCheckFailedException=ConditionalCheckFailedException)

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}

    def update_item(self, **write: Any) -> None:
        item = self.items.setdefault(write["Key"]["pk"]["S"], {})
        names, values = write["ExpressionAttributeNames"], write["ExpressionAttributeValues"]

        def at(path: str) -> Any:
            """The number or the map at a path or behind a placeholder; `None` if there is none."""
            found: Any = values[path] if path[0] == ":" else {"M": item}
            for step in () if path[0] == ":" else path.split("."):
                found = found["M"].get(names.get(step, step)) if found else None
            return float(found["N"]) if found and "N" in found else found

        if not eval(_compiled(write["ConditionExpression"]), {"at": at}):
            raise ConditionalCheckFailedException(item)
        for clause, actions in _CLAUSE.findall(write["UpdateExpression"]):
            for action in actions.split(", "):
                _act(clause, action, item, names, values)


def _act(clause: str, action: str, item: Item, names: Mapping[str, str], values: Mapping[str, Any]) -> None:
    path, *value = action.replace(" = ", " ").split()
    *parents, last = (names.get(step, step) for step in path.split("."))
    for parent in parents:
        item = item[parent]["M"]
    if clause == "REMOVE":
        item.pop(last, None)
    elif clause == "SET":
        item[last] = {"M": dict(values[value[0]]["M"])} if "M" in values[value[0]] else values[value[0]]
    else:
        item[last] = {"N": str(int(item.get(last, {"N": "0"})["N"]) + int(values[value[0]]["N"]))}


def _comparison(found: re.Match[str]) -> str:
    left, sign, right = found.groups()
    return f"(at('{left}') is not None and at('{left}') {'==' if sign == '=' else sign} at('{right}'))"


@cache
def _compiled(condition: str) -> CodeType:
    """The condition as Python's. A comparison with what does not exist is false."""
    text = re.sub(
        r"attribute_(not_)?exists\((\S+)\)", lambda m: f"(at('{m[2]}') is {'' if m[1] else 'not '}None)", condition
    )
    text = re.sub(r"([#:\w.]+) (<=?|>|=) (:\w+)", _comparison, text)
    return compile(text.replace(" AND ", " and ").replace(" OR ", " or "), "condition", "eval")
