from __future__ import annotations

import asyncio

import pytest

from moyin.cli.main import run
from moyin.settings import Settings
from moyin.store.audit import AuditEvent, AuditLog
from moyin.store.keys import ApiKey, KeyStore
from moyin.store.sql import Database


def _stored() -> tuple[list[AuditEvent], list[ApiKey]]:
    """What was done, oldest first, and which keys there are."""

    async def read() -> tuple[list[AuditEvent], list[ApiKey]]:
        database = Database(Settings().sql_url)
        await database.ready()
        entries = await AuditLog(database).page(None, limit=10)
        keys = await KeyStore(database).list_all()
        await database.close()
        return [entry.event for entry in reversed(entries)], keys

    return asyncio.run(read())


def test_what_is_done_here_is_in_the_audit_log_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOGNAME", "ann")
    assert run(["keys", "create", "studio", "--name", "ci", "--scope", "text"]) == 0
    text = capsys.readouterr().out.strip()
    key_id = text.split("_")[1]
    assert run(["keys", "rotate", key_id, "--overlap", "60"]) == 0
    assert run(["keys", "revoke", key_id]) == 0
    assert run(["keys", "revoke", "nothing"]) == 1
    acts, [key] = _stored()
    assert [(act.action, act.target, act.details) for act in acts] == [
        ("key.create", key_id, {"name": "ci", "scopes": ["text"]}),
        ("key.rotate", key_id, {"overlap_seconds": 60}),
        ("key.revoke", key_id, {}),
    ]
    assert {(act.owner, act.actor) for act in acts} == {("studio", "moyin keys, ann")}
    assert key.revoked_at is not None
    assert text not in str(acts)


def test_operator_rights_are_asked_for_by_name() -> None:
    assert run(["keys", "create", "studio"]) == 0
    assert run(["keys", "create", "studio", "--scope", "org:admin", "--scope", "*"]) == 0
    acts, keys = _stored()
    assert [key.scopes for key in keys] == [{"text", "jobs:read", "jobs:write"}, {"org:admin", "*"}]
    assert acts[0].details["scopes"] == ["jobs:read", "jobs:write", "text"]


def test_moyins_own_owners_get_no_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "create", "moyin:judge"]) == 1
    assert "owner 'moyin:judge'" in capsys.readouterr().err
    assert _stored() == ([], [])


def test_a_key_that_can_not_be_written_down_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(*_: object, **__: object) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "write", lost)
        assert run(["keys", "create", "studio"]) == 1
    assert _stored() == ([], [])


def test_a_user_without_a_name_makes_keys_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert run(["keys", "create", "studio"]) == 0
    [act], _ = _stored()
    assert act.actor == "moyin keys, unknown"
