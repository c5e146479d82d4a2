"""Who is asking, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass

from moyin.domain.limits import Limit

# What a scope lets its bearer do. Routes of the reverse proxy may ask for scopes of their own.
ALL = "*"
TEXT = "text"  # ask models
JOBS_READ = "jobs:read"  # see jobs, their events and their files
JOBS_WRITE = "jobs:write"  # submit, cancel, retry, upload
KEYS = "keys"  # make and revoke one's own API keys
ORG_READ = "org:read"  # see one's organisation and its members
ORG_ADMIN = "org:admin"  # change them, and see the audit log
PLAYER = "player"  # what the studio's games offer to whoever is signed in
OPERATOR = "operator"  # make organisations, set anybody's limits

ALL_SCOPES = frozenset({ALL})
# What a key may do where nobody says: work with models and jobs. Whatever administers is named.
DEFAULT_SCOPES = frozenset({TEXT, JOBS_READ, JOBS_WRITE})
# The best class of jobs where no limit says another: of administrators and operators, of others.
_ADMINS_BEST, _MEMBERS_BEST = 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """The proven caller of one request.

    Attributes:
        owner: the tenant that owns what the request makes; the unit of isolation.
        key_id: public id of the API key, of the session, or the issuer of an internal token; safe
            to log.
        scopes: what it may do.
        user: the person or service account behind it; None for a tenant's own key.
        limits: of the key, of the user and of the owner, where there are any.
        service: of ours, that acts for the owner, such as a job's worker; None: the owner's own.
    """

    owner: str
    key_id: str
    scopes: frozenset[str] = ALL_SCOPES
    user: str | None = None
    limits: tuple[Limit, ...] = ()
    service: str | None = None

    @property
    def is_session(self) -> bool:
        """Whether it is a person who signed in, rather than a key."""
        return self.key_id.startswith("ses_")

    @property
    def best_priority(self) -> int:
        """The best class of jobs that the caller may ask for: the strictest limit that names one.

        Without such a limit, class 1 is for administrators and operators.
        """
        named = [one.best_priority for one in self.limits if one.best_priority is not None]
        if named:
            return max(named)
        return (
            _ADMINS_BEST if self.has_scope(ORG_ADMIN) or self.has_scope(OPERATOR) else _MEMBERS_BEST
        )

    def has_scope(self, scope: str) -> bool:
        return scope in self.scopes or ALL in self.scopes


def is_internal_owner(owner: str) -> bool:
    """Return whether the owner is one of Moyin's own, so that no tenant may be called so."""
    return owner.startswith("moyin:")
