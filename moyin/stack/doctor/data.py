"""Checks the stored data: files with secrets, the database, and the command line's API key."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import TypeVar

from moyin.errors import MoyinError, StackError
from moyin.stack.doctor.result import CheckResult, fail, ok, warn
from moyin.stack.named_profiles import find_profiles_file
from moyin.stack.options import Options
from moyin.stack.profile import read_profile

_OPEN_TO_OTHERS = 0o077
_DATABASE_SECONDS = 10
T = TypeVar("T")


def check_secret_files(options: Options) -> CheckResult:
    """Check that this user can read all files with secrets, and that other users cannot."""
    files = list(_list_secret_files(options))
    unreadable_paths = [str(path) for path in files if not os.access(path, os.R_OK)]
    if unreadable_paths:
        return fail(
            "secret files",
            f"{', '.join(unreadable_paths)} cannot be read",
            f'another user ran Moyin here: `sudo chown -R "$USER" {options.layout.data}`',
        )
    exposed_paths = [str(path) for path in files if _read_mode(path) & _OPEN_TO_OTHERS]
    if exposed_paths:
        names = " ".join(exposed_paths)
        return warn(
            "secret files",
            f"{', '.join(exposed_paths)} is open to other users",
            f"run `chmod 600 {names}`",
            fix="set the mode 600",
        )
    return ok("secret files", f"{len(files)}, private")


def close_secret_files(options: Options) -> None:
    for path in _list_secret_files(options):
        path.chmod(0o600)


def check_database(options: Options) -> CheckResult:
    """Check that the database can be read, and that its schema fits this version of Moyin."""
    # Imported here, because the SQL libraries take as long to import as most commands to run.
    from sqlalchemy.exc import SQLAlchemyError

    from moyin.store.sql import get_newest_revision, read_revision

    try:
        revision = asyncio.run(_read_in_time(read_revision(options.settings.sql_url)))
    except (OSError, SQLAlchemyError, StackError) as error:
        return fail(
            "database",
            f"cannot be read ({type(error).__name__})",
            "start the server that MOYIN_DATABASE_URL names, or correct its address and password"
            if options.settings.database_url
            else "restore a backup of moyin.db in the data folder, or move it away to begin anew",
        )
    newest = get_newest_revision()
    if revision is not None and revision > newest:
        return fail(
            "database",
            f"revision {revision} is newer than this Moyin ({newest})",
            "update Moyin, or restore a backup of the database",
        )
    if revision != newest and options.settings.database_url:
        found = f"at revision {revision}" if revision is not None else "has no tables yet"
        return fail(
            "database", f"{found}; this Moyin needs revision {newest}", "run `moyin migrate`"
        )
    return ok("database", f"revision {newest}" if revision == newest else "`moyin up` migrates it")


def check_api_key(options: Options) -> CheckResult:
    """Check that the key that the command line sends to this machine's gateway is valid."""
    try:
        key = read_profile(options.layout.profile, {"MOYIN_URL": options.settings.door}).api_key
    except StackError as error:
        return fail("api key", "the profile cannot be read", error.message)
    variable = os.environ.get("MOYIN_API_KEY")
    # With a URL, the variable is the key of that gateway, perhaps not of this one.
    presented = variable if variable and not os.environ.get("MOYIN_URL") else key
    if not presented:
        return ok("api key", "`moyin up` makes the first one")
    try:
        is_valid = asyncio.run(_read_in_time(_is_valid(options, presented)))
    except (OSError, MoyinError):
        return ok("api key", "not known: the database cannot be read")
    if is_valid:
        return ok("api key", "valid")
    if presented == variable:
        return fail(
            "api key",
            "MOYIN_API_KEY is not a valid key of this stack",
            "unset MOYIN_API_KEY; without it, the key in the data folder is used",
        )
    return fail(
        "api key",
        f"that in {options.layout.profile} is unknown, expired or revoked",
        "run `moyin keys create admin --scope '*'`, and put the key into the file",
        fix="make a new key with all scopes, and store it there",
    )


def replace_api_key(options: Options) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    from moyin.stack.first_key import replace_first_key

    try:
        asyncio.run(replace_first_key(options.settings))
    except SQLAlchemyError as error:
        # The error's own text has the statement with its values.
        cause = getattr(error, "orig", None) or type(error).__name__
        raise StackError(f"the key cannot be stored in the database: {cause}") from error


async def _is_valid(options: Options, key: str) -> bool:
    from sqlalchemy.exc import SQLAlchemyError

    from moyin.store.keys import KeyStore
    from moyin.store.sql import Database, get_newest_revision, read_revision

    database = Database(options.settings.sql_url)
    try:
        if await read_revision(options.settings.sql_url) != get_newest_revision():
            raise StackError("the database has the schema of another version")
        return bool(await KeyStore(database).verify_all([key]))
    except SQLAlchemyError as error:
        raise StackError(str(error)) from error
    finally:
        await database.close()


def _list_secret_files(options: Options) -> Iterator[Path]:
    layout = options.layout
    profiles_file = find_profiles_file(os.environ)
    for path in (
        layout.profile,
        layout.data / "secret",
        layout.ray_token,
        layout.valkey_password,
        layout.valkey_config,
        profiles_file,
    ):
        if path.is_file():
            yield path


def _read_mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def _read_in_time(reading: Awaitable[T]) -> T:
    async with asyncio.timeout(_DATABASE_SECONDS):
        return await reading
