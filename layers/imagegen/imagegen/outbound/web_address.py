"""The rule for web addresses that are called with trust: https, or plain http to this machine alone."""

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit


def read_web_address(text: str, *, query: bool = False) -> SplitResult:
    """Raises ValueError, whose words repeat nothing of the address; a query only where `query` allows it."""
    url = urlsplit(text)
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError("holds characters that no URL holds")
    if url.port == 0:  # any other that is no port has raised by itself
        raise ValueError("has no usable port")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("is not an http or https URL")
    if (url.query and not query) or url.fragment or url.username is not None or url.password is not None:
        raise ValueError("carries a query, a fragment or credentials")
    if url.scheme == "http" and not _is_this_machine(url.hostname):
        raise ValueError("is plain http to another machine")
    return url


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
