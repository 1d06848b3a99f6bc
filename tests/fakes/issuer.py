"""An OpenID issuer, and functions that make genuine and forged tokens."""

import hashlib
import hmac
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from local.serving import Reply, Request, serving

AUDIENCE = "imagegen"
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
Json = dict[str, Any]


@cache
def rsa_key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """One key for each name, since making one is slow."""
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key(name: str, curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve())


def public_jwk(key: PrivateKey, kid: str, **more: Any) -> Json:
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        shown: Json = jwt.algorithms.RSAAlgorithm.to_jwk(public, as_dict=True)
    else:
        shown = jwt.algorithms.ECAlgorithm.to_jwk(public, as_dict=True)
    shown.pop("key_ops", None)
    return {**shown, "kid": kid, **more}


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def segment(content: Any) -> str:
    return b64(content if isinstance(content, bytes) else json.dumps(content).encode())


def signature(key: PrivateKey | bytes, signed: bytes) -> bytes:
    """RS256, ES256 or, for a secret, HS256, by the type of the key."""
    if isinstance(key, bytes):
        return hmac.digest(key, signed, hashlib.sha256)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    size = (key.curve.key_size + 7) // 8
    return b"".join(n.to_bytes(size) for n in decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256()))))


def token(header: Any, claims: Any, key: PrivateKey | bytes) -> str:
    """A signed token with any content. A header or claims of bytes are used unchanged."""
    signed = f"{segment(header)}.{segment(claims)}"
    return f"{signed}.{b64(signature(key, signed.encode()))}"


@dataclass
class FakeIssuer:
    """`url` is its name, `keys` are by kid, `listed` are further entries of its key set.

    `asked` are the requested paths. `instead` answers in place of the document at a path.
    """

    url: str
    keys: dict[str, PrivateKey] = field(default_factory=lambda: {"rsa-1": rsa_key("1"), "ec-1": ec_key("1")})
    listed: list[Any] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    instead: dict[str, Callable[[Request], Reply]] = field(default_factory=dict)

    @property
    def discovery_path(self) -> str:
        return f"{urlsplit(self.url).path.rstrip('/')}/.well-known/openid-configuration"

    @property
    def discovery(self) -> Json:
        return {"issuer": self.url, "jwks_uri": f"{self.origin}/keys?of=all", "token_endpoint": f"{self.origin}/token"}

    @property
    def key_set(self) -> Json:
        return {"keys": [*self.listed, *(public_jwk(key, kid, use="sig") for kid, key in self.keys.items())]}

    @property
    def origin(self) -> str:
        return "{0.scheme}://{0.netloc}".format(urlsplit(self.url))

    def respond(self, request: Request) -> Reply:
        path = urlsplit(request.target).path
        self.asked.append(path)
        if (request.header("User-Agent") or "").lower().startswith("python"):
            return Reply(403)  # as Cloudflare answers the default names of HTTP libraries
        if path in self.instead:
            return self.instead[path](request)
        if path == self.discovery_path:
            return json_reply(self.discovery)
        if request.target == "/keys?of=all":
            return json_reply(self.key_set)
        return Reply(404)

    def claims(self, **changed: Any) -> Json:
        """The claims of a good token with these changes. `...` removes a claim."""
        now = int(time.time())
        good = {"iss": self.url, "aud": AUDIENCE, "sub": "ann@example.org", "exp": now + 600, "iat": now, "nbf": now}
        return {name: value for name, value in {**good, **changed}.items() if value is not ...}

    def token(self, kid: str = "rsa-1", header: Json | None = None, **changed: Any) -> str:
        """A good token with these changes of its header and its claims."""
        key = self.keys[kid]
        algorithm = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
        shown = {"alg": algorithm, "kid": kid, "typ": "JWT", **(header or {})}
        return token({n: v for n, v in shown.items() if v is not ...}, self.claims(**changed), key)


def json_reply(content: Any) -> Reply:
    return Reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})


@contextmanager
def running_issuer(path: str = "/tenant") -> Iterator[FakeIssuer]:
    """Serves during the block. `path` is the path of its URL."""
    issuer = FakeIssuer("")
    with serving(issuer.respond) as port:
        issuer.url = f"http://127.0.0.1:{port}{path}"
        yield issuer
