"""`make reference`: writes what the documentation and the events' schema say of models and of the fields of a request.

Both are made from the same table that requests are parsed with (`RequestField` in imagegen/domain/models.py).
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from imagegen.bootstrap.models_toml import CONFIGURATION
from imagegen.domain.inputs import InputRules, Operation
from imagegen.domain.models import (
    COMMON_FIELDS,
    Catalog,
    Choice,
    Decimal,
    ImageModel,
    RequestField,
    Structured,
    Text,
    Whole,
)
from imagegen.domain.money import Price, TokenPrice
from imagegen.wire.requests import PATHS
from imagegen.wire.schemas import description_of, request_fields
from tools.prices import amounts, dollars

ROOT = Path(__file__).parents[1]
API = Path("docs/api.md")
MODELS = Path("docs/models.md")
EVENT = Path("events/schemas/image-generation-requested.json")
# Fields that only an event has, or that name images.
_OF_AN_EVENT = (
    *("operation", "images", "mask", "style_reference_images", "character_reference_images"),
    *("custom_id", "client", "idempotency_key"),
)


def main() -> int:
    for path, text in written(ROOT).items():
        (ROOT / path).write_text(text)
    return 0


def written(root: Path) -> dict[Path, str]:
    """The files as they must be, by path below `root`."""
    models = CONFIGURATION.catalog
    api = _between((root / API).read_text(), "fields", fields_table(models))
    page = (root / MODELS).read_text()
    tables = {"requests": requests_table(models), "inputs": inputs_table(models), "calls": calls_table(models)}
    for name, table in tables.items():
        page = _between(page, name, table)
    event = json.loads((root / EVENT).read_text())
    detail = event["properties"]["detail"]
    own = {name: detail["properties"][name] for name in _OF_AN_EVENT}
    detail["properties"] = event_fields(models) | own
    return {API: api, MODELS: page, EVENT: json.dumps(event, indent=2, ensure_ascii=False) + "\n"}


def fields_table(models: Catalog) -> str:
    rows = [
        (
            "`prompt`",
            "text, required",
            "all",
            "Must not be blank. Its maximum length [depends on the model](models.md#what-a-request-may-ask-for).",
        ),
        (
            "`model`",
            "text",
            "",
            f"Default `{models.default}`, or the first with the `size`. [Aliases](models.md#an-alias) are possible.",
        ),
    ]
    for name, variants in models.fields.items():
        defaults = {field.default for field in variants}
        default = next(iter(defaults)) if len(defaults) == 1 else None
        description = f"{'' if default is None else f'Default `{default}`. '}{description_of(variants)}".strip()
        description += _only_for(name, models)
        rows.append((f"`{name}`", _values(variants), _models(name, models), description))
    rows.append(("`stream`", "`false`", "all", "Streaming is not supported."))
    rows.append(("`partial_images`", "0", "`gpt-image-*`, `chatgpt-image-latest`", "Streaming is not supported."))
    return _table(("field", "values", "models", "notes"), rows)


def _only_for(name: str, models: Catalog) -> str:
    """Returns for which operations a field is, by the owner of the models if they differ."""
    owners: dict[tuple[Operation, ...], dict[str, None]] = {}
    for model in models.with_field(name):
        owners.setdefault(model.fields[name].operations, {})[model.owned_by] = None
    notes = ""
    for operations, of_owners in owners.items():
        whose = "Only" if len(owners) == 1 else f"With models of {', '.join(of_owners)} only"
        paths = _listed(PATHS[each].rpartition("/")[2] for each in operations)
        notes += f" {whose} for {paths}." if operations else ""
    return notes


def _values(variants: list[RequestField]) -> str:
    rules = [field.rule for field in variants]
    if len({rule.accepted if isinstance(rule, Choice) else repr(rule) for rule in rules}) > 1:
        return "depends on the model"
    match rules[0]:
        case Choice():
            return _listed(rules[0].accepted)
        case Whole() | Decimal():
            return f"{rules[0].least} to {rules[0].most}"
        case Text():
            return f"text, up to {rules[0].longest} characters"
        case Structured():
            return rules[0].summary


def _models(name: str, models: Catalog) -> str:
    if all(name in model.fields for model in models.models.values()):
        return "all"
    of_field = [model.id for model in models.with_field(name)]
    family = [each for each in models.models if each.startswith("gpt-image-")]
    if set(family) <= set(of_field):
        of_field = ["gpt-image-*" if each in family else each for each in of_field]
    return _listed(dict.fromkeys(of_field))


def requests_table(models: Catalog) -> str:
    """What a request for each model may ask for. Models that accept the same are one row."""
    head = ("model", "prompt, characters", "`size`", "`quality`", "further fields")
    return _table(head, _rows_of(models, _accepted))


def _accepted(model: ImageModel) -> tuple[str, ...]:
    size = model.choice("size")
    sizes = _listed(size.values) or "none"
    if size.free:
        free = size.free
        sizes += (
            f", and any `WIDTHxHEIGHT` in multiples of {free.multiple_of}, at most {free.longest_edge} long and "
            f"{free.widest_ratio}:1, with {free.least_pixels:,} to {free.most_pixels:,} pixels"
        )
    common = {"size", *(field.name for field in COMMON_FIELDS)} - {"style"}
    own = (field.name for field in model.own_fields if field.name not in common)
    return f"{model.prompt_limit:,}", sizes, _listed(model.choice("quality").values) or "none", _listed(own) or "none"


def inputs_table(models: Catalog) -> str:
    """What input images each model accepts. Models that accept the same are one row."""
    rows: list[tuple[str, ...]] = []
    for operation, path in PATHS.items():
        if operation == "generate":
            continue
        able = models.doing(operation)
        rows += [
            (names, f"`{path}`", *cells)
            for names, *cells in _rows_of(able, lambda model: _inputs(model.inputs[operation]))  # noqa: B023  # used up
        ]
    return _table(("model", "path", "images", "mask", "each image", "prompt"), rows)


def _inputs(rules: InputRules) -> tuple[str, ...]:
    count = f"{rules.least}" if rules.least == rules.most else f"{rules.least} to {rules.most}"
    references = "".join(f", up to {most} `{name}`" for name, most in rules.references.items())
    if rules.made_here:
        return "1 `img_…` that Midjourney made here", "no", "", "not needed"
    limits = [f"up to {rules.most_bytes // 1_000_000} MB"]
    limits += ["square"] if rules.square else []
    limits += ["transparent where it changes, if there is no mask"] if rules.transparent else []
    limits += [f"sides of {rules.least_side} pixels or more"] if rules.least_side > 1 else []
    limits += [f"ratio up to {rules.widest_ratio:g}:1"] if rules.widest_ratio < 100 else []
    prompt = "required" if rules.needs_prompt else "not needed"
    return count + references, "optional" if rules.mask else "no", ", ".join(limits), prompt


def calls_table(models: Catalog) -> str:
    """How the images of each model are made. Models of which the same is true are one row."""
    aliases: dict[str, list[str]] = {}
    for alias, name in models.aliases.items():
        aliases.setdefault(name, []).append(alias)

    def row(model: ImageModel) -> tuple[str, ...]:
        quick = "yes" if model.quick else "no"
        known = _listed(aliases.get(model.id, ())) or "none"
        return known, model.provider, str(model.images_per_call), quick, _price(model.price)

    return _table(("model", "alias", "protocol", "images a call", "quick", "price of an image"), _rows_of(models, row))


def _price(price: Price | None) -> str:
    if price is None:
        return "unknown"
    if isinstance(price, TokenPrice):
        return f"by tokens, at most {dollars(price.most)}"
    least = min(amount for _, amount in amounts(price))
    if least == price.most:
        return dollars(least)
    return f"{dollars(least)} to {dollars(price.most)} by {' and '.join(f'`{name}`' for name in price.fields)}"


def _rows_of(models: Catalog, row: Callable[[ImageModel], tuple[str, ...]]) -> list[tuple[str, ...]]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for model in models.models.values():
        groups.setdefault(row(model), []).append(model.id)
    return [(_listed(_grouped(names)), *cells) for cells, names in groups.items()]


def event_fields(models: Catalog) -> dict[str, Any]:
    """The fields of a request in an event. Only values that every model could accept are listed."""
    fields: dict[str, Any] = {}
    for name, schema in request_fields(models).items():
        if schema.get("anyOf", [])[1:] == [{"type": "null"}]:  # a value with members
            fields[name] = {**schema["anyOf"][0], "description": schema["description"]}
            continue
        kinds = schema.get("type", "string")
        kind = next(kind for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind != "null")
        kept = {key: value for key, value in schema.items() if key not in ("default", "enum", "anyOf", "type")}
        kept = {"type": kind, **kept}
        values = [value for value in schema.get("enum", []) if value is not None]
        if values and name != "model":  # an operator may add aliases
            kept["enum"] = values
        fields[name] = kept
    return fields


def _grouped(names: Iterable[str]) -> list[str]:
    """Names of which others only add to one, such as a date, as one pattern."""
    grouped: list[str] = []
    for name in names:
        family = re.sub(r"^(gpt-image-2\.\d)-.*", r"\1-*", name)
        if family not in grouped:
            grouped.append(family)
    return grouped


def _listed(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _between(page: str, name: str, text: str) -> str:
    """The page with `text` between the markers of that name."""
    begin, end = f"<!-- {name}: make reference -->", f"<!-- /{name} -->"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    if not after:
        raise ValueError(f"the page has no markers for {name}")
    return f"{before}{begin}\n{text}\n{end}{after}"


if __name__ == "__main__":
    sys.exit(main())
