"""Which tokens are good, and how often their issuer is asked. The issuer is a real HTTP server."""

import io
import json
import time
import uuid
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import urllib3
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from imagegen.errors import IssuerUnavailableError
from imagegen.outbound import issuer_keys
from imagegen.outbound.issuer_keys import (
    FRESH_SECONDS,
    MOST_BYTES,
    PAUSE_SECONDS,
    PAUSE_WITHOUT_KEYS_SECONDS,
    STALE_SECONDS,
    IssuerKeys,
)
from imagegen.outbound.oidc import MOST_TOKEN_CHARACTERS, OidcTokens
from imagegen.outbound.pool import HttpPool
from local.serving import HungUpError, Reply, Request
from tests.fakes.issuer import (
    AUDIENCE,
    FakeIssuer,
    b64,
    ec_key,
    json_reply,
    public_jwk,
    rsa_key,
    running_issuer,
    segment,
    signature,
    token,
)

ANN = "ann@example.org"
KEYS = "/keys"
Token = Callable[[FakeIssuer], str]


class Clock:
    """On its own, so that hours pass at once."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def shared_issuer() -> Iterator[FakeIssuer]:
    with running_issuer() as issuer:
        yield issuer


@pytest.fixture
def issuer() -> Iterator[FakeIssuer]:
    with running_issuer() as issuer:
        yield issuer


@pytest.fixture
def clock() -> Clock:
    return Clock()


def verifier(issuer: FakeIssuer, clock: Clock | None = None) -> OidcTokens:
    return OidcTokens(IssuerKeys(HttpPool(), issuer.url, clock=clock or Clock()), audience=AUDIENCE)


@pytest.fixture
def tokens(issuer: FakeIssuer, clock: Clock) -> OidcTokens:
    return verifier(issuer, clock)


# Tokens


def now() -> int:
    return int(time.time())


GOOD: dict[str, Token] = {
    "RS256": lambda issuer: issuer.token(),
    "ES256": lambda issuer: issuer.token("ec-1"),
    "one audience of several": lambda issuer: issuer.token(aud=["other", AUDIENCE]),
    "expired within the leeway": lambda issuer: issuer.token(exp=now() - 15),
    "not yet valid within the leeway": lambda issuer: issuer.token(nbf=now() + 15, iat=now() + 15),
    "a date with a fraction": lambda issuer: issuer.token(exp=now() + 60.5),
    "neither nbf nor iat": lambda issuer: issuer.token(nbf=..., iat=...),
    "an access token": lambda issuer: issuer.token(header={"typ": "at+jwt"}),
    "no type": lambda issuer: issuer.token(header={"typ": ...}),
    "more claims": lambda issuer: issuer.token(email=ANN, email_verified=True, roles=[{"a": None}]),
    "more in its header": lambda issuer: issuer.token(
        header={"jku": f"{issuer.origin}/evil", "x5u": f"{issuer.origin}/evil", "x5t": "x", "jwk": {"kty": "oct"}}
    ),
}

PEM = rsa_key("1").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def forged(issuer: FakeIssuer, kid: str, **header: Any) -> str:
    """Signed by a key that is not the issuer's."""
    return token({"alg": "RS256", "kid": kid, **header}, issuer.claims(), rsa_key("evil"))


def changed(issuer: FakeIssuer, part: int, change: Callable[[str], str], kid: str = "rsa-1") -> str:
    parts = issuer.token(kid).split(".")
    parts[part] = change(parts[part])
    return ".".join(parts)


def for_somebody_else(payload: str) -> str:
    claims = json.loads(urlsafe_b64decode(payload + "=="))
    return segment({**claims, "sub": "bob@example.org"})


def with_der_signature(issuer: FakeIssuer) -> str:
    signed = issuer.token("ec-1").rpartition(".")[0]
    return f"{signed}.{b64(ec_key('1').sign(signed.encode(), ec.ECDSA(hashes.SHA256())))}"


def other_last_bits(text: str) -> str:
    """The same bytes in another spelling: 256 bytes leave four bits of the last character unused."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) ^ 1]


def nested(depth: int) -> bytes:
    return b'{"alg":"RS256","kid":"rsa-1","x":' + b"[" * depth + b"]" * depth + b"}"


BAD: dict[str, Token] = {
    # algorithms
    "none, unsigned": lambda i: f"{segment({'alg': 'none', 'kid': 'rsa-1'})}.{segment(i.claims())}.",
    "none, signed": lambda i: i.token(header={"alg": "none"}),
    "NONE": lambda i: i.token(header={"alg": "NONE"}),
    "HS256 by the public key's PEM": lambda i: token({"alg": "HS256", "kid": "rsa-1"}, i.claims(), PEM),
    "HS256 by the public key's modulus": lambda i: token(
        {"alg": "HS256", "kid": "rsa-1"}, i.claims(), public_jwk(rsa_key("1"), "x")["n"].encode()
    ),
    "HS256 by nothing": lambda i: token({"alg": "HS256", "kid": "rsa-1"}, i.claims(), b""),
    "RS256 said, signed as HS256": lambda i: token({"alg": "RS256", "kid": "rsa-1"}, i.claims(), PEM),
    "RS384": lambda i: i.token(header={"alg": "RS384"}),
    "PS256": lambda i: i.token(header={"alg": "PS256"}),
    "rs256": lambda i: i.token(header={"alg": "rs256"}),
    "ES384": lambda i: i.token("ec-1", header={"alg": "ES384"}),
    "EdDSA": lambda i: i.token("ec-1", header={"alg": "EdDSA"}),
    "no algorithm": lambda i: i.token(header={"alg": ...}),
    "a list of algorithms": lambda i: i.token(header={"alg": ["RS256"]}),
    "no text for an algorithm": lambda i: i.token(header={"alg": None}),
    "an RSA key named for ES256": lambda i: i.token("ec-1", header={"kid": "rsa-1"}),
    "an EC key named for RS256": lambda i: i.token(header={"kid": "ec-1"}),
    "ES256 said of an RSA signature": lambda i: i.token(header={"alg": "ES256"}),
    # keys
    "an unknown key": lambda i: forged(i, "evil"),
    "another's key under the issuer's name": lambda i: forged(i, "rsa-1"),
    "no key": lambda i: i.token(header={"kid": ...}),
    "a number for a key": lambda i: i.token(header={"kid": 1}),
    "null for a key": lambda i: i.token(header={"kid": None}),
    "a path for a key": lambda i: forged(i, "../../dev/null"),
    "its own key in it": lambda i: forged(i, "rsa-1", jwk=public_jwk(rsa_key("evil"), "rsa-1")),
    "its own unknown key in it": lambda i: forged(i, "evil", jwk=public_jwk(rsa_key("evil"), "evil")),
    "a key set of its own": lambda i: forged(i, "rsa-1", jku=f"{i.origin}/evil"),
    "a certificate of its own by URL": lambda i: forged(i, "rsa-1", x5u=f"{i.origin}/evil"),
    "a certificate of its own": lambda i: forged(i, "rsa-1", x5c=["MIIB"]),
    # whose and whom for
    "another issuer": lambda i: i.token(iss="https://login.example"),
    "the issuer with a slash more": lambda i: i.token(iss=f"{i.url}/"),
    "the issuer and something more": lambda i: i.token(iss=f"{i.url}.evil"),
    "a list of issuers": lambda i: i.token(iss=[i.url]),
    "no issuer": lambda i: i.token(iss=...),
    "another audience": lambda i: i.token(aud="other"),
    "the audience in capitals": lambda i: i.token(aud=AUDIENCE.upper()),
    "other audiences": lambda i: i.token(aud=["other", "another"]),
    "no audience at all": lambda i: i.token(aud=[]),
    "an audience among numbers": lambda i: i.token(aud=[1, AUDIENCE]),
    "an audience in an object": lambda i: i.token(aud={AUDIENCE: True}),
    "an audience in part": lambda i: i.token(aud=AUDIENCE[:-1]),
    "no audience": lambda i: i.token(aud=...),
    "null for an audience": lambda i: i.token(aud=None),
    # when
    "expired": lambda i: i.token(exp=now() - 45),
    "expired long ago": lambda i: i.token(exp=0),
    "no end": lambda i: i.token(exp=...),
    "null for an end": lambda i: i.token(exp=None),
    "text for an end": lambda i: i.token(exp=str(now() + 600)),
    "truth for an end": lambda i: i.token(exp=True),
    "a list for an end": lambda i: i.token(exp=[now() + 600]),
    "an end before all time": lambda i: i.token(exp=-1),
    "an end after all time": lambda i: i.token(exp=10**12),
    "a huge end": lambda i: i.token(exp=10**400),
    "an infinite end": lambda i: i.token(exp=float("inf")),
    "no number for an end": lambda i: i.token(exp=float("nan")),
    "an end of too many digits": lambda i: token(
        {"alg": "RS256", "kid": "rsa-1"}, json.dumps(i.claims(exp=7)).replace("7", "9" * 5000).encode(), rsa_key("1")
    ),
    "not yet valid": lambda i: i.token(nbf=now() + 60),
    "text for a beginning": lambda i: i.token(nbf=str(now())),
    "truth for a beginning": lambda i: i.token(nbf=True),
    "not yet made": lambda i: i.token(iat=now() + 60),
    "truth for when it was made": lambda i: i.token(iat=False),
    # who
    "nobody": lambda i: i.token(sub=...),
    "an empty name": lambda i: i.token(sub=""),
    "null for a name": lambda i: i.token(sub=None),
    "a number for a name": lambda i: i.token(sub=7),
    "truth for a name": lambda i: i.token(sub=True),
    "a list of names": lambda i: i.token(sub=[ANN]),
    "a name too long": lambda i: i.token(sub="a" * 256),
    "half a character for a name": lambda i: i.token(sub="\ud800"),
    # signatures
    "claims changed": lambda i: changed(i, 1, for_somebody_else),
    "a header changed": lambda i: changed(i, 0, lambda _: segment({"kid": "rsa-1", "alg": "RS256"})),
    "a signature cut": lambda i: changed(i, 2, lambda text: text[:-4]),
    "a signature of nothing": lambda i: changed(i, 2, lambda _: b64(b"\0" * 256)),
    "an empty signature": lambda i: changed(i, 2, lambda _: ""),
    "another token's signature": lambda i: changed(i, 2, lambda _: i.token(sub="bob").rpartition(".")[2]),
    "an EC signature of zeros": lambda i: changed(i, 2, lambda _: b64(b"\0" * 64), "ec-1"),
    "an EC signature in DER": with_der_signature,
    "a signature over the claims alone": lambda i: changed(
        i, 2, lambda _: b64(signature(rsa_key("1"), segment(i.claims()).encode()))
    ),
    # what it demands, and what it is
    "a critical extension": lambda i: i.token(header={"crit": ["exp"], "exp": 1}),
    "a critical extension that is known": lambda i: i.token(header={"crit": ["b64"], "b64": True}),
    "no critical extension": lambda i: i.token(header={"crit": []}),
    "null for critical extensions": lambda i: i.token(header={"crit": None}),
    "claims as they are": lambda i: i.token(header={"b64": False}),
    "a logout token": lambda i: i.token(header={"typ": "logout+jwt"}),
    "a security event": lambda i: i.token(header={"typ": "secevent+jwt"}),
    "a number for a type": lambda i: i.token(header={"typ": 7}),
    # shapes
    "nothing": lambda i: "",
    "dots": lambda i: "..",
    "two parts": lambda i: i.token().rpartition(".")[0],
    "four parts": lambda i: f"{i.token()}.{i.token().rpartition('.')[2]}",
    "an encrypted token": lambda i: f"{segment({'alg': 'RSA-OAEP', 'enc': 'A256GCM', 'kid': 'rsa-1'})}.a.b.c.d",
    "a space before": lambda i: f" {i.token()}",
    "a line after": lambda i: f"{i.token()}\n",
    "no base64 in the header": lambda i: changed(i, 0, lambda text: f"!{text}"),
    "no base64 in the claims": lambda i: changed(i, 1, lambda text: f"{text}!!"),
    "no base64 in the signature": lambda i: changed(i, 2, lambda text: f"{text[:-1]}*"),
    "the other base64": lambda i: changed(i, 2, lambda text: f"+/{text[2:]}"),
    "a signature spelled otherwise": lambda i: changed(i, 2, other_last_bits),
    "a letter too few": lambda i: changed(i, 0, lambda text: text[:-1]),
    "letters of another script": lambda i: changed(i, 0, lambda text: f"{text}é"),
    "no JSON in the header": lambda i: token(b"alg=RS256", i.claims(), rsa_key("1")),
    "no UTF-8 in the header": lambda i: token(b'{"alg":"RS256","kid":"\xff"}', i.claims(), rsa_key("1")),
    "a list for a header": lambda i: token([{"alg": "RS256", "kid": "rsa-1"}], i.claims(), rsa_key("1")),
    "a deep header": lambda i: token(nested(2500), i.claims(), rsa_key("1")),
    "no JSON in the claims": lambda i: token({"alg": "RS256", "kid": "rsa-1"}, b"sub=ann", rsa_key("1")),
    "a list for claims": lambda i: token({"alg": "RS256", "kid": "rsa-1"}, [i.claims()], rsa_key("1")),
    "text for claims": lambda i: token({"alg": "RS256", "kid": "rsa-1"}, ANN, rsa_key("1")),
    "deep claims": lambda i: token({"alg": "RS256", "kid": "rsa-1"}, b"[" * 5000, rsa_key("1")),
    "more than 8 KiB": lambda i: i.token(more="x" * MOST_TOKEN_CHARACTERS),
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_token_tells_its_subject(shared_issuer: FakeIssuer, kind: str) -> None:
    assert verifier(shared_issuer).subject(GOOD[kind](shared_issuer)) == ANN
    assert "/evil" not in shared_issuer.asked


def test_a_subject_is_told_as_it_is(shared_issuer: FakeIssuer) -> None:
    for sub in ("7", "a" * 255, "google-oauth2|1", "änn", " ", "null"):
        assert verifier(shared_issuer).subject(shared_issuer.token(sub=sub)) == sub


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_token_tells_nobody(shared_issuer: FakeIssuer, kind: str) -> None:
    tokens = verifier(shared_issuer)
    assert tokens.subject(BAD[kind](shared_issuer)) is None
    assert tokens.subject(shared_issuer.token()) == ANN
    assert set(shared_issuer.asked) <= {shared_issuer.discovery_path, KEYS}  # nor does it lead anywhere


@pytest.mark.parametrize(
    "kind", ["more than 8 KiB", "none, signed", "HS256 by nothing", "no key", "no critical extension", "a deep header"]
)
def test_what_is_bad_at_first_sight_does_not_cost_the_issuer_a_call(issuer: FakeIssuer, kind: str) -> None:
    assert verifier(issuer).subject(BAD[kind](issuer)) is None
    assert issuer.asked == []


# Keys


@pytest.mark.parametrize("path", ["", "/", "/tenant", "/tenant/", "/a/b"])
def test_an_issuer_may_end_with_a_slash_or_without(path: str) -> None:
    with running_issuer(path) as issuer:
        assert verifier(issuer).subject(issuer.token()) == ANN
        assert issuer.asked == [f"{path.rstrip('/')}/.well-known/openid-configuration", KEYS]


@pytest.mark.parametrize(
    ("key", "more"),
    [
        (rsa_key("1"), {"use": "enc"}),
        (rsa_key("1"), {"use": "SIG"}),
        (rsa_key("1"), {"alg": "RS512"}),
        (rsa_key("1"), {"alg": "PS256"}),
        (rsa_key("1"), {"alg": "ES256"}),
        (rsa_key("1"), {"alg": "HS256"}),
        (rsa_key("1"), {"key_ops": ["encrypt"]}),
        (rsa_key("1"), {"key_ops": "verify"}),
        (rsa_key("1"), {"kty": "oct", "k": "c2VjcmV0"}),
        (rsa_key("1"), {"kty": "EC", "crv": "P-256"}),
        (rsa_key("1"), {"n": "!"}),
        (rsa_key("1"), {"n": 7}),
        (rsa_key("1"), {"e": "AA"}),
        (rsa_key("short", 1024), {}),
        (ec_key("1"), {"use": "enc"}),
        (ec_key("1"), {"alg": "ES384"}),
        (ec_key("1"), {"crv": "P-384"}),
        (ec_key("1"), {"x": public_jwk(ec_key("2"), "x")["x"]}),
        (ec_key("384", ec.SECP384R1), {}),
        (ec_key("k", ec.SECP256K1), {}),
    ],
)
def test_a_key_that_is_not_for_our_signatures_opens_nothing(
    issuer: FakeIssuer, tokens: OidcTokens, key: Any, more: dict[str, Any]
) -> None:
    issuer.listed = [public_jwk(key, "odd", **more)]
    algorithm = "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "RS256"
    assert tokens.subject(token({"alg": algorithm, "kid": "odd"}, issuer.claims(), key)) is None
    assert tokens.subject(issuer.token()) == ANN


@pytest.mark.parametrize(
    "more", [{"use": "sig"}, {"alg": "RS256"}, {"key_ops": ["verify"]}, {"x5c": ["MIIB"], "x5u": "https://x.example"}]
)
def test_a_key_may_say_what_it_is_for(issuer: FakeIssuer, tokens: OidcTokens, more: dict[str, Any]) -> None:
    issuer.listed = [public_jwk(rsa_key("2"), "more", **more)]
    assert tokens.subject(token({"alg": "RS256", "kid": "more"}, issuer.claims(), rsa_key("2"))) == ANN
    assert issuer.asked == [issuer.discovery_path, KEYS]


@pytest.mark.parametrize("odd", [None, 7, "key", [], {}, {"kty": "RSA"}, {"kid": "x"}, {"kty": 1, "kid": 2}])
def test_a_key_that_nobody_can_read_does_not_spoil_the_others(
    issuer: FakeIssuer, tokens: OidcTokens, odd: object
) -> None:
    issuer.listed = [odd]
    assert tokens.subject(issuer.token()) == ANN


def test_two_kinds_of_keys_may_have_one_name(issuer: FakeIssuer, tokens: OidcTokens) -> None:
    issuer.listed = [public_jwk(rsa_key("2"), "same"), public_jwk(ec_key("2"), "same")]
    assert tokens.subject(token({"alg": "RS256", "kid": "same"}, issuer.claims(), rsa_key("2"))) == ANN
    assert tokens.subject(token({"alg": "ES256", "kid": "same"}, issuer.claims(), ec_key("2"))) == ANN


def test_the_issuer_is_asked_once_an_hour(issuer: FakeIssuer, tokens: OidcTokens, clock: Clock) -> None:
    for _ in range(5):
        assert tokens.subject(issuer.token()) == ANN
    clock.now += FRESH_SECONDS - 1
    assert tokens.subject(issuer.token("ec-1")) == ANN
    assert issuer.asked == [issuer.discovery_path, KEYS]
    clock.now += 1
    assert tokens.subject(issuer.token()) == ANN
    assert issuer.asked == [issuer.discovery_path, KEYS] * 2


def test_a_new_key_is_found_at_once_and_the_old_one_goes(issuer: FakeIssuer, tokens: OidcTokens, clock: Clock) -> None:
    old = issuer.token()
    assert tokens.subject(old) == ANN
    clock.now += PAUSE_SECONDS
    issuer.keys = {"rsa-2": rsa_key("2")}
    assert tokens.subject(old) == ANN  # known, so nobody is asked
    assert tokens.subject(issuer.token("rsa-2")) == ANN
    assert tokens.subject(old) is None
    assert issuer.asked == [issuer.discovery_path, KEYS] * 2


def test_a_new_key_under_an_old_name_counts_within_the_hour(
    issuer: FakeIssuer, tokens: OidcTokens, clock: Clock
) -> None:
    assert tokens.subject(issuer.token()) == ANN
    issuer.keys = {"rsa-1": rsa_key("2")}
    clock.now += FRESH_SECONDS
    assert tokens.subject(issuer.token()) == ANN


def test_made_up_names_of_keys_cost_one_look_a_minute(issuer: FakeIssuer, tokens: OidcTokens, clock: Clock) -> None:
    for _ in range(180):
        assert tokens.subject(forged(issuer, uuid.uuid4().hex)) is None
        clock.now += 1
    assert issuer.asked.count(KEYS) == 3
    assert tokens.subject(issuer.token()) == ANN


# An issuer that is down


def down(_: Request) -> Reply:
    raise HungUpError


def test_an_issuer_that_is_down_at_first_is_an_error_and_no_denial(
    issuer: FakeIssuer, tokens: OidcTokens, clock: Clock
) -> None:
    issuer.instead[issuer.discovery_path] = down
    for _ in range(3):
        with pytest.raises(IssuerUnavailableError):
            tokens.subject(issuer.token())
    assert issuer.asked == [issuer.discovery_path]  # and is left alone for a while
    issuer.instead.clear()
    clock.now += PAUSE_WITHOUT_KEYS_SECONDS
    assert tokens.subject(issuer.token()) == ANN


def test_known_keys_serve_on_for_a_day_while_the_issuer_is_down(
    issuer: FakeIssuer, tokens: OidcTokens, clock: Clock
) -> None:
    assert tokens.subject(issuer.token()) == ANN
    issuer.instead[KEYS] = down
    clock.now += FRESH_SECONDS
    for _ in range(3):
        assert tokens.subject(issuer.token()) == ANN
    assert issuer.asked.count(KEYS) == 2
    assert tokens.subject(BAD["claims changed"](issuer)) is None
    clock.now += STALE_SECONDS - FRESH_SECONDS - 1
    assert tokens.subject(issuer.token()) == ANN
    clock.now += 1
    with pytest.raises(IssuerUnavailableError):
        tokens.subject(issuer.token())


def test_an_unknown_key_is_no_denial_while_the_issuer_is_down(
    issuer: FakeIssuer, tokens: OidcTokens, clock: Clock
) -> None:
    assert tokens.subject(issuer.token()) == ANN
    issuer.instead[issuer.discovery_path] = down
    issuer.keys["rsa-2"] = rsa_key("2")
    clock.now += PAUSE_SECONDS
    for _ in range(100):
        with pytest.raises(IssuerUnavailableError):
            tokens.subject(issuer.token("rsa-2"))
    assert issuer.asked.count(issuer.discovery_path) == 2
    issuer.instead.clear()
    clock.now += PAUSE_SECONDS
    assert tokens.subject(issuer.token("rsa-2")) == ANN
    assert tokens.subject(forged(issuer, "evil")) is None  # now it is known that there is none


def test_an_issuer_that_nobody_listens_for_is_an_error() -> None:
    with running_issuer() as gone:
        pass
    with pytest.raises(IssuerUnavailableError):
        verifier(gone).subject(gone.token())


# An issuer that answers amiss


def drip(request: Request) -> Reply:
    try:
        for _ in range(40):
            request.connection.sendall(b" ")
            time.sleep(0.05)
    except OSError:
        pass
    raise HungUpError


def drip_all(request: Request) -> Reply:
    request.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    return drip(request)


def drip_headers(request: Request) -> Reply:
    request.connection.sendall(b"HTTP/1.1 200 OK\r\n")
    try:
        for number in range(50):
            request.connection.sendall(b"X-%d: x\r\n" % number)
            time.sleep(0.05)
    except OSError:
        pass
    raise HungUpError


def endless(request: Request) -> Reply:
    request.connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    try:
        while True:
            request.connection.sendall(b" " * 65536)
    except OSError:
        pass
    raise HungUpError


AMISS: dict[str, Callable[[Request], Reply]] = {
    "404": lambda _: Reply(404),
    "500": lambda _: Reply(500),
    "an error in JSON": lambda _: Reply(503, b"{}"),
    "a redirect": lambda _: Reply(302, b"", {"Location": "/evil"}),
    "a redirect that keeps its method": lambda _: Reply(308, b"", {"Location": "/evil"}),
    "no content": lambda _: Reply(204),
    "nothing": lambda _: Reply(200),
    "no JSON": lambda _: Reply(200, b"<html>"),
    "no UTF-8": lambda _: Reply(200, b'{"issuer":"\xff"}'),
    "a list": lambda _: json_reply([]),
    "an empty object": lambda _: json_reply({}),
    "null": lambda _: json_reply(None),
    "deep JSON": lambda _: Reply(200, b'{"keys":' + b"[" * 100_000),
    "too much": lambda _: Reply(200, b" " * (MOST_BYTES + 1)),
    "too much behind a good answer": lambda _: Reply(200, b'{"keys":[]}' + b" " * MOST_BYTES),
    "without end": endless,
    "cut short": lambda _: Reply(200, b'{"keys":[]}', declared_length=1000),
    "slowly": drip_all,
    "with slow headers": drip_headers,
    "not at all": down,
}


@pytest.mark.parametrize("kind", AMISS)
@pytest.mark.parametrize("where", ["discovery", "keys"])
def test_an_issuer_that_answers_amiss_is_an_error_and_no_denial(
    issuer: FakeIssuer, tokens: OidcTokens, clock: Clock, monkeypatch: pytest.MonkeyPatch, where: str, kind: str
) -> None:
    monkeypatch.setattr(issuer_keys, "ASKING_SECONDS", 0.5 if "slow" in kind else 5.0)
    path = KEYS if where == "keys" else issuer.discovery_path
    issuer.instead[path] = AMISS[kind]
    started = time.monotonic()
    with pytest.raises(IssuerUnavailableError) as error:
        tokens.subject(issuer.token())
    assert time.monotonic() - started < 4
    assert issuer.url not in error.value.message
    assert "/evil" not in issuer.asked
    issuer.instead.clear()
    clock.now += PAUSE_WITHOUT_KEYS_SECONDS
    assert tokens.subject(issuer.token()) == ANN


def whole_and_then_slowly(document: bytes) -> Callable[[Request], Reply]:
    """Without a length, so that where it is cut off looks like its end."""

    def respond(request: Request) -> Reply:
        request.connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + document)
        return drip(request)

    return respond


GOOD_BUT: dict[str, Callable[[bytes], Callable[[Request], Reply]]] = {
    "with a redirect": lambda document: lambda _: Reply(302, document, {"Location": "/evil"}),
    "in part": lambda document: lambda _: Reply(206, document),
    "with too much behind it": lambda document: lambda _: Reply(200, document + b" " * MOST_BYTES),
    "with something slow behind it": whole_and_then_slowly,
}


@pytest.mark.parametrize("kind", GOOD_BUT)
@pytest.mark.parametrize("where", ["discovery", "keys"])
def test_a_good_document_is_not_enough(
    issuer: FakeIssuer, tokens: OidcTokens, monkeypatch: pytest.MonkeyPatch, where: str, kind: str
) -> None:
    monkeypatch.setattr(issuer_keys, "ASKING_SECONDS", 0.5 if "slow" in kind else 5.0)
    path, document = (KEYS, issuer.key_set) if where == "keys" else (issuer.discovery_path, issuer.discovery)
    issuer.instead[path] = GOOD_BUT[kind](json.dumps(document).encode())
    with pytest.raises(IssuerUnavailableError):
        tokens.subject(issuer.token())


@pytest.mark.parametrize("keys", [[], [None], [public_jwk(rsa_key("1"), "rsa-1", use="enc")], {}, "keys", None])
def test_an_issuer_without_a_usable_key_is_an_error_and_does_not_replace_what_is_known(
    issuer: FakeIssuer, tokens: OidcTokens, clock: Clock, keys: object
) -> None:
    issuer.instead[KEYS] = lambda _: json_reply({"keys": keys})
    with pytest.raises(IssuerUnavailableError):
        tokens.subject(issuer.token())
    issuer.instead.clear()
    clock.now += FRESH_SECONDS
    assert tokens.subject(issuer.token()) == ANN
    issuer.instead[KEYS] = lambda _: json_reply({"keys": keys})
    clock.now += FRESH_SECONDS
    assert tokens.subject(issuer.token()) == ANN


@pytest.mark.parametrize(
    "lie",
    [
        {"issuer": "https://login.example"},
        {"issuer": "{url}/"},
        {"issuer": ""},
        {"issuer": None},
        {"issuer": ["{url}"]},
        {"jwks_uri": "http://login.example/keys"},
        {"jwks_uri": "http://10.0.0.1/keys"},
        {"jwks_uri": "http://169.254.169.254/keys"},
        {"jwks_uri": "ftp://127.0.0.1/keys"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": "data:application/json,{}"},
        {"jwks_uri": "//127.0.0.1/keys"},
        {"jwks_uri": "/keys"},
        {"jwks_uri": "https://user:hush@login.example/keys"},
        {"jwks_uri": "https://[::1/keys"},
        {"jwks_uri": "https://login.example:port/keys"},
        {"jwks_uri": "http://127.0.0.1:1/a b"},
        {"jwks_uri": "http://127.0.0.1:1/\r\nX: y"},
        {"jwks_uri": ""},
        {"jwks_uri": None},
    ],
)
def test_a_discovery_document_that_lies_is_an_error_and_is_not_followed(
    issuer: FakeIssuer, tokens: OidcTokens, lie: dict[str, Any]
) -> None:
    told = {name: value.format(url=issuer.url) if isinstance(value, str) and "{url}" in value else value
            for name, value in lie.items()}  # fmt: skip
    issuer.instead[issuer.discovery_path] = lambda _: json_reply({**issuer.discovery, **told})
    with pytest.raises(IssuerUnavailableError):
        tokens.subject(issuer.token())
    assert issuer.asked == [issuer.discovery_path]


class PoolOfAnswers(HttpPool):
    """Gives the same answer to whoever asks. `asked` are the URLs."""

    def __init__(self, answer: object) -> None:
        self._answer = json.dumps(answer).encode()
        self.asked: list[str] = []

    def request(self, method: str, url: Any, *_: Any, **__: Any) -> urllib3.BaseHTTPResponse:
        self.asked.append(url.geturl())
        return urllib3.HTTPResponse(io.BytesIO(self._answer), status=200, preload_content=False)


def test_an_issuer_elsewhere_cannot_send_us_to_this_machine(issuer: FakeIssuer) -> None:
    """Lambda's own API listens there."""
    url = "https://login.example"
    pool = PoolOfAnswers({"issuer": url, "jwks_uri": "http://127.0.0.1:9001/2018-06-01/runtime/invocation/next"})
    with pytest.raises(IssuerUnavailableError):
        IssuerKeys(pool, url).find("rsa-1", "RS256")
    assert pool.asked == [f"{url}/.well-known/openid-configuration"]
