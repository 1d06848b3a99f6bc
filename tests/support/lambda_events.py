"""Lambda's side of a handler: the example events, a context, and an answer as a client of the gateway sees it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.conftest import ROOT

Event = dict[str, Any]


@dataclass
class Context:
    """What the handlers use of Lambda's context. The time is the longest of any function: a machine may be slow."""

    function_name: str
    milliseconds: int = 900_000
    aws_request_id: str = "request"

    def get_remaining_time_in_millis(self) -> int:
        return self.milliseconds


def example(name: str) -> Event:
    """An event of events/, the caller's own copy."""
    event: Event = json.loads((ROOT / f"events/{name}.json").read_text())
    return event


def invoked(handler: Callable[..., Any], event: Event, function: str = "api") -> Any:
    return handler(event, Context(function))


def over_http(handler: Callable[..., Any], event: Event, function: str = "api") -> tuple[int, dict[str, str], str]:
    """The status, the headers by their names in lower case, and the body."""
    answer = invoked(handler, event, function)
    headers = {name.lower(): values[-1] for name, values in answer["multiValueHeaders"].items()}
    return answer["statusCode"], headers, answer.get("body") or ""
