"""Describes the caller of an operation on accounts, and checks the caller's scopes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moyin.domain.identity import Identity
from moyin.errors import InsufficientScope
from moyin.store.audit import AuditEvent


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Describes the caller of an operation on accounts, for authorization and the audit log.

    Attributes:
        address: the client's IP address, or an empty string if it is unknown.
    """

    identity: Identity
    request_id: str
    address: str

    def create_audit_event(
        self, action: str, owner: str, target: str, details: Mapping[str, Any] | None = None
    ) -> AuditEvent:
        """Return an audit event of the caller; `AuditEvent` describes the arguments."""
        return AuditEvent(
            owner=owner,
            actor=self.identity.user or self.identity.key_id,
            action=action,
            target=target,
            request_id=self.request_id,
            address=self.address,
            details=details or {},
        )


def require_scope(identity: Identity, scope: str) -> None:
    """Raise `InsufficientScope` unless the identity has ``scope``."""
    if not identity.has_scope(scope):
        raise InsufficientScope(
            f"the caller lacks the required scope {scope}; use a key that has it",
            details={"scope": scope},
        )


def require_grantable(identity: Identity, scopes: frozenset[str]) -> None:
    """Raise `InsufficientScope` if the identity lacks one of ``scopes``.

    Callers can grant only scopes that they have.
    """
    if missing_scopes := sorted(scope for scope in scopes if not identity.has_scope(scope)):
        raise InsufficientScope(
            f"cannot grant scopes that the caller lacks: {', '.join(missing_scopes)}; remove them",
            details={"scope": missing_scopes[0]},
        )
