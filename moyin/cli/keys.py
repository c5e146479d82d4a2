"""Implements ``moyin keys``, which manages the API keys of this machine's or a profile's gateway.

Without a profile, the commands use the database of this machine's stack and need no API key: anyone
who can read the data folder may manage keys. With a profile, they call the profile's gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from moyin.cli import remote_keys
from moyin.cli.screen import (
    AsJson,
    AsLocalJson,
    errors,
    out,
    print_json,
    print_outcome,
    print_records,
)
from moyin.cli.session import is_remote
from moyin.domain.account import ROLE_SCOPES
from moyin.domain.identity import ALL, DEFAULT_SCOPES, METRICS, OPERATOR, PLAYER
from moyin.errors import StackError
from moyin.settings import Settings

# The SQL libraries are imported only when used, because importing them takes as long as most
# commands.
if TYPE_CHECKING:
    from moyin.store.audit import AuditEvent
    from moyin.store.keys import KeyStore
    from moyin.store.sql import Database, Transaction

T = TypeVar("T")
app = typer.Typer(help="API keys: create, list, rotate, revoke.", no_args_is_help=True)


@app.command()
def create(
    owner: Annotated[
        str | None,
        typer.Argument(
            metavar="OWNER",
            help="Tenant that owns what the key creates. With a profile, omit it: it is your own.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Purpose of the key.")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="Scope to grant; repeat for several. Default: text, jobs:read and jobs:write. "
            "Operator scopes must be named: `org:admin`, `metrics`, `operator`, `*` for everything."
        ),
    ] = None,
    days: Annotated[
        int | None, typer.Option(min=1, max=36_500, help="Days until the key expires.")
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(help="With a profile: id of the service account that gets the key."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print its secret, which can't be shown again: only a digest is stored."""
    _warn_of_unknown_scopes(scope or [])
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    if is_remote():
        if owner is not None:
            raise StackError("with a profile, keys belong to your own tenant: omit OWNER")
        created_key = remote_keys.create_key(
            name=name, scopes=scope, expires_at=expires_at, user=user
        )
        _print_secret(created_key, as_json)
        return
    if owner is None or not owner.strip():
        raise StackError("OWNER is empty: name the tenant that owns everything the key creates")
    if user is not None:
        raise StackError(
            "--user needs a profile: add one with `moyin profiles add`, then use --profile"
        )
    _print_secret(_create_key_in_database(owner, name, scope, expires_at), as_json)


@app.command()
def rotate(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")],
    overlap: Annotated[
        int, typer.Option(min=0, help="Seconds for which the previous secret stays valid.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Replace the secret of a key and print the new one; id, scopes and limits stay the same."""
    if is_remote():
        _print_secret(remote_keys.rotate_key(key_id, overlap), as_json)
        return

    async def rotate_key(keys: KeyStore, transaction: Transaction) -> tuple[AuditEvent, str]:
        key = await keys.get(key_id)
        secret = await keys.rotate(
            key_id, overlap=timedelta(seconds=overlap), transaction=transaction
        )
        return _build_audit_event("rotate", key.owner, key_id, {"overlap_seconds": overlap}), secret

    _print_secret({"id": key_id, "key": _run_with_audit(rotate_key)}, as_json)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List keys; piped output has tab-separated id, owner, name, time, scopes and state."""
    keys = remote_keys.list_keys() if is_remote() else _list_keys_in_database()
    if as_json:
        print_json({"keys": keys})
        return
    print_records(
        ("id", "owner", "name", "created (UTC)", "scopes", "state"),
        (
            (
                key["id"],
                key["owner"],
                key["name"],
                # A terminal has room for the day only, beside the names.
                key["created_at"][: 10 if out.is_terminal else None],
                " ".join(key["scopes"]),
                _describe_state(key),
            )
            for key in keys
        ),
        empty_text="no keys: `moyin keys create` makes one",
    )


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")],
    as_json: AsLocalJson = False,
) -> None:
    """Revoke a key. Replicas that have cached the key may accept it for a few more seconds."""

    async def revoke_key(keys: KeyStore, transaction: Transaction) -> tuple[AuditEvent, None]:
        key = await keys.get(key_id)
        await keys.revoke(key_id, transaction=transaction)
        return _build_audit_event("revoke", key.owner, key_id), None

    if is_remote():
        remote_keys.revoke_key(key_id)
    else:
        _run_with_audit(revoke_key)
    print_outcome({"id": key_id, "revoked": True}, f"{key_id} revoked", as_json=as_json)


def _create_key_in_database(
    owner: str, name: str, scope: list[str] | None, expires_at: datetime | None
) -> dict[str, Any]:
    from moyin.access.protocol.response import build_key
    from moyin.store.keys import KeyStore

    scopes = scope or sorted(DEFAULT_SCOPES)

    async def create_key(
        keys: KeyStore, transaction: Transaction
    ) -> tuple[AuditEvent, tuple[str, str]]:
        key_id, secret = await keys.create(
            owner, name, scopes=scopes, expires_at=expires_at, transaction=transaction
        )
        details = {"name": name, "scopes": sorted(scopes)}
        return _build_audit_event("create", owner, key_id, details), (key_id, secret)

    key_id, secret = _run_with_audit(create_key)
    key = _with_database(lambda database: KeyStore(database).get(key_id))
    return {**build_key(key).model_dump(mode="json"), "key": secret}


def _list_keys_in_database() -> list[dict[str, Any]]:
    from moyin.access.protocol.response import build_key
    from moyin.store.keys import KeyStore

    keys = _with_database(lambda database: KeyStore(database).list_all())
    return [build_key(key).model_dump(mode="json") for key in keys]


def _warn_of_unknown_scopes(scopes: list[str]) -> None:
    """Print a note for each scope that no app of Moyin requires; it is probably mistyped."""
    known_scopes = frozenset({ALL, PLAYER, METRICS, OPERATOR}).union(*ROLE_SCOPES.values())
    for scope in sorted({word for text in scopes for word in text.split()} - known_scopes):
        similar_scopes = get_close_matches(scope, known_scopes, n=1, cutoff=0.8)
        hint = f" (did you mean {similar_scopes[0]}?)" if similar_scopes else ""
        errors.print(
            f"note: no app of Moyin requires the scope {scope!r}{hint}; a proxy route may",
            markup=False,
        )


def _print_secret(key: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(key)
    else:
        out.print(key["key"], markup=False)
    if out.is_terminal:
        errors.print("[dim]shown only once: store it now[/]")


def _describe_state(key: Mapping[str, Any]) -> str:
    if key["revoked_at"] is not None:
        return "revoked"
    if key["expires_at"] is None:
        return "active"
    expires_at = datetime.fromisoformat(key["expires_at"])
    return (
        f"{'expired' if expires_at <= datetime.now(UTC) else 'active until'} {expires_at:%Y-%m-%d}"
    )


def _build_audit_event(
    verb: str, owner: str, key_id: str, details: Mapping[str, Any] | None = None
) -> AuditEvent:
    """Return the audit event of a change to a key by the user of this machine.

    Args:
        verb: the operation on the key, such as ``create``.
        details: the changed values; None if there are none.
    """
    from moyin.store.audit import AuditEvent, get_local_actor

    return AuditEvent(
        owner=owner,
        actor=get_local_actor("moyin keys"),
        action=f"key.{verb}",
        target=key_id,
        request_id="",
        details=details or {},
    )


def _run_with_audit(work: Callable[[KeyStore, Transaction], Awaitable[tuple[AuditEvent, T]]]) -> T:
    """Run ``work`` in a transaction, which also writes the audit event that ``work`` returns.

    Returns:
        The second value that ``work`` returns.
    """
    from moyin.store.audit import AuditLog
    from moyin.store.keys import KeyStore

    async def run_in_transaction(database: Database) -> T:
        async with database.writing() as transaction:
            event, result = await work(KeyStore(database), transaction)
            await AuditLog(database).write(event, transaction=transaction)
        return result

    return _with_database(run_in_transaction)


def _with_database(work: Callable[[Database], Awaitable[T]]) -> T:
    from moyin.store.sql import Database

    async def run_and_close() -> T:
        database = Database(Settings().sql_url)
        try:
            await database.ensure_schema()
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run_and_close())
