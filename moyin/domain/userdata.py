"""Holds the files that users store in ComfyUI's frontend, such as workflows and settings."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from moyin.domain.identity import Identity

__all__ = ["UserFile", "UserdataScope", "userdata_scope"]


@dataclass(frozen=True, kw_only=True, slots=True)
class UserdataScope:
    """The owner of files: a user, or all keys of a tenant together (``user`` is empty)."""

    owner: str
    user: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserFile:
    """A stored file. ``path`` is below the scope, with ``/``; ``size`` is in bytes."""

    path: str
    size: int
    created: datetime
    modified: datetime


def userdata_scope(identity: Identity) -> UserdataScope:
    """Return the scope of a caller's files."""
    return UserdataScope(owner=identity.owner, user=identity.user or "")
