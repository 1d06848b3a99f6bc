"""Makes ids that follow from what they name."""

import hashlib
from base64 import urlsafe_b64encode


def derived_id(prefix: str, *parts: str) -> str:
    """Returns the prefix and 22 characters that are equal only for the same parts."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()[:16]
    return prefix + urlsafe_b64encode(digest).rstrip(b"=").decode()
