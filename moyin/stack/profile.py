"""Stores the gateway's URL and API key for the command line in ``profile.toml``."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moyin.errors import StackError


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """The gateway's URL, without a final slash, and the API key, which is "" if there is none."""

    url: str
    api_key: str


def read_profile(path: Path, environ: Mapping[str, str]) -> Profile:
    """Read the profile from a file, or raise `StackError` if it is not valid.

    The variables ``MOYIN_URL`` and ``MOYIN_API_KEY`` override the values in the file.
    """
    stored_values = _read_file(path)
    url = environ.get("MOYIN_URL") or stored_values.get("url", "")
    if not url:
        raise StackError(
            f"neither {path} nor MOYIN_URL has the gateway's URL: start Moyin with `moyin up`"
        )
    api_key = environ.get("MOYIN_API_KEY") or stored_values.get("api_key", "")
    return Profile(url=require_http_url(url, "MOYIN_URL"), api_key=api_key)


def require_http_url(url: str, name: str) -> str:
    """Return the gateway's URL without a final slash, or raise `StackError` if it is not valid.

    Args:
        name: the place that the URL comes from, such as ``MOYIN_URL``, for the error.
    """
    if not url.startswith(("http://", "https://")):
        raise StackError(
            f"the gateway's URL {url!r} is not valid: {name} must begin with http:// or https://"
        )
    return url.rstrip("/")


def write_profile(path: Path, profile: Profile) -> None:
    """Write the profile to the file ``path`` atomically, with the mode 0600."""
    temporary_path = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary_path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as file:
        # Every JSON string is a valid TOML string.
        file.write(f"url = {json.dumps(profile.url)}\napi_key = {json.dumps(profile.api_key)}\n")
    temporary_path.replace(path)


def _read_file(path: Path) -> dict[str, str]:
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except PermissionError:
        raise StackError(
            f"{path} cannot be read: only its owner may read it, so run `moyin` as that user"
        ) from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise StackError(f"{path} is not valid TOML: {error}: correct or delete the file") from None
    return {key: str(value) for key, value in values.items()}
