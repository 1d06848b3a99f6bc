"""Takes the input images of a request: finds out what they are, checks them, and stores what came inside the request.

Identifying needs no write: a retry attaches by what is in its images. Only a new generation has them stored.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import msgspec

from imagegen.domain import image_format
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    InputUnavailableError,
    InvalidImageError,
    InvalidRequestError,
    NotAnImageError,
    UnsupportedMediaTypeError,
)
from imagegen.domain.generations import Generation
from imagegen.domain.image_format import JPEG
from imagegen.domain.image_header import HEADER_BYTES, UnreadableImageError, read_header
from imagegen.domain.images import AskedImages, ParentTask
from imagegen.domain.inputs import (
    IMAGE,
    MASK,
    MEDIA_TYPES,
    MOST_BYTES,
    GivenImage,
    InputImage,
    InputRules,
    new_input_id,
    wrong_size,
)
from imagegen.domain.models import ImageModel
from imagegen.ports import GenerationStore, InputSource, InputStore, ObjectSource

T = TypeVar("T")
R = TypeVar("R")

# To identify all images of a request, and once more to keep those of a new generation. Usually both take a second, and
# API Gateway may wait only 29 s.
TAKE_SECONDS = 20.0
_MOST_FETCHED_BYTES = 50_000_000  # from the URLs of one request, in all
_MOST_READ_BYTES = 200_000_000  # from objects of S3 for one event, in all: the intake has them in its memory of 1 GB
_TAIL_BYTES = 1024
_KINDS = "PNG, JPEG or WebP"
_MISSING = {
    "upl_": "there is no upload with this id, or its content was not sent (PUT) yet",
    "file": "there is no file with this id, or its content was not sent yet",
}


class _Content(msgspec.Struct, frozen=True):
    """What is known of an image's content. `generation_id` is that of the generation that made it, "" for another."""

    sha256: str
    media_type: str
    length: int
    width: int
    height: int
    has_alpha: bool
    is_turned: bool
    generation_id: str = ""


class IdentifiedImage(msgspec.Struct, frozen=True):
    """`content` is `None` for an image at a URL, which is fetched only for a new generation."""

    given: GivenImage
    content: _Content | None = None

    @property
    def identity(self) -> str:
        """What a retry must have in common: the content, or the address that it comes from."""
        if self.content:
            return f"sha256:{self.content.sha256}"
        return f"url:{hashlib.sha256((self.given.url or '').encode()).hexdigest()}"


class TakeInputs(msgspec.Struct, frozen=True, eq=False):
    """`source` fetches images from the web. `objects` reads buckets, `None` if requests cannot name their objects.

    `pool` reads images side by side.
    """

    store: InputStore
    source: InputSource
    objects: ObjectSource | None
    generations: GenerationStore
    pool: Executor

    def of(self, asked: AskedImages, model: ImageModel, caller: str) -> "IdentifiedInputs | None":
        """The input images of a request, `None` if its operation has none. Raises what `identify` raises."""
        rules = model.inputs.get(asked.request.operation)
        return self.identify(asked.images, rules, model, caller) if rules else None

    def identify(
        self, given: Sequence[GivenImage], rules: InputRules, model: ImageModel, caller: str
    ) -> "IdentifiedInputs":
        """Reads the images that are at hand, and checks them. Stores nothing.

        Raises InvalidRequestError, InvalidImageError, UnsupportedMediaTypeError, InputUnavailableError.
        """
        _check_numbers(given, rules)
        for image in given if rules.made_here else ():
            if image.id is None or not image.id.startswith("img_"):
                raise _invalid(image, "expected the id of an image that the model's provider made here, such as img_…")
        deadline = Deadline.after(TAKE_SECONDS)
        given = self._with_objects(given, rules, deadline)
        first = {image.id: image for image in reversed(given) if image.id}  # each is read once, however often named
        reading = {
            image_id: self.pool.submit(self._stored, image, caller, deadline) for image_id, image in first.items()
        }
        identify = partial(self._identified, rules=rules, reading=reading)
        images = _side_by_side(self.pool, identify, given)
        _check_together(images, rules)
        parent = self._parent(images[0], model) if rules.made_here else None
        return IdentifiedInputs(self, images, rules, parent)

    def _identified(
        self, given: GivenImage, *, rules: InputRules, reading: Mapping[str, Future[_Content]]
    ) -> IdentifiedImage:
        if given.url is not None:
            return IdentifiedImage(given)
        at_hand = given.content
        content = reading[given.id or ""].result() if at_hand is None else _content(given, len(at_hand), (at_hand,))
        return IdentifiedImage(given, _checked(given, content, rules))

    def _with_objects(self, given: Sequence[GivenImage], rules: InputRules, deadline: Deadline) -> list[GivenImage]:
        """The images, with the content of those in S3. Each object is read once. Their bytes are limited in all."""
        left, contents, found = _MOST_READ_BYTES, dict[str, bytes](), list[GivenImage]()
        for image in given:
            uri = image.s3_uri
            if uri is None:
                found.append(image)
                continue
            if self.objects is None:
                raise _invalid(image, "only events can name objects of S3")
            if uri not in contents:
                with _naming(image):
                    contents[uri] = self.objects.fetch(uri, min(left, rules.most_bytes), deadline)
                left -= len(contents[uri])
            found.append(GivenImage(image.role, image.name, content=contents[uri]))
        return found

    def _stored(self, given: GivenImage, caller: str, deadline: Deadline) -> _Content:
        image_id = given.id or ""
        with self.store.read(image_id, caller, deadline) as read:
            if read is None:
                raise _invalid(given, _MISSING.get(image_id[:4], "there is no image with this id"))
            if read.length > MOST_BYTES:
                raise _invalid(given, f"it has over {MOST_BYTES} bytes")
            content = _content(given, read.length, read.blocks)
            return msgspec.structs.replace(content, generation_id=read.generation_id)

    def _parent(self, image: IdentifiedImage, model: ImageModel) -> ParentTask:
        """The task that made an image. Raises InvalidImageError if its provider cannot work on it."""
        generation_id = image.content.generation_id if image.content else ""
        made_by = self.generations.get(generation_id) if generation_id else None
        parent = _task_of(made_by, image.given.id or "", model) if made_by else None
        if parent is None:
            raise _invalid(
                image.given,
                f"'{model.id}' needs an image that {model.owned_by} made here and that has 'actions', such as a grid",
            )
        return parent


class IdentifiedInputs:
    """The checked input images of one request. `keep` stores those that came inside it."""

    def __init__(
        self, taking: TakeInputs, images: Sequence[IdentifiedImage], rules: InputRules, parent: ParentTask | None
    ) -> None:
        self.parent = parent
        self._taking = taking
        self._images = images
        self._rules = rules
        self._kept: tuple[InputImage, ...] | None = None
        self._begun: list[str] = []  # the ids whose storing has begun

    @property
    def identities(self) -> list[tuple[str, str]]:
        """The role of each image and what identifies it, for the fingerprint."""
        return [(image.given.role, image.identity) for image in self._images]

    def keep(self) -> tuple[InputImage, ...]:
        """Fetches what is at URLs, checks it, and stores all that has no id yet. Does so once.

        Raises InvalidImageError, UnsupportedMediaTypeError, InputUnavailableError.
        """
        if self._kept is None:
            deadline = Deadline.after(TAKE_SECONDS)
            pool = self._taking.pool
            fetched = self._fetched(deadline)
            _check_together(fetched, self._rules)
            self._kept = tuple(_side_by_side(pool, partial(self._stored, deadline=deadline), fetched))
        return self._kept

    def discard(self) -> None:
        """Deletes what `keep` has stored, also if it failed. What remains is deleted by the bucket's rule."""
        begun, self._begun, self._kept = self._begun, [], None
        deadline = Deadline.after(TAKE_SECONDS)
        for image_id in begun:
            with suppress(InputUnavailableError):
                self._taking.store.delete(image_id, deadline)

    def _fetched(self, deadline: Deadline) -> list[IdentifiedImage]:
        """The images with the content of those at URLs. These are fetched in turn: their bytes are limited in all."""
        left = _MOST_FETCHED_BYTES
        found: list[IdentifiedImage] = []
        for image in self._images:
            given = image.given
            if given.url is None:
                found.append(image)
                continue
            with _naming(given):
                content = self._taking.source.fetch(given.url, min(left, self._rules.most_bytes), deadline)
            left -= len(content)
            at_hand = GivenImage(given.role, given.name, content=content)
            known = _checked(at_hand, _content(at_hand, len(content), (content,)), self._rules)
            found.append(IdentifiedImage(at_hand, known))
        return found

    def _stored(self, image: IdentifiedImage, *, deadline: Deadline) -> InputImage:
        given, content = image.given, image.content
        if content is None:
            raise ValueError("an image was not fetched")
        image_id = given.id or new_input_id()
        if given.content is not None:
            self._begun.append(image_id)
            self._taking.store.save(image_id, content.media_type, given.content, deadline)
        return InputImage(
            role=given.role,
            id=image_id,
            sha256=content.sha256,
            media_type=content.media_type,
            length=content.length,
            width=content.width,
            height=content.height,
            has_alpha=content.has_alpha,
            is_turned=content.is_turned,
        )


@contextmanager
def _naming(given: GivenImage) -> Iterator[None]:
    """Adds the place of an image to the InvalidImageError of its source."""
    try:
        yield
    except InvalidImageError as error:
        raise _invalid(given, error.message) from None


def _side_by_side(pool: Executor, do: Callable[[T], R], each: Sequence[T]) -> list[R]:
    """Calls `do` for all of them. Raises the first exception, in their order, after all calls have ended."""
    if len(each) == 1:
        return [do(each[0])]
    begun = [pool.submit(do, one) for one in each]
    for one in begun:
        one.exception()
    return [one.result() for one in begun]


def _invalid(given: GivenImage, reason: str) -> InvalidImageError:
    return InvalidImageError(f"Invalid '{given.name}': {reason}.", param=given.name)


def _check_numbers(given: Sequence[GivenImage], rules: InputRules) -> None:
    counts = Counter(image.role for image in given)
    for role, count in counts.items():
        most = rules.most_of(role)
        if not most:
            raise InvalidRequestError(
                f"Invalid '{role}': the model does not accept it.", param=role, code="invalid_value"
            )
        if count > most:
            raise InvalidRequestError(
                f"Invalid '{role}': the model accepts at most {most}, but got {count}.",
                param=role,
                code="invalid_value",
            )
    if counts[IMAGE] < rules.least:
        if not counts[IMAGE]:
            raise InvalidRequestError(
                "Missing required parameter: 'image'.", param="image", code="missing_required_parameter"
            )
        raise InvalidRequestError(
            f"Invalid 'image': the model needs at least {rules.least} images, but got {counts[IMAGE]}.",
            param="image",
            code="invalid_value",
        )


def _content(given: GivenImage, length: int, blocks: Iterable[bytes | memoryview]) -> _Content:
    """Reads an image once: its hash, its header, and whether it is whole."""
    digest, head, tail, seen = hashlib.sha256(), bytearray(), b"", 0
    for block in blocks:
        digest.update(block)
        seen += len(block)
        if len(head) < HEADER_BYTES:
            head += block[: HEADER_BYTES - len(head)]
        tail = (tail + bytes(block[-_TAIL_BYTES:]))[-_TAIL_BYTES:]
    if seen != length:
        raise InputUnavailableError("An input image could not be read to its end. Please try again.")
    try:
        kind = image_format.media_type(bytes(head[: image_format.HEAD_BYTES]))
    except NotAnImageError:
        raise _unsupported(given, "it is not an image") from None
    if kind not in MEDIA_TYPES:
        raise _unsupported(given, f"{kind} is not accepted")
    try:
        header = read_header(bytes(head))
    except UnreadableImageError as error:
        raise _invalid(given, str(error)) from None
    # Phones append films to their JPEGs, of any length.
    if kind != JPEG and not image_format.is_whole(kind, bytes(head[: image_format.HEAD_BYTES]), tail, length):
        raise _invalid(given, "it ends too early")
    width, height = header.shown_size
    return _Content(digest.hexdigest(), kind, length, width, height, header.has_alpha, header.orientation != 1)


def _unsupported(given: GivenImage, reason: str) -> UnsupportedMediaTypeError:
    return UnsupportedMediaTypeError(f"Invalid '{given.name}': {reason}; use {_KINDS}.", param=given.name)


def _checked(given: GivenImage, content: _Content, rules: InputRules) -> _Content:
    """Raises InvalidImageError if the model does not accept the image. A mask has the rules of its image."""
    as_input = InputImage(
        given.role, "", "", content.media_type, content.length, content.width, content.height, content.has_alpha
    )
    wrong = wrong_size(content.width, content.height) or rules.wrong_image(as_input)
    if wrong:
        raise _invalid(given, wrong)
    return content


def _check_together(images: Sequence[IdentifiedImage], rules: InputRules) -> None:
    """Raises InvalidImageError if the mask does not fit the first image. Checks nothing while one is unknown."""
    first = next((image for image in images if image.given.role == IMAGE), None)
    mask = next((image for image in images if image.given.role == MASK), None)
    if not first or not first.content:
        return
    if rules.transparent and mask is None and not first.content.has_alpha:
        raise _invalid(first.given, "without a mask, the part to change must be transparent")
    if not mask or not mask.content:
        return
    sizes = [(each.content.width, each.content.height) for each in (mask, first) if each.content]
    if sizes[0] != sizes[1]:
        of_mask, of_image = (f"{width}x{height}" for width, height in sizes)
        raise _invalid(mask.given, f"it has {of_mask} pixels, and the first image has {of_image}")


def _task_of(generation: Generation, image_id: str, model: ImageModel) -> ParentTask | None:
    answer = next((call.answer for call in generation.calls if image_id in call.image_ids), None)
    image = generation.answered(image_id)
    if answer is None or image is None or not image.actions or generation.supply.provider != model.provider:
        return None
    return ParentTask(answer.upstream or "", answer.task_id, answer.account, image.actions)
