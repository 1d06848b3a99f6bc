"""schemathesis loads this: rules that no schema of the description can express."""

import re
from typing import Any

import schemathesis

from tests.support.models import MODELS


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
    return any(model.choice("size").allows(size) for model in MODELS.values())
