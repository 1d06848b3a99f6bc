"""Reads the whole file of a batch before any line begins, as OpenAI does."""

import hashlib
from collections.abc import Callable

import msgspec

from imagegen.domain.batches import MOST_LINES, Batch, BatchProblem, Checkpoint
from imagegen.domain.errors import UnknownFileError
from imagegen.domain.file_lines import lines_of
from imagegen.ports import FileContents
from imagegen.usecases.read_batch import blocks_of

MOST_PROBLEMS = 100  # that are listed; the record has 400 KB

# Returns the custom_id of a line, or what is wrong with it: text (`None` if it is too long), line number, endpoint.
CheckLine = Callable[[bytes | None, int, str], str | BatchProblem]


class ValidateBatch(msgspec.Struct, frozen=True, eq=False):
    contents: FileContents
    check_line: CheckLine

    def validate(self, batch: Batch, endpoint: str) -> tuple[int, list[BatchProblem]]:
        """Returns the number of lines and what is wrong with the file. Raises FileUnavailableError.

        Reads at most MOST_LINES lines and one more. Of each it keeps a digest of the custom_id, 16 bytes.
        """
        seen, count, problems = set[bytes](), 0, list[BatchProblem]()
        try:
            for line in lines_of(blocks_of(batch.file, self.contents), batch.file.size, Checkpoint()):
                if line.text == b"":
                    continue
                count = line.number
                if count > MOST_LINES:
                    message = f"The file has over {MOST_LINES} lines."
                    return count, [BatchProblem("too_many_requests", message), *problems]
                found = self.check_line(line.text, count, endpoint)
                if isinstance(found, str):
                    digest = hashlib.blake2b(found.encode(), digest_size=16).digest()
                    is_known = digest in seen
                    seen.add(digest)
                    if not is_known:
                        continue
                    message = "Another line before this one has the same custom_id."
                    found = BatchProblem("duplicate_custom_id", message, count, "custom_id")
                if len(problems) < MOST_PROBLEMS:
                    problems.append(found)
        except UnknownFileError as gone:
            return count, [BatchProblem(gone.code, gone.message, param="input_file_id")]
        if not count:
            problems.append(BatchProblem("empty_file", "The file has no line."))
        return count, problems
