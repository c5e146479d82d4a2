"""Makes and verifies signed, expiring links to files, which need no key."""

from __future__ import annotations

import time
from urllib.parse import quote

import jwt

from moyin.errors import InvalidToken

__all__ = ["SIGNED_FILES_PREFIX", "FileLink", "new_file_link", "verify_file_link"]

SIGNED_FILES_PREFIX = "/artifacts/signed/"
_ALGORITHM = "HS256"
# A separate audience, so that other tokens do not open files, and these open nothing else.
_AUDIENCE = "moyin-file"

# The owner and the artifact id.
FileLink = tuple[str, str]


def new_file_link(signing_key: bytes, owner: str, artifact_id: str, name: str, ttl_s: float) -> str:
    """Return the path under which anybody may read an artifact for ``ttl_s`` seconds.

    Args:
        name: the name of the file, with which the path ends.
    """
    claims = {
        "aud": _AUDIENCE,
        "own": owner,
        "sub": artifact_id,
        "exp": int(time.time() + ttl_s),
    }
    token = jwt.encode(claims, signing_key, algorithm=_ALGORITHM)
    return f"{SIGNED_FILES_PREFIX}{token}/{quote(name, safe='')}"


def verify_file_link(signing_key: bytes, token: str) -> FileLink:
    """Verify the token of a link; return the owner and the artifact id.

    Raises:
        InvalidToken: the token is not valid or has expired.
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
        raise InvalidToken("the link has expired; get a new one from the job") from None
    except jwt.InvalidTokenError:
        raise InvalidToken("the link is not valid") from None
    return str(claims["own"]), str(claims["sub"])
