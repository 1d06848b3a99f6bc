"""Reads a request with input images: a form as OpenAI's clients send it, or OpenAI's JSON.

In a form, a number, a boolean and a value with members are text. An image is a file, or a text that names it.
"""

import re
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from imagegen.domain.errors import InvalidRequestError, UnsupportedMediaTypeError
from imagegen.domain.images import AskedImages
from imagegen.domain.inputs import IMAGE, MASK, GivenImage
from imagegen.domain.models import Catalog, Choice, RequestField, Structured, Text
from imagegen.wire.forms import FormPart, read_form
from imagegen.wire.json_text import decoded
from imagegen.wire.requests import PATHS, ReadRequest, json_object, media_type_of

_LIST = "[]"  # the end of the name of a form's part that is one of several
_ID = re.compile(r"(upl_|img_|file-)[A-Za-z0-9_-]{22}")
_LONGEST_ID = 64  # bytes; a file that is longer is no id
# The parameters are limited: an unlimited repetition takes 60 bytes of memory for each character.
_DATA_URL = re.compile(r"(?i)data:[^,;]{0,100}(?:;[^,;]{1,100}){0,8};base64,")
_URL = re.compile(r"https?://[\x21-\x7e]{1,8000}")
_MOST_IMAGES = 64  # as many as a form has parts
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")
_EXPECTED = "a file, an id such as upl_…, file-… or img_…, a data: URL in base64, or an https URL"
_MEMBERS = ("image_url", "file_id", "s3_uri")


class ReadImageRequest(msgspec.Struct, frozen=True, eq=False):
    """Reads the requests of one stack for an operation with images. With `from_s3`, images may be objects of S3."""

    read: ReadRequest
    from_s3: bool = False

    def __call__(self, body: bytes, content_type: str | None) -> AskedImages:
        """Raises UnsupportedMediaTypeError, InvalidRequestError."""
        media_type = media_type_of(content_type)
        if media_type == "multipart/form-data":
            return self._of_form(read_form(body, content_type or ""))
        if media_type == "application/json":
            return self.fields(json_object(body))
        raise UnsupportedMediaTypeError(
            "Unsupported content type: the request body must be multipart/form-data or application/json."
        )

    def fields(self, body: Mapping[str, Any]) -> AskedImages:
        """Reads OpenAI's JSON: `images` is a list of objects with `image_url` or `file_id`, `mask` is one such object.

        Also accepts `image`, and the text of an id or a URL in place of an object.
        """
        own, images = dict(body), []
        for name in (f"{IMAGE}s", *self._roles()):
            value = own.pop(name, None)
            role = IMAGE if name == f"{IMAGE}s" else name
            images += list(self._named(role, name, value)) if value is not None else []
        return AskedImages(self.read.fields(own, {image.role for image in images}), images)

    def _roles(self) -> list[str]:
        """The fields of images of any model, in the order of every request: it is part of the fingerprint."""
        of_models = (each.inputs.get(self.read.operation) for each in self.read.catalog.models.values())
        return [IMAGE, MASK, *sorted({name for rules in of_models if rules for name in rules.references})]

    def _named(self, role: str, name: str, value: Any) -> Iterator[GivenImage]:
        if not isinstance(value, list):
            yield self._image(role, name, value)
            return
        if len(value) > _MOST_IMAGES:
            raise _invalid(name, f"at most {_MOST_IMAGES} images")
        for place, each in enumerate(value):
            yield self._image(role, f"{name}[{place}]", each)

    def _image(self, role: str, name: str, value: Any) -> GivenImage:
        if isinstance(value, str):
            return _from_text(role, name, value)
        given = {key: each for key, each in value.items() if each is not None} if isinstance(value, dict) else {}
        (key, text), *others = given.items() or [("", None)]
        if others or key not in _MEMBERS or not isinstance(text, str):
            raise _invalid(name, "an object with one of image_url and file_id")
        if key == "s3_uri":
            if not self.from_s3:
                raise _invalid(name, "image_url or file_id; only events can name objects of S3")
            return GivenImage(role, name, s3_uri=text)
        return _from_text(role, name, text)

    def _of_form(self, parts: Sequence[FormPart]) -> AskedImages:
        texts: dict[str, list[str]] = {}
        pictures: dict[str, list[FormPart]] = {role: [] for role in self._roles()}
        for part in parts:
            role = part.name.removesuffix(_LIST)
            if role == f"{IMAGE}s":
                raise _invalid(part.name, "each image as 'image' or 'image[]' in a form")
            if role in pictures:
                if part.content or part.filename:  # a browser sends an empty file without a name if none is chosen
                    pictures[role].append(part)
            elif part.filename is not None:
                is_known = part.name in ("model", "prompt", *self.read.catalog.fields)
                raise _invalid(part.name, "text, but got a file") if is_known else _unknown(part.name)
            else:
                texts.setdefault(part.name, []).append(_text(part.name, part))
        images = [
            _of_part(role, role if len(of_role) == 1 else f"{role}[{place}]", part)
            for role, of_role in pictures.items()
            for place, part in enumerate(of_role)
        ]
        return AskedImages(self.read.fields(self._typed(texts), {image.role for image in images}), images)

    def _typed(self, texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The fields of a form as in JSON. A text that does not have the type of its field stays a text."""
        named = {name: values[-1] or None for name, values in texts.items() if name in ("model", "size")}
        model = self.read.model(dict(named))
        typed: dict[str, Any] = {}
        for full_name, values in texts.items():
            outer, bracket, _ = full_name.removesuffix(_LIST).partition("[")
            field = model.fields.get(outer)
            if bracket and field and isinstance(field.rule, Structured):  # nested lists of objects are ambiguous
                raise _invalid(outer, f"its JSON as one text, but got '{_shown(full_name)}'")
            field = field if not bracket else None
            is_list = (
                field is not None and isinstance(field.rule, Structured) and field.rule.schema.get("type") == "array"
            )
            if len(values) > 1 and not is_list:
                raise _invalid(full_name, "one value, but it is there more than once")
            name = field.name if field and is_list else full_name
            if name in typed:
                raise _invalid(name, f"either '{name}' or '{name}{_LIST}', but got both")
            if any(values) or name == "prompt":  # a client with a form sends an empty text for what is not set
                typed[name] = _as_list(values) if is_list else _as_json(name, values[0], field)
        return typed


def readers_of(catalog: Catalog, *, from_s3: bool = False) -> dict[str, ReadImageRequest]:
    """Returns the readers of all operations with images, by operation."""
    others = [operation for operation in PATHS if operation != "generate"]
    return {each: ReadImageRequest(ReadRequest(catalog, each), from_s3) for each in others}


class ReadOperation(msgspec.Struct, frozen=True, eq=False):
    """Reads a request that names its `operation`, such as an event. Without one, it is `generate`."""

    generate: ReadRequest
    from_images: Mapping[str, ReadImageRequest]

    def fields(self, body: Mapping[str, Any]) -> AskedImages:
        """Raises InvalidRequestError."""
        own = dict(body)
        operation = own.pop("operation", None)
        if operation is None or operation == "generate":
            return AskedImages(self.generate.fields(own))
        if not isinstance(operation, str) or operation not in self.from_images:
            raise _invalid("operation", f"one of {', '.join(PATHS)}")
        return self.from_images[operation].fields(own)


def _as_list(values: Sequence[str]) -> list[Any]:
    """The values of a list: each in a part of its own, or one part with the JSON of all."""
    try:
        whole = decoded(values[0].encode()) if len(values) == 1 else None
    except ValueError:
        whole = None
    return whole if isinstance(whole, list) else list(values)


def _as_json(name: str, text: str, field: RequestField | None) -> Any:
    if name == "stream":
        return {"true": True, "false": False}.get(text, text)
    if field is None and name != "partial_images":
        return text
    if field is not None and isinstance(field.rule, Choice | Text):
        return text
    if field is not None and isinstance(field.rule, Structured):
        try:
            return decoded(text.encode())
        except ValueError:
            return text
    return (float(text) if "." in text else int(text)) if _NUMBER.fullmatch(text) else text


def _text(name: str, part: FormPart) -> str:
    try:
        return bytes(part.content).decode()
    except UnicodeDecodeError:
        raise _invalid(name, "text in UTF-8") from None


def _of_part(role: str, name: str, part: FormPart) -> GivenImage:
    content = part.content
    if part.filename is None:
        return _from_text(role, name, _text(name, part))
    # OpenAI's client for Python sends an id as a file.
    if len(content) <= _LONGEST_ID and _ID.fullmatch(text := bytes(content).decode("latin-1").strip()):
        return GivenImage(role, name, id=text)
    return GivenImage(role, name, content=content)


def _from_text(role: str, name: str, text: str) -> GivenImage:
    text = text.strip()
    if _ID.fullmatch(text):
        return GivenImage(role, name, id=text)
    if begin := _DATA_URL.match(text):
        try:
            return GivenImage(role, name, content=b64decode(text[begin.end() :], validate=True))
        except ValueError:
            raise _invalid(name, "a data: URL whose base64 is valid") from None
    if _URL.fullmatch(text):
        return GivenImage(role, name, url=text)
    raise _invalid(name, _EXPECTED)


def _invalid(name: str, expected: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Invalid '{_shown(name)}': expected {expected}.", param=_shown(name), code="invalid_value"
    )


def _unknown(name: str) -> InvalidRequestError:
    return InvalidRequestError(f"Unknown parameter: '{_shown(name)}'.", param=_shown(name), code="unknown_parameter")


def _shown(name: str) -> str:
    return name if len(name) <= 64 else f"{name[:64]}…"
