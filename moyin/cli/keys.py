"""Implements ``moyin keys``, which manages API keys directly in the database.

The command needs no API key: anyone who can read the data folder may manage keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from moyin.cli.screen import errors, out, print_table
from moyin.domain.account import ROLE_SCOPES
from moyin.domain.identity import ALL, DEFAULT_SCOPES, OPERATOR, PLAYER
from moyin.errors import StackError
from moyin.settings import Settings

# The SQL libraries take as long to import as most commands to run, so they are imported on use.
if TYPE_CHECKING:
    from moyin.store.audit import AuditEvent
    from moyin.store.keys import ApiKey, KeyStore
    from moyin.store.sql import Database, Transaction

T = TypeVar("T")
app = typer.Typer(help="API keys: create, list, rotate, revoke.", no_args_is_help=True)


@app.command()
def create(
    owner: Annotated[str, typer.Argument(help="Tenant that owns what the key creates.")],
    name: Annotated[str, typer.Option(help="Purpose of the key.")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="Scope to grant; repeat for several. Default: text, jobs:read and jobs:write. "
            "Operator scopes must be named: `org:admin`, `operator`, `*` for everything."
        ),
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires.")] = None,
) -> None:
    """Create a key and print its secret, which is shown only once: the database has a digest."""
    if not owner.strip():
        raise StackError("OWNER is empty: name the tenant that owns everything the key creates")
    scopes = scope or sorted(DEFAULT_SCOPES)
    _warn_of_unknown_scopes(scopes)
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)

    async def create_key(keys: KeyStore, transaction: Transaction) -> tuple[AuditEvent, str]:
        key_id, text = await keys.create(
            owner, name, scopes=scopes, expires_at=expires_at, within=transaction
        )
        details = {"name": name, "scopes": sorted(scopes)}
        return _audit_event("create", owner, key_id, details), text

    _print_secret(_run_audited(create_key))


@app.command()
def rotate(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")],
    overlap: Annotated[
        int, typer.Option(min=0, help="Seconds for which the previous secret stays valid.")
    ] = 0,
) -> None:
    """Replace the secret of a key and print the new one; id, scopes and limits stay the same."""

    async def rotate_key(keys: KeyStore, transaction: Transaction) -> tuple[AuditEvent, str]:
        key = await keys.get(key_id)
        text = await keys.rotate(key_id, overlap=timedelta(seconds=overlap), within=transaction)
        return _audit_event("rotate", key.owner, key_id, {"overlap_seconds": overlap}), text

    _print_secret(_run_audited(rotate_key))


@app.command("list")
def list_keys() -> None:
    """List keys; piped output has id, owner, name, creation time, scopes and state, by tabs."""
    from moyin.store.keys import KeyStore

    keys = _with_database(lambda database: KeyStore(database).list_all())
    print_table(
        ("id", "owner", "name", "created", "scopes", "state"),
        (
            (
                key.id,
                key.owner,
                key.name,
                key.created_at.isoformat(timespec="seconds"),
                " ".join(sorted(key.scopes)),
                _describe_state(key),
            )
            for key in keys
        ),
    )


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")]) -> None:
    """Revoke a key; replicas that cached the key may accept it for a few more seconds."""

    async def revoke_key(keys: KeyStore, transaction: Transaction) -> tuple[AuditEvent, None]:
        key = await keys.get(key_id)
        await keys.revoke(key_id, within=transaction)
        return _audit_event("revoke", key.owner, key_id), None

    _run_audited(revoke_key)
    out.print(f"{key_id} revoked")


def _warn_of_unknown_scopes(scopes: list[str]) -> None:
    """Warn of scopes that no app of Moyin requires, which are probably mistyped."""
    known = frozenset({ALL, PLAYER, OPERATOR}).union(*ROLE_SCOPES.values())
    for scope in sorted({word for text in scopes for word in text.split()} - known):
        similar = get_close_matches(scope, known, n=1, cutoff=0.8)
        hint = f" (did you mean {similar[0]}?)" if similar else ""
        errors.print(
            f"note: no app of Moyin requires the scope {scope!r}{hint}; a proxy route may",
            markup=False,
        )


def _print_secret(text: str) -> None:
    out.print(text)
    if out.is_terminal:
        errors.print("[dim]shown only once: store it now[/]")


def _describe_state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    is_expired = key.expires_at is not None and key.expires_at <= datetime.now(UTC)
    return "expired" if is_expired else "active"


def _audit_event(
    verb: str, owner: str, key_id: str, details: Mapping[str, Any] | None = None
) -> AuditEvent:
    """Return the audit event of a change to a key by the user of this machine."""
    from moyin.store.audit import AuditEvent, get_local_actor

    return AuditEvent(
        owner=owner,
        actor=get_local_actor("moyin keys"),
        action=f"key.{verb}",
        target=key_id,
        request_id="",
        details=details or {},
    )


def _run_audited(work: Callable[[KeyStore, Transaction], Awaitable[tuple[AuditEvent, T]]]) -> T:
    """Run ``work`` and write the audit event that it returns in the same transaction."""
    from moyin.store.audit import AuditLog
    from moyin.store.keys import KeyStore

    async def session(database: Database) -> T:
        async with database.writing() as transaction:
            event, result = await work(KeyStore(database), transaction)
            await AuditLog(database).write(event, within=transaction)
        return result

    return _with_database(session)


def _with_database(work: Callable[[Database], Awaitable[T]]) -> T:
    from moyin.store.sql import Database

    async def session() -> T:
        database = Database(Settings().sql_url)
        try:
            await database.ensure_schema()
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(session())
