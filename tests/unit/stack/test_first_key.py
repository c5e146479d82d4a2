from __future__ import annotations

from pathlib import Path

from moyin.settings import Settings
from moyin.stack.first_key import create_first_key
from moyin.stack.layout import Layout
from moyin.stack.profile import read_profile
from moyin.store.audit import AuditFilter, AuditLog
from moyin.store.keys import KeyStore
from moyin.store.sql import Database


async def test_first_key_is_an_operator_key_in_the_audit_log(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    for _ in range(2):
        await create_first_key(settings)
    database = Database(settings.sql_url)
    api_key = read_profile(Layout(tmp_path).profile, {}).api_key
    identity = await KeyStore(database).verify(api_key)
    [audit_entry] = await AuditLog(database).list_entries(AuditFilter(), limit=10)
    await database.close()
    assert (identity.owner, identity.scopes) == ("admin", {"*"})
    assert (audit_entry.event.action, audit_entry.event.target) == ("key.create", identity.key_id)
    assert audit_entry.event.details["scopes"] == ["*"]
    assert audit_entry.event.actor.startswith("moyin up, ")
    assert api_key not in str(audit_entry)
