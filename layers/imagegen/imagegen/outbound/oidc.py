"""Identifies a caller by a JWT of an OpenID issuer. PyJWT verifies it; this module chooses the checks and adds some."""

from __future__ import annotations

from base64 import urlsafe_b64decode
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

if TYPE_CHECKING:
    from imagegen.outbound.issuer_keys import IssuerKeys

MOST_TOKEN_CHARACTERS = 8 * 1024
LEEWAY_SECONDS = 30
# The accepted values of `typ`. An issuer also signs other tokens, such as logout tokens, with another `typ`.
_TYPES = (None, "jwt", "at+jwt", "application/at+jwt")

_Date = Annotated[float, msgspec.Meta(ge=0, lt=253_402_300_800)]  # Unix seconds, up to the year 9999


class _Header(msgspec.Struct):
    """Accepts neither `none` nor symmetric algorithms. Keys that a token contains or points to are ignored."""

    alg: Literal["ES256", "RS256"]
    kid: str
    typ: str | None = None
    crit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Claims(msgspec.Struct):
    """Checks the types, because PyJWT accepts strings and booleans as dates."""

    sub: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    exp: _Date
    nbf: _Date | None = None
    iat: _Date | None = None


class OidcTokens:
    """Implements `ports.TokenVerifier`. `audience` is the audience that a token must have."""

    def __init__(self, keys: IssuerKeys, *, audience: str) -> None:
        self._keys = keys
        self._audience = audience

    @property
    def issuer(self) -> str:
        return self._keys.issuer

    def subject(self, token: str) -> str | None:
        header = _header(token)
        key = self._keys.find(header.kid, header.alg) if header else None
        if key is None:
            return None
        import jwt  # noqa: PLC0415  # only the authorizer has it, and bearer keys do not need it

        try:
            verified = jwt.decode(
                token,
                key,  # a PyJWK allows only its own algorithm
                algorithms=["ES256", "RS256"],
                audience=self._audience,
                issuer=self.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["aud", "exp", "iss", "sub"]},
            )
            subject = msgspec.convert(verified, _Claims).sub
            subject.encode()  # raises ValueError for half of a surrogate pair
        except (jwt.PyJWTError, msgspec.ValidationError, ValueError, OverflowError, RecursionError):
            return None
        return subject


def _header(token: str) -> _Header | None:
    """Returns the header of a token, `None` if the token cannot be verified."""
    if len(token) > MOST_TOKEN_CHARACTERS:
        return None
    encoded = token.partition(".")[0]
    try:
        header = msgspec.json.decode(urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)), type=_Header)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    known = header.typ is None or header.typ.lower() in _TYPES
    return header if known and header.crit is msgspec.UNSET else None
