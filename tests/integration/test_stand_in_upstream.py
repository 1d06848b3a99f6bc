"""The protocols of the stand-in upstream other than OpenAI's, over HTTP."""

import io
import json
import re
import time
from base64 import b64decode
from collections.abc import Iterator
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
from local.serving import Reply, serving
from local.upstream import Script, StandInUpstream
from tests.support.client import Answer

KEY = "sk-test"
FLASH_2, FLASH, PRO = "gemini-2.0-flash-exp-image-generation", "gemini-2.5-flash-image", "gemini-3-pro-image"
CHAT, IDEOGRAM = "/v1/chat/completions", "/ideogram/v1/ideogram-v3/generate"
KLING = "/kling/v1/images/generations"
Fields = dict[str, Any] | list[tuple[str, Any]]


@dataclass
class Upstream:
    stand_in: StandInUpstream
    origin: str
    seconds: float = 1_700_000_000.0

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
def upstream() -> Iterator[Upstream]:
    stand_in = StandInUpstream(KEY)
    with serving(stand_in.respond) as port:
        upstream = Upstream(stand_in, f"http://127.0.0.1:{port}")
        stand_in.now, stand_in.task_seconds = lambda: upstream.seconds, 10.0
        yield upstream


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
    body = json.dumps({"model": FLASH, **messages(prompt)}).encode()
    return upstream.send("POST", CHAT, body, **{"Content_Type": "application/json"} | headers)


both = pytest.mark.parametrize("protocol", [gemini_chat.PROTOCOL, ideogram.PROTOCOL])


@both
def test_only_calls_with_the_key_are_noted(upstream: Upstream, protocol: str) -> None:
    assert one_api_error(ask(upstream, protocol, Authorization="Bearer sk-other")) == (401, None)
    assert ask(upstream, protocol, User_Agent="Python-urllib/3.13").status == 403
    assert upstream.stand_in.calls == []


@both
def test_a_script_for_a_prompt_goes_first(upstream: Upstream, protocol: str) -> None:
    upstream.will(lambda _: Reply(500))
    upstream.stand_in.by_prompt["a dog"].append(lambda _: Reply(502))
    assert [ask(upstream, protocol, prompt).status for prompt in ("a dog", "a dog", "a dog")] == [502, 500, 200]


@both
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

    start = 1_700_000_000_000
    assert (submitted["task_status"], statuses) == ("submitted", ["submitted", "processing", "succeed"])
    assert ended["task_id"] == submitted["task_id"]
    assert ended["task_info"] == submitted["task_info"] == {"external_task_id": "mine"}
    assert (ended["created_at"], ended["updated_at"], ended["final_unit_deduction"]) == (start, start + 10_000, "2")
    images = ended["task_result"]["images"]
    assert [image["index"] for image in images] == [0, 1]
    pictures = [upstream.image(image["url"]) for image in images]
    assert {picture.width / picture.height for picture in pictures} == {1.5}
    assert pictures[0].tobytes() != pictures[1].tobytes()


def test_a_task_of_midjourney_becomes_a_grid(upstream: Upstream) -> None:
    submitted = upstream.imagine("a cat --ar 16:9", state="mine").json
    seen = []
    for _ in range(5):
        task = upstream.mj_task(submitted["result"])
        seen.append((task["status"], task["progress"], task["startTime"], task["finishTime"]))
        upstream.pass_by(2.5)

    start = 1_700_000_000_000
    assert submitted["code"] == 1
    assert submitted["result"].isdecimal()
    assert seen == [
        ("SUBMITTED", "0%", start, 0),
        ("IN_PROGRESS", "25%", start, 0),
        ("IN_PROGRESS", "50%", start, 0),
        ("IN_PROGRESS", "75%", start, 0),
        ("SUCCESS", "100%", start, start + 10_000),
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
