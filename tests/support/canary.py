"""Canaries: a server that nobody may reach, and secrets that may come out nowhere. Each must be shown to sing."""

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
# Whatever the words around it are, this has no place in a log. The image's id is its capability.
NEVER = (PRESIGNED, rb"img_[A-Za-z0-9_-]{22}", rb"\bsk-", rb"\big_[a-z0-9]", rb"(?i)bearer ")


class Canary:
    """Counts every connection, whatever it speaks; to HTTP it gives an image, so that a fetched one would be stored."""

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
    """The secret as it is, in base64 wherever in a text it may begin, and in hex."""
    raw = secret.encode()
    in_base64 = [base64.b64encode(b"\0" * shift + raw)[4 if shift else 0 : -4] for shift in range(3)]
    return [raw, raw.lower(), raw.upper(), *in_base64, raw.hex().encode()]


def found(secrets: Mapping[str, str], text: bytes) -> set[str]:
    return {name for name, secret in secrets.items() if any(form in text for form in forms(secret))}


def keys_and_hashes(keys: Mapping[str, str]) -> dict[str, str]:
    """What belongs into no log, no answer and no record: the keys of clients, by client, and their hashes."""
    hashes = {f"hash of {client}'s key": hashlib.sha256(key.encode()).hexdigest() for client, key in keys.items()}
    return {**{f"{client}'s key": key for client, key in keys.items()}, **hashes}


def leaks(secrets: Mapping[str, str], text: bytes) -> set[str]:
    """What of the secrets is in a log, by name, and what never belongs there."""
    return found(secrets, text) | {pattern.decode() for pattern in NEVER if re.search(pattern, text)}


def answered(secrets: Mapping[str, str], answers: Iterable[Answer]) -> list[tuple[int, set[str]]]:
    """The status of each answer that holds a secret, or a presigned query outside the links that it is there to bring.

    An answer that is no JSON is a page.
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
