"""The protocols of the stand-in upstream, over HTTP."""

import io
import json
import re
import time
from base64 import b64decode, b64encode
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
import urllib3
from PIL import Image

from local import upstream_gemini_chat as gemini_chat
from local import upstream_ideogram as ideogram
from local import upstream_kling as kling
from local import upstream_midjourney as midjourney
from local import upstream_tasks as tasks
from local.serving import HungUpError, Reply
from local.upstream import Script, StandInUpstream
from tests.support.client import Answer
from tests.support.odd_hosts import ReusableHost

KEY = "sk-test"
FLASH_2, FLASH, PRO = "gemini-2.0-flash-exp-image-generation", "gemini-2.5-flash-image", "gemini-3-pro-image"
CHAT, IDEOGRAM = "/v1/chat/completions", "/ideogram/v1/ideogram-v3/generate"
GENERATIONS, KLING = "/v1/images/generations", "/kling/v1/images/generations"
TASKS: dict[str, tuple[str, dict[str, str]]] = {
    "kling": (KLING, {}),
    "midjourney": ("/mj/submit/imagine", {"botType": "MID_JOURNEY"}),
}
START = 1_700_000_000_000  # in milliseconds
Fields = dict[str, Any] | list[tuple[str, Any]]


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (300, 300)).save(out, "png")
    return out.getvalue()


PNG = b64encode(png()).decode()


@dataclass
class Upstream:
    stand_in: StandInUpstream
    origin: str
    seconds: float = START / 1000

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        sent = {"Authorization": f"Bearer {KEY}", "User-Agent": "test/1"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        answer = urllib3.request(method, self.origin + path, body=body, headers=sent, retries=False, timeout=30)
        return Answer(answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.data)

    def chat(self, model: str = FLASH, prompt: str = "a cat", **fields: Any) -> Answer:
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], **fields}
        return self.send("POST", CHAT, json.dumps(body).encode(), Content_Type="application/json")

    def ideogram(self, fields: Fields, **headers: str) -> Answer:
        body, content_type = urllib3.encode_multipart_formdata(fields)
        return self.send("POST", IDEOGRAM, body, **{"Content_Type": content_type} | headers)

    def kling(self, prompt: str = "a cat", **fields: Any) -> Answer:
        body = {"prompt": prompt, **fields}
        return self.send("POST", KLING, json.dumps(body).encode(), Content_Type="application/json")

    def kling_task(self, task_id: str) -> dict[str, Any]:
        answer = self.send("GET", f"{KLING}/{task_id}")
        assert (answer.status, answer.json["code"]) == (200, 0), answer.content
        return dict(answer.json["data"])

    def imagine(self, prompt: str = "a cat", path: str = "/mj", **fields: Any) -> Answer:
        body = {"botType": "MID_JOURNEY", "prompt": prompt, **fields}
        return self.send("POST", f"{path}/submit/imagine", json.dumps(body).encode(), Content_Type="application/json")

    def mj_task(self, task_id: str, path: str = "/mj") -> dict[str, Any]:
        answer = self.send("GET", f"{path}/task/{task_id}/fetch")
        assert answer.status == 200, answer.content
        return dict(answer.json)

    def pass_by(self, seconds: float) -> None:
        """Moves the clock of the tasks."""
        self.seconds += seconds

    def will(self, script: Script) -> None:
        self.stand_in.script.append(script)

    def image(self, url: str) -> Image.Image:
        if url.startswith("data:"):
            content = b64decode(url.removeprefix("data:image/png;base64,"))
        else:
            answer = self.send("GET", url.removeprefix(self.origin))
            assert answer.headers["content-type"] == "image/png"
            content = answer.content
        return Image.open(io.BytesIO(content), formats=["PNG"])


@pytest.fixture
def upstream(host: ReusableHost) -> Upstream:
    stand_in = StandInUpstream(KEY)
    upstream = Upstream(stand_in, f"http://127.0.0.1:{host.port}")
    stand_in.now, stand_in.task_seconds = lambda: upstream.seconds, 10.0
    host.respond = stand_in.respond
    return upstream


@pytest.mark.parametrize(
    ("model", "fields", "size"),
    [
        ("dall-e-2", {"n": 2, "size": "256x256"}, (256, 256)),
        ("dall-e-3", {"response_format": "b64_json", "style": "vivid"}, (1024, 1024)),
        ("gpt-image-1", {"size": "auto", "output_format": "png", "moderation": "low"}, (1024, 1024)),
        ("flux-pro", {"size": "1024x576"}, (1024, 576)),
        ("flux-kontext-pro", {"aspect_ratio": "3:2"}, (192, 128)),
    ],
)
def test_openai_paints_what_was_asked_for(
    upstream: Upstream, model: str, fields: dict[str, Any], size: tuple[int, int]
) -> None:
    sent = {"model": model, "prompt": "a cat", **fields}
    answer = upstream.send("POST", GENERATIONS, json.dumps(sent).encode())

    assert answer.status == 200, answer.content
    images = answer.json["data"]
    urls = [image.get("url") or f"data:image/png;base64,{image['b64_json']}" for image in images]
    assert [upstream.image(url).size for url in urls] == [size] * fields.get("n", 1)
    assert images[0].get("revised_prompt") == ("a cat, in detail" if model == "dall-e-3" else None)
    assert ("usage" in answer.json) == model.startswith("gpt-")
    assert upstream.stand_in.calls == [sent]


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"model": "sdxl"}, 404, "model_not_found"),
        ({"model": "gpt-image-1", "style": "vivid"}, 400, "unknown_parameter"),
        ({"model": "gpt-image-1", "image": "x"}, 400, "unknown_parameter"),
        ({"model": "dall-e-3", "n": 2}, 400, "invalid_value"),
        ({"model": "flux-kontext-pro"}, 400, "missing_required_parameter"),
    ],
)
def test_openai_refuses_what_a_model_does_not_take(
    upstream: Upstream, fields: dict[str, Any], status: int, code: str
) -> None:
    answer = upstream.send("POST", GENERATIONS, json.dumps({"prompt": "a cat", **fields}).encode())
    assert (answer.status, answer.json["error"]["code"]) == (status, code)
    assert len(upstream.stand_in.calls) == 1


def test_openai_notes_no_call_without_a_key_or_a_body(upstream: Upstream) -> None:
    answers = [
        upstream.send("POST", GENERATIONS, b"{", Authorization="Bearer sk-other"),
        upstream.send("POST", GENERATIONS, b"{"),
        upstream.send("GET", GENERATIONS),
    ]
    assert [(answer.status, answer.json["error"]["code"]) for answer in answers] == [
        (401, "invalid_api_key"),
        (400, None),
        (404, None),
    ]
    assert upstream.stand_in.calls == []


def image_config(**fields: str) -> dict[str, Any]:
    return {"extra_body": {"google": {"image_config": fields}}}


def messages(*contents: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content} for content in contents]}


def url_in_text(answer: Answer) -> str:
    found = re.fullmatch(r"Here it is\.\n!\[image]\((\S+)\)", answer.json["choices"][0]["message"]["content"])
    assert found
    return found[1]


def one_api_error(answer: Answer) -> tuple[int, str | None]:
    error = answer.json["error"]
    assert error["type"] == "new_api_error"
    assert "(request id: " in error["message"]
    return answer.status, error.get("code")


@pytest.mark.parametrize(
    ("model", "fields", "size"),
    [
        (FLASH_2, {}, (1024, 1024)),
        (FLASH_2, {"stream": False, "n": 1, "modalities": ["text", "image"], **image_config()}, (1024, 1024)),
        (FLASH_2, {"modalities": ["image"], "extra_body": {}}, (1024, 1024)),
        (FLASH, messages([{"type": "text", "text": "a"}, {"type": "text", "text": "cat"}]), (1024, 1024)),
        (FLASH, image_config(aspect_ratio="21:9"), (1512, 648)),
        (f"{FLASH}-preview", image_config(aspect_ratio="2:3"), (832, 1248)),
        (PRO, image_config(aspect_ratio="9:16"), (720, 1280)),
        (f"{PRO}-preview", image_config(aspect_ratio="4:3", image_size="2K"), (2304, 1728)),
        (PRO, image_config(image_size="4K"), (4096, 4096)),
    ],
)
def test_gemini_paints_the_shape_that_was_asked_for(
    upstream: Upstream, model: str, fields: dict[str, Any], size: tuple[int, int]
) -> None:
    answer = upstream.chat(model, **fields)

    assert answer.status == 200, answer.content
    assert (answer.json["object"], answer.json["model"]) == ("chat.completion", model)
    (choice,) = answer.json["choices"]
    assert (choice["index"], choice["finish_reason"], choice["message"]["role"]) == (0, "stop", "assistant")
    if model.startswith(PRO):
        assert choice["message"]["content"] == "Here it is."
        (image,) = choice["message"]["images"]
        assert image["type"] == "image_url"
        url = image["image_url"]["url"]
    else:
        assert "images" not in choice["message"]
        url = url_in_text(answer)
    assert upstream.image(url).size == size
    usage = answer.json["usage"]
    assert usage == {"prompt_tokens": 2, "completion_tokens": 1290, "total_tokens": 1292}


@pytest.mark.parametrize("ratio", ["1:1", "2:3", "3:2", "3:4", "4:3", "9:16", "16:9", "21:9"])
def test_gemini_paints_each_ratio_exactly(upstream: Upstream, ratio: str) -> None:
    width, height = upstream.image(url_in_text(upstream.chat(**image_config(aspect_ratio=ratio)))).size
    across, down = map(int, ratio.split(":"))
    assert width * down == height * across


@pytest.mark.parametrize(
    "fields",
    [
        {"size": "1024x1024"},
        {"n": 2},
        {"stream": True},
        {"modalities": ["text"]},
        {"modalities": ["image", "audio"]},
        {"messages": []},
        messages(" "),
        messages([]),
        messages([{"type": "image_url", "image_url": {"url": "https://images.example/1.png"}}]),
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "assistant", "content": "a cat"}]},
        {"messages": [{"role": "user", "content": "a cat", "name": "x"}]},
        {"extra_body": {"image_config": {}}},
        {"extra_body": {"google": {"thinking_config": {}}}},
        image_config(aspectRatio="1:1"),
        image_config(aspect_ratio="4:5"),
        image_config(image_size="1K"),
        {"model": FLASH_2, **image_config(aspect_ratio="1:1")},
        {"model": PRO, **image_config(image_size="8K")},
        {"model": None},
    ],
)
def test_gemini_refuses_what_is_not_documented(upstream: Upstream, fields: dict[str, Any]) -> None:
    assert one_api_error(upstream.chat(**fields)) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"{", "application/json"), (b"[]", "application/json"), (b"{}", "application/json"), (b"{}", "text/plain")],
)
def test_gemini_refuses_bodies_that_are_no_request(upstream: Upstream, body: bytes, content_type: str) -> None:
    assert one_api_error(upstream.send("POST", CHAT, body, Content_Type=content_type)) == (400, "invalid_request")


def test_gemini_has_no_channel_for_other_models(upstream: Upstream) -> None:
    assert one_api_error(upstream.chat("gemini-2.5-flash")) == (503, "model_not_found")


def test_gemini_notes_what_was_sent(upstream: Upstream) -> None:
    sent = {"model": PRO, **messages("a cat", [{"type": "text", "text": "wide"}]), **image_config(aspect_ratio="16:9")}
    upstream.chat(**sent)
    assert upstream.stand_in.calls == [sent | {"prompt": "a cat\nwide", "n": 1, "protocol": "gemini-chat"}]


def test_gemini_answers_as_a_test_scripts_it(upstream: Upstream) -> None:
    upstream.will(gemini_chat.text_without_image("No cats today."))
    upstream.will(gemini_chat.content_filter())
    upstream.will(gemini_chat.hosted_image("https://images.example/1.png"))
    upstream.will(upstream.stand_in.hosted_gemini_image())
    upstream.will(gemini_chat.broken_json())

    assert upstream.chat().json["choices"][0]["message"]["content"] == "No cats today."
    assert upstream.chat().json["choices"][0]["finish_reason"] == "content_filter"
    assert url_in_text(upstream.chat()) == "https://images.example/1.png"
    url = url_in_text(upstream.chat(**image_config(aspect_ratio="3:2")))
    assert url.startswith(upstream.origin)
    assert upstream.image(url).size == (1248, 832)
    with pytest.raises(ValueError, match="Expecting"):
        _ = upstream.chat().json


def test_a_hosted_image_of_gemini_is_refused_like_any_other(upstream: Upstream) -> None:
    upstream.will(upstream.stand_in.hosted_gemini_image())
    assert upstream.chat(n=2).status == 400


RATIOS = "1x3 3x1 1x2 2x1 9x16 16x9 10x16 16x10 2x3 3x2 3x4 4x3 4x5 5x4 1x1"
IMAGE = {"style_type": "GENERAL", "is_image_safe": True, "prompt": "a cat, in detail", "resolution": "1024x1024"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, {}),
        ({"resolution": "1536x640"}, {"resolution": "1536x640"}),
        ({"resolution": "960x1088"}, {"resolution": "960x1088"}),
        ({"magic_prompt": "OFF"}, {"prompt": "a cat"}),
        ({"magic_prompt": "ON", "rendering_speed": "FLASH"}, {}),
        ({"seed": "2147483647"}, {"seed": 2147483647}),
        ({"style_type": "FICTION"}, {"style_type": "FICTION"}),
        ({"style_codes": "0123abCD,89abcdef"}, {}),
        ({"negative_prompt": "dogs", "rendering_speed": "TURBO"}, {}),
        ({"color_palette": '{"name":"PASTEL"}'}, {}),
        ({"color_palette": '{"members":[{"color_hex":"#00ffAA","color_weight":0.5},{"color_hex":"#000000"}]}'}, {}),
    ],
)
def test_ideogram_paints_and_says_what_was_asked_for(
    upstream: Upstream, fields: dict[str, str], said: dict[str, object]
) -> None:
    answer = upstream.ideogram({"prompt": "a cat", **fields})

    assert answer.status == 200, answer.content
    assert datetime.fromisoformat(answer.json["created"]).tzinfo
    (image,) = answer.json["data"]
    url, seed = image["url"], image["seed"]
    assert image == {**IMAGE, "url": url, "seed": seed, **said}
    assert upstream.image(url).size == tuple(map(int, image["resolution"].split("x")))


@pytest.mark.parametrize("ratio", RATIOS.split())
def test_ideogram_paints_each_ratio_in_a_size_of_its_list(upstream: Upstream, ratio: str) -> None:
    (image,) = upstream.ideogram({"prompt": "a cat", "aspect_ratio": ratio}).json["data"]

    assert image["resolution"] in ideogram.RESOLUTIONS
    width, height = upstream.image(image["url"]).size
    across, down = map(int, ratio.split("x"))
    assert width / height == pytest.approx(across / down, rel=0.003)


def test_ideogram_paints_several_images(upstream: Upstream) -> None:
    images = upstream.ideogram({"prompt": "a cat", "num_images": "8"}).json["data"]
    assert len({upstream.image(image["url"]).tobytes() for image in images}) == 8


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": " "},
        {"prompt": "a cat", "model": "V_3"},
        {"prompt": "a cat", "n": "2"},
        {"prompt": "a cat", "aspect_ratio": "16:9"},
        {"prompt": "a cat", "resolution": "1792x1024"},
        {"prompt": "a cat", "resolution": "1024x1024", "aspect_ratio": "1x1"},
        {"prompt": "a cat", "rendering_speed": "turbo"},
        {"prompt": "a cat", "magic_prompt": "true"},
        {"prompt": "a cat", "num_images": "0"},
        {"prompt": "a cat", "num_images": "9"},
        {"prompt": "a cat", "num_images": "two"},
        {"prompt": "a cat", "seed": "-1"},
        {"prompt": "a cat", "seed": "2147483648"},
        {"prompt": "a cat", "style_type": "RENDER_3D"},
        {"prompt": "a cat", "style_type": "AUTO", "style_codes": "0123abcd"},
        {"prompt": "a cat", "style_codes": "0123abc"},
        {"prompt": "a cat", "style_codes": "0123abcd,"},
        {"prompt": "a cat", "color_palette": "PASTEL"},
        {"prompt": "a cat", "color_palette": "{}"},
        {"prompt": "a cat", "color_palette": '{"members":[]}'},
        {"prompt": "a cat", "color_palette": '{"members":[{"color_hex":"00ffAA"}]}'},
        {"prompt": "a cat", "color_palette": '{"name":"PASTEL","members":[{"color_hex":"#00ffAA"}]}'},
        {"prompt": ("prompt.txt", "a cat")},
        {"prompt": b"\xff"},
        [("prompt", "a cat"), ("prompt", "a dog")],
    ],
)
def test_ideogram_refuses_what_is_not_documented(upstream: Upstream, fields: Fields) -> None:
    answer = upstream.ideogram(fields)
    assert answer.status == 400
    assert set(answer.json) == {"error"}
    assert isinstance(answer.json["error"], str)


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b'{"prompt":"a cat"}', 415),
        ("application/x-www-form-urlencoded", b"prompt=a+cat", 415),
        ("multipart/form-data", b"", 400),
        ("multipart/form-data; boundary=x", b"", 400),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\na cat\r\n--x--\r\n", 400),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na cat\r\n',
            400,
        ),
    ],
)
def test_ideogram_refuses_bodies_that_are_no_form(
    upstream: Upstream, content_type: str, body: bytes, status: int
) -> None:
    answer = upstream.send("POST", IDEOGRAM, body, Content_Type=content_type)
    assert (answer.status, set(answer.json)) == (status, {"error"})


def test_ideogram_notes_what_was_sent(upstream: Upstream) -> None:
    prompt = "två katter\r\n\r\n--boundary"
    upstream.ideogram(
        [("prompt", prompt), ("num_images", "2"), ("style_codes", "0123abcd"), ("style_codes", "89abcdef")]
    )

    codes = ["0123abcd", "89abcdef"]
    sent = {"prompt": prompt, "num_images": "2", "style_codes": codes}
    assert upstream.stand_in.calls == [sent | {"model": "ideogram-v3", "n": 2, "protocol": "ideogram"}]


def test_ideogram_answers_as_a_test_scripts_it(upstream: Upstream) -> None:
    upstream.will(ideogram.unsafe_image())
    upstream.will(ideogram.images_at("https://images.example/1.png", ""))
    upstream.will(ideogram.unsafe_prompt())
    upstream.will(ideogram.insufficient_funds())
    upstream.will(ideogram.inflight_limit())

    answers = [upstream.ideogram({"prompt": "a cat"}) for _ in range(5)]

    assert [(image["url"], image["is_image_safe"]) for image in answers[0].json["data"]] == [("", False)]
    assert [(image["url"], image["is_image_safe"]) for image in answers[1].json["data"]] == [
        ("https://images.example/1.png", True),
        ("", False),
    ]
    assert [(answer.status, answer.json.get("reject_reason")) for answer in answers[2:]] == [
        (422, None),
        (402, "insufficient_funds"),
        (429, "inflight_limit"),
    ]
    assert all(isinstance(answer.json["error"], str) for answer in answers[2:])


def ask(upstream: Upstream, protocol: str, prompt: str = "a cat", **headers: str) -> Answer:
    if protocol == ideogram.PROTOCOL:
        return upstream.ideogram({"prompt": prompt}, **headers)
    if protocol in TASKS:
        path, fields = TASKS[protocol]
        return upstream.send("POST", path, json.dumps({"prompt": prompt, **fields}).encode(), **headers)
    body = json.dumps({"model": FLASH, **messages(prompt)}).encode()
    return upstream.send("POST", CHAT, body, **{"Content_Type": "application/json"} | headers)


every = pytest.mark.parametrize(
    "protocol", [gemini_chat.PROTOCOL, ideogram.PROTOCOL, kling.PROTOCOL, midjourney.PROTOCOL]
)


@every
def test_only_calls_with_the_key_are_noted(upstream: Upstream, protocol: str) -> None:
    assert one_api_error(ask(upstream, protocol, Authorization="Bearer sk-other")) == (401, None)
    assert ask(upstream, protocol, User_Agent="Python-urllib/3.13").status == 403
    assert upstream.stand_in.calls == []


@every
def test_a_script_for_a_prompt_goes_first(upstream: Upstream, protocol: str) -> None:
    upstream.will(lambda _: Reply(500))
    upstream.stand_in.by_prompt["a dog"].append(lambda _: Reply(502))
    assert [ask(upstream, protocol, prompt).status for prompt in ("a dog", "a dog", "a dog")] == [502, 500, 200]


@every
def test_a_call_waits_for_the_delay(upstream: Upstream, protocol: str) -> None:
    upstream.stand_in.delay = 0.05
    started = time.monotonic()
    ask(upstream, protocol)
    assert time.monotonic() - started >= 0.05


def test_downloads_are_scripted_by_prompt(upstream: Upstream) -> None:
    upstream.stand_in.downloads_by_prompt["a dog"].append(lambda _: Reply(503))
    upstream.will(upstream.stand_in.hosted_gemini_image())
    urls = [
        url_in_text(upstream.chat()),
        ask(upstream, ideogram.PROTOCOL, "a dog").json["data"][0]["url"],
    ]
    paths = [url.removeprefix(upstream.origin) for url in urls]
    assert [upstream.send("GET", path).status for path in (*paths, paths[1])] == [200, 503, 200]


def test_a_task_of_kling_becomes_images(upstream: Upstream) -> None:
    submitted = upstream.kling(n=2, aspect_ratio="3:2", external_task_id="mine").json["data"]
    statuses = []
    for _ in range(3):
        statuses.append(upstream.kling_task(submitted["task_id"])["task_status"])
        upstream.pass_by(5)
    ended = upstream.kling_task("mine")

    assert (submitted["task_status"], statuses) == ("submitted", ["submitted", "processing", "succeed"])
    assert ended["task_id"] == submitted["task_id"]
    assert ended["task_info"] == submitted["task_info"] == {"external_task_id": "mine"}
    assert (ended["created_at"], ended["updated_at"], ended["final_unit_deduction"]) == (START, START + 10_000, "2")
    images = ended["task_result"]["images"]
    assert [image["index"] for image in images] == [0, 1]
    pictures = [upstream.image(image["url"]) for image in images]
    assert {picture.width / picture.height for picture in pictures} == {1.5}
    assert pictures[0].tobytes() != pictures[1].tobytes()


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "x" * 2500, "negative_prompt": "x" * 2500, "callback_url": "https://caller.example/done"},
        {"model_name": "kling-v1-5", "aspect_ratio": "21:9"},
        {"model_name": "kling-v1-5", "image": PNG, "image_reference": "subject", "human_fidelity": 1},
        {"model_name": "kling-v1-5", "image": "https://images.example/1.png", "image_reference": "face"},
        {"model_name": "kling-v2", "resolution": "2k", "n": 9},
        {"model_name": "kling-v2-new", "image": PNG, "image_fidelity": 0.5},
    ],
)
def test_kling_accepts_what_is_documented(upstream: Upstream, fields: dict[str, Any]) -> None:
    answer = upstream.kling(**fields)
    assert (answer.status, answer.json["code"], answer.json["message"]) == (200, 0, "SUCCEED")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": " "},
        {"prompt": None},
        {"prompt": "x" * 2501},
        {"negative_prompt": "x" * 2501},
        {"model": "kling-v1"},
        {"size": "1024x1024"},
        {"n": 0},
        {"n": 10},
        {"n": "2"},
        {"aspect_ratio": "5:4"},
        {"aspect_ratio": "21:9"},
        {"resolution": "4k"},
        {"resolution": "2k"},
        {"resolution": "2k", "model_name": "kling-v1-5"},
        {"resolution": "2k", "model_name": "kling-v2", "image": PNG},
        {"model_name": "kling-v2-new"},
        {"image": f"data:image/png;base64,{PNG}"},
        {"image": "aGk="},
        {"image": PNG, "negative_prompt": "dogs"},
        {"image": PNG, "model_name": "kling-v1-5"},
        {"image": PNG, "image_reference": "face"},
        {"image_reference": "face", "model_name": "kling-v1-5"},
        {"image_fidelity": 1.1},
        {"image": PNG, "model_name": "kling-v1-5", "image_reference": "face", "human_fidelity": 0.5},
    ],
)
def test_kling_refuses_what_is_not_documented(upstream: Upstream, fields: dict[str, Any]) -> None:
    answer = upstream.kling(**fields)
    assert (answer.status, answer.json["code"]) == (400, 1201)
    assert (upstream.stand_in.calls, upstream.stand_in.charged) == ([], [])


def test_kling_names_what_it_does_not_know(upstream: Upstream) -> None:
    answers = [
        upstream.kling(model_name="kling-v9"),
        upstream.send("GET", f"{KLING}/1"),
        upstream.send("POST", KLING, b"[]"),
    ]
    assert [(answer.status, answer.json["code"]) for answer in answers] == [(404, 1203), (404, 1203), (400, 1200)]


@pytest.mark.parametrize(
    ("ratio", "resolution"),
    [*((ratio, "1k") for ratio in ["16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3", "21:9"]), ("16:9", "2k")],
)
def test_kling_paints_each_shape(upstream: Upstream, ratio: str, resolution: str) -> None:
    submitted = upstream.kling(model_name="kling-v2", aspect_ratio=ratio, resolution=resolution).json["data"]
    upstream.pass_by(10)
    (image,) = upstream.kling_task(submitted["task_id"])["task_result"]["images"]

    width, height = upstream.image(image["url"]).size
    across, down = map(int, ratio.split(":"))
    assert width * down == height * across
    assert width * height == pytest.approx(1024**2 * {"1k": 1, "2k": 4}[resolution], rel=0.02)


def test_kling_refuses_an_external_id_twice(upstream: Upstream) -> None:
    first = upstream.kling(external_task_id="mine/1").json["data"]
    again = upstream.kling("a dog", external_task_id="mine/1")

    assert (again.status, again.json["code"]) == (400, 1201)
    assert upstream.kling_task("mine%2F1")["task_id"] == first["task_id"]
    assert [charge.task_id for charge in upstream.stand_in.charged] == [first["task_id"]]


def test_images_of_kling_take_slots_until_the_task_ends(upstream: Upstream) -> None:
    upstream.stand_in.kling.concurrency = 3
    upstream.stand_in.fates["a dog"].append(tasks.NEVER_ENDS)

    codes = [upstream.kling("a dog", n=1).json["code"], upstream.kling(n=2).json["code"]]
    refused = upstream.kling()
    upstream.pass_by(10)
    codes += [upstream.kling(n=n).json["code"] for n in (3, 2)]

    assert (refused.status, refused.json["code"], codes) == (429, 1303, [0, 0, 1303, 0])
    assert upstream.stand_in.kling.refused == 2
    assert [charge.units for charge in upstream.stand_in.charged] == [call["n"] for call in upstream.stand_in.calls]


@pytest.mark.parametrize(
    ("code", "status"), [(1004, 401), (1102, 429), (1103, 403), (1200, 400), (1202, 404), (1301, 400), (5002, 504)]
)
def test_kling_refuses_as_a_test_scripts_it(upstream: Upstream, code: int, status: int) -> None:
    upstream.will(kling.refusing(code, "not now"))
    answer = upstream.kling()
    assert (answer.status, answer.json["code"], answer.json["message"]) == (status, code, "not now")
    assert upstream.stand_in.charged == []


def test_kling_answers_in_other_envelopes(upstream: Upstream) -> None:
    stand_in = upstream.stand_in
    upstream.will(stand_in.changed(kling.task_id_on_top))
    stand_in.poll_script.append(stand_in.changed(kling.new_api_envelope))
    stand_in.poll_script.append(stand_in.changed(kling.sibling_envelope))

    task_id = upstream.kling().json["task_id"]
    upstream.pass_by(10)
    new_api, sibling, usual = (upstream.send("GET", f"{KLING}/{task_id}").json for _ in range(3))

    assert (new_api["code"], new_api["data"]["status"]) == ("success", "SUCCESS")
    assert (sibling["code"], sibling["data"]["status"]) == ("success", "succeeded")
    assert new_api["data"]["data"]["data"] == sibling["data"]["data"] == usual["data"]


def test_a_task_of_midjourney_becomes_a_grid(upstream: Upstream) -> None:
    submitted = upstream.imagine("a cat --ar 16:9", state="mine").json
    seen = []
    for _ in range(5):
        task = upstream.mj_task(submitted["result"])
        seen.append((task["status"], task["progress"], task["startTime"], task["finishTime"]))
        upstream.pass_by(2.5)

    assert submitted["code"] == 1
    assert submitted["result"].isdecimal()
    assert seen == [
        ("SUBMITTED", "0%", START, 0),
        ("IN_PROGRESS", "25%", START, 0),
        ("IN_PROGRESS", "50%", START, 0),
        ("IN_PROGRESS", "75%", START, 0),
        ("SUCCESS", "100%", START, START + 10_000),
    ]
    assert (task["action"], task["state"], task["failReason"]) == ("IMAGINE", "mine", "")
    assert task["prompt"] == task["promptEn"] == task["properties"]["finalPrompt"] == "a cat --ar 16:9"
    grid = upstream.image(task["imageUrl"])
    assert grid.width * 9 == grid.height * 16
    quarters = {
        grid.crop((x, y, x + grid.width // 2, y + grid.height // 2)).tobytes()
        for x in (0, grid.width // 2)
        for y in (0, grid.height // 2)
    }
    assert len(quarters) == 4


def test_midjourney_shows_a_smaller_preview_first(upstream: Upstream) -> None:
    task_id = upstream.imagine().json["result"]
    urls = []
    for seconds in (4.9, 0.1, 4.9, 0.1):
        upstream.pass_by(seconds)
        urls.append(upstream.mj_task(task_id)["imageUrl"])

    none, preview, still, final = urls
    assert none == ""
    assert preview == still != final
    assert (upstream.image(preview).size, upstream.image(final).size) == ((256, 256), (1024, 1024))


def test_midjourney_offers_buttons_with_the_grid(upstream: Upstream) -> None:
    task_id = upstream.imagine().json["result"]
    assert upstream.mj_task(task_id)["buttons"] == []
    upstream.pass_by(10)
    buttons = upstream.mj_task(task_id)["buttons"]

    job = buttons[0]["customId"].rpartition("::")[2]
    assert [(button["label"] or button["emoji"], button["customId"]) for button in buttons] == [
        *((f"U{at}", f"MJ::JOB::upsample::{at}::{job}") for at in range(1, 5)),
        *((f"V{at}", f"MJ::JOB::variation::{at}::{job}") for at in range(1, 5)),
        ("🔄", f"MJ::JOB::reroll::0::{job}::SOLO"),
    ]
    assert upstream.mj_task(task_id)["buttons"] == buttons


@pytest.mark.parametrize("path", ["/mj", "/mj-fast/mj", "/mj-relax/mj", "/mj-turbo/mj"])
def test_midjourney_has_a_path_for_each_speed(upstream: Upstream, path: str) -> None:
    submitted = upstream.imagine(path=path).json
    assert upstream.mj_task(submitted["result"], path)["id"] == submitted["result"]
    assert submitted["properties"] == {
        "discordInstanceId": upstream.mj_task(submitted["result"])["properties"]["discordInstanceId"]
    }


@pytest.mark.parametrize(
    ("body", "description"),
    [
        ({"botType": "MID_JOURNEY"}, "prompt_is_required"),
        ({"botType": "MID_JOURNEY", "prompt": " "}, "prompt_is_required"),
        ({"prompt": "a cat"}, "bind_request_body_failed"),
        ({"botType": "DALL_E", "prompt": "a cat"}, "bind_request_body_failed"),
        ({"botType": "MID_JOURNEY", "prompt": "a cat", "n": 1}, "bind_request_body_failed"),
        ({"botType": "MID_JOURNEY", "prompt": "a cat", "bot_type": "MID_JOURNEY"}, "bind_request_body_failed"),
        ({"botType": "MID_JOURNEY", "prompt": "a cat", "base64Array": ["aGk="]}, "bind_request_body_failed"),
        ({"botType": "MID_JOURNEY", "prompt": "a cat", "state": "x" * 256}, "bind_request_body_failed"),
        (["a cat"], "bind_request_body_failed"),
    ],
)
def test_midjourney_refuses_what_is_not_documented(upstream: Upstream, body: object, description: str) -> None:
    answer = upstream.send("POST", "/mj/submit/imagine", json.dumps(body).encode())
    assert (answer.status, answer.json["code"], answer.json["type"]) == (400, 4, "upstream_error")
    assert answer.json["description"].split()[0] == description
    assert (upstream.stand_in.calls, upstream.stand_in.charged) == ([], [])


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat --ar 0:1",
        "a cat --ar 1.5:1",
        "a cat --ar16:9",
        "a cat --ar 1:1 --aspect 1:1",
        "a cat --seed 4294967296",
        "a cat --seed",
        "a cat --no",
        "a cat --no dogs --no birds",
        "a cat --tile 1",
        "a cat --colour red",
        "a cat —dog",
        "a cat --",
        "--v 7 a cat",
    ],
)
def test_midjourney_fails_with_a_wrong_flag(upstream: Upstream, prompt: str) -> None:
    task_id = upstream.imagine(prompt).json["result"]
    upstream.pass_by(10)
    task = upstream.mj_task(task_id)
    assert (task["status"], task["imageUrl"]) == ("FAILURE", "")
    assert task["failReason"].startswith("Invalid parameter")


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        ("", (1024, 1024)),
        ("--ar 16:9 --v 6.1 --seed 4294967295 --no dogs, birds --style raw", (1024, 576)),
        ("--aspect 9:16 --niji 6 --iw .5 --s 1000 --c 100 --q .25 --w 3000", (576, 1024)),
        ("—ar 32:18 —tile --raw --profile", (1024, 576)),
        ("--ar 4096:1", (1024, 2)),
    ],
)
def test_midjourney_paints_the_shape_that_was_asked_for(upstream: Upstream, flags: str, size: tuple[int, int]) -> None:
    task_id = upstream.imagine(f"a well-made cat — alone {flags}").json["result"]
    upstream.pass_by(10)
    task = upstream.mj_task(task_id)
    assert task["status"] == "SUCCESS", task["failReason"]
    assert upstream.image(task["imageUrl"]).size == size
    assert upstream.stand_in.calls[0]["prompt"] == "a well-made cat — alone"


def test_midjourney_repeats_a_picture_only_with_the_same_text_and_seed(upstream: Upstream) -> None:
    pictures = []
    for bot in ("MID_JOURNEY", "NIJI_JOURNEY"):
        for flags in ("--seed 1", "--seed 2", "--style raw", "--no dogs"):
            task_id = upstream.imagine(f"a cat {flags}", botType=bot).json["result"]
            upstream.pass_by(10)
            pictures.append(upstream.image(upstream.mj_task(task_id)["imageUrl"]).tobytes())
    assert [pictures.index(picture) for picture in pictures] == [0, 1, 2, 3, 0, 1, 6, 7]


def test_the_queue_of_midjourney_begins_a_task_when_an_earlier_one_ends(upstream: Upstream) -> None:
    upstream.stand_in.midjourney.running, upstream.stand_in.midjourney.queued = 2, 3
    submitted = []
    for at in range(6):
        submitted.append(upstream.imagine(f"cat {at}").json)
        upstream.pass_by(1)
    assert [answer["code"] for answer in submitted] == [1, 1, 22, 22, 22, 23]
    assert [answer["properties"].get("numberOfQueues") for answer in submitted] == [None, None, 1, 2, 3, None]
    waiting = upstream.mj_task(submitted[2]["result"])
    assert (waiting["status"], waiting["progress"], waiting["startTime"]) == ("NOT_START", "0%", 0)
    assert upstream.send("GET", f"/mj/task/{submitted[5]['result']}/fetch").status == 400

    upstream.pass_by(94)  # nobody looks meanwhile

    found = [upstream.mj_task(answer["result"]) for answer in submitted[:5]]
    times = [((task["startTime"] - START) / 1000, (task["finishTime"] - START) / 1000) for task in found]
    assert times == [(0, 10), (1, 11), (10, 20), (11, 21), (20, 30)]
    assert upstream.stand_in.midjourney.refused == 1
    assert [call["prompt"] for call in upstream.stand_in.calls] == [f"cat {at}" for at in range(5)]
    assert len(upstream.stand_in.charged) == 5


def test_midjourney_finds_the_task_with_the_same_text(upstream: Upstream) -> None:
    first = upstream.imagine("a cat --seed 1").json
    same = upstream.imagine(" a cat --seed 1 ").json
    others = [upstream.imagine("a cat --seed 2").json, upstream.imagine("a cat --seed 1", botType="NIJI_JOURNEY").json]
    upstream.pass_by(10)
    ended = upstream.imagine("a cat --seed 1").json

    instance = first["properties"]
    assert (same["code"], same["result"]) == (ended["code"], ended["result"]) == (21, first["result"])
    assert same["properties"] == instance | {"status": "SUBMITTED"}
    url = upstream.mj_task(first["result"])["imageUrl"]
    assert ended["properties"] == instance | {"status": "SUCCESS", "imageUrl": url}
    assert {other["result"] for other in others}.isdisjoint({first["result"]})
    assert [charge.task_id for charge in upstream.stand_in.charged].count(first["result"]) == 3


def test_midjourney_draws_a_text_again_that_failed(upstream: Upstream) -> None:
    upstream.stand_in.fates["a cat"].extend([midjourney.banned_prompt(), midjourney.CANCELLED, tasks.FORGOTTEN])
    ids = []
    for _ in range(4):
        ids.append(upstream.imagine().json["result"])
        upstream.pass_by(10)
    assert len(set(ids)) == 4
    assert upstream.imagine().json["result"] == ids[3]


def test_midjourney_rewrites_codes_as_new_api(upstream: Upstream) -> None:
    upstream.stand_in.midjourney.rewrites_codes = True
    upstream.stand_in.midjourney.running = 1
    first, queued, same = upstream.imagine().json, upstream.imagine("a dog").json, upstream.imagine().json

    assert [answer["code"] for answer in (first, queued, same)] == [1, 1, 1]
    assert "numberOfQueues" in queued["properties"]
    assert same["result"] == first["result"]


def test_midjourney_answers_as_some_resellers_do(upstream: Upstream) -> None:
    upstream.will(upstream.stand_in.changed(midjourney.numeric_result))
    upstream.stand_in.poll_script.append(upstream.stand_in.changed(midjourney.without_status))

    result = upstream.imagine().json["result"]
    upstream.pass_by(5)
    unseen, seen = upstream.mj_task(result), upstream.mj_task(result)

    assert isinstance(result, int)
    assert [(task["status"], task["progress"]) for task in (unseen, seen)] == [("", "0%"), ("IN_PROGRESS", "50%")]


def test_midjourney_answers_polls_as_new_api_or_as_the_proxy(upstream: Upstream) -> None:
    upstream.stand_in.fates["a cat"].append(tasks.failing("no"))
    task_id = upstream.imagine().json["result"]
    upstream.pass_by(10)

    unknown = upstream.send("GET", "/mj/task/1/fetch")
    assert unknown.json == {"description": "task_no_found ", "type": "upstream_error", "code": 4}
    assert (unknown.status, upstream.mj_task(task_id)["progress"]) == (400, "100%")

    upstream.stand_in.midjourney.is_bare = True
    unknown = upstream.send("GET", "/mj/task/1/fetch")
    assert (unknown.status, unknown.content, upstream.mj_task(task_id)["progress"]) == (200, b"", "")


@pytest.mark.parametrize(
    ("script", "status", "code", "properties"),
    [
        (midjourney.queue_full(), 200, 23, {"discordInstanceId": "1118138338562560102"}),
        (midjourney.banned_word("gore"), 200, 24, {"promptEn": "gore", "bannedWord": "gore"}),
        (midjourney.saturated(), 429, 30, None),
        (midjourney.no_account(), 200, 3, {}),
        (midjourney.refusing(4, "prompt is too long"), 200, 4, {}),
        (midjourney.refusing_in_gateway("quota_not_enough"), 400, 4, None),
        (midjourney.system_error(), 200, 9, {}),
    ],
)
def test_midjourney_refuses_as_a_test_scripts_it(
    upstream: Upstream, script: Script, status: int, code: int, properties: dict[str, str] | None
) -> None:
    upstream.will(script)
    answer = upstream.imagine()
    assert (answer.status, answer.json["code"], answer.json.get("properties")) == (status, code, properties)
    assert (len(upstream.stand_in.calls), upstream.stand_in.charged) == (1, [])


def test_kling_and_midjourney_note_what_was_sent(upstream: Upstream) -> None:
    assert (kling.PROTOCOL, midjourney.PROTOCOL) == ("kling", "midjourney")
    upstream.kling(n=3, model_name="kling-v2-1")
    upstream.imagine(" a cat --seed 4", path="/mj-fast/mj")

    assert upstream.stand_in.calls == [
        {"prompt": "a cat", "n": 3, "model_name": "kling-v2-1", "model": "kling-v2-1", "protocol": "kling"},
        {
            "botType": "MID_JOURNEY",
            "prompt": "a cat",
            "full_prompt": " a cat --seed 4",
            "mode": "fast",
            "model": "mj_imagine",
            "n": 1,
            "protocol": "midjourney",
        },
    ]


def submit(upstream: Upstream, protocol: str) -> str:
    """Submits a cat. Returns the path of its polls."""
    answer = ask(upstream, protocol).json
    return f"{KLING}/{answer['data']['task_id']}" if protocol == "kling" else f"/mj/task/{answer['result']}/fetch"


def end_of(upstream: Upstream, path: str) -> tuple[str, str, str]:
    """The status of a task, its first URL, and why it failed."""
    task = upstream.send("GET", path).json
    if path.startswith("/mj"):
        return task["status"], task["imageUrl"], task["failReason"]
    images = task["data"].get("task_result", {}).get("images", [{"url": ""}])
    return task["data"]["task_status"], images[0]["url"], task["data"]["task_status_msg"]


task_protocols = pytest.mark.parametrize("protocol", [kling.PROTOCOL, midjourney.PROTOCOL])


@pytest.mark.parametrize("refunds", [True, False])
@pytest.mark.parametrize(
    ("protocol", "fate", "end"),
    [
        ("kling", tasks.failing("no memory"), ("failed", "", "no memory")),
        ("kling", kling.risk_control(), ("failed", "", "Failure to pass the risk control system")),
        ("kling", tasks.NEVER_ENDS, ("processing", "", "")),
        ("kling", tasks.WITHOUT_URL, ("succeed", "", "")),
        ("midjourney", tasks.failing("no memory"), ("FAILURE", "", "no memory")),
        (
            "midjourney",
            midjourney.image_denied(),
            ("FAILURE", "", "Image denied, Request cancelled due to image filters"),
        ),
        ("midjourney", midjourney.CANCELLED, ("CANCEL", "", "")),
        ("midjourney", tasks.WITHOUT_URL, ("SUCCESS", "", "")),
    ],
)
def test_a_task_ends_as_a_test_decides(
    upstream: Upstream, protocol: str, fate: tasks.Fate, end: tuple[str, str, str], refunds: bool
) -> None:
    upstream.stand_in.refunds = refunds
    upstream.stand_in.fates["a cat"].append(fate)
    path = submit(upstream, protocol)
    (charge,) = upstream.stand_in.charged
    assert (charge.protocol, charge.prompt, charge.units, charge.refunded) == (protocol, "a cat", 1, 0)

    upstream.pass_by(1000)

    assert end_of(upstream, path) == end
    (charge,) = upstream.stand_in.charged
    assert charge.refunded == (1 if refunds and fate.status == "failed" else 0)
    if end[0] == "failed":
        assert upstream.send("GET", path).json["data"]["final_unit_deduction"] == str(1 - charge.refunded)


def test_a_task_of_midjourney_that_never_ends_shows_progress(upstream: Upstream) -> None:
    upstream.stand_in.fates["a cat"].append(tasks.NEVER_ENDS)
    path = submit(upstream, "midjourney")
    upstream.pass_by(1000)
    task = upstream.send("GET", path).json
    assert (task["status"], task["progress"], task["finishTime"]) == ("IN_PROGRESS", "99%", 0)


@task_protocols
def test_a_forgotten_task_is_paid_and_unknown(upstream: Upstream, protocol: str) -> None:
    upstream.stand_in.fates["a cat"].append(tasks.FORGOTTEN)
    assert upstream.send("GET", submit(upstream, protocol)).json["code"] in (1203, 4)
    assert [charge.units for charge in upstream.stand_in.charged] == [1]


@task_protocols
def test_a_task_is_paid_even_if_the_answer_is_lost(upstream: Upstream, protocol: str) -> None:
    def lose(_: Reply) -> Reply:
        raise HungUpError

    upstream.will(upstream.stand_in.changed(lose))
    with pytest.raises(urllib3.exceptions.HTTPError):
        ask(upstream, protocol)
    assert [charge.prompt for charge in upstream.stand_in.charged] == ["a cat"]
    assert [call["prompt"] for call in upstream.stand_in.calls] == ["a cat"]


@task_protocols
def test_polls_are_noted_and_scripted_by_prompt(upstream: Upstream, protocol: str) -> None:
    path = submit(upstream, protocol)
    stand_in = upstream.stand_in
    other = kling.another_task() if protocol == "kling" else midjourney.another_task()
    stand_in.poll_script.extend([tasks.unavailable(), tasks.cut_off_json()])
    stand_in.polls_by_prompt["a cat"].extend([tasks.html_page(), tasks.too_many_requests(7), other, lambda _: None])

    html, busy, another, usual, down, cut_off = (upstream.send("GET", path) for _ in range(6))

    assert [answer.status for answer in (html, busy, another, usual, down, cut_off)] == [200, 429, 200, 200, 503, 200]
    assert html.headers["content-type"] == "text/html"
    assert busy.headers["retry-after"] == "7"
    another_id, usual_id = (each.json.get("id") or each.json["data"]["task_id"] for each in (another, usual))
    assert another_id != usual_id
    assert usual_id in path
    with pytest.raises(ValueError, match="Unterminated"):
        _ = cut_off.json
    assert upstream.send("GET", path, Authorization="Bearer sk-other").status == 401
    assert [poll.target for poll in stand_in.polls] == [path] * 6


@task_protocols
def test_downloads_of_a_task_are_scripted_by_prompt(upstream: Upstream, protocol: str) -> None:
    path = submit(upstream, protocol)
    upstream.pass_by(10)
    upstream.stand_in.downloads_by_prompt["a cat"].append(lambda _: Reply(503))
    _, url, _ = end_of(upstream, path)
    assert [upstream.send("GET", url.removeprefix(upstream.origin)).status for _ in range(2)] == [503, 200]
    assert end_of(upstream, path)[1] == url
