"""Defines the identity and scopes of a caller, and the owners of files of ComfyUI's frontend."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from moyin.domain.limits import Limit

# Scopes and their permissions. Routes of the reverse proxy may require other scopes.
ALL = "*"
TEXT = "text"  # call models
JOBS_READ = "jobs:read"  # read jobs, their events and their files
JOBS_WRITE = "jobs:write"  # submit, cancel, retry, upload, delete
KEYS = "keys"  # create and revoke one's own API keys
ORG_READ = "org:read"  # read one's organisation and its members
ORG_ADMIN = "org:admin"  # change them, and read the audit log
PLAYER = "player"  # use what the studio's games offer to signed-in players
OPERATOR = "operator"  # create organisations, set all limits
METRICS = "metrics"  # read the cluster's metrics, as Prometheus does

ALL_SCOPES = frozenset({ALL})
# Scopes that come with another scope.
_INCLUDED_IN = {METRICS: OPERATOR}
# The scopes of a new key by default. Scopes for administration must be named.
DEFAULT_SCOPES = frozenset({TEXT, JOBS_READ, JOBS_WRITE})
# The best priorities without a limit, for administrators and operators and for others.
_ADMIN_PRIORITY, _MEMBER_PRIORITY = 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """The authenticated caller of a request.

    Attributes:
        owner: the id of the tenant that owns everything that the request creates.
        key_id: the public id of the API key or session, or the issuer of an internal token; safe
            to log.
        scopes: the permissions of the caller.
        user: the id of the user or service account; None for a key of the tenant itself.
        limits: the limits of the key, of the user and of the tenant.
        service: the name of the Moyin service that acts for the tenant, such as ``jobs``.
        job: for a caller with an event token, the only job that it may read, with its files; None
            for all other callers.
        secret_id: identifies the secret of the API key that the caller presented, which a rotation
            replaces; empty for other callers.
    """

    owner: str
    key_id: str
    scopes: frozenset[str] = ALL_SCOPES
    user: str | None = None
    limits: tuple[Limit, ...] = ()
    service: str | None = None
    job: str | None = None
    secret_id: str = field(default="", compare=False)

    @property
    def is_session(self) -> bool:
        """True if the caller is a signed-in user and has not sent an API key."""
        return is_session_id(self.key_id)

    @property
    def best_priority(self) -> int:
        """The best priority (1 is first) allowed by the caller's limits or else by its role."""
        limits = [limit.best_priority for limit in self.limits if limit.best_priority is not None]
        if limits:
            return max(limits)
        is_admin = self.has_scope(ORG_ADMIN) or self.has_scope(OPERATOR)
        return _ADMIN_PRIORITY if is_admin else _MEMBER_PRIORITY

    def has_scope(self, scope: str) -> bool:
        """Return True if the caller has the scope, all scopes, or a scope that includes it."""
        return scope in self.scopes or ALL in self.scopes or _INCLUDED_IN.get(scope) in self.scopes

    def may_read_job(self, job_id: str | None) -> bool:
        """Return False if the caller has an event token, which allows one job, for another job."""
        return self.job is None or self.job == job_id


def is_session_id(key_id: str) -> bool:
    """Return True if the public id belongs to a session rather than to an API key."""
    return key_id.startswith("ses_")


def is_internal_owner(owner: str) -> bool:
    """Return True if the name is reserved for Moyin's own services, so that no tenant may have it."""
    return owner.startswith("moyin:")


@dataclass(frozen=True, kw_only=True, slots=True)
class UserdataScope:
    """The owner of files of ComfyUI's frontend: a user, or all keys of a tenant if ``user`` is empty."""

    owner: str
    user: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserFile:
    """A file that ComfyUI's frontend stores: its path within its scope, and its size in bytes."""

    path: str
    size: int
    created: datetime
    modified: datetime


def get_userdata_scope(identity: Identity) -> UserdataScope:
    """Return the owner of the files that the caller stores in ComfyUI's frontend."""
    return UserdataScope(owner=identity.owner, user=identity.user or "")
