"""schemathesis loads this: rules that no schema of the description can express."""

import re
from typing import Any

import schemathesis

from imagegen.wire.files import LONGEST_FILENAME
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
    expires = body.get("expires_after")
    values = [*body.values(), *(expires.values() if isinstance(expires, dict) else ())]
    if any(isinstance(value, float) and value.is_integer() for value in values):
        return False
    if context.operation.path == "/v1/files" and not is_sent_as_it_is(body):
        return False
    # The description says in words which names of files are valid. Its schema only counts characters.
    filename = body.get("filename")
    if isinstance(filename, str) and is_filename(filename) is not (1 <= len(filename) <= LONGEST_FILENAME):
        return False
    # The description gives the bounds of a free size in words, so some sizes of the right form are refused.
    size = body.get("size")
    if not isinstance(size, str) or not re.fullmatch(r"[0-9]+x[0-9]+", size):
        return True
    return any(model.choice("size").allows(size) for model in GENERATING.values())


def is_filename(text: str) -> bool:
    name = text.replace("\\", "/").rpartition("/")[2]
    return 1 <= len(name) <= LONGEST_FILENAME and name.isprintable()


def is_sent_as_it_is(form: dict[str, Any]) -> bool:
    """Whether no value of a form becomes one of another type: each is sent as text, and a list as several parts."""
    texts = dict(form)
    seconds = texts.pop("expires_after[seconds]", None)
    is_number = isinstance(seconds, list) or (isinstance(seconds, str) and seconds.isdecimal())
    return not is_number and all(isinstance(value, str) for value in texts.values())
