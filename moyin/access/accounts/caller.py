"""Describes the caller of an administrative operation and checks its scopes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moyin.domain.identity import ALL, Identity
from moyin.errors import InsufficientScope
from moyin.store.audit import AuditEvent

__all__ = ["Caller", "check_grantable", "require"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Describes the caller of an operation: its identity, request and client address."""

    identity: Identity
    request_id: str
    address: str

    def audit_event(
        self, action: str, owner: str, target: str, details: Mapping[str, Any] | None = None
    ) -> AuditEvent:
        """Return the audit event of the caller's ``action`` on ``target``, which ``owner`` owns."""
        return AuditEvent(
            owner=owner,
            actor=self.identity.user or self.identity.key_id,
            action=action,
            target=target,
            request_id=self.request_id,
            address=self.address,
            details=details or {},
        )


def require(identity: Identity, scope: str) -> None:
    """Refuse an identity without ``scope``.

    Raises:
        InsufficientScope: the identity lacks the scope.
    """
    if not identity.has_scope(scope):
        raise InsufficientScope(f"this needs the scope {scope}", details={"scope": scope})


def check_grantable(identity: Identity, scopes: frozenset[str]) -> None:
    """Refuse an identity that lacks one of the ``scopes`` it wants to grant.

    Raises:
        InsufficientScope: naming the missing scopes.
    """
    if ALL in identity.scopes:
        return
    if missing := sorted(scopes - identity.scopes):
        raise InsufficientScope(
            f"cannot grant scopes you do not have: {', '.join(missing)}",
            details={"scope": missing[0]},
        )
