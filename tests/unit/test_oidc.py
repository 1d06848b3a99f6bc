"""Tokens that are good or bad, and the requests to their issuer. The issuer is a real HTTP server."""

import io
import json
import time
import uuid
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import urllib3
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from imagegen.domain.errors import IssuerUnavailableError
from imagegen.outbound import issuer_keys
from imagegen.outbound.issuer_keys import IssuerKeys
from imagegen.outbound.oidc import MOST_TOKEN_CHARACTERS, OidcTokens
from imagegen.outbound.pool import HttpPool
from local.serving import HungUpError, Reply, Request
from tests.fakes import issuer as fake
from tests.fakes.issuer import AUDIENCE, FakeIssuer, b64, ec_key, json_reply, public_jwk, rsa_key, segment

ANN = "ann@example.org"
KEYS = "/keys"
RS256 = {"alg": "RS256", "kid": "rsa-1"}


class Clock:
    """A clock that the test moves."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def _one_issuer() -> Iterator[FakeIssuer]:
    with fake.running_issuer() as issuer:
        yield issuer


@pytest.fixture
def issuer(_one_issuer: FakeIssuer) -> FakeIssuer:
    """The issuer, reset to its first state."""
    vars(_one_issuer).update(vars(FakeIssuer(_one_issuer.url)))
    return _one_issuer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(issuer: FakeIssuer, clock: Clock) -> OidcTokens:
    return verifier(issuer, clock)


def verifier(issuer: FakeIssuer, clock: Clock | None = None) -> OidcTokens:
    return OidcTokens(IssuerKeys(HttpPool(), issuer.url, clock=clock or Clock()), audience=AUDIENCE)


# Tokens.


def now() -> int:
    return int(time.time())


def good(i: FakeIssuer) -> Iterator[str]:
    yield from (i.token(), i.token("ec-1"), i.token(header={"typ": "at+jwt"}), i.token(header={"typ": ...}))
    yield i.token(aud=["other", AUDIENCE])
    yield i.token(exp=now() - 15)  # 15 seconds are within the leeway
    yield i.token(nbf=now() + 15, iat=now() + 15)
    yield from (i.token(exp=now() + 60.5), i.token(nbf=..., iat=...))
    yield i.token(email=ANN, email_verified=True, roles=[{"a": None}])
    evil = f"{i.origin}/evil"
    yield i.token(header={"jku": evil, "x5u": evil, "x5t": "x", "jwk": {"kty": "oct"}})


def test_a_good_token_has_its_subject(issuer: FakeIssuer, tokens: OidcTokens) -> None:
    for number, token in enumerate(good(issuer)):
        assert tokens.subject(token) == ANN, (number, token)
    for sub in ("7", "a" * 255, "google-oauth2|1", "änn", " ", "null"):
        assert tokens.subject(issuer.token(sub=sub)) == sub
    assert set(issuer.asked) == {issuer.discovery_path, KEYS}


def forged(issuer: FakeIssuer, kid: str, **header: Any) -> str:
    """Signed by a foreign key."""
    return fake.token({"alg": "RS256", "kid": kid, **header}, issuer.claims(), rsa_key("evil"))


def by_another_key(i: FakeIssuer) -> Iterator[str]:
    evil = public_jwk(rsa_key("evil"), "evil")
    yield from (forged(i, kid) for kid in ("evil", "rsa-1", "../../dev/null"))
    yield from (forged(i, "rsa-1", jwk={**evil, "kid": "rsa-1"}), forged(i, "evil", jwk=evil))
    yield from (forged(i, "rsa-1", jku=f"{i.origin}/evil"), forged(i, "rsa-1", x5u=f"{i.origin}/evil"))
    yield forged(i, "rsa-1", x5c=["MIIB"])
    pem = rsa_key("1").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem, public_jwk(rsa_key("1"), "x")["n"].encode(), b""):
        yield fake.token({"alg": "HS256", "kid": "rsa-1"}, i.claims(), secret)
    yield fake.token(RS256, i.claims(), pem)
    yield f"{segment({'alg': 'none', 'kid': 'rsa-1'})}.{segment(i.claims())}."


def with_another_header(i: FakeIssuer) -> Iterator[str]:
    headers: dict[str, list[Any]] = {
        "alg": [..., None, "none", "NONE", "RS384", "PS256", "rs256", "ES256", ["RS256"]],
        "kid": [..., None, 1, "ec-1"],
        "crit": [[], None],
        "b64": [False],
        "typ": ["logout+jwt", "secevent+jwt", 7],
    }
    yield from (i.token(header={name: value}) for name, values in headers.items() for value in values)
    yield i.token(header={"crit": ["exp"], "exp": 1})
    yield i.token(header={"crit": ["b64"], "b64": True})
    for name, value in (("alg", "ES384"), ("alg", "EdDSA"), ("kid", "rsa-1")):
        yield i.token("ec-1", header={name: value})


def with_other_claims(i: FakeIssuer) -> Iterator[str]:
    numbers = [0, -1, 10**12, 10**400, float("inf"), float("nan"), now() - 45]
    claims: dict[str, list[Any]] = {
        "iss": [..., "https://login.example", f"{i.url}/", f"{i.url}.evil", [i.url]],
        "aud": [..., None, "other", AUDIENCE.upper(), AUDIENCE[:-1], [], ["a", "b"], [1, AUDIENCE], {AUDIENCE: True}],
        "exp": [..., None, True, str(now() + 600), [now() + 600], *numbers],
        "nbf": [now() + 60, str(now()), True],
        "iat": [now() + 60, False],
        "sub": [..., "", None, 7, True, [ANN], "a" * 256, "\ud800"],
        "more": ["x" * MOST_TOKEN_CHARACTERS],
    }
    yield from (i.token(**{name: value}) for name, values in claims.items() for value in values)
    too_many_digits = json.dumps(i.claims(exp=7)).replace("7", "9" * 5000).encode()
    for content in (too_many_digits, b"sub=ann", [i.claims()], ANN, b"[" * 5000):
        yield fake.token(RS256, content, rsa_key("1"))


def with_another_signature(i: FakeIssuer) -> Iterator[str]:
    header, claims, signature = i.token().split(".")
    bobs = segment({**json.loads(urlsafe_b64decode(claims + "==")), "sub": "bob@example.org"})
    yield from (f"{header}.{bobs}.{signature}", f"{segment({'kid': 'rsa-1', 'alg': 'RS256'})}.{claims}.{signature}")
    of_the_claims_alone = b64(fake.signature(rsa_key("1"), claims.encode()))
    of_another_token = i.token(sub="bob").rpartition(".")[2]
    # The same bytes in another spelling: 256 bytes leave four bits of the last character unused.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    respelled = signature[:-1] + alphabet[alphabet.index(signature[-1]) ^ 1]
    not_base64 = (f"{signature[:-1]}*", f"+/{signature[2:]}")
    for bad in (signature[:-4], b64(b"\0" * 256), "", of_another_token, of_the_claims_alone, respelled, *not_base64):
        yield f"{header}.{claims}.{bad}"
    signed = i.token("ec-1").rpartition(".")[0]
    for bad in (b64(b"\0" * 64), b64(ec_key("1").sign(signed.encode(), ec.ECDSA(hashes.SHA256())))):  # the last is DER
        yield f"{signed}.{bad}"


def of_another_shape(i: FakeIssuer) -> Iterator[str]:
    good = i.token()
    header, claims, signature = good.split(".")
    yield from ("", "..", f"{header}.{claims}", f"{good}.{signature}", f" {good}", f"{good}\n")
    yield f"{segment({'alg': 'RSA-OAEP', 'enc': 'A256GCM', 'kid': 'rsa-1'})}.a.b.c.d"
    for bad in (f"!{header}", header[:-1], f"{header}é"):
        yield f"{bad}.{claims}.{signature}"
    yield f"{header}.{claims}!!.{signature}"
    deep = b'{"alg":"RS256","kid":"rsa-1","x":' + b"[" * 2500 + b"]" * 2500 + b"}"
    for content in (b"alg=RS256", b'{"alg":"RS256","kid":"\xff"}', [RS256], deep):
        yield fake.token(content, i.claims(), rsa_key("1"))


@pytest.mark.parametrize(
    "bad", [by_another_key, with_another_header, with_other_claims, with_another_signature, of_another_shape]
)
def test_a_bad_token_has_no_subject(issuer: FakeIssuer, bad: Callable[[FakeIssuer], Iterator[str]]) -> None:
    for number, token in enumerate(bad(issuer)):
        tokens = verifier(issuer)
        assert tokens.subject(token) is None, (number, token)
        assert tokens.subject(issuer.token()) == ANN
    assert set(issuer.asked) == {issuer.discovery_path, KEYS}  # nothing else is fetched


def test_an_obviously_bad_token_causes_no_request_to_the_issuer(issuer: FakeIssuer, tokens: OidcTokens) -> None:
    for name, value in (("alg", "none"), ("alg", "HS256"), ("kid", ...), ("crit", []), ("typ", "logout+jwt")):
        assert tokens.subject(issuer.token(header={name: value})) is None
    assert tokens.subject(issuer.token(more="x" * MOST_TOKEN_CHARACTERS)) is None
    assert issuer.asked == []


# Keys.


@pytest.mark.parametrize("path", ["", "/", "/tenant/", "/a/b"])
def test_the_url_of_an_issuer_may_end_with_a_slash(path: str) -> None:
    with fake.running_issuer(path) as issuer:
        assert verifier(issuer).subject(issuer.token()) == ANN
        assert issuer.asked == [f"{path.rstrip('/')}/.well-known/openid-configuration", KEYS]


def token_by(issuer: FakeIssuer, key: fake.PrivateKey, kid: str) -> str:
    algorithm = "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "RS256"
    return fake.token({"alg": algorithm, "kid": kid}, issuer.claims(), key)


def test_a_key_for_other_uses_verifies_no_token(issuer: FakeIssuer, tokens: OidcTokens) -> None:
    said: dict[str, list[Any]] = {
        "use": ["enc", "SIG"],
        "alg": ["RS512", "PS256", "ES256", "HS256"],
        "key_ops": [["encrypt"], "verify"],
        "n": ["!", 7],
        "e": ["AA"],
    }
    keys: list[tuple[fake.PrivateKey, dict[str, Any]]] = [
        *((rsa_key("1"), {name: value}) for name, values in said.items() for value in values),
        *((rsa_key("1"), other) for other in ({"kty": "oct", "k": "c2VjcmV0"}, {"kty": "EC", "crv": "P-256"})),
        *((ec_key("1"), other) for other in ({"use": "enc"}, {"alg": "ES384"}, {"crv": "P-384"})),
        (ec_key("1"), {"x": public_jwk(ec_key("2"), "x")["x"]}),
        *((key, {}) for key in (rsa_key("short", 1024), ec_key("384", ec.SECP384R1), ec_key("k", ec.SECP256K1))),
    ]
    issuer.listed = [public_jwk(key, f"odd-{number}", **more) for number, (key, more) in enumerate(keys)]
    for number, (key, more) in enumerate(keys):
        assert tokens.subject(token_by(issuer, key, f"odd-{number}")) is None, (key, more)
    assert tokens.subject(issuer.token()) == ANN


def test_a_good_key_works_beside_unreadable_ones(issuer: FakeIssuer, tokens: OidcTokens) -> None:
    unreadable: list[Any] = [None, 7, "key", [], {}, {"kty": "RSA"}, {"kid": "x"}, {"kty": 1, "kid": 2}]
    said = {"use": "sig", "alg": "RS256", "key_ops": ["verify"], "x5c": ["MIIB"], "x5u": "https://x.example"}
    speaking = [public_jwk(rsa_key("2"), f"by {name}", **{name: value}) for name, value in said.items()]
    of_one_name = [public_jwk(key, "same") for key in (rsa_key("2"), ec_key("2"), rsa_key("1"))]
    issuer.listed = [*unreadable, *speaking, *of_one_name]
    for kid in ("same", *(f"by {name}" for name in said)):
        assert tokens.subject(token_by(issuer, rsa_key("2"), kid)) == ANN
    assert tokens.subject(token_by(issuer, ec_key("2"), "same")) == ANN
    assert tokens.subject(issuer.token()) == ANN
    assert issuer.asked == [issuer.discovery_path, KEYS]


def test_the_keys_are_fetched_once_an_hour(issuer: FakeIssuer, tokens: OidcTokens, clock: Clock) -> None:
    for _ in range(5):
        assert tokens.subject(issuer.token()) == ANN
    clock.now += issuer_keys.FRESH_SECONDS - 1
    assert tokens.subject(issuer.token("ec-1")) == ANN
    assert issuer.asked == [issuer.discovery_path, KEYS]
    clock.now += 1
    issuer.keys = {"rsa-1": rsa_key("2")}  # a new key under an old name
    assert tokens.subject(issuer.token()) == ANN
    assert issuer.asked == [issuer.discovery_path, KEYS] * 2


def test_a_new_key_is_found_at_once_and_replaces_the_old(issuer: FakeIssuer, tokens: OidcTokens, clock: Clock) -> None:
    old = issuer.token()
    assert tokens.subject(old) == ANN
    clock.now += issuer_keys.PAUSE_SECONDS
    issuer.keys = {"rsa-2": rsa_key("2")}
    assert tokens.subject(old) == ANN  # it is known, so nothing is fetched
    assert tokens.subject(issuer.token("rsa-2")) == ANN
    assert tokens.subject(old) is None
    assert issuer.asked == [issuer.discovery_path, KEYS] * 2


def test_unknown_key_ids_cause_one_fetch_a_minute(issuer: FakeIssuer, tokens: OidcTokens, clock: Clock) -> None:
    for _ in range(18):
        assert tokens.subject(forged(issuer, uuid.uuid4().hex)) is None
        clock.now += 10
    assert issuer.asked.count(KEYS) == 3
    assert tokens.subject(issuer.token()) == ANN


# An issuer that is down.


def down(*_: object) -> Reply:
    raise HungUpError


def test_an_issuer_that_is_down_at_first_is_an_error(issuer: FakeIssuer, tokens: OidcTokens, clock: Clock) -> None:
    issuer.instead[issuer.discovery_path] = down
    for _ in range(3):
        with pytest.raises(IssuerUnavailableError):
            tokens.subject(issuer.token())
    assert issuer.asked == [issuer.discovery_path]  # it gets no other request for a while
    issuer.instead.clear()
    clock.now += issuer_keys.PAUSE_WITHOUT_KEYS_SECONDS
    assert tokens.subject(issuer.token()) == ANN


def test_known_keys_work_for_a_day_without_the_issuer(issuer: FakeIssuer, tokens: OidcTokens, clock: Clock) -> None:
    assert tokens.subject(issuer.token()) == ANN
    issuer.instead[KEYS] = down
    clock.now += issuer_keys.FRESH_SECONDS
    for _ in range(3):
        assert tokens.subject(issuer.token()) == ANN
    assert issuer.asked.count(KEYS) == 2
    assert tokens.subject(forged(issuer, "rsa-1")) is None
    clock.now += issuer_keys.STALE_SECONDS - issuer_keys.FRESH_SECONDS - 1
    assert tokens.subject(issuer.token()) == ANN
    clock.now += 1
    with pytest.raises(IssuerUnavailableError):
        tokens.subject(issuer.token())


def test_without_the_issuer_an_unknown_key_is_an_error_and_not_a_denial(
    issuer: FakeIssuer, tokens: OidcTokens, clock: Clock
) -> None:
    assert tokens.subject(issuer.token()) == ANN
    issuer.instead[issuer.discovery_path] = down
    issuer.keys["rsa-2"] = rsa_key("2")
    clock.now += issuer_keys.PAUSE_SECONDS
    for _ in range(3):
        with pytest.raises(IssuerUnavailableError):
            tokens.subject(issuer.token("rsa-2"))
    assert issuer.asked.count(issuer.discovery_path) == 2
    issuer.instead.clear()
    clock.now += issuer_keys.PAUSE_SECONDS
    assert tokens.subject(issuer.token("rsa-2")) == ANN
    assert tokens.subject(forged(issuer, "evil")) is None  # the issuer has answered without this key


def test_an_unreachable_issuer_is_an_error() -> None:
    with fake.running_issuer() as gone:
        pass
    with pytest.raises(IssuerUnavailableError):
        verifier(gone).subject(gone.token())


# Bad answers of an issuer.

UNLIMITED = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"  # without a length, so that a cut looks like the end
Answer = Callable[[Request, bytes], Reply]  # with the good document at that path


def sent_for_ever(request: Request, beginning: bytes, block: bytes, pause: float) -> Reply:
    """Sends the block until the client hangs up."""
    try:
        request.connection.sendall(beginning)
        ends = time.monotonic() + 60  # reached only if the test fails
        while time.monotonic() < ends:
            request.connection.sendall(block)
            time.sleep(pause)
    except OSError:
        pass
    raise HungUpError


SLOW: dict[str, Answer] = {
    "slowly": lambda request, _: sent_for_ever(request, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b" ", 0.05),
    "with slow headers": lambda request, _: sent_for_ever(request, b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x", 0.05),
    "with something slow behind it": lambda request, good: sent_for_ever(request, UNLIMITED + good, b" ", 0.05),
}
AMISS: dict[str, Answer] = SLOW | {
    "404": lambda *_: Reply(404),
    "500": lambda *_: Reply(500),
    "an error in JSON": lambda *_: Reply(503, b"{}"),
    "a redirect": lambda _, good: Reply(302, good, {"Location": "/evil"}),
    "a redirect that keeps its method": lambda _, good: Reply(308, good, {"Location": "/evil"}),
    "no content": lambda *_: Reply(204),
    "nothing": lambda *_: Reply(200),
    "no JSON": lambda *_: Reply(200, b"<html>"),
    "no UTF-8": lambda *_: Reply(200, b'{"issuer":"\xff"}'),
    "a list": lambda *_: json_reply([]),
    "an empty object": lambda *_: json_reply({}),
    "null": lambda *_: json_reply(None),
    "deep JSON": lambda *_: Reply(200, b'{"keys":' + b"[" * 100_000),
    "too much": lambda *_: Reply(200, b" " * (issuer_keys.MOST_BYTES + 1)),
    "too much behind a good document": lambda _, good: Reply(200, good + b" " * issuer_keys.MOST_BYTES),
    "without end": lambda request, _: sent_for_ever(request, UNLIMITED, b" " * 65536, 0),
    "in part": lambda _, good: Reply(206, good),
    "cut short": lambda _, good: Reply(200, good, declared_length=1000),
    "not at all": down,
}
AT_DISCOVERY = ("404", "a redirect", "no JSON", "an empty object", "with something slow behind it")


@pytest.mark.parametrize(
    ("where", "kind"), [*(("keys", kind) for kind in AMISS), *(("discovery", kind) for kind in AT_DISCOVERY)]
)
def test_a_bad_answer_of_the_issuer_is_an_error_and_not_a_denial(
    issuer: FakeIssuer, tokens: OidcTokens, clock: Clock, monkeypatch: pytest.MonkeyPatch, where: str, kind: str
) -> None:
    path, good = (KEYS, issuer.key_set) if where == "keys" else (issuer.discovery_path, issuer.discovery)
    issuer.instead[path] = lambda request: AMISS[kind](request, json.dumps(good).encode())
    started = time.monotonic()
    monkeypatch.setattr(issuer_keys, "ASKING_SECONDS", 0.2 if kind in SLOW else 30.0)
    with pytest.raises(IssuerUnavailableError) as error:
        tokens.subject(issuer.token())
    assert time.monotonic() - started < 30  # half of what a slow answer takes
    assert issuer.url not in error.value.message
    assert "/evil" not in issuer.asked
    monkeypatch.undo()
    issuer.instead.clear()
    clock.now += issuer_keys.PAUSE_WITHOUT_KEYS_SECONDS
    assert tokens.subject(issuer.token()) == ANN


@pytest.mark.parametrize("keys", [[], [None], [public_jwk(rsa_key("1"), "rsa-1", use="enc")], {}, "keys", None])
def test_a_key_set_without_a_usable_key_is_an_error_and_replaces_no_known_key(
    issuer: FakeIssuer, tokens: OidcTokens, clock: Clock, keys: object
) -> None:
    issuer.instead[KEYS] = lambda _: json_reply({"keys": keys})
    with pytest.raises(IssuerUnavailableError):
        tokens.subject(issuer.token())
    good = verifier(issuer, clock)
    issuer.instead.clear()
    assert good.subject(issuer.token()) == ANN
    issuer.instead[KEYS] = lambda _: json_reply({"keys": keys})
    clock.now += issuer_keys.FRESH_SECONDS
    assert good.subject(issuer.token()) == ANN


def test_a_false_discovery_document_is_an_error_and_is_not_followed(issuer: FakeIssuer) -> None:
    lies: list[dict[str, Any]] = [
        {"issuer": name} for name in ("https://login.example", f"{issuer.url}/", "", None, [issuer.url])
    ]
    plain = [f"http://{host}/keys" for host in ("login.example", "10.0.0.1", "169.254.169.254")]
    schemes = ["ftp://127.0.0.1/keys", "file:///etc/passwd", "data:application/json,{}", "//127.0.0.1/keys", "/keys"]
    https = [f"https://{rest}/keys" for rest in ("user:hush@login.example", "[::1", "login.example:port")]
    spaces = ["http://127.0.0.1:1/a b", "http://127.0.0.1:1/\r\nX: y"]
    lies += [{"jwks_uri": uri} for uri in (*plain, *schemes, *https, *spaces, "", None)]
    for lie in lies:
        issuer.asked.clear()
        reply = json_reply({**issuer.discovery, **lie})
        issuer.instead[issuer.discovery_path] = partial(lambda reply, _: reply, reply)
        with pytest.raises(IssuerUnavailableError):
            verifier(issuer).subject(issuer.token())
        assert issuer.asked == [issuer.discovery_path], lie


def test_a_remote_issuer_cannot_make_the_authorizer_call_its_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lambda's runtime API listens on it."""
    url, asked = "https://login.example", []
    document = {"issuer": url, "jwks_uri": "http://127.0.0.1:9001/2018-06-01/runtime/invocation/next"}

    def answer(_: HttpPool, method: str, address: Any, *args: Any, **kwargs: Any) -> urllib3.BaseHTTPResponse:
        asked.append(address.geturl())
        return urllib3.HTTPResponse(io.BytesIO(json.dumps(document).encode()), status=200, preload_content=False)

    monkeypatch.setattr(HttpPool, "request", answer)
    with pytest.raises(IssuerUnavailableError):
        IssuerKeys(HttpPool(), url).find("rsa-1", "RS256")
    assert asked == [f"{url}/.well-known/openid-configuration"]
