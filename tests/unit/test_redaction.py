"""An upstream's own words are passed on without secrets and addresses, and stay readable."""

import pytest

from imagegen.redaction import MOST_CHARACTERS, redacted

SECRETS = {
    "a URL": "https://images.example/a.png",
    "a URL in capitals": "HTTPS://IMAGES.EXAMPLE/A.PNG",
    "a URL with a password": "redis://user:hunter22@cache/0",
    "a URL with escaped slashes": r"https:\/\/images.example\/a.png",
    "a percent-encoded URL": "https%3A%2F%2Fimages.example%2Fa",
    "a URL encoded twice": "https%253a%252f%252fimages.example",
    "a URL without a scheme": "images.example/a?sig=abc",
    "a cloud's parameter": "X-Amz-Date=20260101",
    "a JWT": "eyJhbGciOi.eyJzdWIi.c2ln",
    "a key of OpenAI": "sk-proj-abcdef",
    "a masked key": "sk-proj-****wxyz",
    "a key masked with dots": "sk-...wxyz",
    "a key with an underscore": "sk_live_abcdef",
    "a key in capitals": "SK-ABCDEF",
    "a key of this service": "ig_client_abcdef",
    "a publishable key": "pk-abcdef",
    "a restricted key": "rk_abcdef",
    "a key of Google": "AIzaSyA1b2C3d4E5f6G7h8",
    "a key of Hugging Face": "hf_abcdefgh",
    "a key of Replicate": "r8_abcdefgh",
    "a key of AWS": "AKIAIOSFODNN7EXAMPLE",
    "a temporary key of AWS": "ASIAIOSFODNN7EXAMPLE",
    "a token of GitHub": "ghp_abcdefgh",
    "a bearer token": "Bearer abcdefgh",
    "a bearer token in small letters": "bearer abc.def-ghi",
    "basic credentials": "Basic dXNlcjpwYXNz",
    "a token": "token=abcd",
    "an access token": "access_token: abcd",
    "a key by its name": "api_key=abcd",
    "a key by its name in one word": "apikey:abcd",
    "a key by its header": "X-Api-Key: abcd",
    "a secret": "client_secret=abcd",
    "a secret key of AWS": "aws_secret_access_key = abcd",
    "a password": "password: abcd",
    "a password in quotes": "password='ab cd'",
    "a password without its second quote": 'password="ab cd ef',
    "a password that holds a quote": r'password="ab\"cd"',
    "a key as JSON": '"api_key": "ab cd"',
    "a key as JSON in JSON": r"\"api_key\":\"ab cd\"",
    "an authorization": "Authorization: abcd",
    "an authorization with its scheme": "Authorization: Token abcd",
    "a signature": "signature=abcd",
    "a credential": "Credential=abcd",
    "hex": "0123456789abcdef" * 3,
    "base64": "Zm9vYmFyYmF6cXV4+/9vYmFyYmF6cXV4Zm9vYmFyYg==",
    "IPv4": "10.0.0.1",
    "IPv4 and a port": "10.0.0.1:8080",
    "IPv6": "fe80::1",
    "IPv6 in short": "::1",
    "IPv6 in full": "2001:db8:0:0:0:0:0:1",
    "four groups": "2001:db8:0:1",
    "IPv4 in IPv6": "::ffff:10.0.0.1",
    "a host and its port": "redis:6379",
    "a name and its port": "db-1.images.example:443",
    "a host of AWS": "ip-10-0-0-1.ec2.internal",
    "a host of a local network": "printer.local",
    "a host of Kubernetes": "images.default.svc",
    "a host of a cluster": "images.default.svc.cluster.local:80",
    "a host of a company": "git.corp",
    "a host of a home": "nas.lan",
    "an e-mail address": "jane.doe+x@images.example",
    "an e-mail address beyond ASCII": "josé@bücher.example",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=list(SECRETS))
@pytest.mark.parametrize("around", ["Bad size: {} is gone.", "({})", "{}", "大小无效{}请重试", "a\n{}\tb"])
def test_a_secret_of_each_shape_is_left_out(secret: str, around: str) -> None:
    text = redacted(around.format(secret))

    assert "[redacted]" in text
    for part in secret.replace(":", " ").replace("=", " ").split():
        named = part.strip("\\\"'").lower() in NAMES
        assert named or len(part) < 3 or part not in text


# What may stay of a secret: its name and its scheme.
NAMES = {"token", "x-api-key", "access_token", "client_secret", "aws_secret_access_key"}


@pytest.mark.parametrize(
    "message",
    [
        "Invalid size: must be 1024x1024",
        "Unknown parameter: 'style'.",
        "ratio 16:9",
        "The ratio must be 16:9, 4:3 or 16:10.",
        "at 12:30 or 12:30:45 UTC",
        "type: invalid_request_error",
        "Bearer token is missing.",
        "Basic authentication is required.",
        "The Basic plan has no image models.",
        "Too many tokens: 4096 of 4000",
        "The prompt is too long (max 4000 characters)?",
        "Is quality = high?",
        "gpt-image-1 does not take response_format=url, dall-e-3 does",
        "no std::string here",
        "version 1.2.3",
        "risk-assessment of tasks; ask-anything",
        "internal error in the local network",
        "当前分组上游负载已饱和。请稍后再试",
        "Ungültige Größe 🐈",
    ],
)
def test_an_ordinary_message_stays_as_it_is(message: str) -> None:
    assert redacted(message) == message


def test_control_characters_become_blanks() -> None:
    assert redacted("Bad\nsize\x1b[0m\u2028!") == "Bad size [0m !"


@pytest.mark.parametrize("before", range(MOST_CHARACTERS - 60, MOST_CHARACTERS + 1))
def test_a_cut_leaves_no_part_of_a_secret(before: int) -> None:
    text = redacted("x " * (before // 2) + " " * (before % 2) + "d41d8cd98f00b204" * 3)

    assert "d41d" not in text
    assert len(text) <= MOST_CHARACTERS


@pytest.mark.parametrize("text", ["no " * 10_000, "a:80 " * 60, "?" * 12_000, "饱" * 10_000])
def test_a_long_text_is_cut(text: str) -> None:
    assert 0 < len(redacted(text)) <= MOST_CHARACTERS
