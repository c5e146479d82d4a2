from __future__ import annotations

import asyncio

import pytest

from moyin.cli.main import run
from moyin.settings import Settings
from moyin.store.audit import AuditEvent, AuditFilter, AuditLog
from moyin.store.keys import ApiKey, KeyStore
from moyin.store.sql import Database


def _read_events_and_keys() -> tuple[list[AuditEvent], list[ApiKey]]:
    """Return the audit events, oldest first, and all API keys in the database of the settings."""

    async def read_database() -> tuple[list[AuditEvent], list[ApiKey]]:
        database = Database(Settings().sql_url)
        await database.ensure_schema()
        entries = await AuditLog(database).list_entries(AuditFilter(), limit=10)
        keys = await KeyStore(database).list_all()
        await database.close()
        return [entry.event for entry in reversed(entries)], keys

    return asyncio.run(read_database())


def test_key_operations_are_in_the_audit_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOGNAME", "ann")
    assert run(["keys", "create", "studio", "--name", "ci", "--scope", "text"]) == 0
    secret = capsys.readouterr().out.strip()
    key_id = secret.split("_")[1]
    assert run(["keys", "rotate", key_id, "--overlap", "60"]) == 0
    assert run(["keys", "revoke", key_id]) == 0
    assert run(["keys", "revoke", "nothing"]) == 1
    events, [key] = _read_events_and_keys()
    assert [(event.action, event.target, event.details) for event in events] == [
        ("key.create", key_id, {"name": "ci", "scopes": ["text"]}),
        ("key.rotate", key_id, {"overlap_seconds": 60}),
        ("key.revoke", key_id, {}),
    ]
    assert {(event.owner, event.actor) for event in events} == {("studio", "moyin keys, ann")}
    assert key.revoked_at is not None
    assert secret not in str(events)


def test_operator_scopes_must_be_named() -> None:
    assert run(["keys", "create", "studio"]) == 0
    assert run(["keys", "create", "studio", "--scope", "org:admin", "--scope", "*"]) == 0
    events, keys = _read_events_and_keys()
    assert [key.scopes for key in keys] == [{"text", "jobs:read", "jobs:write"}, {"org:admin", "*"}]
    assert events[0].details["scopes"] == ["jobs:read", "jobs:write", "text"]


def test_internal_owners_cannot_get_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "create", "moyin:judge"]) == 1
    assert "owner 'moyin:judge'" in capsys.readouterr().err
    assert _read_events_and_keys() == ([], [])


def test_key_without_audit_entry_is_not_created(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "write", fail)
        assert run(["keys", "create", "studio"]) == 1
    assert _read_events_and_keys() == ([], [])


def test_unknown_user_name_does_not_prevent_key_creation(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_key_error() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", raise_key_error)
    assert run(["keys", "create", "studio"]) == 0
    [event], _ = _read_events_and_keys()
    assert event.actor == "moyin keys, unknown"
