"""Creates tokens that JWT libraries refuse to create."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any


def encode_base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def sign_with_hs256(claims: Mapping[str, Any], headers: Mapping[str, Any], secret: bytes) -> str:
    """Return a JWT signed with any ``secret``, for example a public key."""
    header = {"alg": "HS256", "typ": "JWT", **headers}
    signed_part = ".".join(encode_base64url(json.dumps(part).encode()) for part in (header, claims))
    signature = hmac.digest(secret, signed_part.encode(), hashlib.sha256)
    return f"{signed_part}.{encode_base64url(signature)}"
