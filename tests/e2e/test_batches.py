"""Files and batches over HTTP: OpenAI's clients unchanged, large files, retries, deaths, and the end of the window."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import urllib3

from tests.conftest import ROOT
from tests.support.client import Client
from tests.support.pictures import BLUE, RED, opened, picture, shown_in
from tests.support.programs import OTTER, are_pictures, bash, blocks, by_node_in, needs, run
from tests.support.waiting import until
from tests.support.world import Gate, World, batch_line, edit_line

PAGE = (ROOT / "docs/batches.md").read_text()
PUBLISHED = (ROOT / "tests/clients/batches.md").read_text()
WINDOW_SECONDS = 4  # of the staged world
BATCH_CONCURRENCY = 5  # the default of the template


def begun(caller: Client, line: str) -> str:
    """Begins a batch with one line. Returns its id."""
    return str(caller.create_batch(caller.give(line.encode())).json["id"])


def lines_in(caller: Client, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return [json.loads(line) for line in caller.content_of(file_id).splitlines()]


def content_of(caller: Client, file_id: str) -> bytes:
    answer = caller.get(f"/files/{file_id}/content")
    if answer.status == 302:
        return bytes(urllib3.request("GET", answer.headers["location"], retries=False).data)
    assert answer.status == 200
    return answer.content


# The clients.


@pytest.fixture
def input_files(caller: Client, prompt: str, tmp_path: Path) -> Path:
    """The folder with the files that the published programs read. One line of each of the first two is refused."""
    image = caller.give(picture(RED), "vision")
    lines = [batch_line(f"line-{number}", f"{prompt} {number}") for number in range(3)]
    (tmp_path / "generations.jsonl").write_text("\n".join([*lines, batch_line("bad", "x", model="none")]))
    edits = [edit_line("hat", f"{prompt} hat", image), edit_line("bad", "x", "file-x")]
    (tmp_path / "edits.jsonl").write_text("\n".join(edits))
    (tmp_path / "long.jsonl").write_text("\n".join(batch_line(str(number), "long") for number in range(200)))
    return tmp_path


@pytest.mark.parametrize("language", ["python", "js"])
def test_openais_published_batches_need_only_another_address_and_key(
    world: World, caller: Client, input_files: Path, prompt: str, language: str
) -> None:
    (text,) = blocks(PUBLISHED, language)
    text = text.replace("time.sleep(1)", "time.sleep(0.2)").replace("resolve, 1000", "resolve, 200")
    environment = {"OPENAI_BASE_URL": caller.base_url, "OPENAI_API_KEY": caller.key}
    if language == "js":
        said = by_node_in(input_files, text, environment)
    else:
        said = run([sys.executable, "-c", text], environment, input_files)
    first, refused, second, wrong, cancelled, counted = [line for line in said.splitlines() if line]
    assert first == "completed 3 1 nightly images"
    assert json.loads(refused)["response"]["body"]["error"]["code"] == "model_not_found"
    assert second == "completed 1 1 nightly images"
    assert json.loads(wrong)["response"]["body"]["error"]["param"] == "images[0]"
    assert cancelled == "cancelled 200"
    # The image, two inputs with their output and errors, and the errors of the cancelled one, perhaps with output.
    assert counted in ("3 8", "3 9")

    output = [json.loads(line) for line in (input_files / "generations.jsonl.output").read_text().splitlines()]
    assert [line["custom_id"] for line in output] == ["line-0", "line-1", "line-2"]
    are_pictures(*(image["permalink"] for line in output for image in line["response"]["body"]["data"]))
    (edited,) = [json.loads(line) for line in (input_files / "edits.jsonl.output").read_text().splitlines()]
    link = edited["response"]["body"]["data"][0]["permalink"]
    assert shown_in(opened(urllib3.request("GET", link).data), 1) == [RED]


def program(caller: Client, number: int, prompt: str) -> str:
    text = blocks(PAGE)[number].replace(OTTER, prompt).replace("http://127.0.0.1:8000/v1", caller.base_url)
    return re.sub(r"sleep\(5\)", "sleep(0.2)", text).replace("resolve, 5000", "resolve, 200")


def test_the_programs_of_the_page_make_their_images(world: World, caller: Client, prompt: str, tmp_path: Path) -> None:
    environment = {"KEY": caller.key}
    said = run([sys.executable, "-c", program(caller, 0, prompt)], environment, tmp_path)
    assert [line.rpartition(" ")[0] for line in said.splitlines()] == ["at dawn", "at noon"]
    are_pictures(*(line.rpartition(" ")[2] for line in said.splitlines()))

    needs("bash", "curl", "grep", "cut")
    (tmp_path / "otters.jsonl").write_text(batch_line("uploaded", f"{prompt} uploaded"))
    batch = json.loads(bash(program(caller, 2, prompt), environment, tmp_path))
    assert batch["status"] == "validating"
    assert caller.until_ended_batch(batch["id"])["request_counts"] == {"total": 1, "completed": 1, "failed": 0}


def test_the_program_of_the_page_for_node_makes_its_images(caller: Client, prompt: str, tmp_path: Path) -> None:
    (tmp_path / "otters.jsonl").write_text(batch_line("one", f"{prompt} one"))
    said = by_node_in(tmp_path, program(caller, 1, prompt), {"KEY": caller.key})
    (line,) = said.splitlines()
    assert line.startswith("one ")
    are_pictures(line.partition(" ")[2])


# Files.


def test_a_form_that_does_not_fit_names_the_way_for_large_files(caller: Client) -> None:
    refused = caller.form("/files", ("purpose", "batch"), ("file", b"x" * 5_000_000))
    assert refused.failed == (413, "request_too_large")
    assert "/v1/files/uploads" in refused.error["message"]


def test_a_large_upload_counts_as_a_file_once_it_is_there(caller: Client) -> None:
    """Its content is larger than an answer, so it is redirected to."""
    content = b"\n" * 6_000_000
    asked = {"purpose": "batch", "filename": "large.jsonl", "bytes": len(content)}
    upload = caller.ask("POST", "/files/uploads", asked).json
    path = f"/files/{upload['id']}"
    assert caller.get(path).failed == (404, "file_not_found")
    assert caller.create_batch(upload["id"]).error["param"] == "input_file_id"
    assert caller.get("/files").json["data"] == []
    for body, status in ((content + b"x", 403), (content, 200), (content, 412)):
        sent = urllib3.request(upload["method"], upload["url"], body=body, headers=upload["headers"])
        assert sent.status == status
    (listed,) = caller.get("/files?purpose=batch").json["data"]
    assert listed == caller.get(path).json
    assert (listed["bytes"], listed["filename"]) == (len(content), "large.jsonl")
    answer = caller.get(f"{path}/content")
    assert (answer.status, answer.headers["cache-control"]) == (302, "no-store")
    assert caller.content_of(upload["id"]) == content
    batch = caller.until_ended_batch(caller.create_batch(upload["id"]).json["id"])
    assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "empty_file")


def test_content_is_answered_as_it_came(caller: Client) -> None:
    for content, purpose, status in (("ü\n".encode(), "batch", 200), (picture(BLUE), "vision", 302)):
        file_id = caller.give(content, purpose)
        answer = caller.get(f"/files/{file_id}/content")
        assert answer.status == status
        assert caller.content_of(file_id) == content
    text = caller.get(f"/files/{caller.give(b'<script>')}/content")
    assert text.headers["content-type"] == "application/octet-stream"
    assert text.headers["content-disposition"].startswith("attachment")


def test_a_caller_sees_and_uses_only_its_own_files_and_batches(world: World, caller: Client) -> None:
    other = world.caller()
    file_id = caller.give(batch_line("a", "x", model="none").encode())
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert other.ask(method, f"/files/{file_id}{path}").failed == (404, "file_not_found")
    assert other.create_batch(file_id).failed == (404, "file_not_found")
    image = caller.give(picture(RED), "vision")
    edit = {"model": "gpt-image-1.5", "prompt": "x", "images": [{"file_id": image}]}
    assert other.ask("POST", "/images/edits", edit).failed == (400, "invalid_image")
    assert (other.get("/files").json["data"], other.get("/batches").json["data"]) == ([], [])
    batch_id = caller.create_batch(file_id).json["id"]
    output = caller.until_ended_batch(batch_id)["error_file_id"]
    for path in (f"/batches/{batch_id}", f"/files/{output}", f"/files/{output}/content"):
        assert other.get(path).status == 404
        assert caller.get(path).status == 200


def test_a_deleted_file_is_gone(world: World, caller: Client) -> None:
    file_id = caller.give(b"x")
    assert caller.ask("DELETE", f"/files/{file_id}").json == {"id": file_id, "object": "file", "deleted": True}
    for path in ("", "/content"):
        assert caller.get(f"/files/{file_id}{path}").failed == (404, "file_not_found")
    stored = world.aws("s3").list_objects_v2(Bucket=world.stack.bucket, Prefix="files/").get("Contents", [])
    assert not any(each["Key"].endswith(file_id) for each in stored)


def test_the_files_of_the_inbox_are_files_of_their_caller(world: World, caller: Client, prompt: str) -> None:
    """A later file of the same name has other ids, and each keeps its own content."""
    key = world.drop(batch_line("one", f"{prompt} one"), caller.name)
    first = caller.until_batch_ended(key)
    world.aws("s3").put_object(Bucket=world.stack.inbox, Key=key, Body=batch_line("two", f"{prompt} two").encode())
    until(lambda: [each["status"] for each in caller.batches()] == ["completed"] * 2, what="the second batch")
    second = caller.batches()[0]
    for batch, name in ((first, "one"), (second, "two")):
        assert json.loads(caller.content_of(batch["input_file_id"]))["custom_id"] == name
        assert [line["custom_id"] for line in lines_in(caller, batch["output_file_id"])] == [name]
    assert caller.ask("DELETE", f"/files/{first['output_file_id']}").status == 200
    assert caller.get(f"/files/{first['output_file_id']}/content").status == 404
    assert len(lines_in(caller, second["output_file_id"])) == 1


# Batches.


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("count", "kills"), [pytest.param(40, 1, id="short"), pytest.param(50_000, 3, id="long", marks=pytest.mark.soak)]
)
def test_each_line_of_a_batch_is_made_once_although_its_reader_is_killed_and_its_client_repeats_itself(
    world: World, caller: Client, prompt: str, count: int, kills: int
) -> None:
    lines = [batch_line(f"line-{number}", f"{prompt} {number}") for number in range(count)]
    content = "\n".join(lines).encode()
    asked = {"purpose": "batch", "filename": "lines.jsonl", "bytes": len(content)}
    upload = caller.ask("POST", "/files/uploads", asked).json
    urllib3.request("PUT", upload["url"], body=content, headers=upload["headers"])
    begun = caller.create_batch(upload["id"], x_stainless_retry_count="0").json["id"]

    def asked_for() -> int:
        return sum(call["prompt"].startswith(prompt) for call in list(world.upstream.calls))

    for kill in range(kills):
        until(lambda share=kill / kills: asked_for() > share * count, 7200, what="progress")  # type: ignore[misc]
        world.kill("IntakeFunction")
        assert caller.create_batch(upload["id"], x_stainless_retry_count=str(kill + 1)).json["id"] == begun
        world.send("IntakeQueue", {"version": 1, "batch_id": begun})
    batch = caller.until_ended_batch(begun, 120 if kills == 1 else 14_400)
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": count, "completed": count, "failed": 0}
    output = lines_in(caller, batch["output_file_id"])
    assert [line["custom_id"] for line in output] == [f"line-{number}" for number in range(count)]
    assert len({line["response"]["body"]["id"] for line in output}) == count
    repeated = sum(
        caller.see(line["response"]["request_id"]).json["repeated_calls"] for line in output if asked_for() > count
    )
    assert count <= asked_for() <= count + repeated


def test_a_batch_is_followed_by_its_events(world: World, caller: Client, prompt: str) -> None:
    assert world.bus.events(client=caller.name) == []
    batch_id = begun(caller, batch_line("one", f"{prompt} one"))
    assert world.bus.first(batch_id=batch_id)["detail"]["custom_id"] == "one"
    assert (
        world.bus.first(id=batch_id)["detail"]["output_file_id"] == caller.until_ended_batch(batch_id)["output_file_id"]
    )
    failed = begun(caller, "{")
    assert world.bus.first(id=failed)["detail"]["errors"]["data"][0]["code"] == "invalid_json_line"


@pytest.mark.thorough
def test_lines_that_do_not_begin_within_the_window_expire(staged_world: World, prompt: str) -> None:
    """The worker has as many lines as it may, and these are held until the others have expired."""
    caller = staged_world.caller()
    names = list("01234567")
    gates: list[Gate] = [staged_world.hold(f"{prompt} {name}") for name in names]
    file = "\n".join(batch_line(name, f"{prompt} {name}") for name in names)
    created = caller.create_batch(caller.give(file.encode())).json
    assert created["expires_at"] == created["created_at"] + WINDOW_SECONDS

    def expired() -> int:
        """How many lines have expired, once all others have begun."""
        failed = int(caller.get(f"/batches/{created['id']}").json["request_counts"]["failed"])
        return failed if failed + sum(gate.is_reached for gate in gates) == len(names) else 0

    count = until(expired, what="the expiry of all lines that have not begun")
    assert count >= len(names) - BATCH_CONCURRENCY
    for gate in gates:
        gate.open()
    batch = caller.until_ended_batch(created["id"])
    assert batch["status"] == "expired"
    assert batch["request_counts"] == {"total": len(names), "completed": len(names) - count, "failed": count}
    output, errors = (lines_in(caller, batch[f"{kind}_file_id"]) for kind in ("output", "error"))
    assert sorted(line["custom_id"] for line in output + errors) == names
    assert [line["error"]["code"] for line in errors] == ["batch_expired"] * count
    assert not any(staged_world.calls(f"{prompt} {line['custom_id']}") for line in errors)
