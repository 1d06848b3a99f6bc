"""Keeps secrets and addresses out of an upstream's own words, which reach errors, records and events."""

import re

MOST_CHARACTERS = 300
_MARK = "[redacted]"
_ASCII = "".join(map(chr, range(0x21, 0x7F)))

# Every pattern takes linear time, since the text is a stranger's. An unbounded run starts only where a lookbehind finds
# its beginning, and is possessive or ends the pattern. ASCII classes find a secret between Chinese characters too.
SHAPES = tuple(
    re.compile(pattern)
    for pattern in (
        # A URL with its scheme, percent-encoded or with escaped slashes too.
        r"(?ai)(?<![a-z0-9+.-])[a-z0-9+.-]*+(?::|%(?:25){0,3}3a)(?:\\*+/|%(?:25){0,3}2f){2}\S*",
        # A word with a query: a URL without its scheme.
        r"(?<!\S)[^\s?]*+\?[^\s=]*+=\S*",
        # A parameter or header of a cloud's signature. 64 characters hold each of their names.
        r"(?ai)x-(?:amz|goog|ms|oss)-[a-z0-9-]{1,64}+[=:] *+\S*",
        # A JSON Web Token begins with `{"` in base64.
        r"(?a)(?<![A-Za-z0-9])eyJ[\w.*-]+",
        # Two harmless phrases: "Bearer token is missing" and "Basic authentication is required".
        r"(?ai)\bbearer[ :=\"']++(?!(?:tokens?|auth|authentication|credentials?|keys?|scheme)\b)[\w.~+/=*-]{4,}",
        r"(?a)\b(?:[Bb]asic|BASIC)[ :=\"']++(?=[A-Za-z]?+[a-z]*+[A-Z0-9+/=])[\w+/=-]{4,}",
        # Keys by their issuers' prefixes; some upstreams mask the middle with `*` or dots.
        r"(?ai)(?<![a-z0-9])(?:sk|ig|pk|rk|hf|r8|gsk|xai|nvapi|glpat|gh[a-z]|github_pat|xox[a-z])[-_][\w.*-]{6,}",
        r"(?a)AIza[\w-]{6,}",
        r"(?a)A[KS]IA[A-Z0-9]{8,}",
        # A named secret and its value, as a parameter, as a header or as JSON.
        (
            r"(?ai)(?:api[ _-]?key|access[ _-]?key(?:[ _-]?id)?|token|secret(?:[ _-]access)?(?:[ _-]key)?"
            r"|passw(?:or)?d|authorization|signature|credentials?)[\\\"']*+ *+[:=] *+"
            r"(?:\\*+\"(?:[^\"\\]|\\.){4,}+\"?|\\*+'(?:[^'\\]|\\.){4,}+'?|(?:(?:token|key|digest) )?\S{4,})"
        ),
        # A long word of base64 or hex.
        r"(?a)(?<![\w+/=-])(?=[A-Za-z_+/=-]*+[0-9])[\w+/=-]{40,}",
        # An e-mail address.
        r"(?<![\w.%+-])[\w.%+-]++@[\w-]++(?:\.[\w-]++)++",
        # IPv4 and IPv6. Three groups of digits may be a time of day.
        r"(?a)(?<!\d)(?:\d{1,3}\.){3}\d{1,3}(?!\d)(?::\d{1,5})?",
        (
            r"(?ai)(?<![\w:])(?:(?:[0-9a-f]{1,4}:){3,7}[0-9a-f]{1,4}"
            r"|(?:(?:[0-9a-f]{1,4}:){1,7}+:|::(?=[0-9a-f]))(?:[0-9a-f]{1,4}:){0,7}[0-9a-f]{0,4})(?!\w)"
        ),
        # A host of a private network, or a host and its port.
        r"(?ai)(?<![\w.-])[\w.-]+\.(?:internal|local|svc|corp|lan)(?![\w-])[\w.:-]*",
        r"(?ai)(?<![\w.-])(?=[0-9_.-]*+[a-z])[\w.-]++:\d{2,5}(?!\w)",
    )
)


def redacted(text: str) -> str:
    """At most 300 characters of the text, all printable, with a mark in place of each secret and each address.

    The text is cut first, so that the work is bounded. The cut drops the word it falls into: a part of a secret may
    not have its shape. A caller replaces the secrets that it knows before, in the whole text.
    """
    if len(text) > MOST_CHARACTERS:
        text = text[: MOST_CHARACTERS - 1].rstrip(_ASCII) + "…"
    text = "".join(character if character.isprintable() else " " for character in text)
    for shape in SHAPES:
        text = shape.sub(_MARK, text)
    return text[:MOST_CHARACTERS]
