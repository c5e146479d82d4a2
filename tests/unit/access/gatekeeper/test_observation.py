from __future__ import annotations

import json
import logging

import jwt
import pytest

from deployments.logs import JsonFormatter
from moyin.access.gatekeeper.observation import redact
from moyin.store.tokens import generate_secret

SECRET = "s3cr3t-0123456789"
TOKEN = jwt.encode({"sub": "ann"}, b"0" * 32, "HS256")


@pytest.mark.parametrize(
    ("text", "redacted_text"),
    [
        (f"key moyin_00aa11bb_{SECRET} refused", "key moyin_00aa11bb_… refused"),
        (f"Authorization: Bearer {SECRET}", "Authorization: Bearer …"),
        (f"authorization: basic {SECRET}==", "authorization: basic …"),
        (f"GET /ws?api_key={SECRET}&a=1", "GET /ws?api_key=…&a=1"),
        (f"GET /view?filename=a.png&key={SECRET}&b", "GET /view?filename=a.png&key=…&b"),
        (f"cookie: a=1; moyin_session={SECRET}; b=2", "cookie: a=1; moyin_session=…; b=2"),
        (f"cookie: __Host-moyin_refresh={SECRET}; b=2", "cookie: __Host-moyin_refresh=…; b=2"),
        (f"cookie: moyin_refresh={SECRET}; b=2", "cookie: moyin_refresh=…; b=2"),
        (f"token {TOKEN}.", "token eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.…."),
        (f"sk-ant-{SECRET}", "sk-ant-…"),
        (
            f"can't reach postgresql+asyncpg://moyin:{SECRET}@db:5432/moyin",
            "can't reach postgresql+asyncpg://moyin:…@db:5432/moyin",
        ),
        ("user usr_00aa11 of org_1 asked http://host:8000/a@b", None),
    ],
)
def test_only_secrets_are_redacted(text: str, redacted_text: str | None) -> None:
    assert redact(text) == (text if redacted_text is None else redacted_text)


def test_every_secret_of_moyin_is_redacted() -> None:
    for secret_kind in "rp":
        secret = generate_secret(secret_kind)
        assert redact(f"it was {secret}!") == f"it was moyin{secret_kind}_…!"


def test_log_lines_are_redacted_with_their_exceptions() -> None:
    try:
        raise ValueError(f"no such key: moyin_00aa11bb_{SECRET}")
    except ValueError as error:
        exc_info = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("moyin.x", logging.ERROR, "f", 1, "Bearer %s", (SECRET,), exc_info)
    line = JsonFormatter().format(record)
    assert SECRET not in line
    assert json.loads(line)["message"] == "Bearer …"
