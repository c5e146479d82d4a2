"""Checks the files with secrets, the signing key, and the command line's API key."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moyin.errors import MoyinError, StackError
from moyin.settings import is_blank
from moyin.stack.doctor.databases import read_in_time
from moyin.stack.doctor.result import CheckResult, OnStep, build_failure, build_ok, build_warning
from moyin.stack.layout import find_aside_path
from moyin.stack.named_profiles import find_profiles_file
from moyin.stack.options import Options
from moyin.stack.profile import Profile, read_profile, write_profile
from moyin.stack.state import find_lock_holder

if TYPE_CHECKING:
    # The SQL libraries take as long to import as most commands to run.
    from moyin.store.sql import Database

_OPEN_TO_OTHERS = 0o077


def check_secret_files(options: Options) -> CheckResult:
    """Check that this user can read all files with secrets, and that other users cannot."""
    files = list(_list_secret_files(options))
    unreadable_paths = [str(path) for path in files if not os.access(path, os.R_OK)]
    if unreadable_paths:
        return build_failure(
            "secret files",
            f"{', '.join(unreadable_paths)} cannot be read",
            f'another user ran Moyin here: `sudo chown -R "$USER" {options.layout.data}`',
        )
    exposed_paths = [str(path) for path in files if _read_mode(path) & _OPEN_TO_OTHERS]
    if exposed_paths:
        joined_paths = " ".join(exposed_paths)
        return build_warning(
            "secret files",
            f"{', '.join(exposed_paths)} is open to other users",
            f"run `chmod 600 {joined_paths}`",
            fix="set the mode 600",
        )
    return build_ok("secret files", f"{len(files)}, private")


def close_secret_files(options: Options) -> None:
    for path in _list_secret_files(options):
        path.chmod(0o600)


def check_signing_key(options: Options) -> CheckResult:
    """Check that the stack's secret exists, and decrypts the stored key pairs for access tokens."""
    path = options.layout.data / "secret"
    key, key_source = options.settings.secret.encode(), "MOYIN_SECRET"
    if not key:
        try:
            key, key_source = path.read_bytes(), str(path)
        except FileNotFoundError:
            key_source = f"{path}, which is missing"
        except OSError:
            return build_ok("signing key", "not known: the file cannot be read")
        if key_source == str(path) and is_blank(key):
            return _build_signing_key_failure(
                options,
                f"{path} is empty, as after a power failure or on a full disk",
                "restore a backup of the file, or let `--fix` make a new one: links end, and webhooks "
                "and proxied services need their new secrets",
                "make a new one; links end, and webhooks and proxied services need their new secrets",
            )
    try:
        is_unreadable = asyncio.run(read_in_time(_has_unreadable_key(options, key)))
    except (OSError, MoyinError):
        return build_ok("signing key", "not compared: the database cannot be read")
    if is_unreadable:
        return _build_signing_key_failure(
            options,
            f"people cannot sign in: the database was used with another key than that in {key_source}",
            "restore the key with which the database was used, or let `--fix` make a new key pair",
            "make a new key pair for sign-ins",
        )
    return build_ok("signing key", f"in {key_source}" if key else "`moyin up` makes it")


def _build_signing_key_failure(
    options: Options, finding: str, advice: str, fix: str
) -> CheckResult:
    if options.settings.database_url:
        # Other machines may use the database with the right key, and could not read a new pair.
        return build_failure(
            "signing key",
            finding,
            "put the key of the other machines, or of a backup, into the file, or set MOYIN_SECRET; "
            "only if there is none, delete the file, and after `moyin up` call "
            "`POST /accounts/signing-keys`",
        )
    if find_lock_holder(options.layout.lock) is None:
        return build_failure("signing key", finding, advice, fix=fix)
    # The running apps would go on with the old key pair.
    return build_failure("signing key", finding, f"run `moyin down`, then: {advice}")


def replace_signing_key(options: Options) -> None:
    from moyin.stack.first_key import replace_signing_key as replace_key

    _run_database_fix(replace_key(options.settings), "the key pair")


def check_api_key(options: Options) -> CheckResult:
    """Check that the key that the command line sends to this machine's gateway is valid."""
    path = options.layout.profile
    try:
        key = read_profile(path, {"MOYIN_URL": options.settings.door}).api_key
    except StackError as error:
        aside_path = find_aside_path(path)
        return build_failure(
            "api key",
            f"{path} cannot be read",
            error.message,
            # Otherwise the permission is missing.
            fix=f"keep it as {aside_path.name}, and make a new key with all scopes"
            if os.access(path, os.R_OK)
            else "",
        )
    environment_key = os.environ.get("MOYIN_API_KEY")
    # With a URL, the variable is the key of that gateway, perhaps not of this one.
    used_key = environment_key if environment_key and not os.environ.get("MOYIN_URL") else key
    if not used_key:
        return build_ok("api key", "`moyin up` makes the first one")
    try:
        is_valid = asyncio.run(read_in_time(_is_valid_key(options, used_key)))
    except (OSError, MoyinError):
        return build_ok("api key", "not known: the database cannot be read")
    if is_valid:
        return build_ok("api key", "valid")
    if used_key == environment_key:
        return build_failure(
            "api key",
            "MOYIN_API_KEY is not a valid key of this stack",
            "unset MOYIN_API_KEY; without it, the key in the data folder is used",
        )
    return build_failure(
        "api key",
        f"the key in {path} is unknown, expired or revoked",
        "run `moyin keys create admin --scope '*'`, and put the key into the file",
        fix=f"keep it in {find_aside_path(path).name}, and store a new key with all scopes there",
    )


def replace_api_key(options: Options, on_step: OnStep) -> None:
    from moyin.stack.first_key import replace_first_key

    path = options.layout.profile
    try:
        read_profile(path, {"MOYIN_URL": options.settings.door})
    except StackError:
        aside_path = find_aside_path(path)
        path.rename(aside_path)
        on_step(f"api key: moved {path} to {aside_path}")
        write_profile(path, Profile(url=options.settings.door, api_key=""))
    _run_database_fix(replace_first_key(options.settings), "the key")


def _run_database_fix(fix: Coroutine[Any, Any, None], name: str) -> None:
    """Run a fix, or raise `StackError` if the database fails.

    Args:
        name: the thing that the fix stores, for the error, such as ``the key pair``.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        asyncio.run(fix)
    except SQLAlchemyError as error:
        # The error's own text has the statement with its values.
        cause = getattr(error, "orig", None) or type(error).__name__
        raise StackError(f"{name} cannot be stored in the database: {cause}") from error


async def _has_unreadable_key(options: Options, secret: bytes) -> bool:
    from moyin.store.signing_keys import SigningKeyStore

    async with _open_database(options) as database:
        return await SigningKeyStore(database, secret).has_unreadable_key()


async def _is_valid_key(options: Options, key: str) -> bool:
    from moyin.store.keys import KeyStore

    async with _open_database(options) as database:
        return bool(await KeyStore(database).verify_all([key]))


@asynccontextmanager
async def _open_database(options: Options) -> AsyncIterator[Database]:
    """Open the database; raise `StackError` if it fails or has the schema of another version."""
    from sqlalchemy.exc import SQLAlchemyError

    from moyin.store.sql import Database, get_newest_revision, read_revision

    database = Database(options.settings.sql_url)
    try:
        if await read_revision(options.settings.sql_url) != get_newest_revision():
            raise StackError(
                "the database has the schema of another version: run `moyin up`, "
                "or `moyin migrate` for MOYIN_DATABASE_URL"
            )
        yield database
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
