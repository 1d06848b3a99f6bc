"""Identifies the caller by its bearer credential: a caller's key, or a token of the trusted issuer."""

import re

import msgspec

from imagegen.domain.credentials import BearerKey, Caller, CallerRecord, is_caller_name
from imagegen.ports import Parameters, TokenVerifier

_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


def authorize(
    authorization: str, *, callers: Parameters, path: str, tokens: TokenVerifier | None = None
) -> Caller | None:
    """The caller that the `Authorization` header identifies, `None` if its credential is not valid.

    A caller's record is the parameter `<path>/<caller>`. `tokens` is `None` if no tokens are accepted. Raises
    SecretUnavailableError and IssuerUnavailableError if the credential cannot be checked now.
    """
    scheme, _, credential = authorization.strip().partition(" ")
    credential = credential.strip()
    if scheme.lower() != "bearer":
        return None
    key = BearerKey.parse(credential)
    if key is not None:
        return _with_key(key, callers, path)
    if tokens is not None and _TOKEN.fullmatch(credential):
        subject = tokens.subject(credential)
        return None if subject is None else Caller.of_token(tokens.issuer, subject)
    return None


def recorded_caller(name: str, *, callers: Parameters, path: str) -> Caller | None:
    """The caller with its own quotas, `None` if it has no record, and so no key. Raises SecretUnavailableError."""
    record = _record(name, callers, path) if is_caller_name(name) else None
    return _caller(name, record) if record else None


def _with_key(key: BearerKey, callers: Parameters, path: str) -> Caller | None:
    record = _record(key.caller, callers, path)
    return _caller(key.caller, record) if record and key.opens(record) else None


def _caller(name: str, record: CallerRecord) -> Caller:
    return Caller(name, record.images_per_day, record.usd_per_day)


def _record(caller: str, callers: Parameters, path: str) -> CallerRecord | None:
    stored = callers.get(f"{path}/{caller}")
    if stored is None:
        return None
    try:
        return msgspec.json.decode(stored, type=CallerRecord)
    except msgspec.DecodeError:  # an unreadable record admits no one
        return None
