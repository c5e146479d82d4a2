"""What is noted of every request: one JSON line and the metrics."""

from __future__ import annotations

import logging
from typing import Protocol

from pydantic_core import to_json

from moyin.gatekeeper.asgi import Scope
from moyin.gatekeeper.context import RequestContext

__all__ = ["Metrics", "NoMetrics", "write_access_log"]

access_log = logging.getLogger("moyin.access")


class Metrics(Protocol):
    """Where request metrics go; Ray's in the cluster."""

    def observe(self, service: str, method: str, status: int, seconds: float) -> None: ...


class NoMetrics:
    """For tests and tools."""

    def observe(self, service: str, method: str, status: int, seconds: float) -> None:
        return None


def write_access_log(
    service: str,
    scope: Scope,
    request: RequestContext,
    *,
    status: int,
    seconds: float,
    code: str | None,
) -> None:
    """One line per request. The path is logged without its query, which may carry a key."""
    if not access_log.isEnabledFor(logging.INFO):
        return
    identity = request.identity
    line = {
        "service": service,
        "request_id": request.request_id,
        "method": scope.get("method", "WEBSOCKET"),
        "path": scope["path"],
        "status": status,
        "ms": round(seconds * 1000, 2),
        "owner": identity.owner if identity else None,
        "key": identity.key_id if identity else None,
    }
    if code is not None:
        line["code"] = code
    access_log.info(to_json(line).decode())
