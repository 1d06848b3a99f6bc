"""Fetches the signing keys of an OpenID issuer, from the address in its discovery document, and caches them.

PyJWT's own client limits neither the size of an answer nor the time of a slow sender. While the issuer is down, it
sends a request for every unknown key, and it has no older keys to use.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import SplitResult, urlsplit

import msgspec

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import IssuerUnavailableError
from imagegen.outbound.read_deadline import cut_off_at
from imagegen.outbound.web_address import read_web_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from jwt import PyJWK

    from imagegen.outbound.pool import HttpPool

FRESH_SECONDS = 3600.0
# How long the last keys are used while the issuer is down.
STALE_SECONDS = 24 * 3600.0
# Between two reloads, so that tokens with invented key ids cause no further requests.
PAUSE_SECONDS = 60.0
# The same while there are no keys, and so no token can be accepted.
PAUSE_WITHOUT_KEYS_SECONDS = 10.0
# For both documents together; the authorizer function has 10 s.
ASKING_SECONDS = 5.0
MOST_BYTES = 512 * 1024

T = TypeVar("T")


class _Discovery(msgspec.Struct):
    issuer: str
    jwks_uri: str


class _KeySet(msgspec.Struct):
    keys: list[msgspec.Raw]


class _Jwk(msgspec.Struct, omit_defaults=True):
    """A public key. All other members of a JWK, such as certificates and their URLs, are ignored."""

    kty: str
    kid: str
    alg: str | None = None
    use: str | None = None
    key_ops: list[str] | None = None
    crv: str | None = None
    n: str | None = None
    e: str | None = None
    x: str | None = None
    y: str | None = None

    def algorithm(self) -> str | None:
        """Returns the algorithm of the key. It follows from the type of the key, never from a token.

        `None` if the algorithm is not supported, or if the key is not for signatures.
        """
        fits = {("RSA", None): "RS256", ("EC", "P-256"): "ES256"}.get((self.kty, self.crv))
        for_signatures = self.use in (None, "sig") and (self.key_ops is None or "verify" in self.key_ops)
        return fits if for_signatures and self.alg in (None, fits) else None


class IssuerKeys:
    """Finds keys of an issuer. `issuer` is its URL, exactly as in the `iss` claim of its tokens."""

    def __init__(self, pool: HttpPool, issuer: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self.issuer = issuer
        self._clock = clock
        self._keys: dict[tuple[str, str], PyJWK] = {}
        self._loaded_at = self._tried_at = float("-inf")
        self._failure: str | None = None
        self._lock = threading.Lock()

    def find(self, kid: str, algorithm: str) -> PyJWK | None:
        """Returns the key with the id `kid` for the algorithm, `None` if the issuer has none.

        Raises IssuerUnavailableError if the keys of the issuer are not known.
        """
        with self._lock:  # so that parallel threads cause one request
            now = self._clock()
            if now - self._loaded_at >= STALE_SECONDS:
                self._keys = {}
            key = self._keys.get((kid, algorithm))
            if key is not None and now - self._loaded_at < FRESH_SECONDS:
                return key
            if now - self._tried_at >= (PAUSE_SECONDS if self._keys else PAUSE_WITHOUT_KEYS_SECONDS):
                self._reload(now)
                key = self._keys.get((kid, algorithm))
            if key is None and self._failure:
                raise IssuerUnavailableError(self._failure)
            return key

    def _reload(self, now: float) -> None:
        self._tried_at = now
        try:
            self._keys = self._fetch(Deadline.after(ASKING_SECONDS))
        except IssuerUnavailableError as error:
            self._failure = error.message
        else:
            self._failure = None
            self._loaded_at = now

    def _fetch(self, deadline: Deadline) -> dict[tuple[str, str], PyJWK]:
        own = urlsplit(self.issuer)
        about = f"{self.issuer.removesuffix('/')}/.well-known/openid-configuration"
        discovery = _read(self._ask(urlsplit(about), deadline), _Discovery)
        if discovery.issuer != self.issuer:
            raise IssuerUnavailableError("The token issuer's discovery document has another issuer.")
        try:
            address = read_web_address(discovery.jwks_uri, query=True)
        except ValueError:
            address = None
        if address is None or (address.scheme == "http" and own.scheme != "http"):
            raise IssuerUnavailableError("The token issuer's discovery document has no valid jwks_uri.")
        return _usable(_read(self._ask(address, deadline), _KeySet).keys)

    def _ask(self, url: SplitResult, deadline: Deadline) -> bytes:
        answer = bytearray()
        try:
            response = self._pool.request("GET", url, deadline, headers={"Accept": "application/json"})
            with closing(response), cut_off_at(deadline, response.shutdown):
                while response.status == 200 and len(answer) <= MOST_BYTES and (block := response.read(MOST_BYTES)):
                    answer += block
        except Exception:  # noqa: BLE001  # the answer of a host may make a parser raise anything
            raise IssuerUnavailableError("The keys of the token issuer could not be fetched.") from None
        if response.status != 200:  # a redirect is not followed: it may lead anywhere
            raise IssuerUnavailableError(f"The token issuer answered with status {response.status}.")
        if not deadline.remaining():  # cut off: the part that was read may look complete
            raise IssuerUnavailableError("The token issuer did not answer in time.")
        if len(answer) > MOST_BYTES:
            raise IssuerUnavailableError("The token issuer's answer is too large.")
        return bytes(answer)


def _read(answer: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise IssuerUnavailableError("The token issuer's answer is not valid.") from None


def _usable(listed: list[msgspec.Raw]) -> dict[tuple[str, str], PyJWK]:
    """Returns the keys that can verify a token. Other keys that an issuer lists are ignored."""
    import jwt  # noqa: PLC0415  # only the authorizer has it, and bearer keys do not need it

    usable: dict[tuple[str, str], PyJWK] = {}
    for raw in listed:
        try:
            jwk = msgspec.json.decode(raw, type=_Jwk)
            algorithm = jwk.algorithm()
            if algorithm is None:
                continue
            key = jwt.PyJWK(msgspec.to_builtins(jwk), algorithm)
        except (msgspec.MsgspecError, jwt.PyJWTError, ValueError, RecursionError):
            continue
        if key.Algorithm.check_key_length(key.key) is None:
            usable.setdefault((jwk.kid, algorithm), key)
    if not usable:
        raise IssuerUnavailableError("The token issuer lists no usable key.")
    return usable
