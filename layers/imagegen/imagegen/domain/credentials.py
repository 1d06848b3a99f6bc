"""Defines callers and their bearer keys `ig_<caller>_<secret>`. A key is shown once and stored only as a hash."""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import Annotated, Self

import msgspec

OIDC = "oidc"  # in the names of callers with a token
_CALLER = r"[a-z0-9][a-z0-9-]{0,31}"
_KEY = re.compile(rf"ig_({_CALLER})_([A-Za-z0-9_-]{{43}})")


def is_caller_name(text: str) -> bool:
    return re.fullmatch(_CALLER, text) is not None


class CallerRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A caller's stored record, as JSON: the SHA-256 of its whole key, in hex, and its own quotas if it has any.

    A plain hash is enough, because the secret is 256 random bits and not a password. `usd_per_day` is in millionths of
    a dollar.
    """

    key_sha256: str
    images_per_day: Annotated[int, msgspec.Meta(ge=0)] | None = None
    usd_per_day: Annotated[int, msgspec.Meta(ge=0)] | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """`name` appears in logs and records. `images_per_day` and `usd_per_day` are the caller's own quotas.

    `usd_per_day` is in millionths of a dollar. The general quota holds for a caller with neither.
    """

    name: str
    images_per_day: int | None = None
    usd_per_day: int | None = None

    @classmethod
    def of_token(cls, issuer: str, subject: str) -> Self:
        """Returns the caller of a token. The name is a hash, because a subject may be an e-mail address.

        The colon keeps it apart from the names of callers with a key.
        """
        digest = hashlib.sha256(f"{issuer}\0{subject}".encode()).hexdigest()
        return cls(f"{OIDC}:{digest[:32]}")


@dataclass(frozen=True, slots=True)
class BearerKey:
    caller: str
    key: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> "BearerKey | None":
        match = _KEY.fullmatch(text)
        return cls(match[1], text) if match else None

    @classmethod
    def new(cls, caller: str) -> "BearerKey":
        """Raises ValueError if `caller` is not a valid name."""
        key = cls.parse(f"ig_{caller}_{secrets.token_urlsafe(32)}")
        if key is None:
            raise ValueError("a caller's name is 1 to 32 of a-z, 0-9 and -, and begins with a letter or a digit")
        return key

    def record(self) -> CallerRecord:
        return CallerRecord(key_sha256=hashlib.sha256(self.key.encode()).hexdigest())

    def opens(self, record: CallerRecord) -> bool:
        """Returns whether this is the key of the record. Compares in constant time."""
        return hmac.compare_digest(self.record().key_sha256.encode(), record.key_sha256.encode())
