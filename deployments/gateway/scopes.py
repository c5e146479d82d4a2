"""Which scope a route of the gateway's own needs. The proxy's routes say theirs in the table."""

from __future__ import annotations

from moyin.access.gatekeeper.asgi import Scope
from moyin.domain.identity import JOBS_READ, JOBS_WRITE

__all__ = ["scope_of"]

_READING = frozenset({"GET", "HEAD", "OPTIONS"})


def scope_of(scope: Scope) -> str:
    """Reading jobs and files, or anything that changes some."""
    method, path = scope.get("method", "GET"), scope["path"]
    # The secret lets its holder sign in the studio's name: seeing it is more than reading.
    if path == "/jobs/webhook-secret" or method not in _READING:
        return JOBS_WRITE
    return JOBS_READ
