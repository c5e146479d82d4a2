"""Holds the identity of a caller, and the scopes."""

from __future__ import annotations

from dataclasses import dataclass

from moyin.domain.limits import Limit

# Scopes and their permissions. Routes of the reverse proxy may require other scopes.
ALL = "*"
TEXT = "text"  # call models
JOBS_READ = "jobs:read"  # read jobs, their events and their files
JOBS_WRITE = "jobs:write"  # submit, cancel, retry, upload
KEYS = "keys"  # create and revoke one's own API keys
ORG_READ = "org:read"  # read one's organisation and its members
ORG_ADMIN = "org:admin"  # change them, and read the audit log
PLAYER = "player"  # use what the studio's games offer to signed-in players
OPERATOR = "operator"  # create organisations, set all limits

ALL_SCOPES = frozenset({ALL})
# The scopes of a new key by default. Scopes for administration must be named.
DEFAULT_SCOPES = frozenset({TEXT, JOBS_READ, JOBS_WRITE})
# The best priorities without a limit, for administrators and operators and for others.
_ADMIN_PRIORITY, _MEMBER_PRIORITY = 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """The authenticated caller of a request.

    Attributes:
        owner: the tenant that owns what the request creates; the unit of isolation.
        key_id: the public id of the API key or session, or the issuer of an internal token; safe
            to log.
        scopes: the permissions of the caller.
        user: the id of the user or service account; None for a tenant's own key.
        limits: the limits of the key, of the user and of the owner.
        service: the service of Moyin that acts for the owner, such as a job's worker.
    """

    owner: str
    key_id: str
    scopes: frozenset[str] = ALL_SCOPES
    user: str | None = None
    limits: tuple[Limit, ...] = ()
    service: str | None = None

    @property
    def is_session(self) -> bool:
        """True if the caller is a signed-in user, not a key."""
        return self.key_id.startswith("ses_")

    @property
    def best_priority(self) -> int:
        """The best priority that the caller may request, by the strictest limit.

        Without a limit, priority 1 is for administrators and operators.
        """
        limits = [limit.best_priority for limit in self.limits if limit.best_priority is not None]
        if limits:
            return max(limits)
        is_admin = self.has_scope(ORG_ADMIN) or self.has_scope(OPERATOR)
        return _ADMIN_PRIORITY if is_admin else _MEMBER_PRIORITY

    def has_scope(self, scope: str) -> bool:
        return scope in self.scopes or ALL in self.scopes


def is_internal_owner(owner: str) -> bool:
    """Tell if the owner is internal to Moyin. No tenant may have such a name."""
    return owner.startswith("moyin:")
