"""The hosts of model owners. Each serves only its owner's models."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class FirstParty:
    """`owner` is the `owned_by` of the models. The key is sent in `key_header`."""

    owner: str
    key_header: str = "Authorization"


_HOSTS: Mapping[str, FirstParty] = {
    "api.openai.com": FirstParty("openai"),
    "generativelanguage.googleapis.com": FirstParty("google"),
    "api.ideogram.ai": FirstParty("ideogram", "Api-Key"),  # developer.ideogram.ai, "API Overview"
}


def first_party(base_url: str) -> FirstParty | None:
    """Returns the owner whose host has the address, `None` for any other host. Regions are hosts below an owner's."""
    host = (urlsplit(base_url).hostname or "").rstrip(".")
    return next((party for name, party in _HOSTS.items() if host == name or host.endswith(f".{name}")), None)
