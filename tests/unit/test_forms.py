"""A form comes back as its parts, or is refused with a reason. No form makes another exception, or takes long."""

import subprocess
import sys
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from urllib3 import encode_multipart_formdata
from urllib3.fields import RequestField

from imagegen.domain.errors import InvalidRequestError, UnsupportedMediaTypeError
from imagegen.wire.forms import FormPart, read_form

FORM = "multipart/form-data"
NAME = 'Content-Disposition: form-data; name="a"'
FILE = f"{NAME}; filename=a"
PNG = b"\x89PNG\r\n\x1a\n\x00--b\r\n"
LARGE = 10_000_000  # bytes; more than Lambda's event can hold


def form(headers: str, content: bytes = b"x") -> bytes:
    """A form of one part."""
    return b"--b\r\n" + headers.encode() + b"\r\n\r\n" + content + b"\r\n--b--\r\n"


def filled(pattern: bytes) -> bytes:
    return (pattern * (LARGE // len(pattern) + 1))[:LARGE]


def read(body: bytes) -> list[FormPart]:
    return read_form(body, f"{FORM}; boundary=b")


def text(name: str, content: bytes) -> FormPart:
    return FormPart(name, content, None, "")


def refusal(body: bytes, content_type: str = f"{FORM}; boundary=b") -> str:
    with pytest.raises(InvalidRequestError) as caught:
        read_form(body, content_type)
    return str(caught.value).removeprefix("We could not parse the form of your request: ")


def test_the_forms_of_openais_client_are_read() -> None:
    forms = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        forms.append(read_form(request.read(), request.headers["content-type"]))
        return httpx2.Response(200, json={"created": 1, "data": []})

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    client = openai.OpenAI(api_key="key", base_url="http://api.example/v1", http_client=http)
    svg = {"svg": {"reasoning": {"effort": "low"}}}
    client.images.edit(image=[PNG, ("ä.png", PNG)], mask=PNG, prompt="Zwei\nZeilen ü", n=2, extra_body=svg)
    client.images.edit(image=("otter.webp", b""), prompt="")
    assert forms == [
        [
            text("prompt", "Zwei\nZeilen ü".encode()),
            text("n", b"2"),
            text("svg[reasoning][effort]", b"low"),
            FormPart("image[]", PNG, "upload", "application/octet-stream"),
            FormPart("image[]", PNG, "ä.png", "image/png"),
            FormPart("mask", PNG, "upload", "application/octet-stream"),
        ],
        [text("prompt", b""), FormPart("image", b"", "otter.webp", "image/webp")],
    ]


D = "Content-Disposition: form-data; "
OCTETS = "Content-Type: application/octet-stream"
LATIN = "Content-Type: text/plain; charset=ISO-8859-1\r\nContent-Transfer-Encoding: 8bit"


@pytest.mark.parametrize(
    ("headers", "name", "filename", "media_type"),
    [
        (
            f'{D}name="image[]"; filename="ä %221%22.png"\r\nContent-Type: image/png',
            "image[]",
            'ä "1".png',
            "image/png",
        ),
        (f'{D}name="mask"; filename="a\\"b;.png"\r\n{OCTETS}', "mask", 'a"b;.png', "application/octet-stream"),
        (f"Content-Type: image/PNG\r\n{D}name=a; filename=b; filename*=utf-8''b", "a", "b", "image/png"),
        ('content-disposition:form-data;name="prompt"\r\nContent-Length: 1', "prompt", None, ""),
        (f'{D}name="prompt"\r\n{LATIN}', "prompt", None, "text/plain"),
        (f'{D}name="mask"; filename=""\r\n{OCTETS}', "mask", "", "application/octet-stream"),
        (f'{D}name="_charset_"', "_charset_", None, ""),
        (f'{D}name="{"ä" * 64}"', "ä" * 64, None, ""),
    ],
    ids=["Node", "old curl", ".NET", "OkHttp", "Apache for Java", "no file chosen", "_charset_", "the longest name"],
)
def test_the_headers_that_clients_write_are_read(
    headers: str, name: str, filename: str | None, media_type: str
) -> None:
    assert read(form(headers)) == [FormPart(name, b"x", filename, media_type)]


def test_a_text_in_latin1_becomes_utf8_and_a_file_does_not() -> None:
    assert read(form(f"{NAME}\r\n{LATIN}", b"\xfc"))[0].content == "ü".encode()
    assert read(form(f"{FILE}\r\n{LATIN}", b"\xfc"))[0].content == b"\xfc"


def test_all_parts_come_in_their_order_and_what_stands_around_them_is_ignored() -> None:
    twice = form(NAME, b"1")[:-7] + form(NAME, b"2")
    assert read(b"preamble\r\n" + twice + b"\r\nepilogue\r\n--b\r\n") == [text("a", b"1"), text("a", b"2")]
    assert read(b"--b--") == []


@pytest.mark.parametrize("boundary", ["b", '"b c=?"', "b" * 70])
def test_a_boundary_may_be_quoted_and_have_70_characters(boundary: str) -> None:
    body = form(NAME).replace(b"--b", b"--" + boundary.strip('"').encode())
    assert read_form(body, f"Multipart/Form-Data; charset=utf-8;Boundary={boundary}") == [text("a", b"x")]


NOT_ALLOWED = "its boundary is not of 1 to 70 characters that RFC 2046 allows."


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ("", "its content type has no boundary."),
        ('; boundary=""', "its content type has no boundary."),
        (f"; boundary={'b' * 71}", NOT_ALLOWED),
        ('; boundary="b "', NOT_ALLOWED),
        ('; boundary="b\0"', NOT_ALLOWED),
        ('; boundary="bä"', NOT_ALLOWED),
        ("; boundary=other", "boundary not found in first chunk."),
    ],
)
def test_a_content_type_without_the_boundary_is_refused(parameters: str, reason: str) -> None:
    assert refusal(form(NAME), FORM + parameters) == reason


@pytest.mark.parametrize("content_type", ["", "application/json", "multipart/mixed; boundary=b"])
def test_another_content_type_is_refused(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaTypeError, match="must be multipart/form-data"):
        read_form(form(NAME), content_type)


CUT = "unexpected end of multipart stream (parser closed)."
NOT_CRLF = "invalid line break after first boundary."
HEADERS = "a part has over 8 headers, or over 8192 bytes of headers."
NOTHING = "missing Content-Disposition segment header."
WRONG = "invalid Content-Disposition segment header: Wrong type."
NO_NAME = "invalid Content-Disposition segment header: Missing name option."
UNDECODABLE = "segment header failed to decode."
CONTROL = "a header of a part has control characters."
ENCODED = "a part has a Content-Transfer-Encoding other than 7bit, 8bit or binary."
ONLY_EXTENDED = "a part has a 'filename*' without a 'filename'."
UNEQUAL = "segment size does not match Content-Length header."
CHARSET = "the charset of a text is neither UTF-8 nor ISO-8859-1."
MALFORMED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", CUT),
    "no final boundary": (form(NAME)[:-8], CUT),
    "cut in the headers": (form(NAME)[:20], CUT),
    "LF": (form(NAME).replace(b"\r\n", b"\n"), NOT_CRLF),
    "a longer boundary": (form(NAME, b"\r\n--bc"), "unexpected bytes after boundary."),
    "65 parts": (form(NAME)[:-7] * 65 + b"--b--", "it has over 64 parts."),
    "9 headers": (form("\r\n".join([NAME, *(f"X-{n}: y" for n in range(8))])), HEADERS),
    "a long header": (form(f"{NAME}\r\nX: {'y' * 8190}"), HEADERS),
    "long headers": (form(f"{NAME}\r\nX: {'y' * 4096}\r\nY: {'y' * 4096}"), HEADERS),
    "a folded header": (form(f"{NAME}\r\n X: y"), "unexpected segment header continuation."),
    "a header without a colon": (form(f"{NAME}\r\nX"), "malformed segment header."),
    "a header's name": (form(f"{NAME}\r\nX y: z"), "invalid segment header name."),
    "a header twice": (form(f"{NAME}\r\n{NAME}"), "a part has a header twice."),
    "no headers": (form(""), NOTHING),
    "no disposition": (form("X: y"), NOTHING),
    "an attachment": (form("Content-Disposition: attachment; name=a"), WRONG),
    "no name": (form("Content-Disposition: form-data"), NO_NAME),
    "an open quote": (form(f'{D}name="a'), NO_NAME),
    "an empty name": (form(f'{D}name=""'), "a part has no name."),
    "a long name": (form(f'{D}name="{"ä" * 64}a"'), "the name of a part is over 128 bytes."),
    "a name in Latin-1": (form(NAME).replace(b'"a"', b'"\xfc"'), UNDECODABLE),
    "half a surrogate pair": (form(NAME).replace(b'"a"', b'"\xed\xa0\x80"'), UNDECODABLE),
    "NUL in a name": (form(f'{D}name="a\0"'), CONTROL),
    "a line break in a name": (form(f'{D}name="a%0D%0AX: y"'), CONTROL),
    "a line break in a file name": (form(f'{NAME}; filename="a%0AX: y"'), CONTROL),
    "a line break in a media type": (form(f"{FILE}\r\nContent-Type: image/png\nX: y"), CONTROL),
    "an encoded file name": (form(f"{NAME}; filename*=UTF-8''a.png"), ONLY_EXTENDED),
    "a wrong length": (form(f"{NAME}\r\nContent-Length: 2"), UNEQUAL),
    "base64": (form(f"{NAME}\r\ncontent-transfer-encoding: Base64"), ENCODED),
    "quoted-printable": (form(f"{NAME}\r\nContent-Transfer-Encoding: quoted-printable"), ENCODED),
    "a form in a part": (form(f"{NAME}\r\nContent-Type: Multipart/Mixed; boundary=c"), "a part consists of parts."),
    "a charset": (form(f"{NAME}\r\nContent-Type: text/plain; charset=utf-7"), CHARSET),
}


@pytest.mark.parametrize(("body", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_form_is_refused(body: bytes, reason: str) -> None:
    assert refusal(body) == reason


LARGE_FORMS = {
    "an image": form(FILE, bytes(LARGE)),
    "parts": filled(form(NAME)[:-7]),
    "headers": f"--b\r\n{NAME}\r\n".encode() + filled(b"X: y\r\n"),
    "a header": b"--b\r\nX: " + filled(b"y") + b"\r\n",
    "a header without an end": b"--b\r\n" + filled(b"; a="),
    "options": form(NAME + "; a  ;" * 1300)[:-7] * 64 + b"--b--",
    "quotes": form(NAME + '; a="\\' * 1300)[:-7] * 64 + b"--b--",
    "almost boundaries": form(FILE, filled(b"\r\n--")),
    "almost boundaries without an end": form(FILE, filled(b"\r\n-\r\n--"))[:-8],
    "a preamble": filled(b"\r\n--c") + b"\r\n" + form(NAME),
    "an epilogue": form(NAME) + filled(b"\r\n--b"),
    "a text in Latin-1": form(f"{NAME}\r\n{LATIN}", filled(b"\xfc")),
}


@pytest.mark.parametrize("body", LARGE_FORMS.values(), ids=LARGE_FORMS)
def test_a_large_form_takes_little_time_and_memory(body: bytes) -> None:
    tracemalloc.start()
    began = time.process_time()
    with suppress(InvalidRequestError):
        read(body)
    took = time.process_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 0.5
    assert peak < 6 * LARGE


def test_the_library_is_loaded_only_for_a_form() -> None:
    program = "import sys, imagegen.wire.forms; sys.exit('multipart' in sys.modules)"
    layer = Path(__file__).parents[2] / "layers" / "imagegen"
    assert subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": str(layer)}, check=False).returncode == 0


# Clients of before HTML5 escape a quote by a backslash, and today's write it as %22 (WHATWG HTML, "Multipart form
# data"). No reader can know what these characters mean.
NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="%\\"), min_size=1, max_size=32)
MEDIA_TYPES = st.sampled_from(["", "image/png", "application/octet-stream"])
PARTS = st.builds(FormPart, NAMES, st.binary(max_size=64) | st.just(b"\r\n--"), st.none() | NAMES, MEDIA_TYPES)


@given(st.lists(PARTS, max_size=64))
@settings(max_examples=100, deadline=None)
def test_what_urllib3_encodes_comes_back_equal(parts: list[FormPart]) -> None:
    fields = [RequestField(part.name, part.content, part.filename) for part in parts]
    for part, field in zip(parts, fields, strict=True):
        field.make_multipart(content_type=part.media_type or None)
    assert read_form(*encode_multipart_formdata(fields)) == parts


BYTES = st.binary(max_size=4) | st.sampled_from([b"\r\n", b"\r\n--b", b"\0", b'"', b"; filename*=", b": ", b"\xff"])


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 20), BYTES), min_size=1, max_size=4), st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_mutated_form_is_read_or_refused(cuts: list[tuple[int, int, bytes]], also_the_type: bool) -> None:
    body, content_type = form(NAME)[:-7] + form(f"{FILE}\r\n{LATIN}"), f"{FORM}; boundary=b"
    for at, length, other in cuts:
        body = body[:at] + other + body[at + length :]
        if also_the_type:
            content_type = content_type[:at] + other.decode("latin-1") + content_type[at + length :]
    with suppress(InvalidRequestError, UnsupportedMediaTypeError):
        read_form(body, content_type)
