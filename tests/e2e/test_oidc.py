"""Tokens of an OpenID issuer, on what `make build` packaged, or from source if nothing is built."""

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


def test_a_subject_sees_only_its_own_images_by_any_of_its_tokens(trusting: World, issuer: FakeIssuer) -> None:
    def seen(**claims: Any) -> list[str]:
        return [each["id"] for each in bearer(trusting, issuer.token(**claims)).newest()]

    for sub, kid in (("one", "rsa-1"), ("two", "ec-1")):
        made = bearer(trusting, issuer.token(kid, sub=sub)).make({"prompt": f"for {sub}", **SMALL}, **INLINE)
        assert fetched(made.json["data"][0]["url"]).headers["content-type"] == "image/png"
    (one,), (two,) = seen(kid="ec-1", sub="one", jti="another"), seen(sub="two")
    assert one != two
    keys = (issuer.token(sub="one"), trusting.caller().key, issuer.token(sub="two"))
    assert [bearer(trusting, key).see(two).status for key in keys] == [404, 404, 200]


def test_a_bad_token_is_refused_as_openai_refuses_a_bad_key(trusting: World, issuer: FakeIssuer) -> None:
    forged = token({"alg": "RS256", "kid": "rsa-1"}, issuer.claims(), rsa_key("evil"))
    for bad in (forged, issuer.token(exp=1), "a.b"):
        client = bearer(trusting, bad)
        assert client.get(GENERATIONS).failed == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            client.openai().models.list()


def test_while_the_issuer_is_down_a_token_may_be_retried_and_keys_still_work(
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
