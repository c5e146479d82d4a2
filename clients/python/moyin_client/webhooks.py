"""Verifies the signatures of webhooks, as Standard Webhooks defines them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping

from moyin_client.errors import MoyinError
from moyin_client.models import Webhook
from moyin_client.parsing import parse, parse_json


def verify_webhook(
    secret: str, headers: Mapping[str, str], body: bytes, *, tolerance: float = 300.0
) -> Webhook:
    """Verify the signature of a webhook and return its content.

    Args:
        secret: the secret that `webhook_secret` returned.
        headers: the headers of the request; the case of their names does not matter.
        body: the bytes of the body as they arrived, not a parsed and re-encoded body.
        tolerance: the largest difference in seconds between the signed time and this machine's.

    Raises:
        MoyinError: Moyin did not sign the webhook, or signed it too long ago; the code is
            `invalid_webhook`.
        ValueError: ``secret`` is not a valid secret.
    """
    values = {name.lower(): value for name, value in headers.items()}
    webhook_id, timestamp = values.get("webhook-id", ""), values.get("webhook-timestamp", "")
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise ValueError("the secret must be whsec_ and base64") from None
    if not (timestamp.isascii() and timestamp.isdigit()):
        raise _new_error("the header webhook-timestamp must be a time in Unix seconds")
    digest = hmac.new(
        key, f"{webhook_id}.{timestamp}.".encode(errors="replace") + body, hashlib.sha256
    ).digest()
    expected_signature = b"v1," + base64.b64encode(digest)
    signatures = values.get("webhook-signature", "").split(" ")
    # A list, not a generator, so that the time does not depend on which signature matches.
    if not any(
        [
            hmac.compare_digest(expected_signature, signature.encode(errors="replace"))
            for signature in signatures
        ]
    ):
        raise _new_error("the signature is wrong")
    if abs(time.time() - float(timestamp)) > tolerance:
        raise _new_error("the webhook is too old, or this machine's clock is wrong")
    return _parse_webhook(webhook_id, body)


def _parse_webhook(webhook_id: str, body: bytes) -> Webhook:
    content = parse_json(body)
    members = {**content, "id": webhook_id} if isinstance(content, dict) else content
    if isinstance(members, dict):
        members["job"] = members.pop("data", None)
    return parse(Webhook, members)


def _new_error(message: str) -> MoyinError:
    return MoyinError(message, code="invalid_webhook")
