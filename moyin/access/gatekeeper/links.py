"""Addresses of single files that need no key: signed, and good for a while."""

from __future__ import annotations

import time
from urllib.parse import quote

import jwt

from moyin.errors import InvalidToken

__all__ = ["SIGNED", "FileLink", "link_to", "read_link"]

SIGNED = "/artifacts/signed/"
_ALGORITHM = "HS256"
# Of its own, so that no token of another kind opens a file, and none of these anything else.
_AUDIENCE = "moyin-file"

# Owner and artifact id.
FileLink = tuple[str, str]


def link_to(signing_key: bytes, owner: str, artifact_id: str, name: str, ttl_s: float) -> str:
    """The path under which anybody may read the owner's artifact for ``ttl_s`` seconds.

    Args:
        name: of the file, with which the path ends.
    """
    claims = {
        "aud": _AUDIENCE,
        "own": owner,
        "sub": artifact_id,
        "exp": int(time.time() + ttl_s),
    }
    token = jwt.encode(claims, signing_key, algorithm=_ALGORITHM)
    return f"{SIGNED}{token}/{quote(name, safe='')}"


def read_link(signing_key: bytes, token: str) -> FileLink:
    """What a link's token opens.

    Raises:
        InvalidToken: it is not ours, or too old.
    """
    try:
        claims = jwt.decode(
            token,
            signing_key,
            algorithms=[_ALGORITHM],
            audience=_AUDIENCE,
            options={"require": ["exp", "sub", "own", "aud"]},
        )
    except jwt.ExpiredSignatureError:
        raise InvalidToken("the link has expired; get the picture anew from its job") from None
    except jwt.InvalidTokenError:
        raise InvalidToken("the link is not valid") from None
    return str(claims["own"]), str(claims["sub"])
