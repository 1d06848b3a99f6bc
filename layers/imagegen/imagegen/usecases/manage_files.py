"""A caller's actions on its own files. Another caller's file is treated as if it did not exist."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor

import msgspec

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import UnknownFileError
from imagegen.domain.files import File, Purpose, StoredObject, is_file_id, new_file_id, object_key
from imagegen.domain.inputs import SignedUpload
from imagegen.ports import FileContents, FileStore

_STORE_SECONDS = 20.0  # within API Gateway's 29 s
_BLOCK_BYTES = 128 * 1024
_MOST_PAGES = 10  # that are read for one list: a caller may have begun any number of uploads


class ManageFiles(msgspec.Struct, frozen=True, eq=False):
    """`file_seconds` is how long a file is kept. `now` gives Unix seconds. `pool` looks at uploads side by side."""

    files: FileStore
    contents: FileContents
    pool: Executor
    file_seconds: float
    now: Callable[[], float]

    def create(
        self, caller: str, purpose: Purpose, filename: str, content: bytes, *, seconds: float | None = None
    ) -> File:
        """Stores a file, which is kept for at most `seconds`.

        Raises FileUnavailableError, RecordsUnavailableError: the content then remains without a record.
        """
        file_id = new_file_id()
        key = object_key(caller, file_id)
        stored = self.contents.save(key, len(content), _blocks(content), Deadline.after(_STORE_SECONDS))
        return self.files.create(self._file(file_id, caller, purpose, filename, stored, seconds, is_uploaded=True))

    def begin_upload(
        self, caller: str, purpose: Purpose, filename: str, size: int, *, seconds: float | None = None
    ) -> tuple[File, SignedUpload]:
        """Notes a file of `size` bytes that the caller uploads itself. Raises RecordsUnavailableError."""
        file_id = new_file_id()
        stored = StoredObject(object_key(caller, file_id), "", size)
        file = self.files.create(self._file(file_id, caller, purpose, filename, stored, seconds, is_uploaded=False))
        return file, self.contents.signed_upload(stored)

    def get(self, file_id: str, caller: str, *, param: str = "file_id") -> File:
        """`param` is the name of the id in the request. Raises FileUnavailableError.

        Raises UnknownFileError, also for an upload whose content was not sent yet.
        """
        file = self.files.get(file_id) if is_file_id(file_id) else None
        if file is None or file.caller != caller or not self._is_there(file):
            raise UnknownFileError("There is no such file, or its content was not sent yet.", param=param)
        return file

    def list(
        self, caller: str, limit: int, *, after: str | None, purpose: Purpose | None, oldest_first: bool
    ) -> tuple[Sequence[File], bool]:
        """The caller's files, and whether more may follow. Uploads whose content was not sent yet are left out."""
        found: list[File] = []
        for _ in range(_MOST_PAGES):
            page = self.files.newest(caller, limit + 1, after=after, purpose=purpose, oldest_first=oldest_first)
            there = self.pool.map(self._is_there, page)
            found += [file for file, is_there in zip(page, there, strict=True) if is_there]
            if len(page) <= limit or len(found) > limit:
                return found[:limit], len(found) > limit
            after = page[-1].id
        return found[:limit], True

    def delete(self, file_id: str, caller: str) -> None:
        """Deletes the content, then the record.

        Raises UnknownFileError, FileUnavailableError, RecordsUnavailableError.
        """
        file = self.get(file_id, caller)
        self.contents.delete(file.object, Deadline.after(_STORE_SECONDS))
        self.files.delete(file.id)

    def _file(
        self,
        file_id: str,
        caller: str,
        purpose: Purpose,
        filename: str,
        stored: StoredObject,
        seconds: float | None,
        *,
        is_uploaded: bool,
    ) -> File:
        now = self.now()
        return File(
            id=file_id,
            caller=caller,
            purpose=purpose,
            filename=filename,
            object=stored,
            created_at=now,
            expires_at=float(int(now + min(self.file_seconds, seconds or self.file_seconds))),
            is_uploaded=is_uploaded,
        )

    def _is_there(self, file: File) -> bool:
        """Whether the file has not expired, and an upload has its content."""
        if file.expires_at is not None and file.expires_at <= self.now():
            return False
        if file.is_uploaded:
            return True
        if self.contents.find(file.object.key, "", Deadline.after(_STORE_SECONDS)) is None:
            return False
        self.files.mark_uploaded(file.id)
        return True


def _blocks(content: bytes) -> Iterator[bytes]:
    view = memoryview(content)
    for at in range(0, len(content), _BLOCK_BYTES):
        yield bytes(view[at : at + _BLOCK_BYTES])
