"""Manages API keys through the gateway's API, for ``moyin keys`` with a profile."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from moyin.cli.session import run_with_gateway, send_request

_PATH = "/accounts/keys"


def list_keys() -> list[dict[str, Any]]:
    """Return the caller's keys, or for an administrator all keys of the organisation."""
    page = run_with_gateway(lambda gateway: gateway.call("GET", _PATH))
    return list(page["keys"])


def create_key(
    *, name: str, scopes: Sequence[str] | None, expires_at: datetime | None, user: str | None
) -> dict[str, Any]:
    """Create a key for the caller or a service account; return it with its secret in ``key``."""
    key_fields = {
        "name": name,
        "scopes": scopes or None,
        "expires_at": None if expires_at is None else expires_at.isoformat(),
        "user": user,
    }
    body = {name: value for name, value in key_fields.items() if value is not None}
    return dict(run_with_gateway(lambda gateway: gateway.call("POST", _PATH, body)))


def rotate_key(key_id: str, overlap: int) -> dict[str, Any]:
    """Replace a key's secret; return the key's id, and its new secret in the member ``key``."""
    path, body = f"{_build_path(key_id)}/rotate", {"overlap_seconds": overlap}
    return dict(run_with_gateway(lambda gateway: gateway.call("POST", path, body)))


def revoke_key(key_id: str) -> None:
    send_request("DELETE", _build_path(key_id))


def _build_path(key_id: str) -> str:
    return f"{_PATH}/{quote(key_id, safe='')}"
