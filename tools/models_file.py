"""Reads models.toml and compiles it to Python, so that no function parses it at its cold start.

`make models` writes the module, and `make check` and the build require that it is current.
"""

import argparse
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from imagegen.domain.configuration import Configuration
from imagegen.domain.errors import InvalidRequestError
from imagegen.domain.models import LONGEST_DEADLINE_SECONDS, LONGEST_PROMPT, Catalog, ImageModel
from imagegen.domain.money import MICROS, ImagePrice, Price, TokenPrice
from imagegen.domain.upstreams import MOST_UPSTREAM_SECONDS, Route, Upstream
from imagegen.outbound.web_address import read_web_address
from imagegen.providers.catalog import KNOWN_MODELS, PASSTHROUGH, PROTOCOLS
from imagegen.wire.requests import ReadRequest
from tools.stacks import refuse

if TYPE_CHECKING:
    from imagegen.domain.inputs import Operation

ROOT = Path(__file__).parents[1]
SOURCE = Path("models.toml")
COMPILED = Path("layers/imagegen/imagegen/bootstrap/models_toml.py")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}")
_UPSTREAM_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ALIAS = re.compile(r"[\x21-\x7e]{1,64}")
_MOST_PRICE = 1_000  # USD
_MOST_CONCURRENCY = 1_000


class ModelsFileError(Exception):
    """An error in models.toml. The message names the file and the line."""


class _WrongError(Exception):
    """An error at the value to which the keys `path` lead."""

    def __init__(self, message: str, *path: str) -> None:
        super().__init__(message)
        self.path = path


_Slots = Annotated[int, msgspec.Meta(ge=1, le=_MOST_CONCURRENCY)]


class _Upstream(Upstream, frozen=True, forbid_unknown_fields=True):
    timeout_seconds: Annotated[int, msgspec.Meta(ge=1, le=MOST_UPSTREAM_SECONDS)] | None = None
    concurrency: _Slots | dict[str, _Slots] | None = None


class _Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    routes: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    quick: bool = False
    price: Any = None
    like: str | None = None
    passthrough: bool = False
    defaults: dict[str, Any] = {}
    deadline_seconds: Annotated[int, msgspec.Meta(ge=1, le=LONGEST_DEADLINE_SECONDS)] | None = None
    mode: str = ""
    prompt_max_characters: Annotated[int, msgspec.Meta(ge=1, le=LONGEST_PROMPT)] | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    default_model: str
    default_upstream: str
    prompt_max_characters: Annotated[int, msgspec.Meta(ge=1, le=LONGEST_PROMPT)]
    upstreams: dict[str, dict[str, Any]]
    models: dict[str, dict[str, Any]]
    default_edit_model: str | None = None


def main() -> int:
    parser = argparse.ArgumentParser(prog="make models", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the module is not current")
    arguments = parser.parse_args()
    try:
        module = compiled(read((ROOT / SOURCE).read_text()))
    except ModelsFileError as error:
        return refuse(str(error))
    target = ROOT / COMPILED
    if not target.exists() or target.read_text() != module:
        if arguments.check:
            return refuse(f"{COMPILED} is not what {SOURCE} says: run `make models`")
        target.write_text(module)
    return 0


def read(text: str) -> Configuration:
    """Returns what the text of models.toml says. Raises ModelsFileError."""
    try:
        return _configuration(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        number = int(line[1]) if line else text.count("\n") + 1
        raise ModelsFileError(f"{SOURCE}:{number}: {error}") from None
    except _WrongError as error:
        raise ModelsFileError(f"{SOURCE}:{_line_of(text, error.path)}: {'.'.join(error.path)}: {error}") from None


def compiled(configuration: Configuration) -> str:
    """Returns the module that has the configuration as a value."""
    models = "".join(_compiled_model(model) for model in configuration.catalog.models.values())
    upstreams = "".join(f"    {name!r}: {each!r},\n" for name, each in configuration.upstreams.items())
    module = (
        f'"""What models.toml says. Made by `make models`: change models.toml instead."""\n\n'
        "from dataclasses import replace\n\n"
        "from imagegen.domain.configuration import Configuration\n"
        "from imagegen.domain.inputs import Operation\n"
        "from imagegen.domain.models import Catalog\n"
        f"{_imported('imagegen.domain.money', ('ImagePrice', 'TokenPrice'), models)}"
        "from imagegen.domain.upstreams import Route, Upstream\n"
        f"{_imported('imagegen.providers.catalog', ('KNOWN_MODELS', 'PASSTHROUGH'), models)}\n"
        f"_MODELS = {{\n{models}}}\n"
        f"_UPSTREAMS = {{\n{upstreams}}}\n"
        f"_ALIASES = {dict(configuration.catalog.aliases)!r}\n"
        f"_DEFAULTS: dict[Operation, str] = {dict(configuration.catalog.defaults)!r}\n"
        f"CONFIGURATION = Configuration(Catalog(_MODELS, {configuration.catalog.default!r}, _ALIASES, _DEFAULTS), "
        f"_UPSTREAMS, {configuration.default_upstream!r})\n"
    )
    ruff = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(COMPILED), "-"]
    return subprocess.run(  # noqa: S603
        ruff, input=module, capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout


def _imported(module: str, names: Sequence[str], text: str) -> str:
    used = ", ".join(name for name in names if name in text)
    return f"from {module} import {used}\n" if used else ""


def _compiled_model(model: ImageModel) -> str:
    known = f"KNOWN_MODELS[{model.like!r}]" if model.like else "PASSTHROUGH"
    origin = KNOWN_MODELS[model.like] if model.like else PASSTHROUGH
    fields = ("id", "prompt_limit", "routes", "defaults", "price", "quick", "deadline_seconds", "mode")
    given = [(name, getattr(model, name)) for name in fields if getattr(model, name) != getattr(origin, name)]
    values = ", ".join(f"{name}={value!r}" for name, value in given)
    return f"    {model.id!r}: replace({known}, {values}),\n"


def _line_of(text: str, path: Sequence[str]) -> int:
    """Returns the line on which the statement ends that sets the value to which `path` leads.

    It is the shortest beginning of the text that has the value, so every way of writing it in TOML is found.
    """
    lines = text.splitlines(keepends=True)
    for end in range(1, len(lines) + 1):
        try:
            value: Any = tomllib.loads("".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue  # within a statement of several lines
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            return end
    return len(lines)


def _configuration(toml: Mapping[str, Any]) -> Configuration:
    """Raises _WrongError."""
    file = _converted(toml, _File)
    if file.default_upstream not in file.upstreams:
        raise _WrongError(f"there is no upstream {file.default_upstream!r}", "default_upstream")
    upstreams = {name: _upstream(name, each, file) for name, each in file.upstreams.items()}
    models = {name: _model(name, each, file, upstreams) for name, each in file.models.items()}
    if file.default_model not in models:
        raise _WrongError(f"there is no model {file.default_model!r}", "default_model")
    if not models[file.default_model].generates:
        raise _WrongError(f"{file.default_model!r} makes no images from a prompt alone", "default_model")
    defaults: dict[Operation, str] = {}
    if file.default_edit_model is not None:
        edit = models.get(file.default_edit_model)
        if edit is None or "edit" not in edit.operations:
            raise _WrongError(f"there is no model {file.default_edit_model!r} that edits", "default_edit_model")
        defaults["edit"] = edit.id
    aliases: dict[str, str] = {}
    for name, each in file.models.items():
        for alias in each.get("aliases", ()):
            if alias in models or alias in aliases:
                other = alias if alias in models else aliases[alias]
                raise _WrongError(f"the name {alias!r} is taken by {other!r}", "models", name, "aliases")
            aliases[alias] = name
    return Configuration(Catalog(models, file.default_model, aliases, defaults), upstreams, file.default_upstream)


def _upstream(name: str, table: Mapping[str, Any], file: _File) -> Upstream:
    path = ("upstreams", name)
    upstream = _converted(table, _Upstream, *path)
    if not _UPSTREAM_NAME.fullmatch(name):
        raise _WrongError("an upstream's name is 1 to 32 of a-z, 0-9 and -, and begins with a letter", *path)
    for protocol in upstream.protocols:
        if protocol not in PROTOCOLS:
            known = ", ".join(PROTOCOLS)
            raise _WrongError(f"there is no protocol {protocol!r}; known are {known}", *path, "protocols")
    if not upstream.protocols:
        raise _WrongError("an upstream has at least one protocol", *path, "protocols")
    if not _KEY.fullmatch(upstream.key):
        raise _WrongError(f"{upstream.key!r} is not the name of an SSM parameter", *path, "key")
    if upstream.base_url is None and name != file.default_upstream:
        raise _WrongError("base_url is missing; only default_upstream gets its own by deployment", *path)
    for protocol in upstream.concurrency if isinstance(upstream.concurrency, dict) else ():
        if protocol not in upstream.protocols:
            raise _WrongError(f"the upstream does not speak {protocol!r}", *path, "concurrency")
    try:
        read_web_address(upstream.base_url or "https://example.com")
    except ValueError as error:
        raise _WrongError(f"the address {error}", *path, "base_url") from None
    return Upstream(*(getattr(upstream, field) for field in Upstream.__struct_fields__))


def _model(name: str, table: Mapping[str, Any], file: _File, upstreams: Mapping[str, Upstream]) -> ImageModel:
    path = ("models", name)
    entry = _converted(table, _Model, *path)
    if not _NAME.fullmatch(name):
        raise _WrongError(f"{name!r} is not a model's name: use letters, digits and . _ / -", *path)
    for alias in entry.aliases:
        if not _ALIAS.fullmatch(alias):
            raise _WrongError(f"{alias!r} is not a name: use 1 to 64 printable characters", *path, "aliases")
    known = _known(name, entry, path)
    if entry.mode and entry.mode not in known.modes:
        modes = f"known are {', '.join(known.modes)}" if known.modes else "the model has none"
        raise _WrongError(f"there is no mode {entry.mode!r}; {modes}", *path, "mode")
    model = replace(
        known,
        id=name,
        prompt_limit=_prompt_limit(entry, known, file),
        routes=_routes(name, entry, known, upstreams, path),
        price=None if entry.price is None else _price(entry.price, known, path),
        quick=entry.quick,
        deadline_seconds=entry.deadline_seconds or known.deadline_seconds,
        mode=entry.mode,
    )
    return replace(model, defaults=_defaults(entry.defaults, model, path))


def _known(name: str, entry: _Model, path: tuple[str, ...]) -> ImageModel:
    if entry.passthrough:
        if entry.like is not None or name in KNOWN_MODELS:
            raise _WrongError("a known model cannot be passthrough", *path, "passthrough")
        return PASSTHROUGH
    like = name if entry.like is None else entry.like
    if like not in KNOWN_MODELS:
        at = path if entry.like is None else (*path, "like")
        raise _WrongError(f"no provider knows {like!r}: set like = … or passthrough = true", *at)
    return KNOWN_MODELS[like]


def _prompt_limit(entry: _Model, known: ImageModel, file: _File) -> int:
    if entry.prompt_max_characters is None and not known.prompt_capped:
        return known.prompt_limit
    return min(entry.prompt_max_characters or file.prompt_max_characters, known.prompt_limit)


def _routes(
    name: str, entry: _Model, known: ImageModel, upstreams: Mapping[str, Upstream], path: tuple[str, ...]
) -> tuple[Route, ...]:
    path = (*path, "routes")
    routes: list[Route] = []
    for text in entry.routes:
        try:
            route = Route.parse(text, name)
        except ValueError as error:
            raise _WrongError(str(error), *path) from None
        upstream = upstreams.get(route.upstream)
        if upstream is None:
            raise _WrongError(f"there is no upstream {route.upstream!r}", *path)
        if known.provider not in upstream.protocols:
            raise _WrongError(f"the upstream {route.upstream!r} does not speak {known.provider!r}", *path)
        if any(other.upstream == route.upstream for other in routes):
            raise _WrongError(f"two routes lead to {route.upstream!r}", *path)
        routes.append(route)
    if not routes:
        raise _WrongError("a model has at least one route", *path)
    return tuple(routes)


def _price(value: Any, model: ImageModel, path: tuple[str, ...]) -> Price:
    path = (*path, "price")
    if isinstance(value, dict) and "output" in value:
        if unknown := value.keys() ^ {"text_input", "image_input", "output", "max"}:
            raise _WrongError(
                f"a price by tokens has text_input, image_input, output and max; see {sorted(unknown)}", *path
            )
        price = TokenPrice(*(_micros(value[name], path) for name in ("text_input", "image_input", "output", "max")))
        if not price.most and price != TokenPrice(0, 0, 0, 0):
            raise _WrongError("max is 0, so a quota in money would admit everything", *path)
        return price
    return ImagePrice(*_price_table(value, model, model.priced_by, path))


def _price_table(
    value: Any, model: ImageModel, fields: tuple[str, ...], path: tuple[str, ...]
) -> tuple[Any, tuple[str, ...]]:
    """The table in millionths of a dollar, and the fields of its levels. A table may leave out a field."""
    if not isinstance(value, dict):
        return _micros(value, path), ()
    if not value:
        raise _WrongError("the table is empty", *path)
    for number, name in enumerate(fields):
        rule = model.choice(name)
        if not any(rule.allows(key) for key in value):
            continue
        for key in value:
            if not rule.allows(key):
                raise _WrongError(f"the model has no {name} {key!r}", *path)
        tables = {key: _price_table(each, model, fields[number + 1 :], path) for key, each in value.items()}
        below = {rest for _, rest in tables.values()}
        longest = max(below, key=len)
        if any(rest not in (longest, ()) for rest in below):
            raise _WrongError("the rows of the table depend on different fields", *path)
        return {key: table for key, (table, _) in tables.items()}, (name, *longest)
    key = next(iter(value))
    raise _WrongError(f"the model has no {' or '.join(fields) or 'field'} {key!r}", *path)


def _micros(value: Any, path: tuple[str, ...]) -> int:
    """The amount in USD as a whole number of millionths."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_PRICE:
        raise _WrongError(f"{value!r} is not a price in USD from 0 to {_MOST_PRICE}", *path)
    micros = round(value * MICROS)
    if abs(micros - value * MICROS) > 1e-6 * MICROS / 1000:
        raise _WrongError(f"{value!r} has more than six decimals", *path)
    return micros


def _defaults(given: Mapping[str, Any], model: ImageModel, path: tuple[str, ...]) -> Mapping[str, Any]:
    path = (*path, "defaults")
    try:
        json.dumps(given, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _WrongError(f"a default is no JSON value: {error}", *path) from None
    every = tuple(replace(field, operations=()) for field in model.own_fields)  # of all operations together
    read = ReadRequest(Catalog({model.id: replace(model, own_fields=every, generates=True, inputs={})}, model.id, {}))
    try:
        options = read.fields({"model": model.id, "prompt": "a prompt", **given}).options
    except InvalidRequestError as error:
        raise _WrongError(error.message, *path) from None
    for name in given:
        if name not in options:
            raise _WrongError(f"{name!r} cannot have a default", *path)
    return {name: options[name] for name in given}


def _converted(value: Any, type_: type[Any], *path: str) -> Any:
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        raise _WrongError(str(error), *path) from None


if __name__ == "__main__":
    sys.exit(main())
