"""Requests with input images in memory."""

import struct
import zlib
from collections.abc import Sequence

from imagegen.domain.images import ImageRequest
from imagegen.domain.inputs import IMAGE, GivenImage, InputRules, Operation
from imagegen.ports import ObjectSource
from imagegen.usecases.take_inputs import IdentifiedInputs, TakeInputs
from tests.fakes.input_source import FakeInputSource
from tests.support.in_memory import InMemoryService
from tests.support.models import MODELS

EDIT = ImageRequest("a hat", "gpt-image-1.5", "url", operation="edit")
SEVERAL = InputRules(mask=True, references={"style": 3})


def sized(width: int = 64, height: int = 64, *, alpha: bool = False, label: str = "") -> bytes:
    """A PNG with a header and an end, but without pixels. Each label gives another one."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6 if alpha else 2, 0, 0, 0)),
        (b"tEXt", b"label\0" + label.encode()),
        (b"IDAT", b""),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def at_hand(content: bytes, role: str = IMAGE, name: str = "") -> GivenImage:
    return GivenImage(role, name or role, content=content)


def by_id(image_id: str, role: str = IMAGE, name: str = "") -> GivenImage:
    return GivenImage(role, name or role, id=image_id)


def by_url(url: str, role: str = IMAGE, name: str = "") -> GivenImage:
    return GivenImage(role, name or role, url=url)


def taking(
    service: InMemoryService, web: FakeInputSource | None = None, objects: ObjectSource | None = None
) -> TakeInputs:
    return TakeInputs(
        store=service.inputs,
        source=web or FakeInputSource(),
        objects=objects,
        generations=service.records,
        pool=service.pool,
    )


def identified(
    service: InMemoryService,
    given: Sequence[GivenImage],
    rules: InputRules | None = None,
    *,
    model: str = EDIT.model,
    operation: Operation = "edit",
    caller: str = "alice",
    web: FakeInputSource | None = None,
) -> IdentifiedInputs:
    """The images under the rules, or those of the model."""
    of_model = MODELS[model]
    rules = rules or of_model.inputs[operation]
    return taking(service, web).identify(given, rules, of_model, caller)
