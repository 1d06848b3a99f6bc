"""Requests for files are read and refused, and files belong to their callers."""

import json
from typing import Any

import msgspec
import pytest
import urllib3

from imagegen.domain import errors
from imagegen.domain.files import MOST_FILE_BYTES, File, Purpose, StoredObject, attachment, object_key
from imagegen.domain.inputs import MOST_BYTES
from imagegen.wire.files import (
    AskedFile,
    file_answer,
    file_list_answer,
    read_file_form,
    read_file_page,
    read_file_upload,
)
from tests.support.in_memory import FILE_SECONDS, NOW, InMemoryService

JSON = "application/json"
UPLOAD: dict[str, Any] = {"purpose": "batch", "filename": "a.jsonl", "bytes": 7}
FILE = ("file", ("a.jsonl", b"{}"))


def form(*parts: Any) -> tuple[AskedFile, bytes]:
    body, content_type = urllib3.encode_multipart_formdata(list(parts))
    return read_file_form(body, content_type)


def upload(**changes: Any) -> tuple[AskedFile, int]:
    fields = {name: value for name, value in (UPLOAD | changes).items() if value != "absent"}
    return read_file_upload(json.dumps(fields).encode(), JSON)


# Forms.


@pytest.mark.parametrize("purpose", ["batch", "vision"])
def test_a_form_has_a_file_and_its_purpose_in_any_order(purpose: str) -> None:
    for parts in ((FILE, ("purpose", purpose)), (("purpose", purpose), FILE)):
        assert form(*parts) == (AskedFile(Purpose(purpose), "a.jsonl"), b"{}")


@pytest.mark.parametrize(
    ("sent", "name"),
    [("a b.jsonl", "a b.jsonl"), ("folder/a.jsonl", "a.jsonl"), ("C:\\files\\a.jsonl", "a.jsonl"), ("ü.png", "ü.png")],
)
def test_a_file_name_loses_its_folder(sent: str, name: str) -> None:
    assert form(("file", (sent, b"{}")), ("purpose", "batch"))[0].filename == name
    assert upload(filename=sent)[0].filename == name


def test_a_form_may_shorten_the_life_of_its_file() -> None:
    expires = [("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "3600")]
    assert form(FILE, ("purpose", "batch"), *expires)[0].seconds == 3600


@pytest.mark.parametrize(
    ("parts", "param", "code"),
    [
        ([FILE], "purpose", "missing_required_parameter"),
        ([("purpose", "batch")], "file", "missing_required_parameter"),
        ([FILE, ("purpose", "assistants")], "purpose", "invalid_value"),
        ([FILE, ("purpose", "batch_output")], "purpose", "invalid_value"),
        ([FILE, FILE, ("purpose", "batch")], "file", "invalid_value"),
        ([FILE, ("purpose", "batch"), ("purpose", "batch")], "purpose", "invalid_value"),
        ([("file", "text"), ("purpose", "batch")], "file", "invalid_value"),
        ([("file", ("a.jsonl", b"")), ("purpose", "batch")], "file", "invalid_value"),
        ([("file", ("x" * 256, b"{}")), ("purpose", "batch")], "filename", "invalid_value"),
        ([("file", ("folder/", b"{}")), ("purpose", "batch")], "filename", "invalid_value"),
        ([FILE, ("purpose", ("p", b"batch"))], "purpose", "invalid_value"),
        ([FILE, ("purpose", "batch"), ("model", "x")], "model", "unknown_parameter"),
        ([FILE, ("purpose", "batch"), ("filename", "x")], "filename", "unknown_parameter"),
        ([FILE, ("purpose", "batch"), ("expires_after[seconds]", "3600")], "expires_after", "invalid_value"),
        ([FILE, ("purpose", "batch"), ("expires_after[anchor]", "created_at")], "expires_after", "invalid_value"),
    ],
    ids=range(15),
)
def test_a_wrong_form_is_refused_by_its_field(parts: list[Any], param: str, code: str) -> None:
    with pytest.raises(errors.InvalidRequestError) as refused:
        form(*parts)
    assert (refused.value.param, refused.value.code) == (param, code)


@pytest.mark.parametrize("seconds", ["3599", "2592001", "1e4", "-3600", "", "9" * 400])
def test_a_life_outside_its_bounds_is_refused(seconds: str) -> None:
    expires = [("expires_after[anchor]", "created_at"), ("expires_after[seconds]", seconds)]
    with pytest.raises(errors.InvalidRequestError) as refused:
        form(FILE, ("purpose", "batch"), *expires)
    assert refused.value.param == "expires_after"


def test_json_is_no_form() -> None:
    with pytest.raises(errors.UnsupportedMediaTypeError):
        read_file_form(b"{}", JSON)


# Uploads.


@pytest.mark.parametrize(("purpose", "most"), [("batch", MOST_FILE_BYTES), ("vision", MOST_BYTES)])
def test_an_upload_says_its_size(purpose: str, most: int) -> None:
    for size in (1, most):
        assert upload(purpose=purpose, bytes=size) == (AskedFile(Purpose(purpose), "a.jsonl"), size)
    for wrong in (0, -1, most + 1, 1.5, True, "7", [7]):
        with pytest.raises(errors.InvalidRequestError) as refused:
            upload(purpose=purpose, bytes=wrong)
        assert refused.value.param == "bytes"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"purpose": "absent"}, "purpose"),
        ({"filename": None}, "filename"),
        ({"bytes": "absent"}, "bytes"),
        ({"purpose": ["batch"]}, "purpose"),
        ({"filename": 7}, "filename"),
        ({"filename": "a\nb"}, "filename"),
        ({"filename": ""}, "filename"),
        ({"content": "x"}, "content"),
        ({"expires_after": 3600}, "expires_after"),
        ({"expires_after": {"anchor": "created_at", "seconds": True}}, "expires_after"),
        ({"expires_after": {"anchor": "last_active_at", "seconds": 3600}}, "expires_after"),
    ],
    ids=range(11),
)
def test_a_wrong_upload_is_refused_by_its_field(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(errors.InvalidRequestError) as refused:
        upload(**changes)
    assert refused.value.param == param


def test_the_file_itself_is_no_request_for_an_upload() -> None:
    with pytest.raises(errors.RequestTooLargeError):
        read_file_upload(b"{}" * 4096, JSON)
    with pytest.raises(errors.UnsupportedMediaTypeError):
        read_file_upload(b"{}", "application/octet-stream")


# Lists.


def test_a_list_may_ask_for_more_than_a_page_has() -> None:
    asked = read_file_page({"limit": "10000", "order": "asc", "purpose": "batch_output", "after": "file-" + "A" * 22})
    assert (asked.page.limit, asked.oldest_first, asked.purpose) == (100, True, Purpose.BATCH_OUTPUT)
    assert asked.page.after == "file-" + "A" * 22
    assert read_file_page({}).page.limit == 20


@pytest.mark.parametrize(
    ("name", "value"), [("limit", "10001"), ("limit", "0"), ("order", "newest"), ("purpose", "x"), ("after", "batch_x")]
)
def test_a_wrong_query_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(errors.InvalidRequestError) as refused:
        read_file_page({name: value})
    assert refused.value.param == name


def names(service: InMemoryService, caller: str = "alice", **options: Any) -> tuple[list[str], bool]:
    options = {"limit": 10, "after": None, "purpose": None, "oldest_first": False} | options
    files, more = service.managed_files.list(caller, **options)
    return [file.filename for file in files], more


def create(service: InMemoryService, name: str, **options: Any) -> File:
    options = {"caller": "alice", "purpose": Purpose.BATCH} | options
    service.now += 1
    return service.managed_files.create(options.pop("caller"), options.pop("purpose"), name, b"{}", **options)


def test_files_are_listed_page_by_page(service: InMemoryService) -> None:
    a, b, c = (create(service, name) for name in "abc")
    create(service, "v", purpose=Purpose.VISION)
    create(service, "theirs", caller="bob")
    assert names(service) == (["v", "c", "b", "a"], False)
    assert names(service, limit=2) == (["v", "c"], True)
    assert names(service, limit=2, after=c.id) == (["b", "a"], False)
    assert names(service, oldest_first=True, limit=2, after=a.id) == (["b", "c"], True)
    assert names(service, purpose=Purpose.VISION) == (["v"], False)
    assert names(service, "bob", after=b.id) == ([], False)


def test_an_upload_is_listed_once_it_is_there(service: InMemoryService) -> None:
    create(service, "first")
    uploads = []
    for number in range(5):
        service.now += 1
        uploads.append(service.managed_files.begin_upload("alice", Purpose.BATCH, f"u{number}", 3)[0])
    assert names(service, limit=1) == (["first"], False)
    with pytest.raises(errors.UnknownFileError):
        service.managed_files.get(uploads[2].id, "alice")
    service.files.there[uploads[2].object.key] = b"abc"
    assert names(service, limit=1) == (["u2"], True)
    assert service.file_records.records[uploads[2].id].is_uploaded
    assert service.managed_files.get(uploads[2].id, "alice").object == uploads[2].object


# Life.


def test_a_file_lasts_as_long_as_its_caller_says_and_no_longer_than_its_object(service: InMemoryService) -> None:
    default, short, long = (create(service, "a", seconds=seconds) for seconds in (None, 3600, 10 * FILE_SECONDS))
    assert [(file.expires_at or 0) - int(file.created_at) for file in (default, short, long)] == [
        FILE_SECONDS,
        3600,
        FILE_SECONDS,
    ]
    service.now = short.created_at + 3600
    with pytest.raises(errors.UnknownFileError):
        service.managed_files.get(short.id, "alice")
    assert len(names(service)[0]) == 2
    assert service.managed_files.get(default.id, "alice") == default


def test_a_deletion_that_failed_can_be_repeated(service: InMemoryService) -> None:
    file = create(service, "a")
    service.file_records.failures.extend([None, "before"])
    with pytest.raises(errors.RecordsUnavailableError):
        service.managed_files.delete(file.id, "alice")
    assert file.object.key not in service.files.there
    service.managed_files.delete(file.id, "alice")
    with pytest.raises(errors.UnknownFileError):
        service.managed_files.get(file.id, "alice")


@pytest.mark.parametrize("file_id", ["file-x", "", "gen_" + "A" * 22, "file-" + "A" * 22])
def test_an_id_that_is_none_is_an_unknown_file(service: InMemoryService, file_id: str) -> None:
    with pytest.raises(errors.UnknownFileError):
        service.managed_files.get(file_id, "alice")


def test_the_key_of_a_file_depends_on_its_caller() -> None:
    assert object_key("alice", "file-a") != object_key("bob", "file-a")
    assert object_key("oidc:https://x/..", "file-a").split("/")[2] == "file-a"


def test_a_file_is_answered_as_openais_object() -> None:
    file = File(
        id="file-a",
        caller="alice",
        purpose=Purpose.BATCH,
        filename="a.jsonl",
        object=StoredObject("key", "", 7),
        created_at=NOW,
    )
    answer = file_answer(file)
    assert answer == {
        "id": "file-a",
        "object": "file",
        "bytes": 7,
        "created_at": int(NOW),
        "expires_at": None,
        "filename": "a.jsonl",
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
    }
    assert file_answer(msgspec.structs.replace(file, expires_at=NOW + 1))["expires_at"] == int(NOW) + 1
    assert file_list_answer([], more=False)["last_id"] is None
    assert file_list_answer([file], more=True)["first_id"] == "file-a"


def test_a_file_name_is_encoded_in_a_header() -> None:
    assert attachment('a"\r\nü.jsonl') == "attachment; filename*=UTF-8''a%22%0D%0A%C3%BC.jsonl"
