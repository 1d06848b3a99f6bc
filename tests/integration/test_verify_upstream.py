"""`make verify-upstream` against the stand-in upstream: what it says, what it sends, and what it finds."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import pytest

from local.serving import Reply, Request, serving
from local.upstream import StandInUpstream
from local.upstream_painting import paint
from local.upstream_replies import json_reply, one_api_error
from tests.conftest import ROOT
from tests.support.models import GENERATING, MODELS
from tools.verify_upstream import cheapest, main

KEY = "sk-canary-of-the-verification"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclass
class Upstream:
    """The stand-in on a port. `sent` are the models that were called under the right key, in order."""

    stand_in: StandInUpstream
    url: str

    @property
    def sent(self) -> list[str]:
        return [call["model"] for call in self.stand_in.calls]

    def verified(
        self, name: str = "reseller", model: str = "", *, yes: bool = True, stdin: io.StringIO | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs the tool in this process."""
        suffix = "" if name == "reseller" else f"_{name.upper()}"
        environ = {f"UPSTREAM_BASE_URL{suffix}": self.url, f"UPSTREAM_API_KEY{suffix}": KEY, **env}
        arguments = ["verify", f"--upstream={name}", f"--model={model}", *(["--yes"] if yes else [])]
        out, err = io.StringIO(), io.StringIO()
        surroundings = patch.dict(os.environ, environ), patch.object(sys, "argv", arguments)
        given = patch.object(sys, "stdin", stdin or io.StringIO())
        with surroundings[0], surroundings[1], given, redirect_stdout(out), redirect_stderr(err):
            code = main()
        assert KEY not in out.getvalue() + err.getvalue()
        return subprocess.CompletedProcess(name, code, out.getvalue(), err.getvalue())

    def failure(self, *replies: Reply, model: str = "flux-pro") -> str:
        """What it finds if the upstream answers the call for the image with this."""
        self.stand_in.script.extend([lambda _: None, *(lambda _, reply=reply: reply for reply in replies)])
        done = self.verified(model=model)
        assert done.returncode == 1
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
        return line.partition(" s  ")[2]


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    slept: list[float] = []
    monkeypatch.setattr("tools.verify_upstream.sleep", slept.append)
    stand_in = StandInUpstream(KEY, now=lambda: sum(slept))
    with serving(stand_in.respond) as port:
        yield Upstream(stand_in, f"http://127.0.0.1:{port}/v1")


def hosted(upstream: Upstream, content: bytes) -> Reply:
    """An answer of OpenAI's protocol with the URL of the content."""
    upstream.stand_in.files["x.png"] = ("image/png", content)
    return json_reply(200, {"created": 1, "data": [{"url": upstream.url.removesuffix("/v1") + "/files/x.png"}]})


def test_the_cheapest_model_of_each_protocol_makes_an_image(upstream: Upstream) -> None:
    done = upstream.verified()
    assert (done.returncode, done.stderr) == (0, "")
    in_all = "\nin all $0.0775 by the prices of models.toml, and 1 of unknown price\n"
    announced, _, found = done.stdout.partition(in_all)
    chosen = ["gpt-image-1-mini", "gemini-2.5-flash-image", "ideogram-v3", "kling-v1", "mj_imagine"]
    assert [line.split()[0] for line in announced.splitlines()[1:6]] == chosen
    lines = found.splitlines()
    assert len(lines) == 14
    assert all(line.startswith("ok ") for line in lines), found
    assert "upstream_key_refused" in lines[0]
    assert "the next route follows" in lines[1]
    assert "1024x1024 PNG" in lines[9]
    assert '"output_tokens": 40' in lines[9]
    assert "1280x720 PNG" in lines[10]
    assert "1312x736 PNG" in lines[11]
    assert all("PNG" in line for line in lines[12:])
    assert [model for model in upstream.sent if model in GENERATING] == chosen
    assert all(call.get("n", call.get("num_images", 1)) in (1, "1") for call in upstream.stand_in.calls)


def test_all_models_of_an_upstream(upstream: Upstream) -> None:
    done = upstream.verified(model="all")
    assert done.returncode == 0, done.stdout
    at_the_upstream = [{"niji": "mj_imagine"}.get(model, model) for model in GENERATING]  # another bot of Midjourney
    assert [model for model in upstream.sent if model in GENERATING] == at_the_upstream
    assert ", and 13 of unknown price" in done.stdout


@pytest.mark.parametrize(
    ("model", "options", "price"),
    [
        ("dall-e-2", {"size": "256x256"}, 16_000),
        ("dall-e-3", {"size": "1024x1024", "quality": "standard"}, 40_000),
        ("gpt-image-1", {"size": "1024x1024", "quality": "low"}, 11_000),
        ("gpt-image-2", {"size": "1024x1024", "quality": "low"}, None),
        ("flux-pro", {"size": "512x768"}, 50_000),
        ("flux-kontext-pro", {"size": "1280x720"}, 40_000),
        ("gemini-2.0-flash-exp-image-generation", {}, 39_000),
        ("gemini-3-pro-image", {"image_size": "1K", "size": "1280x720"}, 134_000),
    ],
)
def test_a_request_is_the_cheapest_and_no_square_where_that_costs_nothing(
    model: str, options: dict[str, str], price: int | None
) -> None:
    trial = cheapest(MODELS[model])
    sent = {name: value for name, value in trial.request.options.items() if name != "response_format"}
    assert (trial.request.n, sent, trial.price) == (1, options, price)


def test_an_upstream_of_one_protocol_has_variables_of_its_own(upstream: Upstream) -> None:
    done = upstream.verified("openai", "gpt-image-1-mini")
    assert done.returncode == 0, done.stdout
    assert upstream.sent[-1] == "gpt-image-1-mini"


def test_a_wrong_image_is_found(upstream: Upstream) -> None:
    square = paint("x", 1, "512x512")
    assert upstream.failure(hosted(upstream, square)) == ('the image is 512x512, and {"size": "512x768"} was asked for')
    assert "cannot be decoded" in upstream.failure(hosted(upstream, square[:100] + square[-12:]))
    assert upstream.failure(hosted(upstream, b"<html>")).startswith("not_an_image: ")


def test_a_failure_has_its_code_and_message(upstream: Upstream) -> None:
    assert upstream.failure(one_api_error(403, "no", code="insufficient_user_quota")).startswith(
        "upstream_out_of_credit: "
    )
    assert upstream.failure(Reply(500, b"")).startswith("upstream_failed: ")


def test_one_failure_does_not_keep_the_other_models_from_being_verified(upstream: Upstream) -> None:
    upstream.stand_in.script.extend([lambda _: None, lambda _: Reply(500)])
    done = upstream.verified(model="flux-pro,flux-dev")
    assert done.returncode == 1
    assert [line.split()[:2] for line in done.stdout.splitlines()[-2:]] == [["FAILED", "flux-pro"], ["ok", "flux-dev"]]


def test_a_wrong_key_or_an_unknown_model_that_is_not_refused_is_found(upstream: Upstream) -> None:
    def accepts_all(request: Request) -> Reply:
        return upstream.stand_in.respond(
            replace(request, headers=[("Authorization", f"Bearer {KEY}"), *request.headers])
        )

    with serving(accepts_all) as port:
        done = upstream.verified(model="flux-pro", UPSTREAM_BASE_URL=f"http://127.0.0.1:{port}/v1")
    assert done.returncode == 1
    assert "FAILED  openai: a wrong key" in done.stdout
    assert "was not refused" in done.stdout

    upstream.stand_in.script.append(lambda _: json_reply(400, {"error": {"message": "what?", "code": "invalid_value"}}))
    done = upstream.verified(model="flux-pro")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert "openai: an unknown model" in line
    assert "upstream_refused_request, after which no other route follows" in line


@pytest.mark.parametrize(("answer", "sends"), [("y\n", True), ("yes\n", True), ("n\n", False), ("\n", False)])
def test_on_a_terminal_it_asks_before_it_sends(upstream: Upstream, answer: str, *, sends: bool) -> None:
    done = upstream.verified(model="flux-dev", yes=False, stdin=Terminal(answer))
    assert "in all $0.025" in done.stdout
    assert bool(upstream.sent) is sends
    assert done.returncode == (0 if sends else 1)


def test_without_a_terminal_it_sends_nothing_unless_it_is_allowed(upstream: Upstream) -> None:
    done = upstream.verified(yes=False)
    assert (done.returncode, upstream.sent) == (1, [])
    assert "YES=1" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "nowhere"}, "there is no upstream 'nowhere' in models.toml: use one of reseller, openai"),
        ({"UPSTREAM_BASE_URL": ""}, "set UPSTREAM_BASE_URL to the address of reseller"),
        ({"UPSTREAM_BASE_URL": "http://example.com/v1"}, "the base URL of reseller is plain http"),
        ({"name": "google", "UPSTREAM_API_KEY_GOOGLE": " "}, "set UPSTREAM_API_KEY_GOOGLE to the key of google"),
        ({"name": "google", "model": "flux-pro"}, "this upstream serves no model 'flux-pro': use all, or some of gem"),
        (
            {"model": "flux-pro", "UPSTREAM_BASE_URL": "https://api.openai.com/v1"},
            "this upstream serves no model 'flux",
        ),
    ],
)
def test_what_it_cannot_verify_is_refused_in_one_line(
    upstream: Upstream, arguments: dict[str, Any], message: str
) -> None:
    done = upstream.verified(**arguments)
    assert (done.returncode, upstream.sent) == (1, [])
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_make_passes_the_variables_on(upstream: Upstream) -> None:
    old = [f"--old-file={path}" for path in (".venv/ready", "layers/imagegen/imagegen/bootstrap/models_toml.py")]
    variables = ["UPSTREAM=reseller", "MODEL=flux-dev", "YES=1", f"UPSTREAM_BASE_URL={upstream.url}"]
    done = subprocess.run(
        ["make", *old, "verify-upstream", *variables, f"UPSTREAM_API_KEY={KEY}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert upstream.sent[-1] == "flux-dev"
    assert KEY not in done.stdout + done.stderr
