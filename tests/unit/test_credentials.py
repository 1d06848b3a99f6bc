import hashlib
import json
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.authorize import authorize
from imagegen.credentials import BearerKey, Caller, ClientRecord
from imagegen.errors import IssuerUnavailableError

SECRET = "Ab0_-" * 8 + "xyz"
PATH = "/imagegen/prod/clients"


class ParametersInADict:
    """`asked` are the names that were asked for."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.asked: list[str] = []

    def get(self, name: str, *, fresh: bool = False) -> str | None:
        self.asked.append(name)
        return self._values.get(name)


def clients(*keys: BearerKey) -> ParametersInADict:
    return ParametersInADict({f"{PATH}/{key.client}": stored(key) for key in keys})


def stored(key: BearerKey) -> str:
    return msgspec.json.encode(key.record()).decode()


# Keys


@pytest.mark.parametrize("client", ["a", "0", "alice", "team-7", "a-", "7-of-9", "x" * 32])
def test_a_key_is_read_back_as_what_it_was_made_for(client: str) -> None:
    key = BearerKey.new(client)
    assert key.client == client
    assert key.key.startswith(f"ig_{client}_")
    assert BearerKey.parse(key.key) == key


@pytest.mark.parametrize(
    "client",
    ["", "-", "-alice", "Alice", "ALICE", "a_b", "a b", "a.b", "a/b", "../b", "älice", "alice\n", "\u0663", "x" * 33],
)
def test_a_name_that_no_key_can_carry_is_refused(client: str) -> None:
    with pytest.raises(ValueError, match="a client is 1 to 32"):
        BearerKey.new(client)


@given(st.text(max_size=40))
def test_a_key_is_made_for_whole_names_only(client: str) -> None:
    try:
        key = BearerKey.new(client)
    except ValueError:
        return
    assert key.client == client
    assert set(client) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_no_two_keys_are_alike() -> None:
    assert len({BearerKey.new("alice").key for _ in range(200)}) == 200


def test_a_secret_carries_256_bits() -> None:
    secret = BearerKey.new("alice").key.removeprefix("ig_alice_")
    assert len(secret) * 6 >= 256


def test_a_key_is_parsed_into_its_client() -> None:
    assert BearerKey.parse(f"ig_alice_{SECRET}") == BearerKey("alice", f"ig_alice_{SECRET}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ig_",
        "ig_alice",
        "ig_alice_",
        f"ig__{SECRET}",
        f"ig_alice_{SECRET[:-1]}",
        f"ig_alice_{SECRET}x",
        f"ig_alice_{SECRET}\n",
        f" ig_alice_{SECRET}",
        f"IG_alice_{SECRET}",
        f"sk_alice_{SECRET}",
        f"ig-alice-{SECRET}",
        f"ig_Alice_{SECRET}",
        f"ig_-alice_{SECRET}",
        f"ig_al/ice_{SECRET}",
        f"ig_{'x' * 33}_{SECRET}",
        f"ig_alice_{SECRET[:-1]}=",
        f"ig_alice_{SECRET[:-1]}é",
    ],
)
def test_what_is_not_exactly_a_key_is_none(text: str) -> None:
    assert BearerKey.parse(text) is None


def test_a_key_is_not_printed() -> None:
    key = BearerKey.new("alice")
    secret = key.key.removeprefix("ig_alice_")
    assert secret not in repr(key)
    assert secret not in str(key)
    assert "alice" in repr(key)


def test_a_record_is_the_hash_of_the_whole_key_and_nothing_of_the_key_itself() -> None:
    key = BearerKey.new("alice")
    assert json.loads(stored(key)) == {"key_sha256": hashlib.sha256(key.key.encode()).hexdigest()}


def test_a_key_opens_its_own_record_and_no_other() -> None:
    key, other = BearerKey.new("alice"), BearerKey.new("alice")
    assert key.opens(key.record())
    assert not key.opens(other.record())


# Who is calling


@pytest.mark.parametrize(
    "header", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer   {}", "  Bearer {}  ", "Bearer {}\r\n"]
)
def test_a_good_key_tells_its_client(header: str) -> None:
    alice, bob = BearerKey.new("alice"), BearerKey.new("bob")
    assert authorize(header.format(alice.key), clients=clients(alice, bob), path=PATH) == Caller("alice")
    assert authorize(header.format(bob.key), clients=clients(alice, bob), path=PATH) == Caller("bob")


def test_a_wrong_secret_lets_nobody_in() -> None:
    alice, forged = BearerKey.new("alice"), BearerKey.new("alice")
    assert authorize(f"Bearer {forged.key}", clients=clients(alice), path=PATH) is None


def test_an_unknown_client_is_nobody() -> None:
    alice, mallory = BearerKey.new("alice"), BearerKey.new("mallory")
    assert authorize(f"Bearer {mallory.key}", clients=clients(alice), path=PATH) is None


def test_the_key_of_one_client_does_not_open_the_record_of_another() -> None:
    alice, bob = BearerKey.new("alice"), BearerKey.new("bob")
    swapped = ParametersInADict({f"{PATH}/alice": stored(bob), f"{PATH}/bob": stored(alice)})
    assert authorize(f"Bearer {alice.key}", clients=swapped, path=PATH) is None
    assert authorize(f"Bearer {bob.key}", clients=swapped, path=PATH) is None


def test_the_secret_of_one_client_under_the_name_of_another_is_refused() -> None:
    alice, bob = BearerKey.new("alice"), BearerKey.new("bob")
    forged = alice.key.replace("ig_alice_", "ig_bob_")
    assert authorize(f"Bearer {forged}", clients=clients(alice, bob), path=PATH) is None


@pytest.mark.parametrize(
    "header",
    [
        "{}",
        "Bearer{}",
        "Basic {}",
        "Token {}",
        "Bearer Bearer {}",
        "Bearer {} {}",
        "Bearer {},",
        'Bearer "{}"',
        "Bearer",
        "Bearer ",
        "",
        "   ",
    ],
)
def test_what_is_not_exactly_one_bearer_key_lets_nobody_in(header: str) -> None:
    alice = BearerKey.new("alice")
    known = clients(alice)
    assert authorize(header.format(alice.key, alice.key), clients=known, path=PATH) is None
    assert known.asked == []  # nor does it cost a look-up


@pytest.mark.parametrize(
    "record",
    [
        "",
        " ",
        "not json",
        "null",
        "[]",
        '"{key_sha256}"',
        "{}",
        '{"key_sha256": null}',
        '{"key_sha256": 7}',
        '{"key_sha256": ""}',
        '{"key_sha256": "not a hash"}',
        '{"key_sha256": "é"}',
        '{"key_sha256": "\\u0660"}',
        '{"key_sha256": "\\ud800"}',
        "[" * 2000,
    ],
)
def test_a_record_that_nobody_can_read_lets_nobody_in(record: str) -> None:
    alice = BearerKey.new("alice")
    broken = ParametersInADict({f"{PATH}/alice": record})
    assert authorize(f"Bearer {alice.key}", clients=broken, path=PATH) is None


def test_a_record_that_says_more_than_we_know_lets_nobody_in() -> None:
    """It may say that the client is barred."""
    alice = BearerKey.new("alice")
    record = json.dumps({"key_sha256": alice.record().key_sha256, "barred": True})
    assert authorize(f"Bearer {alice.key}", clients=ParametersInADict({f"{PATH}/alice": record}), path=PATH) is None


def test_a_record_written_by_hand_is_read() -> None:
    alice = BearerKey.new("alice")
    record = f'\n{{ "key_sha256" : "{hashlib.sha256(alice.key.encode()).hexdigest()}" }}\n'
    known = ParametersInADict({f"{PATH}/alice": record})
    assert authorize(f"Bearer {alice.key}", clients=known, path=PATH) == Caller("alice")


def test_the_hash_itself_is_no_key() -> None:
    alice = BearerKey.new("alice")
    digest = alice.record().key_sha256
    assert authorize(f"Bearer ig_alice_{digest[:43]}", clients=clients(alice), path=PATH) is None


def test_only_the_one_record_under_the_path_is_looked_at() -> None:
    alice = BearerKey.new("alice")
    known = clients(alice)
    authorize(f"Bearer {alice.key}", clients=known, path=PATH)
    assert known.asked == [f"{PATH}/alice"]


@given(st.text())
def test_whatever_the_header_says_it_lets_nobody_in(header: str) -> None:
    alice = BearerKey("alice", f"ig_alice_{SECRET}")
    assert authorize(header, clients=clients(alice), path=PATH) is None


def test_the_hash_of_an_empty_key_is_not_that_of_any_key() -> None:
    empty = ClientRecord(key_sha256=hashlib.sha256(b"").hexdigest())
    assert not BearerKey.new("alice").opens(empty)


@pytest.mark.parametrize(("own", "told"), [({}, None), ({"images_per_day": 50}, 50), ({"images_per_day": 0}, 0)])
def test_a_client_s_own_allowance_is_told(own: dict[str, int], told: int | None) -> None:
    alice = BearerKey.new("alice")
    record = json.dumps({"key_sha256": alice.record().key_sha256, **own})
    known = ParametersInADict({f"{PATH}/alice": record})
    assert authorize(f"Bearer {alice.key}", clients=known, path=PATH) == Caller("alice", told)


# Whom a token speaks of

ISSUER = "https://login.example/"
TOKEN = "eyJh.eyJz.c2ln"


class TokensInADict:
    """`asked` are the tokens that were asked about."""

    issuer = ISSUER

    def __init__(self, subjects: Mapping[str, str], failure: Exception | None = None) -> None:
        self._subjects = subjects
        self._failure = failure
        self.asked: list[str] = []

    def subject(self, token: str) -> str | None:
        self.asked.append(token)
        if self._failure:
            raise self._failure
        return self._subjects.get(token)


def caller(header: str, tokens: TokensInADict | None) -> Caller | None:
    return authorize(header, clients=clients(), path=PATH, tokens=tokens)


@pytest.mark.parametrize("header", ["Bearer {}", "bearer  {} ", "BEARER {}\r\n"])
def test_a_good_token_tells_an_opaque_caller(header: str) -> None:
    found = caller(header.format(TOKEN), TokensInADict({TOKEN: "ann@example.org"}))
    digest = hashlib.sha256(b"https://login.example/\0ann@example.org").hexdigest()
    assert found == Caller(f"oidc:{digest[:32]}", None)


def test_one_subject_of_two_issuers_is_two_callers() -> None:
    names = {Caller.of_token(issuer, "ann").name for issuer in (ISSUER, ISSUER.rstrip("/"))}
    assert len(names | {Caller.of_token(ISSUER, "bob").name}) == 3


def test_no_key_can_name_the_caller_of_a_token() -> None:
    with pytest.raises(ValueError, match="a client is 1 to 32"):
        BearerKey.new(Caller.of_token(ISSUER, "ann").name)


def test_a_token_that_is_not_good_is_nobody_s() -> None:
    tokens = TokensInADict({})
    assert caller(f"Bearer {TOKEN}", tokens) is None
    assert tokens.asked == [TOKEN]


def test_without_an_issuer_a_token_is_nobody_s() -> None:
    assert caller(f"Bearer {TOKEN}", None) is None


def test_an_issuer_that_cannot_be_asked_is_no_denial() -> None:
    with pytest.raises(IssuerUnavailableError):
        caller(f"Bearer {TOKEN}", TokensInADict({}, IssuerUnavailableError("down")))


@pytest.mark.parametrize(
    "credential",
    ["a.b", "a.b.c.d", "a.b.", ".b.c", "a..c", "a.b.c=", "a.b.c+", "a.b/.c", "a b.c.d", "a.b.ć", "a.b.c\nd", "ig_a.b"],
)
def test_what_has_not_a_token_s_shape_is_not_asked_about(credential: str) -> None:
    tokens = TokensInADict({credential: "ann"})
    assert caller(f"Bearer {credential}", tokens) is None
    assert caller(f"Basic {TOKEN}", tokens) is None
    assert tokens.asked == []


def test_a_key_is_never_asked_about_as_a_token() -> None:
    alice, tokens = BearerKey.new("alice"), TokensInADict({})
    known = clients(alice)
    assert authorize(f"Bearer {alice.key}", clients=known, path=PATH, tokens=tokens) == Caller("alice")
    assert tokens.asked == []
