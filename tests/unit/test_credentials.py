"""The caller of a key or of a token."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import pytest

from imagegen.domain.credentials import BearerKey, Caller, CallerRecord
from imagegen.domain.errors import IssuerUnavailableError
from imagegen.usecases.authorize import authorize, recorded_caller
from tests.fakes.parameters import FakeParameters

SECRET = "Ab0_-" * 8 + "xyz"
PATH = "/imagegen/prod/clients"
ALICE, BOB = BearerKey("alice", f"ig_alice_{SECRET}"), BearerKey("bob", f"ig_bob_{SECRET[::-1]}")


def stored(key: BearerKey) -> str:
    return msgspec.json.encode(key.record()).decode()


def records(**by_name: str) -> FakeParameters:
    return FakeParameters({f"{PATH}/{name}": record for name, record in by_name.items()})


def known() -> FakeParameters:
    return records(alice=stored(ALICE), bob=stored(BOB))


def caller(authorization: str, parameters: FakeParameters | None = None) -> Caller | None:
    return authorize(authorization, callers=parameters or known(), path=PATH)


# Keys.


@pytest.mark.parametrize("name", ["a", "0", "alice", "team-7", "a-", "7-of-9", "x" * 32])
def test_a_key_names_the_caller_that_it_was_made_for(name: str) -> None:
    key = BearerKey.new(name)
    assert key.caller == name
    assert key.key.startswith(f"ig_{name}_")
    assert BearerKey.parse(key.key) == key


@pytest.mark.parametrize(
    "name",
    ["", "-", "-alice", "Alice", "ALICE", "a_b", "a b", "a.b", "a/b", "../b", "älice", "alice\n", "\u0663", "x" * 33],
)
def test_a_bad_caller_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name is 1 to 32"):
        BearerKey.new(name)


def test_each_key_has_its_own_secret_of_256_bits() -> None:
    secrets = {BearerKey.new("alice").key.removeprefix("ig_alice_") for _ in range(200)}
    assert len(secrets) == 200
    assert {len(secret) * 6 >= 256 for secret in secrets} == {True}


BAD_PREFIXES = ["", "ig_", "ig__", " ig_alice_", "IG_alice_", "sk_alice_", "ig-alice-", "ig_Alice_", "ig_-alice_"]
BAD_PREFIXES += ["ig_al/ice_", f"ig_{'x' * 33}_"]
BAD_SECRETS = ["", *(SECRET[:-1] + end for end in ("", "yx", "y\n", "=", "é"))]


@pytest.mark.parametrize(
    "text",
    ["", "ig_", "ig_alice", *(f"ig_alice_{bad}" for bad in BAD_SECRETS), *(f"{bad}{SECRET}" for bad in BAD_PREFIXES)],
)
def test_text_that_is_not_exactly_a_key_is_not_parsed(text: str) -> None:
    assert BearerKey.parse(ALICE.key) == ALICE
    assert BearerKey.parse(text) is None


def test_a_key_is_not_printed_and_only_its_hash_is_stored() -> None:
    assert ALICE.key.removeprefix("ig_alice_") not in repr(ALICE) + str(ALICE)
    assert "alice" in repr(ALICE)
    assert json.loads(stored(ALICE)) == {"key_sha256": hashlib.sha256(ALICE.key.encode()).hexdigest()}
    assert ALICE.opens(ALICE.record())
    assert not ALICE.opens(BearerKey.new("alice").record())
    assert not ALICE.opens(CallerRecord(key_sha256=hashlib.sha256(b"").hexdigest()))


# The caller of a key.


@pytest.mark.parametrize(
    "header", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer   {}", "  Bearer {}  ", "Bearer {}\r\n"]
)
def test_a_good_key_needs_one_look_up_and_names_its_caller(header: str) -> None:
    parameters = known()
    assert caller(header.format(ALICE.key), parameters) == Caller("alice")
    assert caller(header.format(BOB.key), parameters) == Caller("bob")
    assert [name for name, _ in parameters.asked] == [f"{PATH}/alice", f"{PATH}/bob"]


@pytest.mark.parametrize(
    "key",
    [
        BearerKey.new("alice").key,
        BearerKey.new("mallory").key,
        ALICE.key.replace("ig_alice_", "ig_bob_"),
        f"ig_alice_{ALICE.record().key_sha256[:43]}",
    ],
    ids=["wrong secret", "unknown caller", "another's secret", "the hash itself"],
)
def test_a_bad_key_names_no_caller(key: str) -> None:
    assert caller(f"Bearer {key}") is None
    assert caller(f"Bearer {ALICE.key}", records(alice=stored(BOB))) is None


WITH_A_KEY = ["{}", "Bearer{}", "Basic {}", "Token {}", "Bearer Bearer {}", "Bearer {} {}", "Bearer {},", 'Bearer "{}"']


@pytest.mark.parametrize("header", ["", "   ", "Bearer", "Bearer ", *WITH_A_KEY])
def test_a_header_without_exactly_one_bearer_key_names_no_caller(header: str) -> None:
    parameters = known()
    assert caller(header.format(ALICE.key, ALICE.key), parameters) is None
    assert parameters.asked == []  # without a look-up


NO_RECORDS = ["", " ", "not json", "null", "[]", '"{key_sha256}"', "{}", "[" * 2000]
NO_HASHES = ["null", "7", '""', '"not a hash"', '"é"', r'"\u0660"', r'"\ud800"']
BARRED = json.dumps({"key_sha256": ALICE.record().key_sha256, "barred": True})


@pytest.mark.parametrize("record", [BARRED, *NO_RECORDS, *(f'{{"key_sha256": {text}}}' for text in NO_HASHES)])
def test_a_record_with_unknown_or_bad_fields_accepts_no_key(record: str) -> None:
    """An unknown field may mean that the caller is barred."""
    assert caller(f"Bearer {ALICE.key}", records(alice=record)) is None


@pytest.mark.parametrize(
    ("own", "images", "usd"),
    [
        *(("", None, None), (', "images_per_day": 50', 50, None), (', "images_per_day": 0', 0, None)),
        *((', "usd_per_day": 5000000', None, 5_000_000), (', "usd_per_day": 0, "images_per_day": 7', 7, 0)),
    ],
)
def test_a_record_written_by_hand_is_read_with_the_callers_own_quotas(
    own: str, images: int | None, usd: int | None
) -> None:
    record = f'\n{{ "key_sha256" : "{hashlib.sha256(ALICE.key.encode()).hexdigest()}"{own} }}\n'
    assert caller(f"Bearer {ALICE.key}", records(alice=record)) == Caller("alice", images, usd)
    assert recorded_caller("alice", callers=records(alice=record), path=PATH) == Caller("alice", images, usd)


@pytest.mark.parametrize("name", ["bob", "oidc:0", "a/b", ""])
def test_a_caller_without_a_record_is_not_looked_for_by_an_impossible_name(name: str) -> None:
    """A name with a colon is a version of a parameter to SSM, which refuses it."""
    known = records(alice=stored(ALICE))
    assert recorded_caller(name, callers=known, path=PATH) is None
    assert known.asked == ([(f"{PATH}/bob", False)] if name == "bob" else [])


# The caller of a token.

ISSUER = "https://login.example/"
TOKEN = "eyJh.eyJz.c2ln"


@dataclass
class FakeTokens:
    """`asked` are the tokens that were verified."""

    subjects: Mapping[str, str]
    failure: Exception | None = None
    asked: list[str] = field(default_factory=list)
    issuer: str = ISSUER

    def subject(self, token: str) -> str | None:
        self.asked.append(token)
        if self.failure:
            raise self.failure
        return self.subjects.get(token)


def caller_of_token(authorization: str, tokens: FakeTokens | None) -> Caller | None:
    return authorize(authorization, callers=known(), path=PATH, tokens=tokens)


@pytest.mark.parametrize("header", ["Bearer {}", "bearer  {} ", "BEARER {}\r\n"])
def test_a_good_token_names_an_opaque_caller(header: str) -> None:
    found = caller_of_token(header.format(TOKEN), FakeTokens({TOKEN: "ann@example.org"}))
    digest = hashlib.sha256(b"https://login.example/\0ann@example.org").hexdigest()
    assert found == Caller(f"oidc:{digest[:32]}", None)


def test_each_subject_of_each_issuer_has_a_name_that_no_key_can_have() -> None:
    names = {Caller.of_token(*each).name for each in ((ISSUER, "ann"), (ISSUER[:-1], "ann"), (ISSUER, "bob"))}
    assert len(names) == 3
    for name in names:
        with pytest.raises(ValueError, match="name is 1 to 32"):
            BearerKey.new(name)


def test_a_bad_token_or_one_without_an_issuer_names_no_caller() -> None:
    tokens = FakeTokens({})
    assert caller_of_token(f"Bearer {TOKEN}", tokens) is None
    assert tokens.asked == [TOKEN]
    assert caller_of_token(f"Bearer {TOKEN}", None) is None
    with pytest.raises(IssuerUnavailableError):  # not a denial
        caller_of_token(f"Bearer {TOKEN}", FakeTokens({}, IssuerUnavailableError("down")))


@pytest.mark.parametrize(
    "credential",
    ["a.b", "a.b.c.d", "a.b.", ".b.c", "a..c", "a.b.c=", "a.b.c+", "a.b/.c", "a b.c.d", "a.b.ć", "a.b.c\nd", "ig_a.b"],
)
def test_text_without_the_shape_of_a_token_is_not_verified(credential: str) -> None:
    tokens = FakeTokens({credential: "ann"})
    assert caller_of_token(f"Bearer {credential}", tokens) is None
    assert caller_of_token(f"Basic {TOKEN}", tokens) is None
    assert caller_of_token(f"Bearer {ALICE.key}", tokens) == Caller("alice")
    assert tokens.asked == []
