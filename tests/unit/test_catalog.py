import re
import socket
from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator

from imagegen.domain.errors import InvalidRequestError
from imagegen.domain.generations import fingerprint
from imagegen.domain.inputs import IMAGE, MASK, InputContent
from imagegen.domain.models import MAX_IMAGES, Catalog, Choice, ImageModel, RequestField, Whole
from imagegen.providers.openai.models import PROVIDER as OPENAI
from imagegen.providers.request_bodies import UpstreamBody, form_body, json_body
from imagegen.wire.models import model_answer
from imagegen.wire.requests import PATHS, ReadRequest
from imagegen.wire.schemas import schemas
from local.serving import Request
from local.upstream import StandInUpstream
from tests.support.models import DEFAULT_MODEL, MODELS, read_request
from tests.support.pictures import mask

CLEAR = mask(64, (0, 0, 64, 64))
EACH_MODEL = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@EACH_MODEL
def test_a_model_is_consistent(model: ImageModel) -> None:
    assert MODELS[model.id] is model
    assert model.operations
    assert model.sizes or not model.generates
    assert all(size == "auto" or re.fullmatch(r"[1-9]\d{2,3}x[1-9]\d{2,3}", size) for size in model.sizes)
    assert not model.choice("size").allows("1x1")
    for name, field in model.fields.items():
        assert field.name == name
        if isinstance(field.rule, Choice):
            assert all(field.rule.allows(value) for value in field.rule.accepted)
            assert len(set(field.rule.values)) == len(field.rule.values)
            # A choice that is not sent to the upstream would have no effect.
            assert field.sent or len(field.rule.values) < 2 or name == "response_format"
    sent = {name for name, field in model.fields.items() if field.sent}
    if model.default_response_format == "b64_json":  # GPT image refuses these
        assert not sent & {"response_format", "style"}
    else:
        assert not sent & {"background", "moderation", "output_format", "output_compression"}
    for field in model.own_fields:
        assert set(field.operations) <= set(model.operations)
    for rules in model.inputs.values():
        assert 1 <= rules.least <= rules.most
        # In a form and in JSON, an image stands beside the fields.
        assert not {f"{IMAGE}s", IMAGE, MASK, *rules.references} & model.fields.keys()


def test_a_new_field_of_one_model_changes_no_other_model_and_no_fingerprint() -> None:
    seed = RequestField("seed", Whole(0, 2**32 - 1), "The same seed gives the same image.")
    flux = MODELS["flux-dev"]
    models = {**MODELS, "flux-dev": replace(flux, own_fields=(*flux.own_fields, seed))}
    read, plain = (
        ReadRequest(Catalog(models, DEFAULT_MODEL, {})).fields,
        {"prompt": "otter", "model": "flux-dev"},
    )
    assert read(plain | {"seed": 7}).options == {"seed": 7}
    assert fingerprint(read(plain)) == fingerprint(read_request().fields(plain))
    assert fingerprint(read(plain | {"seed": 7})) != fingerprint(read(plain))
    for refused in ({"seed": -1}, {"seed": "7"}, {"seed": 7, "model": "flux"}):
        with pytest.raises(InvalidRequestError, match="seed"):
            read(plain | refused)
    catalog = Catalog(models, DEFAULT_MODEL, {})
    shown = model_answer("flux-dev", catalog, lambda _: [])["parameters"]["seed"]
    assert shown == {"type": "integer", "min": 0, "max": 2**32 - 1, "description": seed.description}
    described = Draft202012Validator(schemas(catalog)["CreateImagesRequest"])
    assert described.is_valid(plain | {"seed": 7})
    assert not described.is_valid(plain | {"seed": 7, "model": "flux"})


@EACH_MODEL
def test_the_calls_of_a_request_add_up_to_its_images(model: ImageModel) -> None:
    for n in range(1, MAX_IMAGES + 1):
        calls = model.calls(n)
        assert sum(calls) == n
        assert all(1 <= images <= model.images_per_call for images in calls)


def test_the_default_model_exists_and_only_these_models_differ_from_their_family() -> None:
    assert DEFAULT_MODEL in MODELS
    gpt_image_2_5 = {f"gpt-image-2.5-{name}{date}" for name in ("sunburst", "flare") for date in ("", "-2026-09-08")}
    gpt_image_2 = {"gpt-image-2", "gpt-image-2-2026-04-21"}
    assert {model.id for model in MODELS.values() if model.choice("size").free} == gpt_image_2 | gpt_image_2_5
    assert {model.id for model in MODELS.values() if "xhigh" in model.choice("quality").values} == gpt_image_2_5


def form(fields: dict[str, str], operation: str) -> UpstreamBody:
    texts = {name: "1024x1024" if name == "size" else text for name, text in fields.items()}
    if operation == "variation":
        del texts["prompt"]
    return form_body([*texts.items(), ("image", InputContent("image/png", len(CLEAR), lambda: iter([CLEAR])))])


def answered(path: str, body: UpstreamBody) -> int:
    headers = [("Authorization", "Bearer key"), ("Host", "127.0.0.1"), ("Content-Type", body.content_type)]
    with socket.socket() as connection:
        return StandInUpstream("key").respond(Request("POST", path, headers, b"".join(body.blocks), connection)).status


def test_the_stand_in_for_the_upstream_has_every_model_of_openais_protocol() -> None:
    for model in (model for model in MODELS.values() if model.provider == OPENAI):
        shape = {"aspect_ratio": "1:1"} if "aspect_ratio" in model.fields else {"size": "16x16"}
        fields = {"model": model.id, "prompt": "an otter", **shape}
        for operation in model.operations:
            body = json_body(fields) if operation == "generate" else form(fields, operation)
            assert answered(PATHS[operation], body) == 200, (model.id, operation)
