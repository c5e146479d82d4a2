"""Tests that the webhook receivers in docs/jobs.md accept our signatures and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moyin.jobs.webhooks import build_signature_headers, derive_webhook_secret
from tests.acceptance.clients_page import list_snippets

PAGE = Path(__file__).parents[3] / "docs" / "jobs.md"
SECRET = derive_webhook_secret(b"key", "ann")
BODY = '{"type": "job.succeeded", "data": {"name": "ü"}}'
# Node.js 20 runs no TypeScript, so the test removes the annotations.
_ANNOTATIONS = re.compile(r"^type .*$|: (?:string|Headers|any)(?=[,)]| \{)", re.MULTILINE)
_MAIN = """
import { readFileSync } from "node:fs";
const [secret, headers, body] = JSON.parse(readFileSync(0, "utf8"));
try {
  console.log(JSON.stringify({ content: verify(secret, headers, body) }));
} catch (error) {
  console.log(JSON.stringify({ error: error.message }));
}
"""
Verify = Callable[[str, dict[str, str], str], Any]


def verify_in_python(secret: str, headers: dict[str, str], body: str) -> Any:
    variables: dict[str, Any] = {}
    exec(list_snippets(PAGE)["receiver-python"][1], variables)
    return variables["verify"](secret, headers, body.encode())


def verify_in_node(secret: str, headers: dict[str, str], body: str) -> Any:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    code = _ANNOTATIONS.sub("", list_snippets(PAGE)["receiver-typescript"][1]) + _MAIN
    process = subprocess.run(
        [node, "--input-type=module", "--eval", code],
        input=json.dumps([secret, headers, body]).encode(), capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr.decode()
    response = json.loads(process.stdout)
    if "error" in response:
        raise ValueError(response["error"])
    return response["content"]


@pytest.fixture(params=[verify_in_python, verify_in_node])
def verify(request: pytest.FixtureRequest) -> Verify:
    verify: Verify = request.param
    return verify


def sign_webhook(secret: str = SECRET, age_seconds: int = 0) -> dict[str, str]:
    return build_signature_headers(
        secret, message_id="msg_1", timestamp=int(time.time()) - age_seconds, body=BODY.encode()
    )


def test_a_signed_webhook_is_accepted(verify: Verify) -> None:
    assert verify(SECRET, sign_webhook(), BODY) == json.loads(BODY)


def test_one_of_several_signatures_is_enough(verify: Verify) -> None:
    headers = sign_webhook()
    headers["webhook-signature"] = f"v1,AAAA {headers['webhook-signature']}"
    assert verify(SECRET, headers, BODY) == json.loads(BODY)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (sign_webhook(derive_webhook_secret(b"key", "bob")), BODY),
        (sign_webhook(), BODY + " "),
        (sign_webhook() | {"webhook-id": "msg_2"}, BODY),
        (sign_webhook() | {"webhook-signature": "v1,"}, BODY),
    ],
    ids=["another tenant's secret", "changed body", "changed id", "no signature"],
)
def test_a_wrong_signature_is_refused(verify: Verify, headers: dict[str, str], body: str) -> None:
    with pytest.raises(ValueError, match="the signature is wrong"):
        verify(SECRET, headers, body)


def test_an_old_webhook_is_refused(verify: Verify) -> None:
    with pytest.raises(ValueError, match="the webhook is too old"):
        verify(SECRET, sign_webhook(age_seconds=3600), BODY)
