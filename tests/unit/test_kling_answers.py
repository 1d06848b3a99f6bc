"""An answer of Kling says how its task is, in whichever envelope, and gives exactly the images that were asked for."""

import json
from base64 import b64encode
from typing import Any

import pytest

from imagegen.domain import errors
from imagegen.domain.images import UpstreamImage, UpstreamImages
from imagegen.providers.kling.answers import Task, images_of, no_such_task, read_code, read_task, refusal_of_code

URL = "https://cdn.klingai.com/x.png"
PNG = b"\x89PNG and more"
ODD: list[object] = [None, True, 1.0, [], {}]
INVALID, TOO_FEW = errors.UpstreamAnswerInvalidError, errors.UpstreamTooFewImagesError


def image(index: object, url: object = None) -> dict[str, object]:
    return {"index": index, "url": f"{URL}?{index}" if url is None else url}


def succeeded(*images: object, **more: object) -> dict[str, Any]:
    return {"task_id": "t1", "task_status": "succeed", "task_result": {"images": list(images)}, **more}


def read(answer: object) -> Task:
    task = read_task(answer if isinstance(answer, bytes) else json.dumps(answer).encode())
    assert task
    return task


def sources(*images: object, n: int) -> list[str | bytes | None]:
    return [each.source for each in images_of(read({"code": 0, "data": succeeded(*images)}), n).images]


def failure(*images: object, n: int = 1) -> errors.MoneySpentError:
    with pytest.raises(errors.MoneySpentError) as caught:
        sources(*images, n=n)
    return caught.value


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ({"code": 0, "message": "SUCCEED"}, 0),
        ({"code": "success"}, 0),
        ({"code": 1303, "message": "SUCCEED"}, 1303),
        ({"code": "task_not_exist"}, "task_not_exist"),
        ({"code": "1303"}, "1303"),
        *(({"code": odd}, None) for odd in ODD),
        ({"data": {"code": 0}}, None),
        ([{"code": 0}], None),
    ],
    ids=str,
)
def test_a_code_is_a_number_or_a_word(answer: object, code: int | str | None) -> None:
    assert read_code(json.dumps(answer).encode())[0] == code


TASK = succeeded(image(0))


@pytest.mark.parametrize(
    ("answer", "task_id", "ids"),
    [
        ({"code": 0, "message": "SUCCEED", "request_id": "r", "data": TASK}, "t1", ("t1",)),
        ({"code": "success", "data": {"task_id": "g1", "status": "SUCCESS", "data": TASK}}, "g1", ("g1", "t1")),
        ({"code": "success", "data": {"task_id": "g1", "data": {"code": 0, "data": TASK}}}, "g1", ("g1", "t1")),
        (TASK | {"object": "image", "data": None}, "t1", ("t1",)),
        (TASK | {"task_id": 7}, "7", ("7",)),
        ({"data": {"data": {"data": TASK}}}, "t1", ("t1",)),
    ],
    ids=str,
)
def test_a_task_is_found_in_each_envelope(answer: object, task_id: str, ids: tuple[str, ...]) -> None:
    task = read(answer)
    assert (task.id, task.ids, task.status) == (task_id, frozenset(ids), "success")
    assert images_of(task, 1) == UpstreamImages((UpstreamImage(f"{URL}?0"),))


@pytest.mark.parametrize(
    "answer",
    [{}, [], None, {"code": 0, "data": []}, {"data": [TASK]}, {"task_id": ""}, {"task_id": None}, {"id": "t1"}],
    ids=str,
)
def test_an_answer_without_an_id_has_no_task(answer: object) -> None:
    assert read_task(json.dumps(answer).encode()) is None


@pytest.mark.parametrize(
    ("status", "known"),
    [
        *((word, "success") for word in ("succeed", "SUCCESS", "succeeded", "Completed")),
        *((word, "failure") for word in ("failed", "FAILURE", "error", "canceled", "cancelled")),
        *((word, "") for word in ("submitted", "processing", "NOT_START", "IN_PROGRESS", "", None, 7, "failed?")),
    ],
)
def test_a_status_may_have_other_words(status: object, known: str) -> None:
    assert read({"data": {"task_id": "t1", "task_status": status}}).status == known
    assert read({"data": {"task_id": "t1", "status": status}}).status == known


@pytest.mark.parametrize("outer", ["SUCCESS", "FAILURE", "IN_PROGRESS"])
@pytest.mark.parametrize(("inner", "known"), [("succeed", "success"), ("failed", "failure"), ("processing", "")])
def test_the_status_of_kling_counts_and_not_that_of_the_gateway(outer: str, inner: str, known: str) -> None:
    wrapped = {"task_id": "g1", "status": outer, "data": {"task_id": "t1", "task_status": inner}}
    assert read({"code": "success", "data": wrapped}).status == known


def test_the_outermost_progress_and_reason_count() -> None:
    task = read(
        {
            "data": {
                "task_id": "g1",
                "progress": "50%",
                "fail_reason": "",
                "data": {"task_id": "t1", "progress": "60%", "task_status_msg": "Timeout."},
            }
        }
    )
    assert (task.progress, task.reason) == (50, "Timeout.")


@pytest.mark.parametrize(
    ("task", "reference"),
    [
        ({"task_info": {"external_task_id": "ref"}}, "ref"),
        ({"task_info": {}, "data": {"task_info": {"external_task_id": "ref"}}}, "ref"),
        ({"task_info": []}, None),
        ({"task_info": {"external_task_id": 7}}, None),
        ({"task_info": {"external_task_id": ""}}, None),
        ({"external_task_id": "ref"}, None),
    ],
)
def test_a_task_names_the_reference_that_it_was_begun_with(task: dict[str, object], reference: str | None) -> None:
    assert read({"data": {"task_id": "t1"} | task}).reference == reference


@pytest.mark.parametrize(
    ("units", "refunded"),
    [
        *(((text,), True) for text in ("0", "0.00", " 0 ", "-0")),
        *(((text,), False) for text in ("1", "0.01", "-1", "nan", "inf", "", "none", "0,00")),
        *(((odd,), False) for odd in (*ODD, 0)),
        (("0", "0.0"), True),
        (("0", "1"), False),
        ((None, "0"), True),
    ],
)
def test_a_task_is_refunded_only_if_kling_says_that_it_took_nothing(units: tuple[object, ...], refunded: bool) -> None:
    answer: dict[str, Any] = {"task_id": "t1"}
    for each in units:
        answer = {"task_id": "t1", "final_unit_deduction": each, "data": answer}
    assert read(answer).refunded is refunded


# Images


def test_images_are_in_the_order_of_their_index() -> None:
    assert sources(image(2), image(0), image(1), n=3) == [f"{URL}?{index}" for index in range(3)]
    urls = [f"{URL}?{name}" for name in "abc"]
    for odd in (*ODD, 10**400, "1"):
        assert sources(*(image(odd, url) for url in urls), n=3) == urls  # the order of the answer


def test_a_data_url_is_an_image() -> None:
    assert sources(image(0, f"data:image/png;base64,{b64encode(PNG).decode()}"), n=1) == [PNG]


def test_fewer_images_are_failures_at_the_end_and_more_are_left_out() -> None:
    answer = images_of(read(succeeded(image(0))), 3)
    assert [type(each.failure) for each in answer.images] == [type(None), TOO_FEW, TOO_FEW]
    assert sources(image(0, ""), *(image(index) for index in range(1, 5)), n=3) == [f"{URL}?{at}" for at in (1, 2, 3)]


@pytest.mark.parametrize(
    "unusable", [{}, None, 7, URL, [URL], image(1, ""), image(1, None) | {"url": None}, image(1, 7)]
)
def test_an_unusable_image_loses_no_other(unusable: object) -> None:
    answer = images_of(read(succeeded(image(0), unusable)), 2)
    good, bad = sorted(answer.images, key=lambda each: each.failure is not None)
    assert (good.source, type(bad.failure)) == (f"{URL}?0", INVALID)
    assert type(failure(unusable)) is INVALID


def test_no_image_is_a_failure() -> None:
    assert type(failure()) is TOO_FEW
    assert type(failure(image(0, "https://cdn.klingai.com/é"))) is errors.ImageUrlRefusedError
    for result in (*ODD, {"images": None}, {"images": {}}):
        with pytest.raises(TOO_FEW):
            images_of(read({"task_id": "t1", "task_status": "succeed", "task_result": result}), 1)


def test_only_so_many_entries_are_tried() -> None:
    assert sources(*[{}] * 99, image(0), n=1) == [f"{URL}?0"]
    assert type(failure(*[{}] * 100, image(0))) is INVALID


# Refusals. tests/integration/test_task_protocols.py has each code.


@pytest.mark.parametrize(
    ("status", "answer", "unknown"),
    [
        *((status, {"code": 1203, "message": "?"}, True) for status in (200, 400, 404)),
        *((400, {"code": "?", "message": said}, True) for said in ("Task not found", "task_not_exist", "No such task")),
        (404, {"code": "task_no_found"}, True),
        *((status, {"code": 1203}, False) for status in (401, 403, 429, 500, 503)),
        (200, {"code": 0, "message": "task not found"}, False),
        (404, {"message": "task not found"}, False),
        (404, {"error": {"code": "not_found"}}, False),
        (400, {"code": 1201, "message": "invalid"}, False),
    ],
)
def test_an_unknown_task_is_named_as_such(status: int, answer: object, unknown: bool) -> None:
    assert no_such_task(status, json.dumps(answer).encode()) is unknown


@pytest.mark.parametrize(("code", "param"), [(1301, "prompt"), (1203, "model"), (1201, None), (5000, None)])
def test_a_refusal_names_the_field(code: int, param: str | None) -> None:
    assert refusal_of_code(code, "No.").param == param
