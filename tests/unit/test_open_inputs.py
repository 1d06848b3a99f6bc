"""Stored input images are read while they are sent: again after a break, and converted where the upstream needs it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from imagegen.domain.errors import InputUnavailableError, InvalidImageError
from imagegen.domain.failures import failure_of
from imagegen.domain.generations import Generation
from imagegen.domain.image_format import JPEG, PNG, WEBP
from imagegen.domain.inputs import GivenImage, MaskKind, ReadInput, UpstreamInput, new_upload_id
from imagegen.usecases.open_inputs import OpenInputs
from imagegen.usecases.submit import Submission
from tests.fakes.image_store import BLOCK_BYTES
from tests.support.hooks import before
from tests.support.in_memory import BASE_URL, InMemoryService
from tests.support.inputs import EDIT, at_hand, by_id, identified, sized
from tests.support.pictures import turned

CONTENT = sized(label="x" * 7 * BLOCK_BYTES)
PORTRAIT = turned(6)
CONVERTED, MASKED = b"converted " * 300_000, b"a mask"  # the first one does not stay in memory


class Converter:
    """Answers with fixed contents. `asked` are its calls."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.asked: list[tuple[bytes, object]] = []
        self.made = 0
        self._failure = failure

    def __call__(self) -> "Converter":
        self.made += 1
        return self

    def convert(self, content: bytes, media_types: Sequence[str]) -> tuple[str, bytes]:
        self._note(content, media_types)
        return media_types[-1], CONVERTED

    def mask(self, content: bytes, kind: MaskKind) -> bytes:
        self._note(content, kind)
        return MASKED

    def _note(self, content: bytes, how: object) -> None:
        self.asked.append((content, how))
        if self._failure:
            raise self._failure


def edit(
    service: InMemoryService, given: Sequence[GivenImage] = (at_hand(CONTENT),), caller: str = "alice"
) -> Generation:
    inputs = identified(service, given, caller=caller)
    return service.submission.submit(Submission(EDIT, service.caller(caller), BASE_URL, inputs=inputs)).generation


def opened(
    service: InMemoryService, generation: Generation, converter: Callable[[], Any] | None = None
) -> tuple[UpstreamInput, ...]:
    return OpenInputs(service.inputs, converter).of(generation)


def offsets(service: InMemoryService) -> list[int]:
    """The offset of each reading to come."""
    found: list[int] = []
    before(service.inputs, "read", lambda *_, offset=0: found.append(offset))
    return found


def read(
    service: InMemoryService, image: UpstreamInput, media_types: Sequence[str] = (PNG,), mask: MaskKind | None = None
) -> bytes:
    with image.open(service.deadline(), media_types, mask) as content:
        whole = b"".join(content.blocks())
        assert len(whole) == content.length
        return whole


def test_all_inputs_of_a_generation_come_in_their_order_and_as_they_are_stored(service: InMemoryService) -> None:
    upload_id = new_upload_id()
    service.inputs.uploads["bob", upload_id] = sized(label="uploaded")
    generation = edit(service, [at_hand(CONTENT), by_id(upload_id, name="image[1]")], caller="bob")
    images = opened(service, generation)
    assert tuple(image.image for image in images) == generation.request.inputs
    assert [read(service, image) for image in images] == [CONTENT, sized(label="uploaded")]


def test_an_image_is_read_in_blocks_and_each_time_from_its_begin(service: InMemoryService) -> None:
    (image,), found = opened(service, edit(service)), offsets(service)
    with image.open(service.deadline(), (JPEG, PNG), None) as content:
        assert (content.media_type, content.length, found) == (PNG, len(CONTENT), [])
        first = content.blocks()
        assert next(first) == CONTENT[:BLOCK_BYTES]
        for _ in range(2):
            assert b"".join(content.blocks()) == CONTENT
        assert b"".join(first) == CONTENT[BLOCK_BYTES:]
    assert found == [0, 0, 0]


@pytest.mark.parametrize(
    ("breaks", "expected"),
    [
        ([BLOCK_BYTES], [0, BLOCK_BYTES]),
        ([0, 0, 0], [0, 0, 0, 0]),
        ([2 * BLOCK_BYTES, BLOCK_BYTES, 3 * BLOCK_BYTES], [0, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES, 6 * BLOCK_BYTES]),
    ],
)
@pytest.mark.parametrize("is_converted", [False, True])
def test_a_reading_that_breaks_off_goes_on_where_it_ended(
    service: InMemoryService, breaks: list[int], expected: list[int], is_converted: bool
) -> None:
    converter = Converter()
    (image,), found = opened(service, edit(service), converter), offsets(service)
    service.inputs.breaks += breaks
    if is_converted:
        read(service, image, (JPEG,))
        assert converter.asked == [(CONTENT, [JPEG])]
    else:
        assert read(service, image) == CONTENT
    assert found == expected


def test_the_fourth_break_is_an_error_that_spends_nothing_and_lets_another_attempt_follow(
    service: InMemoryService,
) -> None:
    (image,) = opened(service, edit(service))
    service.inputs.breaks += [BLOCK_BYTES] * 4
    with pytest.raises(InputUnavailableError) as caught:
        read(service, image)
    failure = failure_of(caught.value)
    assert (failure.code, failure.money_spent, failure.another_attempt) == ("input_unavailable", False, True)
    assert read(service, image) == CONTENT


def test_without_time_left_a_reading_is_not_begun_again(service: InMemoryService) -> None:
    (image,), found = opened(service, edit(service)), offsets(service)
    with image.open(service.deadline(0), (PNG,), None) as content, pytest.raises(InputUnavailableError):
        b"".join(content.blocks())
    assert found == [0]


# Images that are gone.


def remove(service: InMemoryService) -> None:
    service.inputs.saved.clear()
    service.inputs.uploads.clear()
    service.images.saved.clear()


def shorten(service: InMemoryService) -> None:
    service.inputs.saved = {name: content[:-1] for name, content in service.inputs.saved.items()}
    service.inputs.uploads = {name: content[:-1] for name, content in service.inputs.uploads.items()}


@pytest.mark.parametrize("change", [remove, shorten])
@pytest.mark.parametrize("when", ["before", "after a break"])
@pytest.mark.parametrize("is_upload", [False, True])
def test_an_image_that_is_gone_or_another_one_is_an_error_that_spends_nothing(
    service: InMemoryService, change: Callable[[InMemoryService], None], when: str, is_upload: bool
) -> None:
    upload_id = new_upload_id()
    service.inputs.uploads["alice", upload_id] = CONTENT
    generation = edit(service, [at_hand(CONTENT), by_id(upload_id, "mask") if is_upload else at_hand(CONTENT, "mask")])
    _, image = opened(service, generation)
    if when == "before":
        change(service)
    service.inputs.breaks += [] if when == "before" else [BLOCK_BYTES]
    before(service.inputs, "read", lambda *_, offset=0: change(service) if offset else None)
    with pytest.raises(InvalidImageError) as caught:
        read(service, image)
    assert (caught.value.message, caught.value.param) == ("The image in 'mask' was deleted in the meantime.", "mask")
    failure = failure_of(caught.value)
    assert (failure.code, failure.money_spent, failure.another_attempt) == ("invalid_image", False, False)


def test_the_upload_of_another_caller_is_not_read(service: InMemoryService) -> None:
    """Even if it had got onto a record."""
    upload_id = new_upload_id()
    service.inputs.uploads["bob", upload_id] = CONTENT
    generation = edit(service, [by_id(upload_id)], caller="bob")
    (image,) = opened(service, replace(generation, caller="alice"))
    with pytest.raises(InvalidImageError):
        read(service, image)


# Conversion.


@pytest.mark.parametrize(
    ("media_types", "mask", "how", "kind", "expected"),
    [
        ((JPEG,), None, [JPEG], JPEG, CONVERTED),
        ((JPEG, WEBP), None, [JPEG, WEBP], WEBP, CONVERTED),
        ((PNG, JPEG), "black", "black", PNG, MASKED),
        ((JPEG,), "transparent", "transparent", PNG, MASKED),
    ],
)
def test_an_image_of_another_type_and_every_mask_are_converted(
    service: InMemoryService,
    media_types: Sequence[str],
    mask: MaskKind | None,
    how: object,
    kind: str,
    expected: bytes,
) -> None:
    converter = Converter()
    (image,) = opened(service, edit(service), converter)
    with image.open(service.deadline(), media_types, mask) as content:
        assert (content.media_type, content.length) == (kind, len(expected))
        remove(service)  # it is read from a file
        for _ in range(2):
            blocks = list(content.blocks())
            assert b"".join(blocks) == expected
            assert max(map(len, blocks)) <= 128 * 1024
        interrupted = content.blocks()
        next(interrupted)
        assert b"".join(content.blocks()) == expected
    assert converter.asked == [(CONTENT, how)]
    assert converter.made == 1
    with pytest.raises(ValueError, match="closed"):
        next(content.blocks())


def test_a_converter_is_made_only_when_it_is_needed(service: InMemoryService) -> None:
    converter = Converter()
    (image,) = opened(service, edit(service), converter)
    assert read(service, image, (WEBP, PNG)) == CONTENT
    assert (converter.made, converter.asked) == (0, [])


def test_a_photograph_that_its_exif_turns_is_converted_to_its_own_type_if_the_upstream_takes_it(
    service: InMemoryService,
) -> None:
    """An upstream may ignore EXIF, and a mask has the size that people see."""
    converter = Converter()
    generation = edit(service, [at_hand(PORTRAIT)])
    assert [(image.width, image.height) for image in generation.request.inputs] == [(30, 40)]
    (image,) = opened(service, generation, converter)
    for media_types in (PNG, WEBP, JPEG), (PNG,):
        with image.open(service.deadline(), media_types, None):
            pass
    assert converter.asked == [(PORTRAIT, [JPEG, PNG, WEBP]), (PORTRAIT, [PNG])]


@pytest.mark.parametrize(
    ("place", "name", "mask"), [(0, "image[0]", None), (1, "image[1]", None), (2, "mask", "black")]
)
def test_an_image_that_cannot_be_converted_is_refused_by_its_place(
    service: InMemoryService, place: int, name: str, mask: MaskKind | None
) -> None:
    converter = Converter(InvalidImageError("it cannot be decoded"))
    generation = edit(service, [at_hand(CONTENT), at_hand(CONTENT), at_hand(CONTENT, "mask")])
    image = opened(service, generation, converter)[place]
    with pytest.raises(InvalidImageError) as caught:
        read(service, image, (JPEG,), mask)
    assert (caught.value.message, caught.value.param) == (f"Invalid '{name}': it cannot be decoded.", name)
    assert not failure_of(caught.value).money_spent


@pytest.mark.parametrize(("media_types", "mask"), [((JPEG,), None), ((PNG,), "black")])
def test_a_function_without_a_converter_reads_nothing_that_it_would_have_to_convert(
    service: InMemoryService, media_types: Sequence[str], mask: MaskKind | None
) -> None:
    (image,), found = opened(service, edit(service)), offsets(service)
    with pytest.raises(ValueError, match="cannot convert"):
        read(service, image, media_types, mask)
    assert found == []
    assert read(service, image) == CONTENT


def test_the_connection_to_the_store_ends_with_the_sending(service: InMemoryService) -> None:
    """The upstream hangs up in the middle of the body."""
    (image,), stored = opened(service, edit(service)), service.inputs.read
    closed: list[str] = []

    @contextmanager
    def noted(*arguments: Any, **options: Any) -> Iterator[ReadInput | None]:
        with stored(*arguments, **options) as found:
            try:
                yield found
            finally:
                closed.append("closed")

    service.inputs.read = noted  # type: ignore[method-assign]
    with image.open(service.deadline(), (PNG,), None) as content:
        blocks = content.blocks()
        next(blocks)
        assert closed == []
        del blocks
        assert closed == ["closed"]
