"""Tokens of an OpenID issuer in place of keys: verified as `sam build` packaged it, from source where it did not."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest

from imagegen.outbound.issuer_keys import PAUSE_WITHOUT_KEYS_SECONDS
from local.serving import Reply
from local.stack import BUILT, RUNTIME_PYTHON
from tests.e2e.conftest import Service, serve
from tests.fakes.issuer import AUDIENCE, FakeIssuer, rsa_key, running_issuer, token


@dataclass(frozen=True)
class Trusting:
    service: Service
    issuer: FakeIssuer

    def client(self, api_key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.service.base_url, api_key=api_key, max_retries=0)

    def ask(self, api_key: str, path: str = "/images/generations") -> tuple[int, Any]:
        request = Request(f"{self.service.base_url}{path}", headers={"Authorization": f"Bearer {api_key}"})
        try:
            with urlopen(request) as response:
                return response.status, json.loads(response.read())
        except HTTPError as refused:
            return refused.code, json.loads(refused.read())


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trusting]:
    kind = "built" if BUILT.is_dir() and RUNTIME_PYTHON.exists() else "source"
    with running_issuer() as issuer:
        parameters = {"OidcIssuer": issuer.url, "OidcAudience": AUDIENCE}
        with serve(kind, tmp_path_factory.mktemp(f"oidc-{kind}"), parameters) as service:
            yield Trusting(service, issuer)


@pytest.mark.parametrize("kid", ["rsa-1", "ec-1"])
def test_a_token_gets_an_image(trusting: Trusting, kid: str) -> None:
    answer = trusting.client(trusting.issuer.token(kid)).images.generate(model="dall-e-3", prompt="a badge")
    (image,) = answer.data or []
    assert image.url
    with urlopen(image.url) as response:
        assert response.read() in trusting.service.stored().values()


def test_each_subject_sees_only_its_own_generations_under_every_token_of_its_own(trusting: Trusting) -> None:
    issuer = trusting.issuer
    for sub in ("one", "two"):
        trusting.client(issuer.token(sub=sub)).images.generate(model="dall-e-3", prompt=f"for {sub}")
    _, of_one = trusting.ask(issuer.token("ec-1", sub="one", jti="another"))
    _, of_two = trusting.ask(issuer.token(sub="two"))
    (one,), (two,) = of_one["data"], of_two["data"]
    assert one["id"] != two["id"]
    assert trusting.ask(issuer.token(sub="one"), f"/images/generations/{two['id']}")[0] == 404
    assert trusting.ask(trusting.service.key, f"/images/generations/{two['id']}")[0] == 404
    assert trusting.ask(issuer.token(sub="two"), f"/images/generations/{two['id']}")[0] == 200


BAD: dict[str, Callable[[FakeIssuer], str]] = {
    "expired": lambda issuer: issuer.token(exp=1),
    "for another": lambda issuer: issuer.token(aud="other"),
    "of another": lambda issuer: token({"alg": "RS256", "kid": "rsa-1"}, issuer.claims(), rsa_key("evil")),
    "of nobody": lambda issuer: token({"alg": "none", "kid": "rsa-1"}, issuer.claims(), b"x"),
    "no JSON": lambda _: "eyJh.eyJz.c2ln",
    "no token": lambda _: "a.b",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_token_is_told_as_openai_tells_a_bad_key(trusting: Trusting, kind: str) -> None:
    status, answer = trusting.ask(BAD[kind](trusting.issuer))
    assert status == 401
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert answer["error"]["code"] == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        trusting.client(BAD[kind](trusting.issuer)).models.list()


def test_keys_work_beside_tokens(trusting: Trusting) -> None:
    assert trusting.client(trusting.service.key).images.generate(model="dall-e-3", prompt="a key").data


def test_while_the_issuer_is_down_a_token_is_worth_a_retry_until_it_is_back(trusting: Trusting) -> None:
    issuer = trusting.issuer
    issuer.instead[issuer.discovery_path] = lambda _: Reply(503)
    bearer = issuer.token(sub="patient")
    trusting.service.stack.functions["AuthorizerFunction"].warm_up()  # a process of its own, which knows no keys
    try:
        status, answer = trusting.ask(bearer)
    finally:
        issuer.instead.clear()
    assert (status, answer["error"]["code"]) == (503, "authorizer_unavailable")
    assert trusting.ask(trusting.service.key)[0] == 200
    until = time.monotonic() + PAUSE_WITHOUT_KEYS_SECONDS + 5
    while (status := trusting.ask(bearer)[0]) == 503 and time.monotonic() < until:
        time.sleep(0.2)
    assert status == 200


def test_no_log_names_a_subject_or_holds_a_token(trusting: Trusting) -> None:
    bearer = trusting.issuer.token(sub="somebody@example.org")
    assert trusting.ask(bearer)[0] == 200
    logs = trusting.service.logs()
    assert "somebody@example.org" not in logs
    assert bearer.rpartition(".")[2] not in logs
