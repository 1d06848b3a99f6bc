"""Tells an image by its bytes, and whether all of it is there. Headers and file names are not believed."""

from collections.abc import Iterable, Iterator

from imagegen.domain.errors import ImageTruncatedError, NotAnImageError

HEAD_BYTES = 16  # enough to tell every format
_TAIL_BYTES = 1024  # some encoders pad after the end marker

PNG, JPEG, WEBP, GIF = "image/png", "image/jpeg", "image/webp", "image/gif"

_PNG_END = b"IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"
_GIF_END = b"\x00\x3b"  # the trailer, behind the terminator of the last block


def media_type(head: bytes) -> str:
    """The media type of an image by its first `HEAD_BYTES` bytes. Raises NotAnImageError."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if head.startswith(b"\xff\xd8\xff"):
        return JPEG
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    if head.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    raise NotAnImageError("The image model's answer holds something that is not a PNG, JPEG, WebP or GIF image.")


def is_whole(kind: str, head: bytes, tail: bytes, length: int) -> bool:
    """Whether an image of `length` bytes that begins with `head` and ends with `tail` ends where its format says."""
    if kind == PNG:
        return _PNG_END in tail
    if kind == JPEG:
        return _JPEG_END in tail
    if kind == GIF:
        return _GIF_END in tail
    return length >= int.from_bytes(head[4:8], "little") + 8


def checked(blocks: Iterable[bytes], kind: str, length: int) -> Iterator[bytes]:
    """The same blocks, the last one held back until the whole is known to be there.

    Raises ImageTruncatedError instead of yielding the last block where `length` bytes did not come, or the image does
    not end as one of its kind does.
    """
    head = tail = held = b""
    seen = 0
    for block in blocks:
        if held:
            yield held
        if len(head) < HEAD_BYTES:
            head += block[: HEAD_BYTES - len(head)]
        seen += len(block)
        tail = block[-_TAIL_BYTES:] if len(block) >= _TAIL_BYTES else (tail + block)[-_TAIL_BYTES:]
        held = block
    if seen != length or not is_whole(kind, head, tail, length):
        raise ImageTruncatedError("The image model's answer holds an image that ends too early.")
    yield held
