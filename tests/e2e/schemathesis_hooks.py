"""schemathesis loads this: rules that no schema of the description can express."""

import re
from typing import Any

import schemathesis

from tests.support.models import GENERATING

# Models whose requests differ from those of another one in the values of a field only.
_SIMILAR = ({"kling-v1"}, {"kling-v1-5"}, {"niji"})


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Leaves kinds of requests out: Schemathesis works with some 440 properties of all kinds together."""
    request = raw_schema["components"]["schemas"]["CreateImagesRequest"]
    kinds = request["anyOf"]
    request["anyOf"] = [kind for kind in kinds if set(kind["properties"]["model"].get("enum", ())) not in _SIMILAR]
    assert len(request["anyOf"]) == len(kinds) - 2 * len(_SIMILAR)


@schemathesis.hook
def filter_body(context: Any, body: Any) -> bool:
    if not isinstance(body, dict):
        return True
    # JSON Schema accepts 62.0 as an integer. OpenAI does not, and nor does this API.
    if any(isinstance(value, float) and value.is_integer() for value in body.values()):
        return False
    # The description gives the bounds of a free size in words, so some sizes of the right form are refused.
    size = body.get("size")
    if not isinstance(size, str) or not re.fullmatch(r"[0-9]+x[0-9]+", size):
        return True
    return any(model.choice("size").allows(size) for model in GENERATING.values())
