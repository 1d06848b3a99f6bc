"""An upstream and an S3 that need hardly any CPU, in a process of their own: they answer with bytes that are made once.

A prompt may say what the upstream answers: in `bytes=4000000&at_once=10` an image has 4,000,000 bytes, and 10 downloads
wait for each other halfway. The S3 keeps only the length of an object, and answers with an image of that length.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import parse_qsl

ROOT = Path(__file__).parents[2]
_IMAGE_BYTES = 1_500_000  # if the prompt says nothing
_TINY_BYTES = 1_000  # of an image that was made from others
_MEETING_SECONDS = 20

_stored: dict[str, int] = {}
_meetings: dict[int, threading.Barrier] = {}


@contextmanager
def running() -> Iterator[int]:
    """Serves during the block. Yields the port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.sink"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield int(process.stdout.readline() if process.stdout else 0)
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    port = listener.getsockname()[1]
    _image(_IMAGE_BYTES)  # made by a serving thread, it would be sent a tenth slower ever after
    print(port, flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_serve, args=(connection, port), daemon=True).start()


def _serve(connection: socket.socket, port: int) -> None:
    scratch = bytearray(1 << 20)
    rest = b""
    while True:
        while b"\r\n\r\n" not in rest:
            received = connection.recv(65536)
            if not received:
                return
            rest += received
        head, _, rest = rest.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        method, target, _ = head.decode().split(" ", 2)
        left = length - len(rest)
        while left > 0:
            count = connection.recv_into(scratch, min(left, len(scratch)))
            if not count:
                return
            if method == "POST" and not _is_form(head):
                rest += scratch[:count]
            left -= count
        path, _, query = target.partition("?")
        wanted = _wanted(query)
        body = b""
        if method == "POST":
            body = _in_base64(1, _TINY_BYTES) if _is_form(head) else _answer(rest, port)
        elif method == "GET":
            body = _image(_stored.get(path) or wanted.get("bytes", _IMAGE_BYTES))
        elif method == "PUT":
            _stored[path] = length
        rest = b""
        _send(connection, body, wanted.get("at_once", 1))


def _is_form(head: bytes) -> bool:
    """Whether a request has input images. Its body is read and forgotten."""
    return b"multipart/form-data" in head


def _send(connection: socket.socket, body: bytes, at_once: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
    if at_once == 1:
        connection.sendall(body)
        return
    half = len(body) // 2
    connection.sendall(body[:half])
    _meetings.setdefault(at_once, threading.Barrier(at_once)).wait(_MEETING_SECONDS)
    connection.sendall(body[half:])


def _wanted(text: str) -> dict[str, int]:
    """The fields of a prompt or of the query of an image's URL. Empty for other prompts and for S3's signatures."""
    return {name: int(value) for name, value in parse_qsl(text)} if text.startswith("bytes=") else {}


def _answer(request: bytes, port: int) -> bytes:
    """A URL, or for a model without URLs all images in base64."""
    asked = json.loads(request)
    wanted = _wanted(asked["prompt"])
    if asked["model"].startswith("gpt-"):
        return _in_base64(asked["n"], wanted.get("bytes", _IMAGE_BYTES))
    query = f"?{asked['prompt']}" if wanted else ""
    return json.dumps({"created": 1, "data": [{"url": f"http://127.0.0.1:{port}/image.png{query}"}]}).encode()


@cache
def _in_base64(n: int, size: int) -> bytes:
    image = {"b64_json": b64encode(_image(size)).decode()}
    return json.dumps({"created": 1, "data": [image] * n}).encode()


@cache
def _image(size: int) -> bytes:
    start, end = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
    return start + os.urandom(size - len(start) - len(end)) + end


if __name__ == "__main__":
    main()
