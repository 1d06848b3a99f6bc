"""Loaded by schemathesis: what the description cannot say in a schema."""

import re
from typing import Any

import schemathesis

from imagegen.domain.models import CATALOG


@schemathesis.hook
def filter_body(context: Any, body: Any) -> bool:
    if not isinstance(body, dict):
        return True
    # JSON Schema takes 62.0 for an integer; OpenAI does not, and neither do we.
    if any(isinstance(value, float) and value.is_integer() for value in body.values()):
        return False
    # The bounds of a free size (multiples, ratio, pixels) are told in words, so not every one of its form is taken.
    size = body.get("size")
    if not isinstance(size, str) or not re.fullmatch(r"[0-9]+x[0-9]+", size):
        return True
    return any(model.allows_size(size) for model in CATALOG.values())
