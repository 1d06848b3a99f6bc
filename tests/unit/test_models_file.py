"""models.toml: what it may say, what it compiles to, and where an error is."""

import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import pytest

from imagegen.bootstrap.models_toml import CONFIGURATION
from imagegen.domain.configuration import Configuration
from imagegen.domain.errors import InvalidRequestError
from imagegen.domain.generations import fingerprint, supply_of
from imagegen.domain.money import ImagePrice, TokenPrice
from imagegen.domain.upstreams import Route, Upstream
from imagegen.providers.catalog import KNOWN_MODELS
from imagegen.wire.requests import ReadRequest
from tools.models_file import COMPILED, ROOT, SOURCE, ModelsFileError, compiled, read

HEAD = """\
default_model = "dall-e-3"
default_upstream = "reseller"
prompt_max_characters = 1000

[upstreams.reseller]
protocols = ["openai", "ideogram"]
key = "upstream-api-key"

[upstreams.gpu-box]
protocols = ["openai"]
base_url = "https://gpu.example.com/v1"
key = "gpu-key"
timeout_seconds = 60
concurrency = 2

[models.dall-e-3]
routes = ["reseller"]
"""
LINE = HEAD.count("\n") + 1  # the first line of what a test adds


def added(text: str) -> Configuration:
    return read(HEAD + text)


def test_the_shipped_file_is_compiled_and_offers_every_known_model() -> None:
    text = (ROOT / SOURCE).read_text()
    assert read(text) == CONFIGURATION
    assert compiled(CONFIGURATION) == (ROOT / COMPILED).read_text()
    assert list(CONFIGURATION.catalog.models) == list(KNOWN_MODELS)
    for name, model in CONFIGURATION.catalog.models.items():
        assert (model.id, model.like) == (name, name)
        assert CONFIGURATION.default_upstream in {route.upstream for route in model.routes}


def test_what_is_compiled_is_what_the_file_says(tmp_path: Path) -> None:
    configuration = added(
        """
        [models.ideogram-turbo]
        like = "ideogram-v3"
        aliases = ["turbo"]
        defaults = { rendering_speed = "TURBO" }
        routes = ["reseller:ideogram-v3"]
        price = 0.03
        quick = true
        [models.our-sdxl]
        passthrough = true
        routes = ["gpu-box:sdxl", "reseller"]
        deadline_seconds = 60
        prompt_max_characters = 77
        price = { text_input = 5, image_input = 8, output = 40, max = 0.25 }
        """
    )
    path = tmp_path / "compiled.py"
    path.write_text(compiled(configuration))
    spec = importlib.util.spec_from_file_location("compiled", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert configuration == module.CONFIGURATION
    assert "tomllib" not in path.read_text()


def test_an_upstream_and_its_models() -> None:
    configuration = added(
        """
        [models.our-sdxl]
        passthrough = true
        routes = ["gpu-box:sdxl", "reseller"]
        """
    )
    upstream = Upstream(("openai",), "gpu-key", "https://gpu.example.com/v1", timeout_seconds=60, concurrency=2)
    assert configuration.upstreams["gpu-box"] == upstream
    model = configuration.catalog.models["our-sdxl"]
    assert model.routes == (Route("gpu-box", "sdxl"), Route("reseller", "our-sdxl"))
    assert (model.like, model.prompt_limit, model.deadline_seconds) == ("", 1000, 600)


def test_defaults_of_a_model_hold_unless_the_request_says_otherwise() -> None:
    catalog = added(
        """
        [models.wide]
        like = "ideogram-v3"
        defaults = { rendering_speed = "TURBO", aspect_ratio = "16x9" }
        routes = ["reseller:ideogram-v3"]
        """
    ).catalog

    def options(**fields: Any) -> dict[str, Any]:
        request = ReadRequest(catalog).fields({"model": "wide", "prompt": "a cat", **fields})
        return {**supply_of(catalog.models["wide"], request).defaults, **request.options}

    assert options() == {"rendering_speed": "TURBO", "aspect_ratio": "16x9"}
    assert options(rendering_speed="QUALITY") == {"rendering_speed": "QUALITY", "aspect_ratio": "16x9"}
    assert options(size="1024x1024") == {"rendering_speed": "TURBO", "size": "1024x1024"}  # excludes aspect_ratio


def test_a_default_is_no_part_of_what_the_caller_asked_for() -> None:
    """So a retry attaches although a deployment between has changed the default."""
    body = {"model": "m", "prompt": "a cat"}
    plain, turbo = (
        added(f'[models.m]\nlike = "ideogram-v3"\nroutes = ["reseller"]\n{defaults}').catalog
        for defaults in ("", 'defaults = { rendering_speed = "TURBO" }')
    )
    assert fingerprint(ReadRequest(plain).fields(body)) == fingerprint(ReadRequest(turbo).fields(body))


def test_a_default_counts_in_what_cannot_be_combined() -> None:
    catalog = added(
        '[models.m]\nlike = "gpt-image-2"\nroutes = ["reseller"]\ndefaults = { output_format = "gif" }'
    ).catalog
    body = {"model": "m", "prompt": "a cat"}
    assert ReadRequest(catalog).fields({**body, "frame_count": 4}).options == {"frame_count": 4}
    with pytest.raises(InvalidRequestError, match="Transparent background"):
        ReadRequest(catalog).fields({**body, "background": "transparent"})


def test_a_passthrough_model_sends_what_it_is_given_within_bounds() -> None:
    read_fields = ReadRequest(added('[models.m]\npassthrough = true\nroutes = ["gpu-box"]').catalog).fields
    body = {"model": "m", "prompt": "a cat", "n": 2, "response_format": "b64_json", "stream": False}
    sent = {
        "output_compression": 50,
        "steps": 30,
        "loras": [{"name": "x"}],
        "size": "640x640",
        "quality": "ultra",
        "user": "u",
    }
    request = read_fields({**body, **sent, "absent": None})
    assert (request.n, request.response_format, request.options) == (2, "b64_json", sent)
    nested: Any = 1
    for _ in range(33):
        nested = [nested]
    for wrong in ({"stream": True}, {"steps": "x" * 33_000}, {"n": 11}, {"steps": nested}):
        with pytest.raises(InvalidRequestError, match=r"not supported|over 32768 bytes|maximum value|levels deep"):
            read_fields({**body, **wrong})


@pytest.mark.parametrize(
    ("model", "price", "expected"),
    [
        ("flux", "0.05", ImagePrice(50_000)),
        ("flux", "0", ImagePrice(0)),
        (
            "dall-e-2",
            "{ 256x256 = 0.016, 512x512 = 0.018 }",
            ImagePrice({"256x256": 16_000, "512x512": 18_000}, ("size",)),
        ),
        ("dall-e-2", "{ standard = 0.02 }", ImagePrice({"standard": 20_000}, ("quality",))),
        (
            "gpt-image-1",
            "{ 1024x1024 = { low = 0.011, high = 0.167 }, auto = 0.25 }",
            ImagePrice({"1024x1024": {"low": 11_000, "high": 167_000}, "auto": 250_000}, ("size", "quality")),
        ),
        (
            "ideogram-v3",
            "{ TURBO = 0.03, QUALITY = 0.09 }",
            ImagePrice({"TURBO": 30_000, "QUALITY": 90_000}, ("rendering_speed",)),
        ),
        (
            "gpt-image-2",
            "{ text_input = 5, image_input = 8, output = 32, max = 0.2 }",
            TokenPrice(5_000_000, 8_000_000, 32_000_000, 200_000),
        ),
    ],
)
def test_a_price_is_of_an_image_by_its_fields_or_of_tokens(model: str, price: str, expected: object) -> None:
    configuration = added(f'[models.{model}]\nroutes = ["reseller"]\nprice = {price}')
    assert configuration.catalog.models[model].price == expected


def test_a_price_is_narrowed_to_what_is_known() -> None:
    price = ImagePrice({"1024x1024": {"low": 11, "high": 167}, "auto": 250}, ("size", "quality"))
    for values, most, exact in (
        ({}, 250, False),
        ({"size": "1024x1024"}, 167, False),
        ({"quality": "low"}, 250, False),
        ({"size": "1024x1024", "quality": "low"}, 11, True),
        ({"size": "auto", "quality": "low"}, 250, True),
        ({"size": "1024x1024", "quality": "max"}, 167, False),  # it is not listed
        ({"size": "1x1"}, 250, False),
        ({"size": ["1024x1024"]}, 250, False),
    ):
        narrowed = price.narrowed(values)
        assert (narrowed.most, narrowed.exact) == (most, exact), values
    assert price.narrowed({"quality": "low"}).narrowed({"size": "1024x1024"}).most == 11


WRONG_MODELS = [
    ('[models.flux]\nroutes = ["nowhere"]', 1, "models.flux.routes: there is no upstream 'nowhere'"),
    ("[models.flux]\nroutes = []", 1, "at least one route"),
    ('[models.flux]\nroutes = ["reseller", "reseller:x"]', 1, "two routes lead to 'reseller'"),
    ('[models.flux]\nroutes = ["Res eller"]', 1, "is not a route"),
    ('[models.flux]\naliases = ["f"]', 0, "missing required field `routes`"),
    ('[models.flux]\nroutes = ["reseller"]\nspeed = 1', 0, "unknown field `speed`"),
    ('[models.ideogram-v3]\nroutes = ["gpu-box"]', 1, "'gpu-box' does not speak 'ideogram'"),
    ('[models.new]\nroutes = ["reseller"]', 0, "no provider knows 'new'"),
    ('[models.new]\nlike = "old"\nroutes = ["reseller"]', 1, "models.new.like: no provider knows 'old'"),
    ('[models.flux]\npassthrough = true\nroutes = ["reseller"]', 1, "cannot be passthrough"),
    ('[models."a b"]\nroutes = ["reseller"]', 0, "not a model's name"),
    ('[models.flux]\nroutes = ["reseller"]\naliases = ["dall-e-3"]', 2, "the name 'dall-e-3' is taken"),
    (
        (
            '[models.flux]\nroutes = ["reseller"]\naliases = ["x"]\n'
            '[models.flux-pro]\nroutes = ["reseller"]\naliases = [\n"x",\n]'
        ),
        7,
        "models.flux-pro.aliases: the name 'x' is taken by 'flux'",
    ),
    ('[models.flux]\nroutes = ["reseller"]\naliases = ["é"]', 2, "printable characters"),
    ('[models.flux]\nroutes = ["reseller"]\nprice = -1', 2, "not a price"),
    ('[models.flux]\nroutes = ["reseller"]\nprice = true', 2, "not a price"),
    ('[models.flux]\nroutes = ["reseller"]\nprice = 0.0000001', 2, "more than six decimals"),
    ('[models.flux]\nroutes = ["reseller"]\nprice = { 1x1 = 1 }', 2, "no size or quality '1x1'"),
    ('[models.flux]\nroutes = ["reseller"]\nprice = { 1024x1024 = 1, 1x1 = 1 }', 2, "no size '1x1'"),
    ('[models.flux]\nroutes = ["reseller"]\nprice = {}', 2, "the table is empty"),
    ('[models.flux]\nroutes = ["reseller"]\nprice = { output = 1 }', 2, "text_input"),
    ('[models.flux]\nroutes = ["reseller"]\ndefaults = { steps = 1 }', 2, "Unknown parameter: 'steps'"),
    ('[models.flux]\nroutes = ["reseller"]\ndefaults = { size = "1x1" }', 2, "Invalid value: '1x1'"),
    ('[models.flux]\nroutes = ["reseller"]\ndefaults = { n = 2 }', 2, "'n' cannot have a default"),
    ('[models.flux]\nroutes = ["reseller"]\ndeadline_seconds = 0', 0, "deadline_seconds"),
    ('[models.dall-e-3]\nroutes = ["reseller"]', 0, "dall-e-3"),  # declared twice
    ('[models.m]\npassthrough = true\nroutes = ["reseller"]\ndefaults = { steps = nan }', 3, "no JSON value"),
    ('[models.m]\npassthrough = true\nroutes = ["reseller"]\ndefaults = { x = 2026-11-30 }', 3, "no JSON value"),
    (
        '[models.gpt-image-2]\nroutes = ["reseller"]\nprice = { text_input = 5, image_input = 8, output = 3, max = 0 }',
        2,
        "max is 0",
    ),
    ("[models.flux", 0, "Expected"),
]
WRONG_UPSTREAMS = [
    ('[upstreams.x]\nprotocols = ["soap"]\nkey = "k"\nbase_url = "https://x.example"', 1, "no protocol 'soap'"),
    ('[upstreams.x]\nprotocols = []\nkey = "k"\nbase_url = "https://x.example"', 1, "at least one protocol"),
    ('[upstreams.x]\nprotocols = ["openai"]\nkey = "k"', 0, "base_url is missing"),
    ('[upstreams.x]\nprotocols = ["openai"]\nkey = "k"\nbase_url = "http://x.example"', 3, "plain http"),
    ('[upstreams.x]\nprotocols = ["openai"]\nkey = "a/b"\nbase_url = "https://x.example"', 2, "not the name of an SSM"),
    ('[upstreams.X]\nprotocols = ["openai"]\nkey = "k"\nbase_url = "https://x.example"', 0, "begins with a letter"),
    (
        '[upstreams.x]\nprotocols = ["openai"]\nkey = "k"\nbase_url = "https://x.example"\nconcurrency = 0',
        0,
        "concurrency",
    ),
    ('[upstreams.x]\nprotocols = ["openai"]\nkey = "k"\nbase_url = "https://x.example"\ntimeout = 1', 0, "`timeout`"),
]


@pytest.mark.parametrize(("text", "line", "message"), WRONG_MODELS + WRONG_UPSTREAMS)
def test_an_error_names_the_file_and_the_line(text: str, line: int, message: str) -> None:
    with pytest.raises(ModelsFileError) as error:
        added(text)
    assert message in str(error.value)
    assert str(error.value).startswith(f"models.toml:{LINE + line}:"), error.value


@pytest.mark.parametrize(("name", "line"), [("default_model", 1), ("default_upstream", 2)])
def test_a_default_exists(name: str, line: int) -> None:
    text = HEAD.replace(f'{name} = "{tomllib.loads(HEAD)[name]}"', f'{name} = "absent"')
    with pytest.raises(ModelsFileError, match=rf"models\.toml:{line}: {name}: there is no"):
        read(text)
