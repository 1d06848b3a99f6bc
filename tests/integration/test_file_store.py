"""The records of files: the fake and the real store, on each emulator, pass one contract."""

from collections.abc import Callable, Sequence

import pytest
from msgspec.structs import replace

from imagegen.domain.batches import Batch
from imagegen.domain.errors import RecordsUnavailableError
from imagegen.domain.files import File, Purpose, StoredObject
from imagegen.ports import FileStore
from tests.fakes.batches import FakeFileStore
from tests.support.stores import Connect, Table, closed_url, new_generation

NOW = 1_760_000_000.5
END = float(int(NOW) + 3600)
RETENTION_SECONDS = 1000  # of `Table.files`
MISSING = "file-AAAAAAAAAAAAAAAAAAAAAA"


@pytest.fixture
def files(judged: Table | None) -> FileStore:
    return judged.files if judged else FakeFileStore()


def new(number: int = 0, *, caller: str = "alice", purpose: Purpose = Purpose.BATCH, at: float = NOW) -> File:
    file_id = f"file-{number:022d}"
    stored = StoredObject(f"files/0f/{file_id}", "", 7)
    return File(id=file_id, caller=caller, purpose=purpose, filename="a.jsonl", object=stored, created_at=at)


# Every method by its name, with variants.
CALLS: dict[str, Callable[[FileStore, File], object]] = {
    "create": lambda s, f: s.create(f),
    "get": lambda s, f: s.get(f.id),
    "newest": lambda s, f: s.newest(f.caller, 1),
    "newest of a purpose": lambda s, f: s.newest(f.caller, 1, purpose=f.purpose),
    "newest after": lambda s, f: s.newest(f.caller, 1, after=f.id),
    "mark_uploaded": lambda s, f: s.mark_uploaded(f.id),
    "delete": lambda s, f: s.delete(f.id),
}


def test_every_method_is_called() -> None:
    assert {call.partition(" ")[0] for call in CALLS} == {each for each in vars(FileStore) if each[0] != "_"}


def test_a_file_is_created_once(files: FileStore) -> None:
    file = new()
    assert files.get(file.id) is None
    assert files.create(file) == file
    other = replace(file, caller="bob", purpose=Purpose.VISION, filename="b", created_at=NOW + 9, is_uploaded=False)
    assert files.create(other) == file
    assert files.get(file.id) == file
    assert list(files.newest("bob", 10)) == []


@pytest.mark.parametrize("purpose", Purpose)
@pytest.mark.parametrize("caller", ["alice", "oidc:a/b"])
@pytest.mark.parametrize("end", [None, END])
@pytest.mark.parametrize("is_uploaded", [True, False])
def test_a_record_is_read_as_it_was_written(
    files: FileStore, purpose: Purpose, caller: str, end: float | None, is_uploaded: bool
) -> None:
    stored = StoredObject("inbox/alice/Größe & +.jsonl", "v 1", 200 * 1024 * 1024)
    changes = {"filename": 'ü "a" 後.jsonl', "object": stored, "expires_at": end, "is_uploaded": is_uploaded}
    file = replace(new(caller=caller, purpose=purpose), **changes)
    assert files.create(file) == file == files.create(file) == files.get(file.id)
    assert list(files.newest(caller, 10)) == [file]


def test_an_upload_is_marked_once_its_content_was_seen(files: FileStore) -> None:
    file = files.create(replace(new(), is_uploaded=False))
    for _ in range(2):
        files.mark_uploaded(file.id)
        assert files.get(file.id) == replace(file, is_uploaded=True)
    files.mark_uploaded(MISSING)
    assert files.get(MISSING) is None


def test_a_file_can_be_deleted_twice(files: FileStore) -> None:
    file, other = files.create(new(1)), files.create(new(2, at=NOW + 1))
    for _ in range(2):
        files.delete(file.id)
        assert files.get(file.id) is None
        assert list(files.newest("alice", 10)) == [other]
    files.mark_uploaded(file.id)
    assert files.get(file.id) is None
    assert list(files.newest("alice", 10, after=file.id)) == []


# Lists.


def test_a_callers_files_are_listed_newest_first_or_oldest_first(files: FileStore) -> None:
    for number in (2, 0, 3, 1):
        files.create(new(number, at=NOW + number))
    files.create(new(9, caller="bob", at=NOW + 9))
    oldest = [new(number, at=NOW + number) for number in range(4)]
    for oldest_first, order in ((True, oldest), (False, oldest[::-1])):

        def listed(limit: int, after: File | None = None, first: bool = oldest_first) -> Sequence[File]:
            return list(files.newest("alice", limit, after=after.id if after else None, oldest_first=first))

        assert listed(10) == order
        assert listed(2) == order[:2]
        assert listed(2, order[0]) == order[1:3]
        assert listed(2, order[2]) == order[3:]
        assert listed(2, order[3]) == []


@pytest.mark.parametrize("oldest_first", [False, True])
def test_a_list_after_an_id_that_the_caller_does_not_have_is_empty(files: FileStore, oldest_first: bool) -> None:
    files.create(new(1))
    theirs = files.create(new(2, caller="bob", at=NOW + 1))
    for caller, after in (("alice", theirs.id), ("alice", MISSING), ("carol", None), ("alic", None)):
        assert list(files.newest(caller, 10, after=after, oldest_first=oldest_first)) == []


def test_a_list_can_be_limited_to_one_purpose_across_pages(files: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagegen.aws.items._PAGE", 2)
    purposes = [Purpose.VISION if number in (1, 6) else Purpose.BATCH for number in range(8)]
    oldest = [files.create(new(each, purpose=purpose, at=NOW + each)) for each, purpose in enumerate(purposes)]
    for_vision = [oldest[1], oldest[6]]
    for_batches = [file for file in oldest if file not in for_vision]
    assert list(files.newest("alice", 10, purpose=Purpose.VISION)) == for_vision[::-1]
    assert list(files.newest("alice", 10, purpose=Purpose.VISION, oldest_first=True)) == for_vision
    assert list(files.newest("alice", 1, purpose=Purpose.VISION, after=for_vision[1].id)) == for_vision[:1]
    assert list(files.newest("alice", 2, purpose=Purpose.BATCH)) == for_batches[:-3:-1]
    assert (
        list(files.newest("alice", 9, purpose=Purpose.BATCH, after=oldest[1].id, oldest_first=True))
        == (for_batches[1:])
    )
    assert list(files.newest("alice", 10, purpose=Purpose.BATCH_OUTPUT)) == []


@pytest.mark.parametrize("oldest_first", [False, True])
def test_files_of_one_moment_are_all_listed(files: FileStore, oldest_first: bool) -> None:
    same = [files.create(new(number)).id for number in range(5)]
    page = files.newest("alice", 2, oldest_first=oldest_first)
    found = [file.id for file in page]
    while page and len(found) <= len(same):
        page = files.newest("alice", 2, after=found[-1], oldest_first=oldest_first)
        found += [file.id for file in page]
    assert sorted(found) == same


def test_generations_batches_and_files_are_listed_apart(table: Table) -> None:
    generation, file = new_generation(at=NOW), new(1)
    batch = Batch(id="batch_AAAAAAAAAAAAAAAAAAAAAA", caller="alice", file=file.object, created_at=NOW)
    table.generations.create(generation)
    table.batches.create(batch)
    table.files.create(file)
    for store, only in ((table.generations, generation), (table.batches, batch), (table.files, file)):
        assert list(store.newest("alice", 10)) == [only]
        others = [each.id for each in (generation, batch, file) if each != only]
        assert [store.get(other) for other in others] == [None, None]


def test_work_on_a_file_is_not_written_to_the_index(table: Table) -> None:
    file = table.files.create(replace(new(), is_uploaded=False))
    before = table.items(IndexName="by-caller")
    table.files.mark_uploaded(file.id)
    assert table.files.get(file.id) != file
    assert table.items(IndexName="by-caller") == before


# Errors and expiry.


def test_a_record_of_a_later_version_is_refused_and_unchanged(table: Table) -> None:
    file = table.files.create(new())
    (item,) = table.items()
    later = item | {"version": {"N": "2"}}
    table.client.put_item(TableName=table.name, Item=later)
    for call in ("create", "get", "newest", "newest of a purpose"):
        with pytest.raises(RecordsUnavailableError, match="later version"):
            CALLS[call](table.files, file)
        assert (call, table.items()) == (call, [later])


@pytest.mark.parametrize("why", ["fake", "closed port", "moto", "ministack"])
def test_an_unreachable_store_is_unavailable(connect: Connect, request: pytest.FixtureRequest, why: str) -> None:
    files: FileStore
    if why == "fake":
        files = fake = FakeFileStore()
        fake.failures += ["before"] * len(CALLS)
    else:  # an emulator answers that the table does not exist
        url = closed_url() if why == "closed port" else request.getfixturevalue(f"{why}_url")
        files = Table(connect("dynamodb", url), "no-such-table").files
    for call in CALLS.values():
        with pytest.raises(RecordsUnavailableError):
            call(files, new())


@pytest.mark.parametrize(("end", "kept_until"), [(None, int(NOW) + RETENTION_SECONDS), (END, int(END))])
def test_a_record_expires_with_its_file_or_after_the_retention(
    table: Table, end: float | None, kept_until: int
) -> None:
    file = table.files.create(replace(new(), expires_at=end))
    table.files.mark_uploaded(file.id)
    (item,) = table.items()
    assert item["expires_at"] == {"N": str(kept_until)}
    found = table.files.get(file.id)
    assert found is not None
    assert found.expires_at == end
