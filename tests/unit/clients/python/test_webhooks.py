from __future__ import annotations

import json
import time
from collections.abc import Mapping

import pytest

from moyin.jobs.webhooks import build_signature_headers, derive_webhook_secret
from moyin_client import MoyinError, verify_webhook

SECRET = derive_webhook_secret(b"key", "ann")
BODY = json.dumps(
    {
        "type": "job.succeeded",
        "timestamp": "2026-11-28T12:00:00+00:00",
        "data": {"id": "j1", "status": "succeeded", "metadata": {"a": "ü"}},
    }
).encode()


def sign_webhook(
    secret: str = SECRET, *, body: bytes = BODY, age_seconds: int = 0
) -> dict[str, str]:
    return build_signature_headers(
        secret, message_id="msg_1", timestamp=int(time.time()) - age_seconds, body=body
    )


def test_a_signed_webhook_is_parsed() -> None:
    webhook = verify_webhook(SECRET, sign_webhook(), BODY)
    assert (webhook.id, webhook.type, webhook.timestamp.year) == ("msg_1", "job.succeeded", 2026)
    assert (webhook.job.id, webhook.job.metadata) == ("j1", {"a": "ü"})


def test_names_of_headers_ignore_case_and_one_of_several_signatures_is_enough() -> None:
    headers = {name.title(): value for name, value in sign_webhook().items()}
    headers["Webhook-Signature"] = f"v1,AAAA ü\udce4 {headers['Webhook-Signature']}"
    assert verify_webhook(SECRET, headers, BODY).job.id == "j1"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (sign_webhook(derive_webhook_secret(b"key", "bob")), BODY),
        (sign_webhook(), BODY + b" "),
        (sign_webhook() | {"webhook-id": "msg_2"}, BODY),
        (sign_webhook() | {"webhook-timestamp": str(int(time.time()) + 1)}, BODY),
        (sign_webhook() | {"webhook-timestamp": "now"}, BODY),
        (sign_webhook() | {"webhook-signature": "v1,"}, BODY),
        (sign_webhook() | {"webhook-signature": ""}, BODY),
        ({}, BODY),
    ],
    ids=["another tenant's secret", "changed body", "changed id", "changed time", "no time",
         "empty signature", "no signature", "no headers"],
)  # fmt: skip
def test_a_webhook_that_is_not_signed_is_refused(headers: Mapping[str, str], body: bytes) -> None:
    with pytest.raises(MoyinError) as exc_info:
        verify_webhook(SECRET, headers, body)
    assert (exc_info.value.status, exc_info.value.code) == (None, "invalid_webhook")


def test_an_old_webhook_is_refused_unless_its_age_is_tolerated() -> None:
    headers = sign_webhook(age_seconds=3_600)
    with pytest.raises(MoyinError, match="too old"):
        verify_webhook(SECRET, headers, BODY)
    assert verify_webhook(SECRET, headers, BODY, tolerance=7_200).job.id == "j1"


def test_a_malformed_secret_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="whsec_"):
        verify_webhook("whsec_!", sign_webhook(), BODY)


@pytest.mark.parametrize("body", [b"[]", b"{}", b"no", b'{"type": "x", "timestamp": "y"}'])
def test_a_signed_body_that_is_not_a_webhook_is_malformed(body: bytes) -> None:
    with pytest.raises(MoyinError) as exc_info:
        verify_webhook(SECRET, sign_webhook(body=body), body)
    assert exc_info.value.code == "malformed_response"
