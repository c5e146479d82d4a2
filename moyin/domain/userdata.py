"""What people keep in ComfyUI's frontend: workflows, settings, and other small files."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from moyin.domain.identity import Identity

__all__ = ["UserFile", "UserdataScope", "userdata_scope"]


@dataclass(frozen=True, kw_only=True, slots=True)
class UserdataScope:
    """Whose files: a person's, or those that a tenant's own keys share (``user`` is empty)."""

    owner: str
    user: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserFile:
    """``path`` below the shelf, with ``/``; ``size`` in bytes."""

    path: str
    size: int
    created: datetime
    modified: datetime


def userdata_scope(identity: Identity) -> UserdataScope:
    """Where the files of a caller lie."""
    return UserdataScope(owner=identity.owner, user=identity.user or "")
