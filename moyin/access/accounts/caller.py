"""Who acts, and what they may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moyin.domain.identity import ALL, Identity
from moyin.errors import InsufficientScope
from moyin.store.audit import Act

__all__ = ["Caller", "may_give", "require"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who acts, in which request, from where."""

    identity: Identity
    request_id: str
    address: str

    def act(
        self, action: str, owner: str, target: str, details: Mapping[str, Any] | None = None
    ) -> Act:
        """What the audit log keeps of what they do to ``target``, a thing of ``owner``."""
        return Act(
            owner=owner,
            actor=self.identity.user or self.identity.key_id,
            action=action,
            target=target,
            request_id=self.request_id,
            address=self.address,
            details=details or {},
        )


def require(identity: Identity, scope: str) -> None:
    """
    Raises:
        InsufficientScope: naming the scope.
    """
    if not identity.has_scope(scope):
        raise InsufficientScope(f"this needs the scope {scope}", details={"scope": scope})


def may_give(identity: Identity, scopes: frozenset[str]) -> None:
    """Nobody gives what they have not.

    Raises:
        InsufficientScope: naming what is too much.
    """
    if ALL in identity.scopes:
        return
    if lacking := sorted(scopes - identity.scopes):
        raise InsufficientScope(
            f"you lack what you would give: {', '.join(lacking)}", details={"scope": lacking[0]}
        )
