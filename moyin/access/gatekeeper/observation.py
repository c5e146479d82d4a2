"""What is noted of every request: one JSON line and the metrics."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Protocol

from moyin.access.gatekeeper.redaction import redact

__all__ = ["NoObserver", "Observation", "Observer", "access_line"]


# Not frozen: one is made per request, and freezing doubles what that costs.
@dataclass(slots=True)
class Observation:
    """One request that is over.

    Attributes:
        path: without its query, which may carry a key; a signed link's token is still in it.
        status: 499 when the client left before there was one.
        code: of the error that it ended with.
    """

    service: str
    request_id: str
    method: str
    path: str
    status: int
    seconds: float
    owner: str | None
    key_id: str | None
    code: str | None


class Observer(Protocol):
    """Takes observations on the hot path: it may note them, not work on them."""

    def observe(self, seen: Observation) -> None: ...


class NoObserver:
    """For tests and tools."""

    def observe(self, seen: Observation) -> None:
        return None


def access_line(seen: Observation) -> str:
    """The request as a line of the access log."""
    line = {
        "service": seen.service,
        "request_id": seen.request_id,
        "method": seen.method,
        "path": redact(seen.path),
        "status": seen.status,
        "ms": round(seen.seconds * 1000, 2),
        "owner": seen.owner,
        "key": seen.key_id,
    }
    if seen.code is not None:
        line["code"] = seen.code
    return json.dumps(line)
