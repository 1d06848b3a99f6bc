"""Calls with input images over real sockets: the upstream gets what the caller gave, and nothing is paid for twice."""

import hashlib
import json
import threading
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec
import pytest
from PIL import Image, ImageChops

from imagegen.bootstrap.models_toml import CONFIGURATION
from imagegen.bootstrap.upstreams import upstream_access
from imagegen.domain import errors
from imagegen.domain.deadline import Deadline
from imagegen.domain.failures import Failure
from imagegen.domain.generations import Generation, UpstreamAttempt, UpstreamCall, admit
from imagegen.domain.image_format import JPEG, PNG, WEBP
from imagegen.domain.images import ImageRequest, UpstreamImages, UpstreamRequest, UpstreamTask
from imagegen.domain.inputs import GivenImage, InputImage, Operation, new_input_id
from imagegen.domain.upstreams import Upstream as Configured
from imagegen.imaging.converter import PillowConverter
from imagegen.outbound.pool import HttpPool
from imagegen.usecases.open_inputs import OpenInputs
from imagegen.usecases.run_upstream_calls import UpstreamRunner
from imagegen.usecases.send_upstream_call import TRIES
from imagegen.usecases.take_inputs import TakeInputs
from imagegen.usecases.upstream_routes import UpstreamAccess
from imagegen.wire.image_requests import readers_of
from local.serving import HungUpError, Reply, Request, Responder, serving
from local.upstream import StandInUpstream
from local.upstream_forms import read_form
from local.upstream_replies import one_api_error
from tests.fakes.generation_store import FakeGenerationStore
from tests.fakes.image_store import FakeImageStore
from tests.fakes.input_store import FakeInputStore
from tests.fakes.parameters import FakeParameters
from tests.fakes.provider import FakeProvider
from tests.support import odd_hosts
from tests.support.images import REAL_PNG
from tests.support.in_memory import InMemoryService
from tests.support.models import MODELS
from tests.support.pictures import BLUE, GREEN, RED, encoded, opened, picture
from tests.support.upstream_host import KEY, PARAMETER, ROTATED_KEY, UpstreamHost, answers, failure_of, upstream_on

Given = tuple[str, bytes]  # the role of an image, and its content
EXTENSIONS = {PNG: "png", JPEG: "jpg", WEBP: "webp"}
GPT, GEMINI, IDEOGRAM, KLING, TRY_ON = (
    "gpt-image-1.5",
    "gemini-2.5-flash-image",
    "ideogram-v3",
    "kling-v1",
    "kolors-virtual-try-on-v1",
)
BOX = (40, 80, 200, 300)  # what a mask marks


def of_size(width: int, height: int, kind: str = "jpeg") -> bytes:
    return encoded(Image.linear_gradient("L").resize((width, height)).convert("RGB"), kind)


def webp(mode: str = "RGB") -> bytes:
    shown, out = Image.radial_gradient("L").resize((320, 320)).convert(mode), BytesIO()
    if mode == "RGBA":
        shown.putalpha(Image.linear_gradient("L").resize((320, 320)))
    shown.save(out, "webp", lossless=True, exif=uuid4().bytes)
    return out.getvalue()


def mask(kind: str) -> bytes:
    """A mask that marks the box: as what is transparent, or as what is black."""
    shown = Image.new("RGBA", (320, 320), "red") if kind == "transparent" else Image.new("L", (320, 320), 255)
    shown.paste((9, 9, 9, 0) if kind == "transparent" else 0, BOX)
    return encoded(shown)


MARKED = Image.new("L", (320, 320), 255)
MARKED.paste(0, BOX)
JPG, WIDE, TALL = of_size(320, 320), of_size(640, 360), of_size(320, 500, "png")
CLEAR = encoded(Image.new("RGBA", (320, 320), (1, 2, 3, 0)))
ONE = [("image", picture(RED))]
THREE = [("image", picture(BLUE)), ("image", of_size(400, 300)), ("image", webp())]
PAIR = [("image", of_size(330, 500)), ("image", picture(GREEN))]


def images(count: int) -> list[Given]:
    return [("image", picture(RED)) for _ in range(count)]


class Upstream(UpstreamHost):
    """`store` has what callers gave."""

    @cached_property
    def store(self) -> FakeInputStore:
        return FakeInputStore(FakeImageStore())

    def call(
        self, model: str, given: Sequence[Given], operation: Operation = "edit", n: int = 1, **fields: Any
    ) -> UpstreamRequest:
        """Reads and keeps a request as the api function does, and makes a call of it as the worker does."""
        reader = readers_of(CONFIGURATION.catalog)[operation].read
        read = reader.fields({"prompt": "a cat", "model": model, **fields}, {role for role, _ in given})
        with ThreadPoolExecutor(2) as pool:
            taking = TakeInputs(self.store, cast("Any", None), None, FakeGenerationStore(), pool)
            named = [GivenImage(role, role, content=content) for role, content in given]
            kept = taking.identify(named, MODELS[model].inputs[operation], MODELS[model], "alice").keep()
        generation = admitted(replace(read, inputs=kept))
        inputs = OpenInputs(self.store, PillowConverter).of(generation)
        return UpstreamRequest(generation.request, model, generation.supply.like, n, "gen_1.0.0", inputs=inputs)

    def ask(self, model: str, given: Sequence[Given], **asked: Any) -> dict[str, Any]:
        """Sends a call that the stand-in accepts. Returns what it got."""
        begun = self.provider(model).start(self.call(model, given, **asked), Deadline.after(60))
        assert isinstance(begun, UpstreamImages | UpstreamTask)
        return self.stand_in.calls[-1]

    def got(self) -> dict[str, Any]:
        (call,) = self.stand_in.calls
        return call

    def content(self, noted: Mapping[str, Any]) -> bytes:
        return self.stand_in.inputs[noted["sha256"]]


def admitted(request: ImageRequest) -> Generation:
    return admit(request, MODELS[request.model], caller="alice", base_url="https://x.example/v1", now=1.0)


@pytest.fixture
def upstream(host: odd_hosts.ReusableHost) -> Iterator[Upstream]:
    with upstream_on(host, Upstream) as upstream:
        yield upstream


def noted(name: str, content: bytes) -> dict[str, Any]:
    """What the stand-in notes of an image that it gets unchanged."""
    with Image.open(BytesIO(content)) as shown:
        width, height, media_type = *shown.size, f"image/{(shown.format or '').lower()}"
    size = {"bytes": len(content), "width": width, "height": height}
    return {"media_type": media_type, **size, "sha256": hashlib.sha256(content).hexdigest(), "name": name}


# What the upstream gets


@dataclass(frozen=True)
class Row:
    """`names` are the upstream's fields with the images. `sent` is what else it gets, and `lacks` what it must not."""

    model: str
    given: Sequence[Given]
    names: Sequence[str]
    fields: Mapping[str, Any] = field(default_factory=dict)
    sent: Mapping[str, Any] = field(default_factory=dict)
    lacks: Sequence[str] = ()
    operation: Operation = "edit"


STYLES, CHARACTERS = "style_reference_images", "character_reference_images"
ROWS = [
    Row(GPT, ONE, ["image"], {"n": 1, "size": "1024x1536"}, {"size": "1024x1536", "n": 1}),
    Row(GPT, THREE, ["image[]"] * 3, {"input_fidelity": "high", "output_compression": 100, "output_format": "jpeg"}),
    Row(GPT, images(16), ["image[]"] * 16, {"quality": "low"}, {"quality": "low", "operation": "edit"}),
    Row("gpt-image-1", THREE[1:], ["image[]"] * 2, {"user": "u", "background": "opaque"}, {"background": "opaque"}),
    Row("gpt-image-2", ONE, ["image"], {"size": "1280x720"}, {"size": "1280x720"}),
    Row("dall-e-2", [("image", CLEAR)], ["image"], {"size": "256x256"}, {"operation": "edit", "size": "256x256"}),
    Row(
        "dall-e-2",
        ONE,
        ["image"],
        {"size": "512x512"},
        {"operation": "variation", "response_format": "url"},
        ["quality"],
        "variation",
    ),
    Row("flux-kontext-pro", ONE, ["image"], {}, {}, ["size", "aspect_ratio"]),
    Row("flux-kontext-pro", ONE, ["image"], {"size": "1536x1024"}, {"aspect_ratio": "3:2"}, ["size"]),
    Row("flux-kontext-max", ONE, ["image"], {"aspect_ratio": "21:9"}, {"aspect_ratio": "21:9"}, ["size"]),
    Row("qwen-image-edit", ONE, ["image"], {"size": "1328x1328"}, {"size": "1328x1328"}),
    Row(GEMINI, PAIR, ["image_url"] * 2, {"aspect_ratio": "2:3"}),
    Row(GEMINI, THREE, ["image_url"] * 3, {}, {}, ["extra_body"]),
    Row(IDEOGRAM, [("image", WIDE)], ["image"], {"image_weight": 80}, {"aspect_ratio": "16x9", "image_weight": "80"}),
    Row(IDEOGRAM, [("image", TALL)], ["image"], {}, {"aspect_ratio": "10x16", "operation": "remix"}, ["image_weight"]),
    Row(IDEOGRAM, [("image", TALL)], ["image"], {"size": "1536x1024"}, {"aspect_ratio": "3x2"}, ["size"]),
    Row(IDEOGRAM, ONE, ["image"], {"resolution": "512x1536"}, {"resolution": "512x1536"}, ["aspect_ratio"]),
    Row(
        IDEOGRAM,
        [("image", webp()), (STYLES, JPG), (STYLES, picture(BLUE)), (CHARACTERS, picture(GREEN))],
        ["image", STYLES, STYLES, CHARACTERS],
        {"n": 2, "negative_prompt": "dogs"},
        {"operation": "remix", "negative_prompt": "dogs"},
    ),
    Row(KLING, [("image", WIDE)], ["image"], {"image_fidelity": 0.7}, {"aspect_ratio": "16:9", "image_fidelity": 0.7}),
    Row(KLING, [("image", TALL)], ["image"], {}, {"aspect_ratio": "2:3"}, ["image_reference", "resolution"]),
    Row(KLING, ONE, ["image"], {"size": "1280x960"}, {"aspect_ratio": "4:3"}, ["size"]),
    Row("kling-v1-5", ONE, ["image"], {}, {"image_reference": "subject", "aspect_ratio": "1:1"}),
    Row("kling-v1-5", ONE, ["image"], {"image_reference": "face"}, {"image_reference": "face"}, ["human_fidelity"]),
    Row("kling-v1-5", ONE, ["image"], {"human_fidelity": 1}, {"image_reference": "subject", "human_fidelity": 1.0}),
    Row("kling-v2-new", ONE, ["image"], {"aspect_ratio": "21:9"}, {"aspect_ratio": "21:9"}, ["image_reference"]),
    Row(
        TRY_ON,
        PAIR,
        ["human_image", "cloth_image"],
        {"prompt": "has no effect"},
        {"operation": "try-on", "external_task_id": "gen_1.0.0"},
        ["aspect_ratio", "image"],
    ),
    Row(f"{TRY_ON}-5", PAIR[::-1], ["human_image", "cloth_image"]),
    Row("mj_blend", PAIR, ["base64Array"] * 2, {}, {"dimensions": "SQUARE", "botType": "MID_JOURNEY"}),
    Row("mj_blend", images(5), ["base64Array"] * 5, {"size": "1536x1024"}, {"dimensions": "LANDSCAPE"}, ["size"]),
    Row("mj_blend", PAIR, ["base64Array"] * 2, {"size": "1024x1536"}, {"dimensions": "PORTRAIT"}),
    Row(
        "mj_imagine",
        THREE,
        ["base64Array"] * 3,
        {"seed": 7, "size": "1792x1024"},
        {"full_prompt": "a cat --ar 16:9 --seed 7", "botType": "MID_JOURNEY"},
    ),
    Row("niji", ONE, ["base64Array"], {"seed": 7}, {"full_prompt": "a cat --seed 7", "botType": "NIJI_JOURNEY"}),
    Row("mj_describe", [("image", webp())], ["base64"], operation="describe", lacks=["base64Array"]),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.model}-{len(row.given)}-{'-'.join(row.fields)}")
def test_the_upstream_gets_the_images_of_the_caller_unchanged_and_in_order(upstream: Upstream, row: Row) -> None:
    got = upstream.ask(row.model, row.given, operation=row.operation, **row.fields)
    contents = [content for _, content in row.given]
    assert got["images"] == [noted(name, content) for name, content in zip(row.names, contents, strict=True)]
    assert [upstream.content(each) for each in got["images"]] == contents
    assert got.items() >= row.sent.items()
    assert not got.keys() & set(row.lacks)
    (request,) = upstream.requests
    assert b"octet-stream" not in request.body
    assert request.header("Content-Length") == str(len(request.body))
    assert request.header("Transfer-Encoding") is None
    assert request.header("Authorization") == f"Bearer {KEY}"
    for part in read_form(request) or ():
        if part.filename is not None:
            assert part.filename == f"image.{EXTENSIONS[part.media_type]}"


def test_a_variation_a_blend_and_a_try_on_send_no_prompt(upstream: Upstream) -> None:
    upstream.ask("dall-e-2", ONE, operation="variation", prompt="a secret")
    upstream.ask("mj_blend", PAIR, prompt="a secret")
    upstream.ask(TRY_ON, PAIR, prompt="a secret")
    assert len(upstream.requests) == 3
    assert all(b"a secret" not in request.body and b'"prompt"' not in request.body for request in upstream.requests)


def test_gemini_gets_the_prompt_before_the_images(upstream: Upstream) -> None:
    upstream.ask(GEMINI, PAIR, aspect_ratio="16:9")
    body = json.loads(upstream.requests[0].body)
    (message,) = body["messages"]
    assert [part["type"] for part in message["content"]] == ["text", "image_url", "image_url"]
    assert message["content"][0]["text"] == "a cat"
    assert body["extra_body"] == {"google": {"image_config": {"aspect_ratio": "16:9"}}}


# What is converted


@pytest.mark.parametrize("kind", ["transparent", "black"])
@pytest.mark.parametrize(
    ("model", "given"), [(GPT, JPG), (GPT, picture()), ("dall-e-2", picture()), (IDEOGRAM, webp()), (IDEOGRAM, JPG)]
)
def test_a_mask_of_either_kind_marks_the_same_pixels(upstream: Upstream, model: str, given: bytes, kind: str) -> None:
    """OpenAI changes what is transparent, Ideogram what is black."""
    got = upstream.ask(model, [("image", given), ("mask", mask(kind))])
    assert (got["operation"], got["mask"]["media_type"], got["mask"]["name"]) == ("edit", PNG, "mask")
    assert got["images"] == [noted("image", given)]
    sent = Image.open(BytesIO(upstream.content(got["mask"])))
    assert sent.mode == ("L" if model == IDEOGRAM else "RGBA")
    marks = sent if model == IDEOGRAM else sent.getchannel("A")
    assert ImageChops.difference(marks, MARKED).getbbox() is None


def test_a_mask_belongs_to_the_first_of_several_images(upstream: Upstream) -> None:
    contents = [JPG, picture(GREEN), of_size(640, 200)]
    got = upstream.ask(GPT, [("mask", mask("black")), *(("image", each) for each in contents)])
    assert got["images"] == [noted("image[]", each) for each in contents]
    assert (got["mask"]["width"], got["mask"]["height"]) == (320, 320)


def test_what_only_a_remix_has_is_not_sent_with_a_mask(upstream: Upstream) -> None:
    got = upstream.ask(
        IDEOGRAM, [*ONE, ("mask", mask("black")), (CHARACTERS, JPG)], size="auto", rendering_speed="TURBO"
    )
    assert not got.keys() & {"size", "aspect_ratio", "resolution", "negative_prompt", "image_weight"}
    assert got["images"] == [noted("image", ONE[0][1]), noted(CHARACTERS, JPG)]


@pytest.mark.parametrize(
    ("given", "defaults", "missing"),
    [
        ([*ONE, ("mask", mask("black"))], {"aspect_ratio": "16x9", "negative_prompt": "dogs", "seed": 7}, 2),
        ([*ONE, ("mask", mask("black"))], {"resolution": "512x1536", "image_weight": 80, "seed": 7}, 2),
        ([*ONE, (STYLES, JPG)], {"style_type": "DESIGN", "seed": 7}, 1),
        ([*ONE, (STYLES, JPG)], {"style_codes": ["01234567"], "seed": 7}, 1),
        (ONE, {"aspect_ratio": "1x3", "style_type": "DESIGN", "image_weight": 80, "seed": 7}, 0),
    ],
)
def test_a_default_of_models_toml_is_sent_only_where_it_fits_the_images(
    upstream: Upstream, given: Sequence[Given], defaults: dict[str, Any], missing: int
) -> None:
    call = upstream.call(IDEOGRAM, given)
    upstream.provider(IDEOGRAM).start(
        replace(call, request=replace(call.request, options=defaults)), Deadline.after(60)
    )  # the stand-in refuses what the operation does not have
    got = upstream.got()
    assert len(defaults.keys() - got.keys()) == missing
    assert got["seed"] == "7"


@pytest.mark.parametrize(
    ("model", "operation", "given", "media_type"),
    [
        ("dall-e-2", "variation", JPG, PNG),
        ("dall-e-2", "variation", webp(), PNG),
        ("dall-e-2", "edit", JPG, PNG),
        ("dall-e-2", "edit", webp("RGBA"), PNG),
        (KLING, "edit", webp(), JPEG),
        (KLING, "edit", webp("RGBA"), PNG),
        (TRY_ON, "edit", webp(), JPEG),
    ],
)
def test_an_image_becomes_a_type_that_the_upstream_takes(
    upstream: Upstream, model: str, operation: Operation, given: bytes, media_type: str
) -> None:
    others = {TRY_ON: [("image", JPG)]}.get(model, [])
    masked = [("mask", mask("black"))] if (model, operation) == ("dall-e-2", "edit") else []
    got = upstream.ask(model, [*others, ("image", given), *masked], operation=operation)
    *_, image = got["images"]
    assert image["media_type"] == media_type
    content = upstream.content(image)
    difference = ImageChops.difference(opened(content), opened(given)).convert("L")
    assert max(range(256), key=lambda value: value if difference.histogram()[value] else 0) <= 4
    assert got["images"][: len(others)] == [noted("human_image", JPG)] * len(others)


UNFIT = [
    ("a grey mask", Image.new("L", (320, 320), 128), "neither transparent nor black and white"),
    ("a mask in colour", Image.new("RGB", (320, 320), "red"), "neither transparent nor black and white"),
    ("a white mask", Image.new("L", (320, 320), 255), "marks nothing"),
    ("an opaque mask", Image.new("RGBA", (320, 320), "white"), "marks nothing"),
]


@pytest.mark.parametrize("model", [GPT, "dall-e-2", IDEOGRAM])
@pytest.mark.parametrize(("shown", "said"), [row[1:] for row in UNFIT], ids=[row[0] for row in UNFIT])
def test_a_mask_that_marks_nothing_clearly_is_refused_before_the_upstream_is_called(
    upstream: Upstream, model: str, shown: Image.Image, said: str
) -> None:
    call = upstream.call(model, [*ONE, ("mask", encoded(shown))])
    failure = failure_of(lambda: upstream.provider(model).start(call, Deadline.after(60)))
    assert (type(failure), failure.param, failure.another_attempt) == (errors.InvalidImageError, "mask", False)
    assert said in failure.message
    assert upstream.requests == []


def test_an_image_that_cannot_be_converted_is_refused_before_the_upstream_is_called(upstream: Upstream) -> None:
    call = upstream.call(KLING, [("image", webp())])
    (image_id,) = upstream.store.saved
    whole = upstream.store.saved[image_id]
    upstream.store.saved[image_id] = whole[:60] + bytes(len(whole) - 60)
    failure = failure_of(lambda: upstream.provider(KLING).start(call, Deadline.after(60)))
    assert (type(failure), failure.param) == (errors.InvalidImageError, "image")
    assert upstream.requests == []


# Where it is sent


class RedirectedPool(HttpPool):
    """Connects to a port of this machine, whatever the host is. `asked` are the hosts with their schemes."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port
        self.asked: list[str] = []

    def request(self, method: str, url: Any, deadline: Deadline, **sent: Any) -> Any:
        self.asked.append(f"{url.scheme}://{url.netloc}")
        local = urlsplit(f"http://127.0.0.1:{self._port}{url.path}")
        return super().request(method, local, deadline, **sent)


@pytest.mark.parametrize(
    ("base_url", "model", "given", "operation", "path", "header"),
    [
        ("https://api.ideogram.ai/v1", IDEOGRAM, ONE, "edit", "/v1/ideogram-v3/remix", ("Api-Key", KEY)),
        (
            "https://api.ideogram.ai/v1",
            IDEOGRAM,
            [*ONE, ("mask", mask("black"))],
            "edit",
            "/v1/ideogram-v3/edit",
            ("Api-Key", KEY),
        ),
        (
            "https://eu.api.openai.com/v1",
            GPT,
            ONE,
            "edit",
            "/v1/images/edits",
            ("Authorization", f"Bearer {KEY}"),
        ),
        (
            "https://api.openai.com/v1/",
            "dall-e-2",
            ONE,
            "variation",
            "/v1/images/variations",
            ("Authorization", f"Bearer {KEY}"),
        ),
        (
            "https://generativelanguage.googleapis.com/v1beta/openai",
            GEMINI,
            ONE,
            "edit",
            "/v1beta/openai/chat/completions",
            ("Authorization", f"Bearer {KEY}"),
        ),
    ],
)
def test_a_first_party_is_called_below_its_own_address_with_its_own_header(
    upstream: Upstream,
    host: odd_hosts.ReusableHost,
    base_url: str,
    model: str,
    given: Sequence[Given],
    operation: Operation,
    path: str,
    header: tuple[str, str],
) -> None:
    def refuse(request: Request) -> Reply:
        upstream.requests.append(request)
        return Reply(503)

    host.respond, pool = refuse, RedirectedPool(host.port)
    protocol = MODELS[model].provider
    access = upstream_access(
        Configured((protocol,), "key", base_url), lambda _: KEY, pool, timeout=30, max_image_bytes=1_000_000
    )
    call = upstream.call(model, given, operation)
    failure = failure_of(lambda: access.providers[protocol].start(call, Deadline.after(60)))
    assert type(failure) is errors.UpstreamUnavailableError
    (request,) = upstream.requests
    assert (request.method, request.target, request.header(header[0])) == ("POST", path, header[1])
    assert (request.header("Authorization") is None) == (header[0] == "Api-Key")
    assert pool.asked == ["://".join(urlsplit(base_url)[:2])]
    assert given[0][1] in request.body or model == GEMINI


# What is paid for when something fails. The calls go through the use case that sends them.

BLOCK, LARGE = 64 * 1024, 8 * 1024 * 1024
# More than the buffers of two sockets hold: the sender still has a part of it when the upstream has stopped reading.
CONTENTS = [bytes([at]) * LARGE for at in range(3)]
BOUGHT = answers(200, {"data": [{"b64_json": b64encode(REAL_PNG).decode()}]})


class Inputs(FakeInputStore):
    """Yields large blocks. After `lasting` blocks of all readings together, every reading breaks off.

    `reading` is how many readings have begun and not ended.
    """

    lasting: float = float("inf")
    reading = 0

    def _blocks(self, content: bytes, offset: int, breaks_at: int | None) -> Iterator[bytes]:  # type: ignore[override]
        self.reading += 1
        try:
            for at in range(offset, len(content), BLOCK):
                if not self.lasting or (breaks_at is not None and at - offset >= breaks_at):
                    raise errors.InputUnavailableError("An input image could not be read. Please try again.")
                self.lasting -= 1
                yield content[at : at + BLOCK]
        finally:
            self.reading -= 1


class Service(InMemoryService):
    """The upstreams in `accesses` are real ones, over sockets. Nothing sleeps."""

    accesses: Mapping[str, UpstreamAccess]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.inputs: Inputs = Inputs(self.images)

    def _access(self, upstream: str) -> UpstreamAccess:
        return self.accesses[upstream]

    @property
    def runner(self) -> UpstreamRunner:
        runner, converting = super().runner, OpenInputs(self.inputs, PillowConverter)
        calling = msgspec.structs.replace(runner.calling, inputs=converting)
        return msgspec.structs.replace(runner, calling=calling)

    def edit(self, model: str, contents: Sequence[bytes], media_type: str = PNG, **roles: bytes) -> Generation:
        """A new generation with these images, claimed. `roles` are further images by their role."""
        images = [self._kept("image", content, media_type) for content in contents]
        images += [self._kept(role, content, media_type) for role, content in roles.items()]
        options = {"output_format": "png"} if model == GPT else {}
        asked = ImageRequest("a cat", model, "url", options=options, operation="edit", inputs=tuple(images))
        return self.claimed(self.admitted(asked))

    def _kept(self, role: str, content: bytes, media_type: str) -> InputImage:
        image_id = new_input_id()
        self.inputs.saved[image_id] = content
        return InputImage(role, image_id, "", media_type, len(content), 320, 320)

    def run(self, generation: Generation, *, within: float = 60) -> Failure | None:
        """What one process makes of it."""
        assert generation.owner
        outcome = self.runner.run(generation, generation.owner, Deadline.after(within))
        assert outcome is None or isinstance(outcome, Failure)
        return outcome

    def attempts(self, generation: Generation) -> Sequence[UpstreamAttempt]:
        (call,) = self.record(generation).calls
        return call.attempts


@pytest.fixture
def service() -> Iterator[Service]:
    with ThreadPoolExecutor(4) as pool:
        yield Service(pool)


def access(base_url: str, *, timeout: float = 30, key: Callable[[bool], str | None] = lambda _: KEY) -> UpstreamAccess:
    reseller = Configured(CONFIGURATION.upstreams["reseller"].protocols, "key", base_url)
    return upstream_access(reseller, key, HttpPool(), timeout=timeout, max_image_bytes=16_000_000)


@dataclass
class Both:
    """Two upstreams, each of which a stand-in is: those of the first and the second route of a model."""

    service: Service
    origin: str
    first: StandInUpstream = field(default_factory=lambda: StandInUpstream(KEY))
    second: StandInUpstream = field(default_factory=lambda: StandInUpstream(KEY))

    def respond(self, request: Request) -> Reply:
        _, name, path = request.target.split("/", 2)
        if name == "files":  # an image that one of them has made
            return (self.first if path in self.first.files else self.second).respond(request)
        upstream = self.first if name == "first" else self.second
        return upstream.respond(replace(request, target=f"/{path}"))

    @staticmethod
    def got(stand_in: StandInUpstream) -> list[list[bytes]]:
        """The images of each call that the upstream noted."""
        return [[stand_in.inputs[each["sha256"]] for each in call["images"]] for call in stand_in.calls]


@pytest.fixture
def both(host: odd_hosts.ReusableHost, service: Service) -> Both:
    both = Both(service, f"http://127.0.0.1:{host.port}")
    host.respond = both.respond
    firsts = ("openai", "google", "ideogram")
    service.accesses = dict.fromkeys(firsts, access(f"{both.origin}/first/v1"))
    service.accesses["reseller"] = access(f"{both.origin}/second/v1")
    service.other_providers = {name: FakeProvider() for name in firsts}
    return both


BUSY = answers(503, retry_after_ms="1")
EACH_BODY = pytest.mark.parametrize(
    ("model", "contents"),
    [
        pytest.param(GPT, [JPG, WIDE], id="form"),
        pytest.param(GEMINI, [JPG, WIDE], id="json"),
        pytest.param(IDEOGRAM, [WIDE], id="form of Ideogram"),
    ],
)


@EACH_BODY
def test_the_next_route_gets_the_whole_body_again(both: Both, model: str, contents: list[bytes]) -> None:
    both.first.script.append(BUSY)
    generation = both.service.edit(model, contents, JPEG)
    assert both.service.run(generation) is None
    assert both.got(both.first) == both.got(both.second) == [contents]
    first, second = both.service.attempts(generation)
    assert (first.refused, second.failure) == (True, None)


@EACH_BODY
def test_each_further_try_sends_the_whole_body_again(both: Both, model: str, contents: list[bytes]) -> None:
    for stand_in in (both.first, both.second):
        stand_in.script.extend([BUSY] * (TRIES - 1))
    assert both.service.run(both.service.edit(model, contents, JPEG)) is None
    assert both.got(both.first) == [contents] * TRIES  # the last one is bought
    assert both.got(both.second) == [contents] * (TRIES - 1)


@EACH_BODY
def test_after_a_change_of_the_key_the_whole_body_is_sent_again(both: Both, model: str, contents: list[bytes]) -> None:
    keys = {PARAMETER: KEY}
    secrets = FakeParameters(keys)
    secrets.get(PARAMETER)  # the old key is in the cache
    service, keys[PARAMETER] = both.service, ROTATED_KEY
    both.second.key = ROTATED_KEY
    key = lambda fresh: secrets.get(PARAMETER, fresh=fresh)  # noqa: E731
    service.accesses, service.other_providers = {"reseller": access(f"{both.origin}/second/v1", key=key)}, {}
    generation = service.edit(model, contents, JPEG)
    assert service.run(generation) is None
    assert both.got(both.second) == [contents]
    refused, bought = service.attempts(generation)
    assert (refused.refused, bought.failure) == (True, None)


def test_a_reseller_that_has_no_such_path_leaves_the_call_to_the_next_route(both: Both) -> None:
    """new-api and one-api answer 501 for variations, and one-api for edits."""
    both.first.script.append(lambda _: one_api_error(501, "API not implemented", code="api_not_implemented"))
    generation = both.service.edit(GPT, [JPG], JPEG)
    assert both.service.run(generation) is None
    assert both.got(both.second) == [[JPG]]
    both.first.script.append(answers(501, b"<html>"))  # who answers so is not known
    failure = both.service.run(both.service.edit(GPT, [JPG], JPEG))
    assert failure
    assert (failure.code, failure.money_spent) == ("upstream_failed", True)
    assert len(both.second.calls) == 1


def test_a_call_of_unknown_outcome_is_repeated_whole(both: Both) -> None:
    generation = both.service.edit(GPT, [JPG, WIDE], JPEG)
    both.service.left_behind(generation, UpstreamCall((), (UpstreamAttempt("openai", 1.0),)))
    assert both.service.run(both.service.claimed(both.service.record(generation))) is None
    assert both.got(both.first) == [[JPG, WIDE]]


# The input cannot be read


@pytest.mark.parametrize("lasting", [0, 1, 5])
def test_an_input_that_cannot_be_read_costs_nothing(both: Both, lasting: int) -> None:
    contents = [bytes(5 * BLOCK // 2), bytes(9 * BLOCK)]
    generation = both.service.edit(GPT, contents)
    both.service.inputs.lasting = lasting
    failure = both.service.run(generation)
    assert failure
    assert (failure.code, failure.money_spent, failure.retry) == ("input_unavailable", False, None)
    assert both.first.calls == both.second.calls == []
    attempts = both.service.attempts(generation)
    assert [each.upstream for each in attempts] == ["openai", "reseller"] * TRIES
    assert all(each.refused for each in attempts)
    assert both.service.record(generation).unreturned == 1


def test_a_reading_that_breaks_off_goes_on_where_it_was(both: Both) -> None:
    both.service.inputs.breaks.extend([BLOCK, 0, 2 * BLOCK])
    contents = [JPG * (9 * BLOCK // len(JPG)), WIDE]
    both.first.script.append(BOUGHT)
    assert both.service.run(both.service.edit(GPT, contents, JPEG)) is None
    assert both.got(both.first) == [contents]
    assert not both.service.inputs.breaks


@pytest.mark.parametrize(("before", "outcome"), [([], "invalid_image"), ([UpstreamAttempt("openai", 1.0)], "unknown")])
def test_an_input_that_was_deleted_is_named_unless_an_earlier_call_may_be_paid(
    both: Both, before: list[UpstreamAttempt], outcome: str
) -> None:
    generation = both.service.edit(GPT, [JPG], JPEG)
    both.service.inputs.saved.clear()
    both.service.left_behind(generation, *([UpstreamCall((), tuple(before))] if before else []))
    failure = both.service.run(both.service.claimed(both.service.record(generation)))
    assert failure
    assert both.first.calls == both.second.calls == []
    if outcome == "invalid_image":
        assert (failure.code, failure.param, failure.money_spent) == ("invalid_image", "image", False)
    else:
        assert (failure.code, failure.money_spent) == ("outcome_unknown", True)


def test_a_mask_that_cannot_be_converted_costs_nothing_and_is_not_tried_again(both: Both) -> None:
    grey = encoded(Image.new("L", (320, 320), 128))
    generation = both.service.edit(GPT, [picture()], mask=grey)
    failure = both.service.run(generation)
    assert failure
    assert (failure.code, failure.param, failure.money_spent) == ("invalid_image", "mask", False)
    assert (len(both.service.attempts(generation)), both.service.record(generation).unreturned) == (1, 1)
    assert both.first.calls == both.second.calls == []


# The upstream does not take the whole body


@dataclass
class Reading:
    """An upstream that reads bodies itself. `scripts` answer its requests in turn, `got` are the bytes that it read.

    Without a script it reads all and answers with an image.
    """

    service: Service
    port: int = 0
    scripts: deque[Responder] = field(default_factory=deque)
    got: list[int] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def respond(self, request: Request) -> Reply:
        reply = (self.scripts.popleft() if self.scripts else buys)(replace(request, blocks=self._counted(request)))
        return replace(reply, headers={**reply.headers, "Connection": "close"})

    def _counted(self, request: Request) -> Iterator[bytes]:
        at = len(self.got)
        self.got.append(0)
        for block in request.blocks:
            self.got[at] += len(block)
            yield block

    def configure(self, timeout: float = 30) -> None:
        self.service.accesses = {"reseller": access(f"http://127.0.0.1:{self.port}/v1", timeout=timeout)}

    def send(self, *scripts: Responder, timeout: float = 30) -> tuple[Failure | None, Sequence[UpstreamAttempt]]:
        """Sends a call with large images. Returns what came of it, and its attempts."""
        self.scripts.extend(scripts)
        self.configure(timeout)
        generation = self.service.edit(GPT, CONTENTS)
        return self.service.run(generation), self.service.attempts(generation)


@pytest.fixture
def reading(service: Service) -> Iterator[Reading]:
    reading = Reading(service)
    with serving(reading.respond, is_streaming=True) as reading.port:
        try:
            yield reading
        finally:
            reading.over.set()


def buys(request: Request) -> Reply:
    for _ in request.blocks:
        pass
    return Reply(200, json.dumps({"data": [{"b64_json": b64encode(REAL_PNG).decode()}]}).encode())


def hangs_up_early(request: Request) -> Reply:
    next(request.blocks)
    raise HungUpError


def hangs_up_late(request: Request) -> Reply:
    buys(request)
    raise HungUpError


def early(status: int, code: str = "", **headers: str) -> Responder:
    """Refuses after the first megabyte and closes the connection, so the sender meets a reset."""
    refusal = one_api_error(status, "No.", code=code)

    def respond(request: Request) -> Reply:
        next(request.blocks)
        return replace(refusal, headers={**refusal.headers, **headers})

    return respond


def lingering(refuse: Responder) -> Responder:
    """Refuses early too, but goes on reading, as most servers do for a while."""

    def respond(request: Request) -> Reply:
        reply = refuse(request)
        head = f"HTTP/1.1 {reply.status} No\r\nContent-Length: {len(reply.body)}\r\n"
        more = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        request.connection.sendall(f"{head}{more}\r\n".encode() + reply.body)
        for _ in request.blocks:
            pass
        raise HungUpError

    return respond


WHOLE = 3 * LARGE
TIME_OUTS = (0.6, 2.5, 12.5)  # seconds; a slow machine needs longer to take a body


@pytest.mark.parametrize("how", [lambda script: script, lingering], ids=["at once", "lingering"])
@pytest.mark.parametrize(
    ("script", "code", "spent"),
    [
        (early(400), "upstream_refused_request", False),
        (early(413, "read_request_body_failed"), "upstream_refused_request", False),
        (early(400, "content_policy_violation"), "content_policy_violation", False),
        (early(401), "upstream_key_refused", False),
        (early(500), "upstream_failed", True),
    ],
)
def test_an_early_refusal_has_its_meaning_and_is_the_only_attempt(
    reading: Reading, script: Responder, code: str, spent: bool, how: Callable[[Responder], Responder]
) -> None:
    failure, attempts = reading.send(how(script))
    assert failure
    assert (failure.code, failure.money_spent, len(attempts), len(reading.got)) == (code, spent, 1, 1)


def test_an_input_is_not_read_any_more_once_the_call_has_failed(reading: Reading) -> None:
    reading.scripts.append(early(400))
    reading.configure()
    generation = reading.service.edit(GPT, CONTENTS)
    inputs = OpenInputs(reading.service.inputs, None).of(generation)
    provider = reading.service.accesses["reseller"].providers["openai"]
    call = UpstreamRequest(generation.request, GPT, GPT, 1, "gen_1.0.0", inputs=inputs)
    failure = failure_of(lambda: provider.start(call, Deadline.after(60)))
    assert failure.__traceback__  # it keeps all that the call was made of
    assert reading.service.inputs.reading == 0


def test_after_an_early_503_the_whole_body_is_sent_again(reading: Reading) -> None:
    failure, attempts = reading.send(early(503), lingering(early(503)))
    assert failure is None
    assert [each.refused for each in attempts] == [True, True, False]
    assert reading.got[2] > WHOLE


def test_a_connection_that_ends_in_the_middle_of_the_body_bought_nothing(reading: Reading) -> None:
    failure, attempts = reading.send(hangs_up_early)
    assert failure is None
    assert [each.failure and each.failure.code for each in attempts] == ["upstream_unreachable", None]
    assert reading.got[0] < WHOLE < reading.got[1]


def test_an_upstream_that_always_hangs_up_in_the_middle_is_unreachable(reading: Reading) -> None:
    failure, attempts = reading.send(*[hangs_up_early] * TRIES)
    assert failure
    assert (failure.code, failure.money_spent) == ("upstream_unreachable", False)
    assert len(attempts) == len(reading.got) == TRIES


def test_a_connection_that_ends_after_the_body_may_have_cost_money(reading: Reading) -> None:
    failure, attempts = reading.send(hangs_up_late)
    assert failure
    assert (failure.code, failure.money_spent, len(attempts)) == ("upstream_connection_lost", True, 1)
    assert reading.got[0] > WHOLE


def test_an_upstream_that_has_the_body_and_does_not_answer_may_have_cost_money(reading: Reading) -> None:
    def hangs(request: Request) -> Reply:
        buys(request)
        reading.over.wait(20)
        raise HungUpError

    for seconds in TIME_OUTS:
        failure, attempts = reading.send(*[hangs] * TRIES, timeout=seconds)
        reading.scripts.clear()
        assert failure
        if reading.got[-1] > WHOLE:
            assert (failure.code, failure.money_spent) == ("upstream_timeout", True)
            assert [each.refused for each in attempts] == [*[True] * (len(attempts) - 1), False]
            return
    pytest.fail("the machine is too slow")


def stalls(over: threading.Event, seconds: float) -> Responder:
    """Reads a megabyte, and then nothing."""

    def respond(request: Request) -> Reply:
        next(request.blocks)
        over.wait(2 * seconds)
        raise HungUpError

    return respond


def sips(over: threading.Event, seconds: float) -> Responder:
    """Reads four megabytes in those seconds. Each block is taken within the time-out of a socket."""

    def respond(request: Request) -> Reply:
        while not over.wait(seconds / 4):
            next(request.blocks)
        raise HungUpError

    return respond


@pytest.mark.parametrize("slow", [stalls, sips])
def test_an_upstream_that_does_not_take_the_body_in_time_bought_nothing(
    reading: Reading, slow: Callable[[threading.Event, float], Responder]
) -> None:
    for seconds in TIME_OUTS:
        reading.got.clear()
        failure, attempts = reading.send(slow(reading.over, seconds), timeout=seconds)
        assert attempts[0].failure
        assert (attempts[0].failure.code, attempts[0].refused) == ("upstream_unreachable", True)
        assert reading.got[0] < WHOLE
        if failure is None:
            assert reading.got[-1] > WHOLE
            return
    pytest.fail("the machine is too slow")
