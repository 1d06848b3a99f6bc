"""Opens the stored input images of a generation for its upstream calls, in bounded memory."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import IO

import msgspec

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import InputUnavailableError, InvalidImageError
from imagegen.domain.generations import Generation
from imagegen.domain.image_format import PNG
from imagegen.domain.inputs import InputContent, InputImage, MaskKind, ReadInput, UpstreamInput
from imagegen.ports import ImageConverter, InputStore

_MOST_OPENED_AGAIN = 3  # an upstream may read slowly, and S3 may end a connection that idles
_BLOCK_BYTES = 128 * 1024
_IN_MEMORY_BYTES = 1024 * 1024


class OpenInputs(msgspec.Struct, frozen=True, eq=False):
    """`converter` makes one when it is first needed; it is `None` in functions that cannot convert."""

    store: InputStore
    converter: Callable[[], ImageConverter] | None

    def of(self, generation: Generation) -> tuple[UpstreamInput, ...]:
        return tuple(
            UpstreamInput(image, partial(self._open, image, generation.caller)) for image in generation.request.inputs
        )

    @contextmanager
    def _open(
        self, image: InputImage, caller: str, deadline: Deadline, media_types: Sequence[str], mask: MaskKind | None
    ) -> Iterator[InputContent]:
        if mask is None and image.media_type in media_types:
            yield InputContent(image.media_type, image.length, partial(self._blocks, image, caller, deadline))
            return
        converter = self._converter()
        whole = b"".join(self._blocks(image, caller, deadline))
        try:
            kind, content = (PNG, converter.mask(whole, mask)) if mask else converter.convert(whole, media_types)
        except InvalidImageError as error:
            raise InvalidImageError(f"Invalid '{image.role}': {error.message}.", param=image.role) from None
        del whole
        with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as file:
            length = len(content)
            try:
                file.write(content)
            except OSError:  # the disk is full
                raise InputUnavailableError("An input image could not be converted. Please try again.") from None
            del content
            yield InputContent(kind, length, partial(_blocks_of, file))

    def _converter(self) -> ImageConverter:
        if self.converter is None:
            raise ValueError("this function cannot convert images")
        return self.converter()

    def _blocks(self, image: InputImage, caller: str, deadline: Deadline) -> Iterator[bytes]:
        """The whole image. Opens it again, a few times, where reading breaks off.

        Raises InvalidImageError if it does not exist any more.
        """
        offset = 0
        for again in range(_MOST_OPENED_AGAIN + 1):
            try:
                with self.store.read(image.id, caller, deadline, offset=offset) as read:
                    for block in _existing(read, image).blocks:
                        offset += len(block)
                        yield block
            except InputUnavailableError:
                if again == _MOST_OPENED_AGAIN or not deadline.remaining():
                    raise
            else:
                return


def _existing(read: ReadInput | None, image: InputImage) -> ReadInput:
    if read is None or read.length != image.length:
        raise InvalidImageError(f"The image in '{image.role}' was deleted in the meantime.", param=image.role)
    return read


def _blocks_of(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    yield from iter(partial(file.read, _BLOCK_BYTES), b"")
