"""Canaries: a server that must get no request, and secrets that no log may show. Tests show that each can be found."""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from tests.support.client import Answer

PRESIGNED = rb"(?i)x-amz-(signature|security-token|credential)"
# No log may hold these in any context. The id of an image is its capability.
NEVER = (PRESIGNED, rb"img_[A-Za-z0-9_-]{22}", rb"\bsk-", rb"\big_[a-z0-9]", rb"(?i)bearer ")


class Canary:
    """Notes every connection, and sends an image, so that a fetched one would be stored."""

    def __init__(self, image: bytes) -> None:
        self.heard: list[bytes] = []
        self._image = image
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:  # closed
                return
            with connection, suppress(OSError):
                self.heard.append(b"")
                connection.settimeout(1)
                self.heard[-1] = connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self._image) + self._image)

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


def forms(secret: str) -> list[bytes]:
    """The secret itself, in base64 at each offset, and in hex."""
    raw = secret.encode()
    in_base64 = [base64.b64encode(b"\0" * shift + raw)[4 if shift else 0 : -4] for shift in range(3)]
    return [raw, raw.lower(), raw.upper(), *in_base64, raw.hex().encode()]


def found(secrets: Mapping[str, str], text: bytes) -> set[str]:
    return {name for name, secret in secrets.items() if any(form in text for form in forms(secret))}


def keys_and_hashes(keys: Mapping[str, str]) -> dict[str, str]:
    """The keys of clients, by client, and their hashes. No log, no answer and no record may hold them."""
    hashes = {f"hash of {client}'s key": hashlib.sha256(key.encode()).hexdigest() for client, key in keys.items()}
    return {**{f"{client}'s key": key for client, key in keys.items()}, **hashes}


def leaks(secrets: Mapping[str, str], text: bytes) -> set[str]:
    """The names of secrets in a log, and the patterns that no log may hold."""
    return found(secrets, text) | {pattern.decode() for pattern in NEVER if re.search(pattern, text)}


def answered(secrets: Mapping[str, str], answers: Iterable[Answer]) -> list[tuple[int, set[str]]]:
    """The status of each answer that holds a secret, or a presigned query outside its links.

    An answer without JSON is a page.
    """
    leaking = []
    for answer in answers:
        text = answer.content.decode()
        with suppress(ValueError):
            text = json.dumps(_without_links(json.loads(text)))
        redirects = answer.status in (302, 303)
        headers = [value for name, value in answer.headers.items() if not (name == "location" and redirects)]
        content = json.dumps([headers, text]).encode()
        if here := found(secrets, content) | set(map(repr, re.findall(PRESIGNED, content))):
            leaking.append((answer.status, here))
    return leaking


def _without_links(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_links(each) for each in value]
    if isinstance(value, dict):
        return {k: _without_links(v) for k, v in value.items() if not (k == "url" and "permalink" in value)}
    return value
