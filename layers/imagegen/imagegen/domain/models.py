"""Defines a model: the fields of a request that it accepts, and how its upstream is called.

The data of models is in `providers`.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from imagegen.domain.images import ResponseFormat
from imagegen.domain.inputs import InputRules, Operation
from imagegen.domain.money import Price
from imagegen.domain.upstreams import Route

MAX_IMAGES = 10  # of a request for any model; part of the API
RESPONSE_FORMATS: tuple[ResponseFormat, ...] = ("url", "b64_json")
MOST_COMPRESSION = 100  # per cent
LONGEST_PROMPT = 32_000  # characters, of any model; that of GPT image
DEADLINE_SECONDS = 600  # as OpenAI's clients wait
LONGEST_DEADLINE_SECONDS = 9_000  # ten of the longest pauses: a record has room for the attempts of ten calls
LONGEST_USER = 512  # characters; OpenAI names no limit, but the size of a record is limited


@dataclass(frozen=True, slots=True)
class FreeSizes:
    """Bounds of any WIDTHxHEIGHT that a model accepts in addition to its named sizes."""

    multiple_of: int
    longest_edge: int
    least_pixels: int
    most_pixels: int
    widest_ratio: int

    def allows(self, size: str) -> bool:
        match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", size)
        if match is None:
            return False
        width, height = int(match[1]), int(match[2])
        return (
            width % self.multiple_of == 0
            and height % self.multiple_of == 0
            and max(width, height) <= self.longest_edge
            and self.least_pixels <= width * height <= self.most_pixels
            and max(width, height) <= self.widest_ratio * min(width, height)
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """A text out of `values`. `defaults` are further texts that mean the model's default and are not sent."""

    values: tuple[str, ...]
    defaults: tuple[str, ...] = ()
    free: FreeSizes | None = None

    @property
    def accepted(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.values, *self.defaults)))

    def allows(self, value: str) -> bool:
        return value in self.accepted or (self.free is not None and self.free.allows(value))


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from `least` to `most`."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Decimal:
    """A number from `least` to `most`."""

    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Text:
    """A text of at most `longest` characters."""

    longest: int


@dataclass(frozen=True, slots=True)
class Structured:
    """A JSON value with members. `fits` accepts exactly what `schema` (JSON Schema) describes and `summary` says."""

    summary: str
    schema: Mapping[str, Any]
    fits: Callable[[Any], bool]


Rule = Choice | Whole | Decimal | Text | Structured


@dataclass(frozen=True, slots=True)
class RequestField:
    """An optional field of a request.

    Parsing, error messages, OpenAPI, `GET /v1/models`, the tables of the documentation, the event's schema and the
    playground's form are made from it. A field that is not `sent` is validated and not sent to the upstream. `default`
    is the value that a request without the field has, `None` if the upstream chooses one. `operations` are those that
    have the field; empty means all of the model.
    """

    name: str
    rule: Rule
    description: str
    sent: bool = True
    default: str | int | float | None = None
    operations: tuple[Operation, ...] = ()


# Fields that every model accepts. A model's own field of the same name replaces it. Clients send the default quality or
# style even to models that have none: LangChain, CrewAI, Haystack and Camel send a quality, others a style.
COMMON_FIELDS = (
    RequestField("n", Whole(1, MAX_IMAGES), "The answer always has exactly `n` images.", sent=False, default=1),
    RequestField(
        "quality",
        Choice((), defaults=("standard", "auto")),
        "`standard` and `auto` mean the default of every model.",
        sent=False,
    ),
    RequestField("style", Choice((), defaults=("vivid",)), "`vivid` is accepted for every model.", sent=False),
    RequestField(
        "response_format",
        Choice(RESPONSE_FORMATS),
        "Default `b64_json` for GPT image, `url` for all others. Accepted for every model.",
        sent=False,
    ),
    RequestField(
        "user",
        Text(LONGEST_USER),
        "An identifier of the caller's end user. Sent to the upstreams that accept it.",
        sent=False,
    ),
    RequestField(
        "safety_identifier",
        Text(LONGEST_USER),
        "An identifier of the caller's end user. Sent to the upstreams that accept it.",
        sent=False,
    ),
)
_OF_THIS_SERVICE = ("n", "response_format")  # no upstream gets them as they come
COMMON_TEXTS = tuple(field.name for field in COMMON_FIELDS if isinstance(field.rule, Text))
# The order of the fields in every table. Other fields come after `size`.
_FIRST, _LAST = ("n", "size", "quality", "style"), ("response_format", "user", "safety_identifier")


def _always_fits(_prompt: str, _n: int, _options: Mapping[str, Any]) -> None:
    return None


@dataclass(frozen=True, slots=True)
class ImageModel:
    """A model. A provider's package defines the models of its protocol, up to `open_fields`. models.toml sets the rest.

    `provider` is the name of the provider that calls its upstreams. `images_per_call` is the most images of one
    upstream call. More images are made by parallel calls. `prompt_limit` is the most characters of a prompt; with
    `prompt_capped` the deployer's limit applies too. A request has at most one field of each group of
    `exclusive_fields`. The price depends on the fields `priced_by`. With `open_fields`, any further field is sent as
    it comes. `misfit` finds a field that does not fit the prompt and `n`: it returns its name and what is wrong.

    `inputs` are the operations that take images, with what each accepts. `generates` is whether the model also makes
    images from a prompt alone.

    With `by_task` the upstream answers with a task. With `slot_per_image` a call takes as many slots of its upstream as
    it has images. `modes` are the speeds among which models.toml may choose.

    `like` is the id under which the provider's package defines the model. `defaults` are the values of fields that a
    request does not set. `quick` is whether an image usually takes much less than 29 s, the longest time of an
    integration that does not stream (API Gateway developer guide, "Quotas for configuring and running a REST API in API
    Gateway"). A call that the upstreams refuse because of their rate limits is sent again for `deadline_seconds`, and a
    task is waited for as long. `mode` is the upstream's speed, "" for its default.
    """

    id: str
    owned_by: str
    provider: str
    own_fields: tuple[RequestField, ...]
    default_response_format: ResponseFormat
    images_per_call: int
    prompt_limit: int = LONGEST_PROMPT
    prompt_capped: bool = True
    exclusive_fields: tuple[tuple[str, ...], ...] = ()
    priced_by: tuple[str, ...] = ("size", "quality")
    open_fields: bool = False
    misfit: Callable[[str, int, Mapping[str, Any]], tuple[str, str] | None] = _always_fits
    inputs: Mapping[Operation, InputRules] = dataclasses.field(default_factory=dict)
    generates: bool = True
    by_task: bool = False
    slot_per_image: bool = False
    modes: tuple[str, ...] = ()
    like: str = ""
    routes: tuple[Route, ...] = ()
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    price: Price | None = None
    quick: bool = False
    deadline_seconds: int = DEADLINE_SECONDS
    mode: str = ""

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (*(("generate",) if self.generates else ()), *self.inputs)

    def doing(self, operation: Operation) -> "ImageModel":
        """Returns the model with the fields of one operation."""
        own = tuple(field for field in self.own_fields if not field.operations or operation in field.operations)
        return self if own == self.own_fields else dataclasses.replace(self, own_fields=own)

    @property
    def fields(self) -> dict[str, RequestField]:
        """Every field that the model accepts by name, in the order of the tables."""
        common = (each for each in COMMON_FIELDS if each.name in _OF_THIS_SERVICE or not self.open_fields)
        return _ordered((*common, *self.own_fields))

    def defaults_for(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the defaults for a request with these options: none that an option replaces or excludes.

        Nor one of a field that the operation does not have.
        """
        excluded = {name for group in self.exclusive_fields if options.keys() & set(group) for name in group}
        known = self.defaults.keys() if self.open_fields else self.fields.keys()
        return {
            name: value
            for name, value in self.defaults.items()
            if name in known and name not in excluded | options.keys()
        }

    @property
    def sizes(self) -> tuple[str, ...]:
        return self.choice("size").values

    def choice(self, name: str) -> Choice:
        """Returns the values of a field. Empty if the model does not have the field."""
        field = self.fields.get(name)
        return field.rule if field and isinstance(field.rule, Choice) else Choice(())

    def calls(self, n: int) -> list[int]:
        """Returns the number of images of each upstream call, in all `n`."""
        whole, rest = divmod(n, self.images_per_call)
        return [self.images_per_call] * whole + ([rest] if rest else [])


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models of a stack. `default` is the model of a request that names none.

    `aliases` maps further names to names of models. `defaults` are the models of requests with another operation than
    `generate` that name none, where that is not `default`.
    """

    models: Mapping[str, ImageModel]
    default: str
    aliases: Mapping[str, str]
    defaults: Mapping[Operation, str] = dataclasses.field(default_factory=dict)

    def doing(self, operation: Operation) -> "Catalog":
        """Returns the models with an operation, with the fields that it has."""
        models = {name: each.doing(operation) for name, each in self.models.items() if operation in each.operations}
        default = self.defaults.get(operation, self.default)
        default = default if default in models else next(iter(models), "")
        return Catalog(models, default, {alias: name for alias, name in self.aliases.items() if name in models})

    def named(self, name: str) -> ImageModel | None:
        return self.models.get(name) or self.models.get(self.aliases.get(name, ""))

    def for_size(self, size: str) -> ImageModel:
        """Returns the model of a request with a size and no model: the default, or the first that has the size.

        The default if none has the size, or if it is `auto`.
        """
        default = self.models[self.default]
        if size == "auto":
            return default
        return next((model for model in (default, *self.models.values()) if size in model.sizes), default)

    @property
    def fields(self) -> dict[str, list[RequestField]]:
        """Every field of a request, in the order of the tables, with its variants by model."""
        variants: dict[str, list[RequestField]] = {}
        for model in self.models.values():
            for name, field in model.fields.items():
                known = variants.setdefault(name, [])
                if field not in known:
                    known.append(field)
        ordered = _ordered(field for fields in variants.values() for field in fields[:1])
        return {name: variants[name] for name in ordered}

    def with_field(self, name: str) -> list[ImageModel]:
        """Returns the models that have a field of their own with this name."""
        return [model for model in self.models.values() if any(field.name == name for field in model.own_fields)]


def _ordered(fields: Iterable[RequestField]) -> dict[str, RequestField]:
    found = {field.name: field for field in fields}
    middle = [name for name in found if name not in (*_FIRST, *_LAST)]
    return {name: found[name] for name in (*_FIRST, *middle, *_LAST) if name in found}
