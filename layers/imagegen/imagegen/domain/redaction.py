"""Removes secrets and addresses from messages of an upstream, which go into errors, records and events."""

import re

MOST_CHARACTERS = 300
_MARK = "[redacted]"
_ASCII = "".join(map(chr, range(0x21, 0x7F)))

# Every pattern takes linear time, because the text is untrusted. An unbounded run starts only after a lookbehind, and
# is possessive or ends the pattern. With ASCII classes, a secret is also found between Chinese characters.
SHAPES = tuple(
    re.compile(pattern)
    for pattern in (
        # A URL with its scheme, percent-encoded or with escaped slashes too.
        r"(?ai)(?<![a-z0-9+.-])[a-z0-9+.-]*+(?::|%(?:25){0,3}3a)(?:\\*+/|%(?:25){0,3}2f){2}\S*",
        # A word with a query: a URL without its scheme.
        r"(?<!\S)[^\s?]*+\?[^\s=]*+=\S*",
        # A parameter or header of a cloud's signature. None of their names is longer than 64 characters.
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
    """Returns at most 300 printable characters of the text, with a mark in place of each secret and address.

    The text is cut first, to limit the work. A word that would be cut is dropped, because a part of a secret may not
    match its pattern. Known secrets must be replaced before, in the whole text.
    """
    if len(text) > MOST_CHARACTERS:
        text = text[: MOST_CHARACTERS - 1].rstrip(_ASCII) + "…"
    text = "".join(character if character.isprintable() else " " for character in text)
    for shape in SHAPES:
        text = shape.sub(_MARK, text)
    return text[:MOST_CHARACTERS]
