"""Detects the format of an image from its bytes, and whether it is complete. Ignores headers and file names."""

from collections.abc import Iterable, Iterator

from imagegen.domain.errors import ImageTruncatedError, NotAnImageError

HEAD_BYTES = 16  # enough to detect every format
_TAIL_BYTES = 1024  # some encoders add padding after the end marker

PNG, JPEG, WEBP, GIF = "image/png", "image/jpeg", "image/webp", "image/gif"

_PNG_END = b"IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"
_GIF_END = b"\x00\x3b"  # the trailer after the terminator of the last block


def media_type(head: bytes) -> str:
    """Returns the media type of an image with the first `HEAD_BYTES` bytes `head`. Raises NotAnImageError."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if head.startswith(b"\xff\xd8\xff"):
        return JPEG
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    if head.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    raise NotAnImageError("The image model's answer has content that is not a PNG, JPEG, WebP or GIF image.")


def is_whole(kind: str, head: bytes, tail: bytes, length: int) -> bool:
    """Returns whether an image of `length` bytes is complete, by its first bytes `head` and its last bytes `tail`."""
    if kind == PNG:
        return _PNG_END in tail
    if kind == JPEG:
        return _JPEG_END in tail
    if kind == GIF:
        return _GIF_END in tail
    return length >= int.from_bytes(head[4:8], "little") + 8


def checked(blocks: Iterable[bytes], kind: str, length: int) -> Iterator[bytes]:
    """Yields the same blocks. The last one is held back until the image is known to be complete.

    Raises ImageTruncatedError instead of yielding the last block if there are not `length` bytes, or if the image does
    not end as its format requires.
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
        raise ImageTruncatedError("The image model's answer has an image that ends too early.")
    yield held
