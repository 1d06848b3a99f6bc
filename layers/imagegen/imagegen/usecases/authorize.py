"""Tells who is calling by the bearer credential: a client's key, or a token of the issuer that is trusted."""

import re

import msgspec

from imagegen.domain.credentials import BearerKey, Caller, ClientRecord
from imagegen.ports import Parameters, TokenVerifier

_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


def authorize(
    authorization: str, *, clients: Parameters, path: str, tokens: TokenVerifier | None = None
) -> Caller | None:
    """Whom the `Authorization` header names and proves to be, or None.

    A client's record is the parameter `<path>/<client>`. `tokens` is None where no tokens are accepted.
    Raises SecretUnavailableError and IssuerUnavailableError where it cannot be told.
    """
    scheme, _, credential = authorization.strip().partition(" ")
    credential = credential.strip()
    if scheme.lower() != "bearer":
        return None
    key = BearerKey.parse(credential)
    if key is not None:
        return _client(key, clients, path)
    if tokens is not None and _TOKEN.fullmatch(credential):
        subject = tokens.subject(credential)
        return None if subject is None else Caller.of_token(tokens.issuer, subject)
    return None


def own_images_per_day(client: str, *, clients: Parameters, path: str) -> int | None:
    """The client's own allowance, None where it has none. Raises SecretUnavailableError."""
    record = _record(client, clients, path)
    return record.images_per_day if record else None


def _client(key: BearerKey, clients: Parameters, path: str) -> Caller | None:
    record = _record(key.client, clients, path)
    return Caller(key.client, record.images_per_day) if record and key.opens(record) else None


def _record(client: str, clients: Parameters, path: str) -> ClientRecord | None:
    stored = clients.get(f"{path}/{client}")
    if stored is None:
        return None
    try:
        return msgspec.json.decode(stored, type=ClientRecord)
    except msgspec.DecodeError:  # a record that nobody can read lets nobody in
        return None
