"""Tokens of an OpenID issuer beside keys: verified as `make build` packaged it, from source if nothing is built."""

from collections.abc import Callable
from typing import Any

import openai
import pytest

from local.serving import Reply
from local.stack import BUILT, RUNTIME_PYTHON
from tests.fakes.issuer import FakeIssuer, rsa_key, token
from tests.support.client import GENERATIONS, INLINE, SMALL, Client, fetched
from tests.support.world import World


@pytest.fixture
def trusting(request: pytest.FixtureRequest) -> World:
    built = BUILT.is_dir() and RUNTIME_PYTHON.exists()
    world: World = request.getfixturevalue("built_world" if built else "staged_world")
    return world


def bearer(world: World, key: str) -> Client:
    return Client(world.base_url, key)


def test_each_subject_gets_images_and_sees_only_its_own_under_every_token_of_its_own(
    trusting: World, issuer: FakeIssuer
) -> None:
    def seen(**claims: Any) -> list[str]:
        return [each["id"] for each in bearer(trusting, issuer.token(**claims)).newest()]

    for sub, kid in (("one", "rsa-1"), ("two", "ec-1")):
        made = bearer(trusting, issuer.token(kid, sub=sub)).make({"prompt": f"for {sub}", **SMALL}, **INLINE)
        assert fetched(made.json["data"][0]["url"]).headers["content-type"] == "image/png"
    (one,), (two,) = seen(kid="ec-1", sub="one", jti="another"), seen(sub="two")
    assert one != two
    keys = (issuer.token(sub="one"), trusting.caller().key, issuer.token(sub="two"))
    assert [bearer(trusting, key).see(two).status for key in keys] == [404, 404, 200]


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda issuer: issuer.token(exp=1), id="expired"),
        pytest.param(lambda issuer: issuer.token(aud="other"), id="for another"),
        pytest.param(
            lambda issuer: token({"alg": "RS256", "kid": "rsa-1"}, issuer.claims(), rsa_key("evil")), id="of another"
        ),
        pytest.param(lambda issuer: token({"alg": "none", "kid": "rsa-1"}, issuer.claims(), b"x"), id="of nobody"),
        pytest.param(lambda _: "eyJh.eyJz.c2ln", id="no JSON"),
        pytest.param(lambda _: "a.b", id="no token"),
    ],
)
def test_a_bad_token_is_answered_as_openai_answers_a_bad_key(
    trusting: World, issuer: FakeIssuer, forge: Callable[[FakeIssuer], str]
) -> None:
    client = bearer(trusting, forge(issuer))
    assert client.get(GENERATIONS).failed == (401, "invalid_api_key")
    with pytest.raises(openai.AuthenticationError):
        client.openai().models.list()


def test_a_token_is_worth_a_retry_while_the_issuer_is_down_and_keys_work_on(
    trusting: World, issuer: FakeIssuer
) -> None:
    issuer.instead[issuer.discovery_path] = lambda _: Reply(503)
    patient, caller = bearer(trusting, issuer.token(sub="patient")), trusting.caller()
    trusting.kill("AuthorizerFunction")  # the next process knows none of the issuer's keys
    try:
        assert patient.get(GENERATIONS).failed == (503, "authorizer_unavailable")
        assert caller.get(GENERATIONS).status == 200
    finally:
        issuer.instead.clear()
    trusting.kill("AuthorizerFunction")  # which would pause before it asks the issuer again
    assert patient.get(GENERATIONS).status == 200


def test_no_log_names_a_subject_or_holds_a_token(trusting: World, issuer: FakeIssuer) -> None:
    key = issuer.token(sub="somebody@example.org")
    assert bearer(trusting, key).get(GENERATIONS).status == 200
    logs = trusting.logs()
    assert "somebody@example.org" not in logs
    assert key.rpartition(".")[2] not in logs
