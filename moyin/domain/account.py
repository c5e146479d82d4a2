"""Defines users, organisations, roles and sessions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from moyin.domain.identity import (
    JOBS_READ,
    JOBS_WRITE,
    KEYS,
    ORG_ADMIN,
    ORG_READ,
    PLAYER,
    TEXT,
)


class UserKind(StrEnum):
    """The kind of a user; a ``service`` account has no password and acts through API keys only."""

    PLAYER = "player"
    MEMBER = "member"
    SERVICE = "service"


class Role(StrEnum):
    """The role of a member in an organisation."""

    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"


_VIEWER = frozenset({JOBS_READ, ORG_READ, PLAYER})
_MEMBER = _VIEWER | {TEXT, JOBS_WRITE, KEYS}
ROLE_SCOPES: Mapping[Role, frozenset[str]] = {
    Role.VIEWER: _VIEWER,
    Role.MEMBER: _MEMBER,
    Role.ADMIN: _MEMBER | {ORG_ADMIN},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Organisation:
    id: str
    name: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class User:
    """A user: a player, a member of an organisation, or a service account.

    Attributes:
        email: the address in lower case; None for service accounts.
        organisation: the id of the organisation; None for players.
        profile: JSON members that the user sets.
        password: the Argon2 hash of the password; None if the user has none.
    """

    id: str
    kind: UserKind
    email: str | None
    name: str
    organisation: str | None
    role: Role | None
    created_at: datetime
    disabled_at: datetime | None = None
    profile: Mapping[str, Any] = field(default_factory=dict)
    password: str | None = field(default=None, repr=False)

    @property
    def owner(self) -> str:
        """The id of the tenant that owns the user's jobs and artifacts."""
        return self.organisation or self.id


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """The session of a user, which lasts from sign-in to sign-out through all renewals."""

    id: str
    user_id: str
    expires_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenSession:
    """An open session as its user sees it.

    Attributes:
        last_used_at: the time of the last sign-in or renewal, not of the last request.
        address, user_agent: the client of that sign-in or renewal; empty if unknown.
    """

    id: str
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    address: str
    user_agent: str
