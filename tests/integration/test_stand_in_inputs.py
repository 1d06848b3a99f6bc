"""The calls of the stand-in upstream that take images, over HTTP."""

import hashlib
import io
import json
import random
import socket
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import urllib3
from PIL import Image

from local import upstream_ideogram as ideogram
from local import upstream_kling as kling
from local import upstream_midjourney as midjourney
from local import upstream_openai as openai
from local import upstream_painting as painting
from local import upstream_tasks as tasks
from local.serving import HungUpError, Reply, Request
from local.upstream import StandInUpstream
from local.upstream_forms import read_form
from tests.support.client import Answer
from tests.support.odd_hosts import ReusableHost

KEY = "sk-test"
FLASH, CHAT = "gemini-2.5-flash-image", "/v1/chat/completions"
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
Color = tuple[int, ...]
Fields = list[tuple[str, Any]]


def encoded(picture: Image.Image, kind: str = "png") -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **({"lossless": True} if kind == "webp" else {}))
    return out.getvalue()


def image(color: Color = RED, size: tuple[int, int] = (64, 48), kind: str = "png") -> bytes:
    """An image of one color. It has an alpha channel if the color has."""
    return encoded(Image.new("RGBA" if len(color) == 4 else "RGB", size, color), kind)


def noise(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    return Image.frombytes(mode, size, random.Random(1).randbytes(size[0] * size[1] * len(mode)))


def file(content: bytes, kind: str = "png") -> tuple[str, bytes, str]:
    return f"upload.{kind}", content, f"image/{kind}"


def base64(content: bytes) -> str:
    return b64encode(content).decode()


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64(content)}"


def noted(content: bytes, name: str, media_type: str = "image/png") -> dict[str, Any]:
    """What an entry of `calls` has of an image."""
    width, height = opened(content).size
    size = {"bytes": len(content), "width": width, "height": height}
    return {"media_type": media_type, **size, "sha256": hashlib.sha256(content).hexdigest(), "name": name}


def in_place(content: bytes) -> str:
    """What an entry of `calls` has in place of the base64 of an image."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def shown_in(picture: Image.Image, count: int) -> list[Color]:
    """The colors of the images that a picture shows in its strip."""
    boxes = painting.strip_boxes(count, *picture.size)
    colors = [picture.convert("RGB").getpixel(((box[0] + box[2]) // 2, (box[1] + box[3]) // 2)) for box in boxes]
    return [color for color in colors if isinstance(color, tuple)]


IMAGE, PNG_300 = image(), image(BLUE, (300, 300))
SQUARE, CLEAR = image(size=(64, 64)), image((255, 0, 0, 0), (64, 64))


@dataclass
class Upstream:
    stand_in: StandInUpstream
    origin: str
    seconds: float = 1_700_000_000.0

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        sent = {"Authorization": f"Bearer {KEY}", "User-Agent": "test/1"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        answer = urllib3.request(method, self.origin + path, body=body, headers=sent, retries=False, timeout=30)
        return Answer(answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.data)

    def form(self, path: str, fields: Fields) -> Answer:
        body, content_type = urllib3.encode_multipart_formdata(fields)
        return self.send("POST", path, body, Content_Type=content_type)

    def json(self, path: str, fields: object) -> Answer:
        return self.send("POST", path, json.dumps(fields).encode(), Content_Type="application/json")

    def edit(self, *fields: tuple[str, Any], model: str = "gpt-image-1", prompt: str = "a cat") -> Answer:
        return self.form(openai.EDITS, [("model", model), ("prompt", prompt), *fields])

    def ideogram(self, operation: str, *fields: tuple[str, Any]) -> Answer:
        return self.form(ideogram.PATHS[operation], [("prompt", "a cat"), *fields])

    def mj(self, call: str, path: str = "/mj", **fields: Any) -> Answer:
        bot = {} if call in ("change", "action") else {"botType": "MID_JOURNEY"}
        return self.json(f"{path}/submit/{call}", bot | fields)

    def mj_task(self, task_id: str) -> dict[str, Any]:
        return dict(self.send("GET", f"/mj/task/{task_id}/fetch").json)

    def mj_done(self, submitted: Answer) -> dict[str, Any]:
        assert submitted.json["code"] == 1, submitted.content
        self.seconds += 10
        return self.mj_task(submitted.json["result"])

    def grid(self, **fields: Any) -> dict[str, Any]:
        """A task of Midjourney that has succeeded."""
        return self.mj_done(self.mj("imagine", **{"prompt": "a cat --ar 2:1"} | fields))

    def try_on(self, **fields: Any) -> Answer:
        both = {"human_image": base64(PNG_300), "cloth_image": base64(PNG_300)}
        return self.json(kling.TRY_ON_PATH, both | fields)

    def picture(self, url: str) -> Image.Image:
        if url.startswith("data:"):
            return opened(b64decode(url.partition(",")[2]))
        return opened(self.send("GET", url.removeprefix(self.origin)).content)

    @property
    def call(self) -> dict[str, Any]:
        (call,) = self.stand_in.calls
        return call


@pytest.fixture
def upstream(host: ReusableHost) -> Upstream:
    stand_in = StandInUpstream(KEY)
    upstream = Upstream(stand_in, f"http://127.0.0.1:{host.port}")
    stand_in.now, stand_in.task_seconds = lambda: upstream.seconds, 10.0
    host.respond = stand_in.respond
    return upstream


def painted_of(answer: Answer) -> Image.Image:
    """The picture in an answer of OpenAI's protocol with base64."""
    assert answer.status == 200, answer.content
    return opened(b64decode(answer.json["data"][0]["b64_json"]))


# Forms


def test_a_long_form_is_read_in_no_time_and_to_the_byte() -> None:
    content = b"\r\n--bound\r\n" * 2_000_000
    body, content_type = urllib3.encode_multipart_formdata([("a", "1"), ("file", file(content))], "boundary")
    with socket.socket() as connection:
        request = Request("POST", "/", [("Content-Type", content_type)], body, connection)
    started = time.process_time()
    parts = read_form(request)
    assert time.process_time() - started < 2
    assert parts
    assert [(part.name, part.filename, part.media_type, len(part.content)) for part in parts] == [
        ("a", None, "", 1),
        ("file", "upload.png", "image/png", len(content)),
    ]
    assert parts[1].content == content


@pytest.mark.parametrize("path", [openai.EDITS, openai.VARIATIONS, ideogram.PATHS["edit"], ideogram.PATHS["remix"]])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--x--junk",
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na cat',
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na cat\r\n--xy--\r\n',
        b"--x\r\nContent-Disposition: form-data\r\n\r\na cat\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: inline; name="prompt"\r\n\r\na cat\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n--x--\r\n',
    ],
)
def test_a_form_that_is_not_valid_is_refused(upstream: Upstream, path: str, body: bytes) -> None:
    assert upstream.send("POST", path, body, Content_Type="multipart/form-data; boundary=x").status == 400


# OpenAI


def test_openai_edits_several_images(upstream: Upstream) -> None:
    sent = [IMAGE, image(GREEN, kind="webp"), encoded(Image.new("RGB", (300, 200), BLUE), "jpeg")]
    files = [("image[]", file(content, kind)) for content, kind in zip(sent, ("png", "webp", "jpeg"), strict=True)]
    options = {"n": "2", "quality": "low", "input_fidelity": "high", "size": "1024x1536", "output_format": "webp"}
    answer = upstream.edit(*files, *options.items())

    picture = painted_of(answer)
    assert (picture.size, picture.format) == ((1024, 1536), "WEBP")
    assert len(answer.json["data"]) == 2
    assert answer.json["size"] == "1024x1536"
    assert answer.json["usage"]["input_tokens_details"] == {"text_tokens": 10, "image_tokens": 120}
    for found, wanted in zip(shown_in(picture, 3), (RED, GREEN, BLUE), strict=True):
        assert found == pytest.approx(wanted, abs=20)  # WebP is lossy
    images = [noted(content, "image[]", file_[2]) for content, (_, file_) in zip(sent, files, strict=True)]
    named = {"model": "gpt-image-1", "prompt": "a cat", "operation": "edit", "images": images}
    assert upstream.call == options | named | {"n": 2}
    assert [upstream.stand_in.inputs[each["sha256"]] for each in images] == sent


def test_openai_paints_only_what_the_mask_leaves_transparent(upstream: Upstream) -> None:
    kept, mask = noise((90, 60)), noise((90, 60), "RGBA")
    mask.putalpha(noise((90, 60), "L").point([0] * 100 + [1] * 56 + [255] * 100))
    answer = upstream.edit(("image", file(encoded(kept))), ("image_", ""), ("mask", file(encoded(mask))))
    assert answer.json["error"]["code"] == "unknown_parameter"

    answer = upstream.edit(
        ("image[]", file(encoded(kept))), ("image[]", file(IMAGE)), ("mask", file(encoded(mask))), ("size", "auto")
    )

    strip = painting.strip_of([kept, opened(IMAGE)])
    painted = opened(painting.paint("a cat", 1, "90x60", strip=strip))
    area = mask.getchannel("A").point([255] + [0] * 255)
    assert painted_of(answer).tobytes() == Image.composite(painted, kept, area).tobytes()
    call = upstream.stand_in.calls[-1]
    assert call["mask"] == noted(encoded(mask), "mask")
    assert [each["name"] for each in call["images"]] == ["image[]", "image[]"]


@pytest.mark.parametrize("has_mask", [True, False])
def test_dall_e_2_takes_transparency_of_the_image_or_of_a_mask(upstream: Upstream, has_mask: bool) -> None:
    half = noise((64, 64), "RGBA")
    half.putalpha(255)
    half.paste((0, 0, 0, 0), (0, 0, 32, 64))
    files = [("image", file(SQUARE)), ("mask", file(encoded(half)))] if has_mask else [("image", file(encoded(half)))]
    answer = upstream.edit(*files, ("size", "256x256"), ("response_format", "b64_json"), model="dall-e-2")

    picture, given = painted_of(answer), Image.new("RGB", (64, 64), RED) if has_mask else half.convert("RGB")
    right = given.resize((256, 256), Image.Resampling.NEAREST).crop((128, 0, 256, 256))
    assert picture.crop((128, 0, 256, 256)).tobytes() == right.tobytes()
    assert len(set(picture.crop((0, 0, 128, 256)).tobytes())) > 50


@pytest.mark.parametrize(
    ("model", "fields", "size"),
    [
        ("flux-kontext-pro", {"aspect_ratio": "9:16"}, (576, 1024)),
        ("flux-kontext-max", {}, (64, 48)),
        ("qwen-image", {"size": "640x480"}, (640, 480)),
        ("qwen-image-edit", {"n": "2"}, (1024, 1024)),
        ("gpt-image-2", {"complexity": "low", "frame_count": "2", "size": "1280x720"}, (1280, 720)),
        ("chatgpt-image-latest", {"background": "transparent", "safety_identifier": "x", "user": "y"}, (64, 48)),
    ],
)
def test_models_of_openais_protocol_edit_an_image(
    upstream: Upstream, model: str, fields: dict[str, str], size: tuple[int, int]
) -> None:
    answer = upstream.edit(("image", file(IMAGE)), *fields.items(), model=model)
    assert answer.status == 200, answer.content
    data = answer.json["data"]
    picture = painted_of(answer) if "b64_json" in data[0] else upstream.picture(data[0]["url"])
    assert (picture.size, shown_in(picture, 1)) == (size, [RED])
    assert (len(data), upstream.call["n"], upstream.call["model"]) == (int(fields.get("n", "1")), len(data), model)


def masked(mask: bytes, content: bytes = IMAGE, kind: str = "png") -> Fields:
    return [("image", file(content)), ("mask", file(mask, kind))]


@pytest.mark.parametrize(
    ("model", "fields", "param", "code"),
    [
        ("gpt-image-1", [], "image", "missing_required_parameter"),
        ("gpt-image-1", [("image", file(IMAGE)), ("prompt", "again")], "prompt", "duplicate_parameter"),
        ("gpt-image-1", [("image", file(IMAGE)), ("image", file(IMAGE))], "image", "duplicate_parameter"),
        ("gpt-image-1", [("image", file(IMAGE)), ("image[]", file(IMAGE))], "image", "invalid_value"),
        ("gpt-image-1", [("image[]", file(IMAGE))] * 17, "image", "array_above_max_length"),
        ("gpt-image-1", [("image", base64(IMAGE))], "image", "invalid_type"),
        ("gpt-image-1", [("image", file(IMAGE)), ("user", file(IMAGE))], "user", "invalid_type"),
        ("gpt-image-1", [("image", file(IMAGE)), ("image[0]", file(IMAGE))], "image[0]", "unknown_parameter"),
        ("gpt-image-1", [("image", file(IMAGE)), ("moderation", "low")], "moderation", "unknown_parameter"),
        ("gpt-image-1", [("image", file(IMAGE)), ("response_format", "url")], "response_format", "unknown_parameter"),
        ("gpt-image-1", [("image", file(IMAGE)), ("complexity", "low")], "complexity", "unknown_parameter"),
        ("gpt-image-2", [("image", file(IMAGE)), ("input_fidelity", "low")], "input_fidelity", "unknown_parameter"),
        ("gpt-image-1", [("image", file(IMAGE)), ("input_fidelity", "best")], "input_fidelity", "invalid_value"),
        ("gpt-image-1", [("image", file(IMAGE)), ("n", "11")], "n", "invalid_value"),
        ("gpt-image-1", [("image", file(IMAGE)), ("size", "512x512")], "size", "invalid_value"),
        ("gpt-image-2", [("image", file(IMAGE)), ("size", "512x512")], "size", "invalid_value"),
        ("gpt-image-2", [("image", file(IMAGE)), ("size", "auto"), ("n", "0")], "n", "invalid_value"),
        (
            "gpt-image-1",
            [("image", file(IMAGE)), ("background", "transparent"), ("output_format", "jpeg")],
            "background",
            "invalid_value",
        ),
        ("gpt-image-1", [("image", ("a", IMAGE))], "image", "unsupported_file_mimetype"),
        ("gpt-image-1", [("image[]", ("a", IMAGE, "image/gif"))], "image[0]", "unsupported_file_mimetype"),
        ("gpt-image-1", [("image[]", file(IMAGE)), ("image[]", file(IMAGE, "jpeg"))], "image[1]", "invalid_image_file"),
        ("gpt-image-1", [("image", file(noise((64, 48)).tobytes()))], "image", "invalid_image_file"),
        ("gpt-image-1", [("image", file(IMAGE[:-30]))], "image", "invalid_image_file"),
        ("gpt-image-1", masked(IMAGE), "mask", "invalid_mask_image_format"),
        ("gpt-image-1", masked(CLEAR), "mask", "invalid_mask_image_format"),
        ("gpt-image-1", masked(image((0, 0, 0, 0), kind="webp"), kind="webp"), "mask", "unsupported_file_mimetype"),
        ("dall-e-2", [("image[]", file(CLEAR))], "image", "invalid_type"),
        ("dall-e-2", [("image", file(image(kind="jpeg"), "jpeg"))], "image", "unsupported_file_mimetype"),
        ("dall-e-2", [("image", file(image((0, 0, 0, 0))))], "image", None),
        ("dall-e-2", [("image", file(CLEAR + bytes(4 * 1024 * 1024)))], "image", None),
        ("dall-e-2", [("image", file(SQUARE))], None, None),
        ("dall-e-2", [("image", file(CLEAR)), ("quality", "standard")], "quality", "unknown_parameter"),
        ("flux-kontext-pro", [("image", file(IMAGE)), ("aspect_ratio", "2:1")], "aspect_ratio", "invalid_value"),
        ("flux-kontext-pro", masked(image((0, 0, 0, 0))), "mask", "unknown_parameter"),
        ("dall-e-3", [("image", file(IMAGE))], "model", "invalid_value"),
        ("flux-pro", [("image", file(IMAGE))], "model", "invalid_value"),
    ],
)
def test_openai_refuses_edits(
    upstream: Upstream, model: str, fields: Fields, param: str | None, code: str | None
) -> None:
    answer = upstream.edit(*fields, model=model)
    error = answer.json["error"]
    assert (answer.status, error["type"]) == (400, "invalid_request_error")
    assert (error["param"], error["code"]) == (param, code), error


def test_openai_names_a_media_type_that_it_does_not_take(upstream: Upstream) -> None:
    answer = upstream.edit(("image", ("upload", IMAGE, "application/octet-stream")))
    assert answer.json["error"]["message"] == (
        "Invalid file 'image': unsupported mimetype ('application/octet-stream'). "
        "Supported file formats are 'image/jpeg', 'image/png', 'image/webp'."
    )


def test_openai_refuses_edits_without_a_form_or_a_key_or_a_model(upstream: Upstream) -> None:
    assert upstream.json(openai.EDITS, {"prompt": "a cat"}).status == 400
    assert upstream.send("POST", openai.EDITS, Authorization="Bearer other").json["error"]["code"] == "invalid_api_key"
    assert upstream.stand_in.calls == []
    assert upstream.edit(("image", file(IMAGE)), model="sdxl").json["error"]["code"] == "model_not_found"
    assert upstream.edit(("image", file(IMAGE)), prompt=" ").json["error"]["param"] == "prompt"
    assert upstream.edit(("image", file(IMAGE)), prompt="x" * 32_001).json["error"]["param"] == "prompt"


def test_dall_e_2_varies_an_image(upstream: Upstream) -> None:
    fields: Fields = [("image", file(SQUARE)), ("n", "2"), ("size", "256x256")]
    answer = upstream.form(openai.VARIATIONS, fields)

    first, second = (upstream.picture(each["url"]) for each in answer.json["data"])
    assert (first.size, shown_in(first, 1)) == ((256, 256), [RED])
    assert first.tobytes() != second.tobytes()
    named = {"model": "dall-e-2", "prompt": "", "n": 2, "size": "256x256"}
    assert upstream.call == named | {"operation": "variation", "images": [noted(SQUARE, "image")]}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ([("image", file(SQUARE)), ("prompt", "a cat")], "prompt", "unknown_parameter"),
        ([("image", file(SQUARE)), ("model", "gpt-image-1")], "model", "invalid_value"),
        ([("image", file(SQUARE)), ("mask", file(CLEAR))], "mask", "unknown_parameter"),
        ([("image", file(IMAGE))], "image", None),
        ([("n", "1")], "image", "missing_required_parameter"),
    ],
)
def test_openai_refuses_variations(upstream: Upstream, fields: Fields, param: str, code: str | None) -> None:
    answer = upstream.form(openai.VARIATIONS, fields)
    assert (answer.status, answer.json["error"]["param"], answer.json["error"]["code"]) == (400, param, code)


# Gemini


def chat(*parts: dict[str, Any], model: str = FLASH) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": list(parts)}]}


def text_part(text: str = "a cat") -> dict[str, Any]:
    return {"type": "text", "text": text}


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_gemini_takes_images(upstream: Upstream) -> None:
    webp = image(GREEN, kind="webp")
    answer = upstream.json(
        CHAT, chat(image_part(data_url(IMAGE)), text_part("a"), image_part(data_url(webp, "webp")), text_part("cat"))
    )

    assert answer.status == 200, answer.content
    url = answer.json["choices"][0]["message"]["content"].partition("(")[2].rstrip(")")
    assert shown_in(upstream.picture(url), 2) == [RED, GREEN]
    assert answer.json["usage"]["prompt_tokens"] == 2 + 2 * 258
    sent = chat(image_part(in_place(IMAGE)), text_part("a"), image_part(in_place(webp)), text_part("cat"))
    images = [noted(IMAGE, "image_url"), noted(webp, "image_url", "image/webp")]
    assert upstream.call == sent | {"prompt": "a\ncat", "n": 1, "protocol": "gemini-chat", "images": images}
    assert list(upstream.stand_in.inputs.values()) == [IMAGE, webp]


def test_a_hosted_image_of_gemini_shows_images(upstream: Upstream) -> None:
    upstream.stand_in.script.append(upstream.stand_in.hosted_gemini_image())
    answer = upstream.json(CHAT, chat(image_part(data_url(IMAGE)), text_part()))
    url = answer.json["choices"][0]["message"]["content"].partition("(")[2].rstrip(")")
    assert url.startswith(upstream.origin)
    assert shown_in(upstream.picture(url), 1) == [RED]


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example/1.png",
        base64(IMAGE),
        data_url(IMAGE, "jpeg"),
        data_url(encoded(Image.new("RGB", (9, 9)), "gif"), "gif"),
        data_url(b"no image"),
        f"data:image/png,{base64(IMAGE)}",
        "data:image/png;base64,?",
        "data:image/png;base64,",
    ],
)
def test_gemini_refuses_what_is_no_data_url_of_an_image(upstream: Upstream, url: str) -> None:
    answer = upstream.json(CHAT, chat(text_part(), image_part(url)))
    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_request")


def test_an_entry_of_gemini_never_has_base64(upstream: Upstream) -> None:
    part = {**image_part(data_url(IMAGE)), "detail": "high"}
    assert upstream.json(CHAT, chat(text_part(), part)).status == 400
    assert base64(IMAGE) not in json.dumps(upstream.call)


# Ideogram


def black_and_white(size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A mask that is black in a rectangle."""
    mask = Image.new("L", size, 255)
    mask.paste(0, (3, 5, 40, 41))
    return mask


def test_ideogram_paints_only_what_the_mask_has_in_black(upstream: Upstream) -> None:
    kept, mask = noise((64, 48)), encoded(black_and_white().convert("1"))
    answer = upstream.ideogram("edit", ("image", file(encoded(kept))), ("mask", file(mask)), ("magic_prompt", "OFF"))

    (shown,) = answer.json["data"]
    assert (shown["resolution"], shown["prompt"]) == ("64x48", "a cat")
    painted = opened(painting.paint("a cat", 1, "64x48", strip=painting.strip_of([kept])))
    expected = Image.composite(kept, painted, black_and_white())
    assert upstream.picture(shown["url"]).tobytes() == expected.tobytes()
    images = {"images": [noted(encoded(kept), "image")], "mask": noted(mask, "mask")}
    named = {"model": "ideogram-v3", "prompt": "a cat", "n": 1, "protocol": "ideogram", "operation": "edit"}
    assert upstream.call == {"magic_prompt": "OFF"} | named | images


def test_ideogram_remixes_an_image_with_references(upstream: Upstream) -> None:
    green, blue = image(GREEN, kind="webp"), image(BLUE)
    answer = upstream.ideogram(
        "remix",
        ("image", file(IMAGE)),
        ("style_reference_images", file(green, "webp")),
        ("image_weight", "100"),
        ("style_reference_images", file(blue)),
        ("aspect_ratio", "2x1"),
        ("style_type", "FICTION"),
        ("num_images", "2"),
    )
    pictures = [upstream.picture(each["url"]) for each in answer.json["data"]]
    assert [picture.size for picture in pictures] == [(1408, 704)] * 2
    assert shown_in(pictures[1], 3) == [RED, GREEN, BLUE]
    assert (upstream.call["operation"], upstream.call["n"], upstream.call["image_weight"]) == ("remix", 2, "100")
    names = ["image", "style_reference_images", "style_reference_images"]
    assert [each["name"] for each in upstream.call["images"]] == names


def test_ideogram_generates_with_references(upstream: Upstream) -> None:
    character = [("character_reference_images", file(IMAGE)), ("character_reference_images_mask", file(image(WHITE)))]
    answer = upstream.ideogram("generate", *character, ("style_reference_images", file(image(GREEN))))
    assert shown_in(upstream.picture(answer.json["data"][0]["url"]), 3) == [RED, WHITE, GREEN]
    assert "operation" not in upstream.call
    assert len(upstream.call["images"]) == 3


MASK = ("mask", file(encoded(black_and_white())))
PICTURE = ("image", file(IMAGE))
STYLE, CHARACTER = ("style_reference_images", file(IMAGE)), ("character_reference_images", file(IMAGE))


@pytest.mark.parametrize(
    ("operation", "fields"),
    [
        ("edit", [PICTURE]),
        ("edit", [MASK]),
        ("edit", [PICTURE, MASK, MASK]),
        ("edit", [PICTURE, MASK, ("aspect_ratio", "1x1")]),
        ("edit", [PICTURE, MASK, ("resolution", "1024x1024")]),
        ("edit", [PICTURE, MASK, ("negative_prompt", "dogs")]),
        ("edit", [PICTURE, MASK, ("image_weight", "50")]),
        ("edit", [PICTURE, ("mask", file(encoded(black_and_white((64, 64)))))]),
        ("edit", [PICTURE, ("mask", file(image(WHITE)))]),
        ("edit", [PICTURE, ("mask", file(image((0, 0, 0, 0))))]),
        ("edit", [PICTURE, ("mask", file(image((0, 0, 1))))]),
        ("edit", [PICTURE, ("mask", file(encoded(noise((64, 48)))))]),
        ("edit", [PICTURE, ("mask", base64(IMAGE))]),
        ("remix", []),
        ("remix", [PICTURE, PICTURE]),
        ("remix", [PICTURE, MASK]),
        ("remix", [PICTURE, ("image_weight", "0")]),
        ("remix", [PICTURE, ("image_weight", "101")]),
        ("remix", [("image", ("a", IMAGE))]),
        ("remix", [("image", ("a", IMAGE, "image/jpeg"))]),
        ("remix", [("image", file(IMAGE + bytes(10 * 1024 * 1024)))]),
        ("generate", [PICTURE]),
        ("generate", [("image_weight", "50")]),
        ("generate", [STYLE, ("style_codes", "0123abcd")]),
        ("generate", [("style_reference_images", file(IMAGE + bytes(6 * 1024 * 1024)))] * 2),
        ("generate", [CHARACTER, CHARACTER]),
        ("generate", [("character_reference_images_mask", file(IMAGE))]),
        ("generate", [CHARACTER, ("character_reference_images_mask", file(SQUARE))]),
    ],
)
def test_ideogram_refuses_images_that_it_does_not_take(upstream: Upstream, operation: str, fields: Fields) -> None:
    answer = upstream.ideogram(operation, *fields)
    assert (answer.status, set(answer.json)) == (400, {"error"}), answer.content


# Kling


def kling_task(upstream: Upstream, path: str, task_id: str) -> dict[str, Any]:
    return dict(upstream.send("GET", f"{path}/{task_id}").json["data"])


def test_kling_shows_the_image_that_it_was_given(upstream: Upstream) -> None:
    content = image(RED, (400, 300), "png")
    fields = {"prompt": "a cat", "model_name": "kling-v1-5", "image_reference": "subject", "aspect_ratio": "1:1"}
    submitted = upstream.json(kling.PATH, fields | {"image": base64(content)}).json["data"]
    upstream.seconds += 10

    (made,) = kling_task(upstream, kling.PATH, submitted["task_id"])["task_result"]["images"]
    assert shown_in(upstream.picture(made["url"]), 1) == [RED]
    sent = fields | {"image": in_place(content), "model": "kling-v1-5", "n": 1, "protocol": "kling"}
    assert upstream.call == sent | {"images": [noted(content, "image")]}


def ratio(width: int, height: int) -> str:
    return base64(image(size=(width, height)))


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (base64(image(size=(300, 750), kind="jpeg")), 0),
        (ratio(750, 300), 0),
        ("https://images.example/1.webp", 0),
        (ratio(751, 300), 1201),
        (ratio(299, 300), 1201),
        (base64(image(size=(300, 300), kind="webp")), 1201),
        (base64(PNG_300[:-40]), 1201),
        (base64(PNG_300 + bytes(10 * 1024 * 1024)), 1201),
        (data_url(PNG_300), 1201),
        (f"{base64(PNG_300)}\n", 1201),
    ],
)
def test_kling_takes_jpeg_and_png_of_some_size(upstream: Upstream, value: str, code: int) -> None:
    answer = upstream.json(kling.PATH, {"prompt": "a cat", "model_name": "kling-v2-new", "image": value})
    assert answer.json["code"] == code, answer.content
    assert len(upstream.stand_in.charged) == (code == 0)


def test_kling_tries_clothes_on(upstream: Upstream) -> None:
    human, cloth = image(RED, (300, 900)), encoded(Image.new("RGB", (300, 300), BLUE), "jpeg")
    submitted = upstream.try_on(human_image=base64(human), cloth_image=base64(cloth), external_task_id="mine").json
    upstream.seconds += 10

    ended = kling_task(upstream, kling.TRY_ON_PATH, "mine")
    assert ended["task_id"] == submitted["data"]["task_id"]
    assert (ended["task_status"], ended["final_unit_deduction"]) == ("succeed", "1")
    (made,) = ended["task_result"]["images"]
    picture = upstream.picture(made["url"])
    assert picture.size == (300, 900)
    for found, wanted in zip(shown_in(picture, 2), (RED, BLUE), strict=True):
        assert found == pytest.approx(wanted, abs=2)  # JPEG is lossy
    assert upstream.call == {
        "human_image": in_place(human),
        "cloth_image": in_place(cloth),
        "external_task_id": "mine",
        "prompt": "",
        "model": "kolors-virtual-try-on-v1",
        "n": 1,
        "protocol": "kling",
        "operation": "try-on",
        "images": [noted(human, "human_image"), noted(cloth, "cloth_image", "image/jpeg")],
    }


def test_kling_finds_tasks_below_their_own_path_only(upstream: Upstream) -> None:
    tried = upstream.try_on(external_task_id="a").json["data"]["task_id"]
    made = upstream.json(kling.PATH, {"prompt": "a cat", "external_task_id": "b"}).json["data"]["task_id"]
    for path, names in ((kling.PATH, (tried, "a")), (kling.TRY_ON_PATH, (made, "b"))):
        assert [upstream.send("GET", f"{path}/{name}").json["code"] for name in names] == [1203, 1203]
    assert kling_task(upstream, kling.TRY_ON_PATH, tried)["task_id"] == tried
    assert kling_task(upstream, kling.PATH, "b")["task_id"] == made
    assert upstream.try_on(external_task_id="b").json["code"] == 1201


def test_trying_on_takes_one_slot(upstream: Upstream) -> None:
    upstream.stand_in.kling.concurrency = 3
    codes = [upstream.json(kling.PATH, {"prompt": "a cat", "n": 2}).json["code"]]
    codes += [upstream.try_on().json["code"] for _ in range(2)]
    assert codes == [0, 0, 1303]
    assert [charge.units for charge in upstream.stand_in.charged] == [2, 1]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"model_name": "kolors-virtual-try-on-v1-5", "cloth_image": "https://images.example/1.png"}, 0),
        ({"model_name": "kling-v1"}, 1203),
        ({"human_image": ""}, 1201),
        ({"cloth_image": None}, 1201),
        ({"cloth_image": ratio(299, 900)}, 1201),
        ({"cloth_image": data_url(PNG_300)}, 1201),
        ({"prompt": "a cat"}, 1201),
        ({"n": 1}, 1201),
    ],
)
def test_kling_refuses_to_try_on_what_is_not_documented(upstream: Upstream, fields: dict[str, Any], code: int) -> None:
    assert upstream.try_on(**fields).json["code"] == code


# Midjourney


def quarter_of(grid: Image.Image, number: int) -> Image.Image:
    width, height = grid.width // 2, grid.height // 2
    left, top = (number - 1) % 2 * width, (number - 1) // 2 * height
    return grid.crop((left, top, left + width, top + height))


def difference(one: Image.Image, other: Image.Image) -> float:
    """How much two pictures differ: 0 if they are equal."""
    smaller = [picture.resize((64, 64), Image.Resampling.BOX).tobytes() for picture in (one, other)]
    first, second = smaller
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first)


def button(task: dict[str, Any], label: str) -> str:
    (found,) = (each["customId"] for each in task["buttons"] if label in (each["label"], each["emoji"]))
    return str(found)


def test_midjourney_takes_images_with_a_prompt(upstream: Upstream) -> None:
    green = image(GREEN, kind="webp")
    urls = [data_url(IMAGE), data_url(green, "webp")]
    task = upstream.grid(base64Array=urls)
    assert shown_in(quarter_of(upstream.picture(task["imageUrl"]), 4), 2) == [RED, GREEN]
    call = upstream.call
    assert "operation" not in call
    assert call["base64Array"] == [in_place(IMAGE), in_place(green)]
    assert call["images"] == [noted(IMAGE, "base64Array"), noted(green, "base64Array", "image/webp")]
    same = upstream.mj("imagine", prompt="a cat --ar 2:1", base64Array=urls).json
    other = upstream.mj("imagine", prompt="a cat --ar 2:1").json
    assert (same["code"], same["result"], other["code"]) == (21, task["id"], 1)


@pytest.mark.parametrize(
    ("dimensions", "size"),
    [({}, (1024, 1024)), ({"dimensions": "PORTRAIT"}, (680, 1020)), ({"dimensions": "LANDSCAPE"}, (1020, 680))],
)
def test_midjourney_blends_images(upstream: Upstream, dimensions: dict[str, str], size: tuple[int, int]) -> None:
    sent = [image(color) for color in (RED, GREEN, BLUE)]
    task = upstream.mj_done(upstream.mj("blend", base64Array=[data_url(each) for each in sent], **dimensions))

    assert (task["action"], task["status"], task["prompt"]) == ("BLEND", "SUCCESS", "")
    assert len(task["buttons"]) == 9
    grid = upstream.picture(task["imageUrl"])
    assert (grid.size, shown_in(quarter_of(grid, 2), 3)) == (size, [RED, GREEN, BLUE])
    assert upstream.call == dimensions | {
        "botType": "MID_JOURNEY",
        "base64Array": [in_place(each) for each in sent],
        "images": [noted(each, "base64Array") for each in sent],
        "prompt": "",
        "model": "mj_blend",
        "n": 1,
        "protocol": "midjourney",
        "mode": None,
        "operation": "blend",
    }


def test_midjourney_describes_an_image(upstream: Upstream) -> None:
    submitted = upstream.mj("describe", "/mj-fast/mj", base64=data_url(IMAGE))
    upstream.seconds += 9
    assert upstream.mj_task(submitted.json["result"])["properties"]["finalPrompt"] == ""
    task = upstream.mj_done(submitted)

    lines = task["properties"]["finalPrompt"].split("\n\n")
    assert [line[:3] for line in lines] == ["1️⃣", "2️⃣", "3️⃣", "4️⃣"]
    assert all(line[3:].startswith(" a ") and line.endswith(" --ar 4:3") for line in lines)
    assert (task["action"], task["buttons"], task["prompt"]) == ("DESCRIBE", [], task["properties"]["finalPrompt"])
    assert upstream.picture(task["imageUrl"]).size == (64, 48)
    another = upstream.mj_done(upstream.mj("describe", base64=data_url(SQUARE)))
    assert another["properties"]["finalPrompt"] != task["properties"]["finalPrompt"]
    call = upstream.stand_in.calls[0]
    assert (call["model"], call["operation"], call["mode"]) == ("mj_describe", "describe", "fast")
    assert (call["base64"], call["images"]) == (in_place(IMAGE), [noted(IMAGE, "base64")])


Submit = Callable[[Upstream, dict[str, Any], str, int], Answer]
NAMES = {"UPSCALE": "U", "VARIATION": "V", "REROLL": "🔄"}


def by_change(upstream: Upstream, task: dict[str, Any], action: str, index: int) -> Answer:
    return upstream.mj("change", taskId=task["id"], action=action, index=index)


def by_button(upstream: Upstream, task: dict[str, Any], action: str, index: int) -> Answer:
    label = NAMES[action] if action == "REROLL" else f"{NAMES[action]}{index}"
    return upstream.mj("action", taskId=task["id"], customId=button(task, label))


every_way = pytest.mark.parametrize("submit", [by_change, by_button])


@every_way
def test_midjourney_paints_one_picture_of_a_grid_larger(upstream: Upstream, submit: Submit) -> None:
    parent = upstream.grid(base64Array=[data_url(IMAGE)])
    task = upstream.mj_done(submit(upstream, parent, "UPSCALE", 3))

    assert (task["action"], task["description"]) == ("UPSCALE", f"/up {parent['id']} U3")
    assert (task["prompt"], task["buttons"]) == ("a cat --ar 2:1", [])
    picture, grid = upstream.picture(task["imageUrl"]), upstream.picture(parent["imageUrl"])
    assert picture.size == grid.size
    differences = [difference(picture, quarter_of(grid, number)) for number in range(1, 5)]
    assert differences[2] < 5 < min(differences[0], differences[1], differences[3])
    call = upstream.stand_in.calls[1]
    assert (call["model"], call["operation"], call["prompt"], call["n"]) == ("mj_upscale", "upscale", "", 1)
    assert call["taskId"] == parent["id"]


@every_way
@pytest.mark.parametrize(("action", "letter"), [("VARIATION", "V2"), ("REROLL", "R")])
def test_midjourney_paints_a_grid_again(upstream: Upstream, submit: Submit, action: str, letter: str) -> None:
    parent = upstream.grid(base64Array=[data_url(IMAGE)])
    task = upstream.mj_done(submit(upstream, parent, action, 2))

    assert (task["action"], task["description"]) == (action, f"/up {parent['id']} {letter}")
    grid, before = upstream.picture(task["imageUrl"]), upstream.picture(parent["imageUrl"])
    assert grid.size == before.size
    assert shown_in(quarter_of(grid, 1), 1) == [RED]
    assert min(difference(quarter_of(grid, at), quarter_of(before, at)) for at in range(1, 5)) > 5
    assert upstream.stand_in.calls[1]["model"] == f"mj_{action.lower()}"
    assert upstream.mj_done(submit(upstream, task, "UPSCALE", 1))["status"] == "SUCCESS"


def test_midjourney_knows_an_equal_submit(upstream: Upstream) -> None:
    parent = upstream.grid()
    pair = [data_url(IMAGE), data_url(SQUARE)]
    submits: list[Callable[[], Answer]] = [
        lambda: upstream.mj("blend", base64Array=pair),
        lambda: upstream.mj("describe", base64=pair[0]),
        lambda: by_change(upstream, parent, "UPSCALE", 1),
        lambda: by_change(upstream, parent, "REROLL", 1),
    ]
    for submit in submits:
        first, same = submit().json, submit().json
        upstream.seconds += 10
        ended = submit().json
        assert [first["code"], same["code"], ended["code"]] == [1, 21, 21]
        assert first["result"] == same["result"] == ended["result"]
        assert ended["properties"]["status"] == "SUCCESS"
    assert by_button(upstream, parent, "UPSCALE", 1).json["code"] == 21
    assert by_change(upstream, parent, "REROLL", 4).json["code"] == 21
    others = [
        upstream.mj("blend", base64Array=pair[::-1]),
        upstream.mj("blend", base64Array=pair, dimensions="PORTRAIT"),
        by_change(upstream, parent, "UPSCALE", 2),
    ]
    assert [other.json["code"] for other in others] == [1, 1, 1]


def test_a_newer_proxy_has_only_buttons(upstream: Upstream) -> None:
    parent = upstream.grid()
    upstream.stand_in.midjourney.has_change = False
    answer = by_change(upstream, parent, "UPSCALE", 1)
    assert (answer.status, answer.json["error"]["message"]) == (404, "Invalid URL (POST /mj/submit/change)")
    assert len(upstream.stand_in.calls) == 1
    assert by_button(upstream, parent, "UPSCALE", 1).json["code"] == 1


PAIR = [data_url(IMAGE), data_url(SQUARE)]


@pytest.mark.parametrize(
    ("call", "fields", "said"),
    [
        ("imagine", {"prompt": "a cat", "base64Array": [data_url(b"no image")]}, "base64格式错误"),
        ("imagine", {"prompt": "a cat", "base64Array": [data_url(IMAGE, "webp")]}, "base64格式错误"),
        ("blend", {"base64Array": PAIR[:1]}, "base64List参数错误"),
        ("blend", {"base64Array": PAIR * 3}, "base64List参数错误"),
        ("blend", {"base64Array": [PAIR[0], data_url(b"no image")]}, "base64格式错误"),
        ("blend", {"base64Array": [PAIR[0], base64(IMAGE)]}, "bind_request_body_failed"),
        ("blend", {"base64Array": PAIR, "dimensions": "WIDE"}, "bind_request_body_failed"),
        ("blend", {"base64Array": PAIR, "botType": "X"}, "bind_request_body_failed"),
        ("blend", {"base64Array": PAIR, "prompt": "a cat"}, "bind_request_body_failed"),
        ("describe", {}, "base64不能为空"),
        ("describe", {"base64": base64(IMAGE)}, "base64格式错误"),
        ("describe", {"base64": "https://images.example/1.png"}, "base64格式错误"),
        ("describe", {"link": "https://images.example/1.png"}, "bind_request_body_failed"),
        ("change", {}, "task_id_is_required"),
        ("change", {"taskId": "1"}, "action_is_required"),
        ("change", {"taskId": "1", "action": "REROLL"}, "index_is_required"),
        ("change", {"taskId": "1", "action": "ZOOM", "index": 1}, "bind_request_body_failed"),
        ("change", {"taskId": "1", "action": "UPSCALE", "index": 5}, "index参数错误"),
        ("change", {"taskId": "1", "action": "UPSCALE", "index": 1}, "task_not_found"),
        ("change", {"taskId": "1", "action": "UPSCALE", "index": 1, "botType": "X"}, "bind_request_body_failed"),
        ("action", {"taskId": "1"}, "custom_id_is_required"),
        ("action", {"customId": "MJ::JOB::upsample::1::x"}, "task_id_is_required"),
        ("action", {"taskId": "1", "customId": "MJ::Inpaint::1::x"}, "unknown_action"),
        ("action", {"taskId": "1", "customId": "MJ::JOB::upsample::1::x"}, "task_not_found"),
    ],
)
def test_midjourney_refuses_images_and_changes(
    upstream: Upstream, call: str, fields: dict[str, Any], said: str
) -> None:
    answer = upstream.mj(call, **fields)
    assert answer.json["code"] == 4
    assert answer.json["description"].split()[0] == said
    assert answer.status == (400 if said.isascii() else 200)
    assert (upstream.stand_in.calls, upstream.stand_in.charged) == ([], [])


def test_midjourney_refuses_to_change_what_is_no_finished_grid(upstream: Upstream) -> None:
    grid, another = upstream.grid(), upstream.grid(prompt="a dog")
    upscaled = upstream.mj_done(by_change(upstream, grid, "UPSCALE", 1))
    upstream.stand_in.fates["a bird"].append(tasks.failing("no"))
    failed = upstream.mj("imagine", prompt="a bird").json["result"]
    upstream.seconds += 10
    running = upstream.mj("imagine", prompt="a fish").json["result"]
    upstream.stand_in.fates["a frog"].append(tasks.FORGOTTEN)
    forgotten = upstream.mj("imagine", prompt="a frog").json["result"]

    ids = (upscaled["id"], failed, running, forgotten)
    said = [by_change(upstream, {"id": task_id}, "UPSCALE", 1).json["description"].strip() for task_id in ids]
    not_success = "task_status_not_success"
    assert said == ["关联任务不允许执行变化", not_success, not_success, "task_not_found"]
    answer = upstream.mj("action", taskId=grid["id"], customId=button(another, "U1"))
    assert (answer.status, answer.json["code"], answer.json["description"]) == (200, 4, "关联按钮无效")


# Scripts, fates and charges


def submit_edit(upstream: Upstream) -> Answer:
    return upstream.edit(("image", file(IMAGE)))


def submit_variation(upstream: Upstream) -> Answer:
    return upstream.form(openai.VARIATIONS, [("image", file(SQUARE))])


def submit_remix(upstream: Upstream) -> Answer:
    return upstream.ideogram("remix", PICTURE)


def submit_try_on(upstream: Upstream) -> Answer:
    return upstream.try_on()


def submit_blend(upstream: Upstream) -> Answer:
    return upstream.mj("blend", base64Array=PAIR)


def submit_describe(upstream: Upstream) -> Answer:
    return upstream.mj("describe", base64=PAIR[0])


@pytest.mark.parametrize(
    ("submit", "prompt"),
    [
        (submit_edit, "a cat"),
        (submit_remix, "a cat"),
        (submit_variation, ""),
        (submit_try_on, ""),
        (submit_blend, ""),
        (submit_describe, ""),
    ],
)
def test_calls_with_images_are_scripted(upstream: Upstream, submit: Callable[[Upstream], Answer], prompt: str) -> None:
    def lose(_: Reply) -> Reply:
        raise HungUpError

    stand_in = upstream.stand_in
    stand_in.script.append(lambda _: Reply(500))
    stand_in.by_prompt[prompt].append(lambda _: Reply(502))
    stand_in.script.append(stand_in.changed(lambda reply: Reply(reply.status + 1, reply.body)))
    stand_in.script.append(stand_in.changed(lose))

    assert [submit(upstream).status for _ in range(3)] == [502, 500, 201]
    with pytest.raises(urllib3.exceptions.HTTPError):
        submit(upstream)
    assert submit(upstream).status == 200
    assert [call["prompt"] for call in stand_in.calls] == [prompt] * 5
    assert all(call["images"] and call["operation"] for call in stand_in.calls)


@pytest.mark.parametrize("submit", [submit_blend, submit_describe, submit_try_on])
def test_tasks_with_images_end_as_a_test_decides(upstream: Upstream, submit: Callable[[Upstream], Answer]) -> None:
    upstream.stand_in.fates[""].append(tasks.failing("no memory"))
    answer = submit(upstream).json
    path = f"/mj/task/{answer['result']}/fetch" if "result" in answer else ""
    path = path or f"{kling.TRY_ON_PATH}/{answer['data']['task_id']}"
    upstream.seconds += 10
    upstream.stand_in.polls_by_prompt[""].append(tasks.unavailable())

    assert [upstream.send("GET", path).status for _ in range(2)] == [503, 200]
    assert b"no memory" in upstream.send("GET", path).content
    (charge,) = upstream.stand_in.charged
    assert (charge.prompt, charge.units, charge.refunded) == ("", 1, 1)


def test_changes_wait_in_the_queue(upstream: Upstream) -> None:
    parent = upstream.grid()
    upstream.stand_in.midjourney.running, upstream.stand_in.midjourney.queued = 1, 1
    codes = [by_change(upstream, parent, "UPSCALE", index).json["code"] for index in range(1, 4)]
    assert codes == [1, 22, 23]
    assert [call["operation"] for call in upstream.stand_in.calls[1:]] == ["upscale", "upscale"]
    assert len(upstream.stand_in.charged) == 3
    assert midjourney.MODEL == "mj_imagine"


def test_only_the_last_inputs_are_kept(upstream: Upstream) -> None:
    contents = [image((at, 0, 0), (8, 8)) for at in range(70)]
    for at in range(0, 70, 10):
        upstream.edit(*[("image[]", file(content)) for content in contents[at : at + 10]])
    upstream.edit(("image", file(contents[10])))
    assert list(upstream.stand_in.inputs.values()) == [*contents[6:10], *contents[11:], contents[10]]
    assert json.dumps(upstream.stand_in.calls)
