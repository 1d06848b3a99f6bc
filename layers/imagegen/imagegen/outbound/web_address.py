"""Checks the web addresses of trusted hosts: https, or plain http to this machine only."""

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit


def read_web_address(text: str, *, query: bool = False) -> SplitResult:
    """Parses an address, which may have a query only with `query`.

    Raises ValueError, whose message contains no part of the address.
    """
    url = urlsplit(text)
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError("contains characters that are not allowed in a URL")
    if url.port == 0:  # other invalid ports raise ValueError here
        raise ValueError("has no usable port")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("is not an http or https URL")
    if (url.query and not query) or url.fragment or url.username is not None or url.password is not None:
        raise ValueError("contains a query, a fragment or credentials")
    if url.scheme == "http" and not _is_this_machine(url.hostname):
        raise ValueError("is plain http to another machine")
    return url


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
