"""Opens the stored input images of a generation for its upstream calls, in bounded memory."""

import tempfile
from collections import Counter
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
    """`converter` returns the converter, and loads it when first called. `None` in functions that cannot convert."""

    store: InputStore
    converter: Callable[[], ImageConverter] | None

    def of(self, generation: Generation) -> tuple[UpstreamInput, ...]:
        inputs = generation.request.inputs
        return tuple(
            UpstreamInput(image, partial(self._open, image, name, generation.caller))
            for image, name in zip(inputs, _names(inputs), strict=True)
        )

    @contextmanager
    def _open(
        self,
        image: InputImage,
        name: str,
        caller: str,
        deadline: Deadline,
        media_types: Sequence[str],
        mask: MaskKind | None,
    ) -> Iterator[InputContent]:
        blocks = partial(self._blocks, image, name, caller, deadline)
        # An upstream may ignore EXIF, and a mask has the size that people see.
        if mask is None and image.media_type in media_types and not image.is_turned:
            yield InputContent(image.media_type, image.length, blocks)
            return
        converter = self._converter()
        own_first = sorted(media_types, key=lambda each: each != image.media_type)
        whole = b"".join(blocks())
        try:
            kind, content = (PNG, converter.mask(whole, mask)) if mask else converter.convert(whole, own_first)
        except InvalidImageError as error:
            raise InvalidImageError(f"Invalid '{name}': {error.message}.", param=name) from None
        finally:
            del whole  # a failure's traceback keeps this frame
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

    def _blocks(self, image: InputImage, name: str, caller: str, deadline: Deadline) -> Iterator[bytes]:
        """The whole image. Opens it again, a few times, where reading breaks off.

        Raises InvalidImageError if it does not exist any more.
        """
        offset = 0
        for again in range(_MOST_OPENED_AGAIN + 1):
            try:
                with self.store.read(image.id, caller, deadline, offset=offset) as read:
                    for block in _existing(read, image, name).blocks:
                        offset += len(block)
                        yield block
            except InputUnavailableError:
                if again == _MOST_OPENED_AGAIN or not deadline.remaining():
                    raise
            else:
                return


def _existing(read: ReadInput | None, image: InputImage, name: str) -> ReadInput:
    if read is None or read.length != image.length:
        raise InvalidImageError(f"The image in '{name}' was deleted in the meantime.", param=name)
    return read


def _names(inputs: Sequence[InputImage]) -> Iterator[str]:
    """Yields the place of each image for error messages: `image`, or `image[1]` if there are several of its role."""
    counts, places = Counter(image.role for image in inputs), Counter[str]()
    for image in inputs:
        yield image.role if counts[image.role] == 1 else f"{image.role}[{places[image.role]}]"
        places[image.role] += 1


def _blocks_of(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    yield from iter(partial(file.read, _BLOCK_BYTES), b"")
