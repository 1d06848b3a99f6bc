"""Who calls, and bearer keys `ig_<client>_<secret>`: made once, shown once, kept only as a hash."""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import Annotated, Self

import msgspec

_CLIENT = r"[a-z0-9][a-z0-9-]{0,31}"
_KEY = re.compile(rf"ig_({_CLIENT})_([A-Za-z0-9_-]{{43}})")


def is_client_name(text: str) -> bool:
    return re.fullmatch(_CLIENT, text) is not None


class ClientRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is stored of a client, as JSON: the SHA-256 of its whole key, in hex, and its allowance if it has its own.

    A plain hash is enough, since the secret is 256 random bits and not a password.
    """

    key_sha256: str
    images_per_day: Annotated[int, msgspec.Meta(ge=0)] | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """`name` is logged and stands in records. `images_per_day` is the caller's own allowance, None for everybody's."""

    name: str
    images_per_day: int | None = None

    @classmethod
    def of_token(cls, issuer: str, subject: str) -> Self:
        """Opaque, since a subject may be an e-mail address; and no bearer key's, since no client has a colon."""
        digest = hashlib.sha256(f"{issuer}\0{subject}".encode()).hexdigest()
        return cls(f"oidc:{digest[:32]}")


@dataclass(frozen=True, slots=True)
class BearerKey:
    client: str
    key: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> "BearerKey | None":
        match = _KEY.fullmatch(text)
        return cls(match[1], text) if match else None

    @classmethod
    def new(cls, client: str) -> "BearerKey":
        """Raises ValueError where `client` is no name that a key can carry."""
        key = cls.parse(f"ig_{client}_{secrets.token_urlsafe(32)}")
        if key is None:
            raise ValueError("a client is 1 to 32 of a-z, 0-9 and -, and begins with a letter or a digit")
        return key

    def record(self) -> ClientRecord:
        return ClientRecord(key_sha256=hashlib.sha256(self.key.encode()).hexdigest())

    def opens(self, record: ClientRecord) -> bool:
        """Compares in constant time."""
        return hmac.compare_digest(self.record().key_sha256.encode(), record.key_sha256.encode())
