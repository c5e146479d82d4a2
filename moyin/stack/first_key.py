"""``python -m moyin.stack.first_key``: bring the database up to date, make the first API key.

A process of its own, because the supervisor needs the SQL libraries for a second only.
"""

from __future__ import annotations

import asyncio
import os

from moyin.domain.identity import ALL_SCOPES
from moyin.settings import Settings
from moyin.stack.layout import Layout
from moyin.stack.profile import Profile, load, save
from moyin.store.audit import AuditEvent, AuditLog, local_actor
from moyin.store.keys import KeyStore
from moyin.store.sql import Database

__all__ = ["prepare"]

FIRST_OWNER = "admin"
_NAME = "made by the first `moyin up`"


async def prepare(settings: Settings) -> None:
    """Migrate; make a key where the profile has none; write the profile."""
    path = Layout(settings.data).profile
    settings.signing_key()
    database = Database(settings.sql_url)
    try:
        await database.ready()
        key = load(path, {"MOYIN_URL": settings.door}).api_key
        if not key:
            key = await _operators_key(database)
    finally:
        await database.close()
    save(path, Profile(url=settings.door, api_key=key))


async def _operators_key(database: Database) -> str:
    """Make the operator's key, with its line in the audit log, and return its text."""
    scopes = sorted(ALL_SCOPES)
    async with database.writing() as transaction:
        key_id, text = await KeyStore(database).create(
            FIRST_OWNER, _NAME, scopes=scopes, within=transaction
        )
        act = AuditEvent(
            owner=FIRST_OWNER,
            actor=local_actor("moyin up"),
            action="key.create",
            target=key_id,
            request_id="",
            details={"name": _NAME, "scopes": scopes},
        )
        await AuditLog(database).write(act, within=transaction)
    return text


def main() -> None:
    os.umask(0o077)
    asyncio.run(prepare(Settings()))


if __name__ == "__main__":
    main()
