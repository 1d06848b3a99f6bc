"""An answer of Midjourney's proxies says how its task is, and gives its grid with what can be done with it."""

import json
from base64 import b64encode
from typing import Any

import pytest

from imagegen.domain import errors
from imagegen.domain.images import ImageAction
from imagegen.providers.midjourney.answers import images_of, is_nothing, no_such_task, read_submitted, read_task

URL = "https://cdn.example/x.png"
PNG = b"\x89PNG and more"
JOB = "00000000-0000-4000-8000-000000000000"
NAMES = [f"{kind}_{index}" for kind in ("upscale", "variation") for index in range(1, 5)] + ["reroll"]
ODD: list[object] = [None, True, 1.0, [], {}]
WHOLE: dict[str, Any] = {
    "id": "1",
    "status": "SUCCESS",
    "imageUrl": URL,
    "buttons": [],
    "properties": {"finalPrompt": "a cat --ar 1:1", "discordInstanceId": "11"},
}


def images(seed: int | None = 7, **fields: Any) -> Any:
    task = read_task(json.dumps(WHOLE | fields).encode(), "1")
    assert task
    return images_of(task, seed, is_grid=True)


def button(custom_id: object, label: object = "", emoji: object = "") -> dict[str, object]:
    return {"customId": custom_id, "label": label, "emoji": emoji, "type": 2, "style": 2}


def actions(*buttons: object) -> tuple[ImageAction, ...]:
    (grid,) = images(buttons=list(buttons)).images
    assert isinstance(grid.actions, tuple)
    return grid.actions


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ({"code": 1, "description": "Submit success", "result": "17"}, (1, "Submit success", "17")),
        ({"code": 21, "result": 17, "properties": {}}, (21, "", "17")),
        ({"code": 24, "description": None, "result": None}, (24, "", None)),
        *(({"code": odd, "description": odd}, (None, "", None)) for odd in ODD),
        ({"code": "1", "result": "17"}, (None, "", "17")),
        ([{"code": 1}], (None, "", None)),
        (7, (None, "", None)),
    ],
    ids=str,
)
def test_an_answer_to_a_submit_has_a_code_and_an_id(answer: object, read: tuple[object, ...]) -> None:
    assert read_submitted(json.dumps(answer).encode()) == read


@pytest.mark.parametrize(
    ("known", "is_the_task"),
    [("1", True), (1, True), ("2", False), ("01", False), *((odd, False) for odd in ODD)],
)
def test_only_an_answer_with_its_id_is_about_a_task(known: object, is_the_task: bool) -> None:
    assert (read_task(json.dumps(WHOLE | {"id": known}).encode(), "1") is not None) is is_the_task


@pytest.mark.parametrize(
    ("status", "body", "unknown"),
    [
        *((status, {"code": 4, "description": "task_no_found "}, True) for status in (200, 400, 404)),
        *((400, {"code": 4, "description": said}, True) for said in ("task_not_found x", "Task not exist")),
        (200, b"", True),
        (200, b" \r\n", True),
        *((status, b"", False) for status in (204, 400, 401, 404, 429, 503)),
        (400, {"code": 4, "description": "bind_request_body_failed"}, False),
        (404, {"description": "task_no_found"}, False),
        (200, b"null", False),
        (200, b"{}", False),
    ],
)
def test_an_unknown_task_is_named_as_such_or_the_answer_is_empty(status: int, body: object, unknown: bool) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert (no_such_task(content) or is_nothing(status, content)) is unknown


# The grid


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        *(({"imageUrl": url}, errors.UpstreamAnswerInvalidError) for url in ("", None, 7, [URL], "data:,")),
        *(({"imageUrl": f"https://x/{path}"}, errors.ImageUrlRefusedError) for path in ("é", "a b", "a" * 9_000)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_grid_without_a_usable_url_is_a_failure(fields: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        images(**fields)


def test_a_data_url_is_a_grid() -> None:
    (grid,) = images(imageUrl=f"data:image/png;base64,{b64encode(PNG).decode()}").images
    assert grid.source == PNG


@pytest.mark.parametrize(
    ("properties", "prompt", "account"),
    [
        ({"finalPrompt": "a cat", "discordInstanceId": "11"}, "a cat", "11"),
        ({"finalPrompt": "a\x01cat", "discordInstanceId": "x" * 99}, "a cat", ""),
        ({"finalPrompt": 7, "discordInstanceId": 7}, None, ""),
        *((odd, None, "") for odd in ODD),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_the_upstream_says_of_a_grid_is_kept(properties: object, prompt: str | None, account: str) -> None:
    answer = images(properties=properties)
    (grid,) = answer.images
    assert (grid.source, grid.revised_prompt, answer.account) == (URL, prompt, account)


@pytest.mark.parametrize(("seed", "details"), [(0, {"seed": 0}), (7, {"seed": 7}), (None, {})])
def test_the_seed_is_a_detail_unless_the_prompt_has_it(seed: int | None, details: dict[str, int]) -> None:
    assert images(seed).images[0].details == details


# What can be done with it


def test_each_known_button_is_an_action_with_what_it_says() -> None:
    up, vary, again = (f"MJ::JOB::{kind}::{JOB}" for kind in ("upsample::2", "variation::4", "reroll::0"))
    assert actions(button(up, "U2"), button(vary, "V4"), button(f"{again}::SOLO", "", "🔄")) == (
        ImageAction("upscale_2", "U2", up),
        ImageAction("variation_4", "V4", vary),
        ImageAction("reroll", "🔄", f"{again}::SOLO"),
    )


@pytest.mark.parametrize(
    "unknown",
    [
        *(None, 7, "U1", [], {}, button(None), button(7), button("")),
        *(button(f"MJ::{rest}::{JOB}") for rest in ("Inpaint::1", "JOB::pan_left::1", "JOB::upsample::5")),
        *(button(f"MJ::JOB::upsample::1::{rest}") for rest in ("", "é", "a b", "a\n", "x" * 101)),
    ],
    ids=ascii,
)
def test_a_button_whose_meaning_is_not_known_is_left_out(unknown: object) -> None:
    known = button(f"MJ::JOB::upsample::1::{JOB}", "U1")
    assert [action.name for action in actions(unknown, known)] == ["upscale_1"]
    assert [(action.name, action.button) for action in actions(unknown)] == [(name, "") for name in NAMES]


@pytest.mark.parametrize("buttons", [None, [], {}, "U1", 7, [None]])
def test_without_known_buttons_a_grid_has_the_actions_that_every_proxy_knows(buttons: object) -> None:
    assert images(buttons=buttons).images[0].actions == tuple(ImageAction(name) for name in NAMES)


@pytest.mark.parametrize(("label", "kept"), [("U" * 98, "U" * 98), ("U" * 99, ""), ("a\nb", ""), (7, ""), (None, "")])
def test_an_odd_label_is_left_out(label: object, kept: str) -> None:
    assert actions(button(f"MJ::JOB::upsample::1::{JOB}", label))[0].label == kept


def test_only_so_many_buttons_are_read() -> None:
    known = button(f"MJ::JOB::upsample::1::{JOB}")
    assert len(actions(*[known] * 26)) == 25
    assert actions(*[None] * 25, known) == tuple(ImageAction(name) for name in NAMES)
