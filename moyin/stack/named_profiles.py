"""Stores the URLs and API keys of remote gateways by name in ``~/.config/moyin/profiles.toml``."""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moyin.errors import StackError
from moyin.stack.layout import explain_os_errors, replace_file
from moyin.stack.profile import Profile, require_http_url

# The name of the stack that runs in the data folder of this machine; its file is not this one.
LOCAL = "local"
# Such names are valid keys of TOML without quotes.
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedProfiles:
    """The content of ``profiles.toml``.

    Attributes:
        default: name of the profile to use if the caller names none.
    """

    default: str = LOCAL
    profiles: Mapping[str, Profile] = field(default_factory=dict)

    def get(self, name: str) -> Profile:
        """Return the named profile; raise `StackError` with all names if it does not exist."""
        profile = self.profiles.get(name)
        if profile is None:
            names = ", ".join([LOCAL, *sorted(self.profiles)])
            raise StackError(
                f"there is no profile {name!r}; existing profiles: {names}; "
                "add one with `moyin profiles add`"
            )
        return profile


def find_profiles_file(environ: Mapping[str, str]) -> Path:
    """Return the path of ``profiles.toml``, according to the XDG base directory specification."""
    config_home = environ.get("XDG_CONFIG_HOME", "")
    # The specification demands that relative paths are ignored.
    folder = Path(config_home) if config_home.startswith("/") else Path.home() / ".config"
    return folder / "moyin" / "profiles.toml"


def read_named_profiles(path: Path) -> NamedProfiles:
    """Read ``profiles.toml``; raise `StackError` if it is not valid or other users may read it."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise StackError(
                    f"{path} contains API keys and is open to other users: run `chmod 600 {path}`"
                )
            values = tomllib.load(file)
    except FileNotFoundError:
        return NamedProfiles()
    except (OSError, ValueError) as error:
        raise StackError(f"{path} cannot be read: {error}: correct or delete it") from error
    tables = values.get("profiles", {})
    if not isinstance(tables, dict):
        raise StackError(f"{path}: profiles must be a table, as in [profiles.studio]")
    profiles = {name: _parse_profile(path, name, table) for name, table in tables.items()}
    default = values.get("default", LOCAL)
    if default != LOCAL and default not in profiles:
        raise StackError(
            f"{path}: default must be {LOCAL!r} or the name of a profile in this file, "
            f"not {default!r}"
        )
    return NamedProfiles(default=default, profiles=profiles)


def write_named_profiles(path: Path, named_profiles: NamedProfiles) -> None:
    """Write ``profiles.toml`` atomically, with the mode 0600."""
    # Every JSON string is a valid TOML string.
    lines = [f"default = {json.dumps(named_profiles.default)}\n"]
    for name, profile in sorted(named_profiles.profiles.items()):
        url, key = json.dumps(profile.url), json.dumps(profile.api_key)
        lines.append(f"\n[profiles.{name}]\nurl = {url}\napi_key = {key}\n")
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(path, "".join(lines).encode(), mode=0o600)


def require_profile_name(name: str) -> str:
    """Return ``name``, or raise `StackError` if it is not a valid name of a profile."""
    if not _NAME.fullmatch(name) or name == LOCAL:
        raise StackError(
            f"{name!r} cannot name a profile: use lower-case letters, digits, - and _, "
            f"but not {LOCAL!r}, which is the stack on this machine"
        )
    return name


def _parse_profile(path: Path, name: str, table: object) -> Profile:
    if not _NAME.fullmatch(name):
        raise StackError(
            f"{path}: profiles.{name}: a name must have only lower-case letters, digits, - and _: "
            f"rename or delete the profile"
        )
    if not isinstance(table, dict):
        raise StackError(f"{path}: profiles.{name} must be a table with url and api_key")
    url, key = table.get("url"), table.get("api_key", "")
    if not isinstance(url, str) or not isinstance(key, str):
        raise StackError(f"{path}: profiles.{name}: url and api_key must be strings")
    return Profile(url=require_http_url(url, f"{path}: profiles.{name}.url"), api_key=key)
