"""Defines the places to wait: one for each execution of the api function that waits for images."""

import msgspec

PLACE_SECONDS = 120.0  # a place whose process has died is free after this time
KEPT_SECONDS = 10.0  # a client follows a redirect at once


class Place(msgspec.Struct, frozen=True):
    """`group` is the item that counts the place. It is `None` if the places could not be counted."""

    id: str
    caller: str
    group: int | None
