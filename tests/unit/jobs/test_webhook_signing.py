from __future__ import annotations

import base64
import json
import time

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from moyin.jobs.webhooks import build_signature_headers, derive_webhook_secret


def test_the_reference_library_accepts_our_signature() -> None:
    secret = derive_webhook_secret(b"key", "ann")
    body = json.dumps({"a": "ü"}).encode()
    headers = build_signature_headers(
        secret, message_id="msg_1", timestamp=int(time.time()), body=body
    )
    assert Webhook(secret).verify(body.decode(), headers) == {"a": "ü"}
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body.decode() + " ", headers)


def test_the_example_of_the_specification_gives_its_signature() -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    headers = build_signature_headers(
        secret,
        message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp=1614265330,
        body=b'{"test": 2432232314}',
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_secrets_differ_by_owner_and_signing_key() -> None:
    secrets = {derive_webhook_secret(key, owner) for key in (b"a", b"b") for owner in ("x", "y")}
    assert len(secrets) == 4
    assert all(len(base64.b64decode(s.removeprefix("whsec_"))) == 32 for s in secrets)
    assert derive_webhook_secret(b"a", "x") == derive_webhook_secret(b"a", "x")
