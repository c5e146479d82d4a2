"""Signs webhooks by the Standard Webhooks scheme (https://www.standardwebhooks.com), version 1."""

from __future__ import annotations

import base64
import hashlib
import hmac

__all__ = ["signature_headers", "webhook_secret"]

_PREFIX = "whsec_"


def webhook_secret(signing_key: bytes, owner: str) -> str:
    """Return the secret of ``owner``'s webhooks: ``whsec_`` and 32 bytes in base64.

    It is derived, not stored: every process with the signing key computes the same secret, and no
    owner can compute that of another.
    """
    derived = hmac.new(signing_key, b"moyin/webhook/" + owner.encode(), hashlib.sha256).digest()
    return _PREFIX + base64.b64encode(derived).decode()


def signature_headers(
    secret: str, *, message_id: str, timestamp: int, body: bytes
) -> dict[str, str]:
    """Return the three headers of one delivery.

    Args:
        message_id: the same on every retry, so that a receiver can ignore repeats; without a dot.
        timestamp: the time of this try, in Unix seconds.
    """
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    signed = f"{message_id}.{timestamp}.".encode() + body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
