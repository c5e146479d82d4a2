"""Migrates the database and creates the first API key (``python -m moyin.stack.first_key``).

The supervisor runs this module in a child process, so that it does not load the SQL libraries.
"""

from __future__ import annotations

import asyncio
import os
from urllib.parse import urlsplit

from moyin.domain.identity import ALL_SCOPES
from moyin.errors import StackError
from moyin.settings import Settings, is_blank
from moyin.stack.layout import Layout, find_aside_path, replace_file
from moyin.stack.profile import Profile, read_profile, write_profile
from moyin.store.audit import AuditEvent, AuditLog, get_local_actor
from moyin.store.keys import KeyStore
from moyin.store.signing_keys import SigningKeyStore
from moyin.store.sql import Database

FIRST_OWNER = "admin"


async def create_first_key(settings: Settings) -> None:
    """Migrate the database, and create an API key in the profile unless the profile has one."""
    path = Layout(settings.data).profile
    settings.signing_key()
    database = Database(settings.sql_url)
    try:
        await database.ensure_schema()
        key = read_profile(path, {"MOYIN_URL": settings.door}).api_key
        if not key:
            key = await _create_operator_key(
                database, program="moyin up", name="made by the first `moyin up`"
            )
    finally:
        await database.close()
    write_profile(path, Profile(url=settings.door, api_key=key))


async def replace_first_key(settings: Settings) -> None:
    """Create an API key of the operator and write it into the profile, whose key is not valid.

    A copy of the profile with the previous key stays beside it.

    Raises:
        StackError: the profile is for the gateway of another machine, where its key may be valid.
    """
    path = Layout(settings.data).profile
    content, profile = path.read_bytes(), read_profile(path, {})
    url = profile.url
    if urlsplit(url).hostname not in ("127.0.0.1", "localhost", urlsplit(settings.door).hostname):
        raise StackError(
            f"{path} has the key of another gateway, {url}: write the key of this machine's gateway into it"
        )
    database = Database(settings.sql_url)
    try:
        await database.ensure_schema()
        key = await _create_operator_key(
            database, program="moyin doctor", name="made by `moyin doctor --fix`"
        )
    finally:
        await database.close()
    if profile.api_key:
        # The previous key may be valid in a database that only a service's environment names.
        replace_file(find_aside_path(path), content, mode=0o600)
    write_profile(path, Profile(url=url, api_key=key))


async def replace_signing_key(settings: Settings) -> None:
    """Delete the file of the secret if it is blank, and add a key pair for access tokens if needed.

    A new pair is needed if the secret cannot decrypt the private key of the stored pair. Access
    tokens that the stored pair signed stay valid.
    """
    path = settings.data / "secret"
    if not settings.secret and path.is_file() and is_blank(path.read_bytes()):
        path.unlink()
    database = Database(settings.sql_url)
    try:
        await database.ensure_schema()
        store = SigningKeyStore(database, settings.signing_key())
        if not await store.has_unreadable_key():
            return
        async with database.writing() as transaction:
            key_pair = await store.add(transaction=transaction)
            event = AuditEvent(
                owner=FIRST_OWNER,
                actor=get_local_actor("moyin doctor"),
                action="signing_key.create",
                target=key_pair.kid,
                request_id="",
                details={},
            )
            await AuditLog(database).write(event, transaction=transaction)
    finally:
        await database.close()


async def _create_operator_key(database: Database, *, program: str, name: str) -> str:
    """Create the operator's API key with an entry in the audit log, and return the key.

    Args:
        program: the program that creates the key, as the audit log names it.
        name: the name of the key.
    """
    scopes = sorted(ALL_SCOPES)
    async with database.writing() as transaction:
        key_id, secret_key = await KeyStore(database).create(
            FIRST_OWNER, name, scopes=scopes, transaction=transaction
        )
        event = AuditEvent(
            owner=FIRST_OWNER,
            actor=get_local_actor(program),
            action="key.create",
            target=key_id,
            request_id="",
            details={"name": name, "scopes": scopes},
        )
        await AuditLog(database).write(event, transaction=transaction)
    return secret_key


def main() -> None:
    os.umask(0o077)
    asyncio.run(create_first_key(Settings()))


if __name__ == "__main__":
    main()
