"""Tells who is calling by the bearer key."""

import msgspec

from imagegen.credentials import BearerKey, ClientRecord
from imagegen.ports import Parameters


def authorize(authorization: str, *, clients: Parameters, path: str) -> str | None:
    """The client that the `Authorization` header names and proves to be, or None.

    A client's record is the parameter `<path>/<client>`.
    """
    scheme, _, token = authorization.strip().partition(" ")
    key = BearerKey.parse(token.strip())
    if scheme.lower() != "bearer" or key is None:
        return None
    stored = clients.get(f"{path}/{key.client}")
    if stored is None:
        return None
    try:
        record = msgspec.json.decode(stored, type=ClientRecord)
    except msgspec.DecodeError:  # a record that nobody can read lets nobody in
        return None
    return key.client if key.opens(record) else None
