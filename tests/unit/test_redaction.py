"""An upstream's message is passed on without secrets and addresses, and stays readable."""

import pytest

from imagegen.domain.redaction import MOST_CHARACTERS, redacted


@pytest.mark.parametrize(
    "secret",
    [
        # URLs, the last one without a scheme; a cloud's parameter
        *("https://images.example/a.png", "HTTPS://IMAGES.EXAMPLE/A.PNG", "redis://user:hunter22@cache/0"),
        *(r"https:\/\/images.example\/a.png", "https%3A%2F%2Fimages.example%2Fa", "https%253a%252f%252fimages.example"),
        *("images.example/a?sig=abc", "X-Amz-Date=20260101"),
        # keys by their prefixes, some masked by the upstream
        *("eyJhbGciOi.eyJzdWIi.c2ln", "sk-proj-abcdef", "sk-proj-****wxyz", "sk-...wxyz", "sk_live_abcdef"),
        "SK-ABCDEF",
        *("ig_client_abcdef", "pk-abcdef", "rk_abcdef", "AIzaSyA1b2C3d4E5f6G7h8", "hf_abcdefgh", "r8_abcdefgh"),
        *("AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", "ghp_abcdefgh"),
        # credentials by their schemes and names
        *("Bearer abcdefgh", "bearer abc.def-ghi", "Basic dXNlcjpwYXNz", "token=abcd", "access_token: abcd"),
        "api_key=abcd",
        *("apikey:abcd", "X-Api-Key: abcd", "client_secret=abcd", "aws_secret_access_key = abcd", "password: abcd"),
        *("password='ab cd'", 'password="ab cd ef', r'password="ab\"cd"', '"api_key": "ab cd"'),
        r"\"api_key\":\"ab cd\"",
        *("Authorization: abcd", "Authorization: Token abcd", "signature=abcd", "Credential=abcd"),
        # hex and base64
        *("0123456789abcdef" * 3, "Zm9vYmFyYmF6cXV4+/9vYmFyYmF6cXV4Zm9vYmFyYg=="),
        # addresses and hosts
        *("10.0.0.1", "10.0.0.1:8080", "fe80::1", "::1", "2001:db8:0:0:0:0:0:1", "2001:db8:0:1", "::ffff:10.0.0.1"),
        *("redis:6379", "db-1.images.example:443", "ip-10-0-0-1.ec2.internal", "printer.local", "images.default.svc"),
        *("images.default.svc.cluster.local:80", "git.corp", "nas.lan", "jane.doe+x@images.example"),
        "josé@bücher.example",
    ],
)
def test_a_secret_of_any_shape_is_redacted(secret: str) -> None:
    for around in ("Bad size: {} is gone.", "({})", "{}", "大小无效{}请重试", "a\n{}\tb"):
        text = redacted(around.format(secret))
        assert "[redacted]" in text
        for part in secret.replace(":", " ").replace("=", " ").split():
            named = part.strip("\\\"'").lower() in NAMES
            assert named or len(part) < 3 or part not in text


# The name and the scheme of a secret may stay.
NAMES = {"token", "x-api-key", "access_token", "client_secret", "aws_secret_access_key"}


@pytest.mark.parametrize(
    "message",
    [
        *("Invalid size: must be 1024x1024", "Unknown parameter: 'style'.", "type: invalid_request_error"),
        *("ratio 16:9", "The ratio must be 16:9, 4:3 or 16:10.", "at 12:30 or 12:30:45 UTC", "Is quality = high?"),
        *("Bearer token is missing.", "Basic authentication is required.", "The Basic plan has no image models."),
        *("Too many tokens: 4096 of 4000", "The prompt is too long (max 4000 characters)?", "no std::string here"),
        *("gpt-image-1 does not take response_format=url, dall-e-3 does", "version 1.2.3"),
        *("risk-assessment of tasks; ask-anything", "internal error in the local network"),
        *("当前分组上游负载已饱和。请稍后再试", "Ungültige Größe 🐈"),
    ],
)
def test_an_ordinary_message_is_unchanged(message: str) -> None:
    assert redacted(message) == message


def test_control_characters_become_spaces() -> None:
    assert redacted("Bad\nsize\x1b[0m\u2028!") == "Bad size [0m !"


def test_a_cut_leaves_no_part_of_a_secret() -> None:
    for before in range(MOST_CHARACTERS - 60, MOST_CHARACTERS + 1):
        text = redacted("x " * (before // 2) + " " * (before % 2) + "d41d8cd98f00b204" * 3)
        assert "d41d" not in text
        assert len(text) <= MOST_CHARACTERS


@pytest.mark.parametrize("text", ["no " * 10_000, "a:80 " * 60, "?" * 12_000, "饱" * 10_000])
def test_a_long_text_is_cut(text: str) -> None:
    assert 0 < len(redacted(text)) <= MOST_CHARACTERS
