"""``profile.toml``: how the command line reaches the door. Mode 0600, because it holds a key."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moyin.errors import StackError

__all__ = ["Profile", "load", "save"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Address of the door, without a final slash, and the API key."""

    url: str
    api_key: str


def load(path: Path, environ: Mapping[str, str]) -> Profile:
    """The profile in ``path``, with ``MOYIN_URL`` and ``MOYIN_API_KEY`` over it.

    Raises:
        StackError: neither the file nor the environment says where the door is, or not by URL.
    """
    stored = _read(path)
    url = environ.get("MOYIN_URL") or stored.get("url", "")
    if not url:
        raise StackError(f"no {path} and no MOYIN_URL: start Moyin with `moyin up`")
    if not url.startswith(("http://", "https://")):
        raise StackError(
            f"{url!r} is no address of a door: MOYIN_URL begins with http:// or https://"
        )
    api_key = environ.get("MOYIN_API_KEY") or stored.get("api_key", "")
    return Profile(url=url.rstrip("/"), api_key=api_key)


def save(path: Path, profile: Profile) -> None:
    """Write the profile so that no other user can read it at any moment."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as file:
        # A JSON string is a TOML basic string.
        file.write(f"url = {json.dumps(profile.url)}\napi_key = {json.dumps(profile.api_key)}\n")
    scratch.replace(path)


def _read(path: Path) -> dict[str, str]:
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except PermissionError:
        raise StackError(f"{path}: no permission to read it") from None
    except tomllib.TOMLDecodeError as error:
        raise StackError(f"{path} is not valid TOML: {error}") from None
    return {key: str(value) for key, value in values.items()}
