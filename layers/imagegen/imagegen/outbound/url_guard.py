"""Decides which untrusted URLs may be fetched, and at which address.

An image URL comes from an upstream's answer, so it is untrusted. It is fetched from the upstream's own origin, which
the deployer chose, or from a public https host. All addresses of the host are checked, and the connection goes to a
checked one, so a second DNS lookup cannot change it.
"""

import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from imagegen.domain.errors import ImageDownloadInterruptedError, ImageUrlRefusedError

Resolve = Callable[[str, int], Sequence[str]]

# IPv6 ranges whose addresses contain an IPv4 address, which may be private.
_TRANSLATED = tuple(ipaddress.IPv6Network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))
# Special ranges of IANA's registries that some versions of Python take for global, in whole or in part.
_SPECIAL_4 = tuple(ipaddress.IPv4Network(net) for net in ("192.0.0.0/24", "192.88.99.0/24"))
_SPECIAL_6 = tuple(ipaddress.IPv6Network(net) for net in ("3fff::/20", "2001:2::/48"))
_UNICAST_6 = ipaddress.IPv6Network("2000::/3")  # all ranges that IANA has assigned


@dataclass(frozen=True, slots=True)
class Approved:
    """A URL that may be fetched. `address` is the IP address to connect to, `None` for the upstream's own origin."""

    url: SplitResult
    address: str | None


def resolve(host: str, port: int) -> Sequence[str]:
    """Returns all addresses of a host, from the resolver of the system."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Returns whether an IP address is on the public internet."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # for example an address with a zone index
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip not in _UNICAST_6 or any(ip in net for net in (*_TRANSLATED, *_SPECIAL_6)):
            return False
    if isinstance(ip, ipaddress.IPv4Address) and any(ip in net for net in _SPECIAL_4):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class UrlGuard:
    """`upstream` is the upstream's base URL."""

    def __init__(self, upstream: str, resolver: Resolve = resolve) -> None:
        self._own_origin = _origin(urlsplit(upstream))
        self._resolve = resolver

    def approve(self, text: str) -> Approved:
        """Checks a URL. Raises ImageUrlRefusedError, or ImageDownloadInterruptedError if the host is not found."""
        try:
            url = urlsplit(text)
            origin = _origin(url)
        except ValueError:
            raise _refused("is not a URL") from None
        if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
            raise _refused("contains characters that are not allowed in a URL")
        if url.username is not None or url.password is not None:
            raise _refused("contains credentials")
        if origin == self._own_origin:
            return Approved(url, None)
        scheme, host, port = origin
        if scheme != "https" or port != 443 or not host:
            raise _refused("is not on a public https host")
        try:
            addresses = self._resolve(host, port)
        except OSError:
            raise ImageDownloadInterruptedError("The host of an image could not be found.") from None
        except ValueError:  # a label too long for DNS
            raise _refused("has an invalid host") from None
        if not addresses or not all(is_public(address) for address in addresses):
            raise _refused("is not on a public https host")
        return Approved(url, addresses[0])


def _origin(url: SplitResult) -> tuple[str, str, int | None]:
    default = {"https": 443, "http": 80}.get(url.scheme)
    return url.scheme, url.hostname or "", url.port or default


def _refused(why: str) -> ImageUrlRefusedError:
    return ImageUrlRefusedError(f"The image model answered with an image URL that {why}; it was not fetched.")
