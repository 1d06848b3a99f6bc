"""docs/models.md: its examples work in the shipped models.toml, and it describes every key."""

import re
import tomllib
from typing import Any

import pytest

from tools import models_file
from tools.models_file import ROOT, SOURCE, read

PAGE = (ROOT / "docs/models.md").read_text()
SHIPPED = (ROOT / SOURCE).read_text()
EXAMPLES = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def names(toml: dict[str, Any]) -> set[tuple[str, str]]:
    return {(kind, name) for kind in ("upstreams", "models") for name in toml.get(kind, {})}


def with_example(example: str) -> str:
    """The shipped file, where the tables of the example replace those of the same name."""
    replaced = names(tomllib.loads(example))
    parts = re.split(r"(?m)^(?=\[)", SHIPPED)
    return "".join(part for part in parts if not names(tomllib.loads(part)) & replaced) + example


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.splitlines()[0])
def test_an_example_is_valid(example: str) -> None:
    configuration = read(with_example(example))
    offered = names({"upstreams": configuration.upstreams, "models": configuration.catalog.models})
    assert names(tomllib.loads(example)) <= offered


def test_every_key_is_described() -> None:
    described = set(re.findall(r"^\| `([a-z_]+)` \|", PAGE, re.MULTILINE))
    at_the_top = {name for name, value in tomllib.loads(SHIPPED).items() if not isinstance(value, dict)}
    in_tables = {*models_file._Upstream.__struct_fields__, *models_file._Model.__struct_fields__}
    assert at_the_top | in_tables <= described
