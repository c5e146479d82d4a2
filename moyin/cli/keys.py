"""``moyin keys``: API keys, straight in the database: whoever can read the data folder may."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from moyin.cli.screen import errors, out, rows
from moyin.settings import Settings
from moyin.store.keys import KeyStore
from moyin.store.sql import Database

__all__ = ["app"]

T = TypeVar("T")
app = typer.Typer(help="API keys: create, list, revoke.", no_args_is_help=True)


@app.command()
def create(
    owner: Annotated[str, typer.Argument(help="The tenant that owns what the key makes.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
) -> None:
    """Make a key and print it. Only a digest is stored: it can't be shown again."""
    _, text = _with_keys(lambda keys: keys.create(owner, name))
    out.print(text)
    if out.is_terminal:
        errors.print("[dim]shown once: keep it now[/]")


@app.command("list")
def list_keys() -> None:
    """List keys. Piped: id, owner, name, creation time, `revoked` or `active`."""
    found = _with_keys(lambda keys: keys.all())
    rows(
        ("id", "owner", "name", "created", "state"),
        (
            (
                key.id,
                key.owner,
                key.name,
                key.created_at.isoformat(timespec="seconds"),
                "revoked" if key.revoked_at else "active",
            )
            for key in found
        ),
    )


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")]) -> None:
    """Refuse a key from now on (caches let it through for a few seconds more)."""
    _with_keys(lambda keys: keys.revoke(key_id))
    out.print(f"{key_id} revoked")


def _with_keys(work: Callable[[KeyStore], Awaitable[T]]) -> T:
    async def session() -> T:
        database = Database(Settings().sql_url)
        try:
            await database.ready()
            return await work(KeyStore(database))
        finally:
            await database.close()

    return asyncio.run(session())
