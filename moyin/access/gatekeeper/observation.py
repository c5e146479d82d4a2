"""Describes finished requests for the access log and the metrics."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Protocol

from moyin.access.gatekeeper.redaction import redact

__all__ = ["NoObserver", "Observation", "Observer", "access_line"]


# Not frozen: one is made per request, and freezing doubles the cost.
@dataclass(slots=True)
class Observation:
    """Describes a finished request.

    Attributes:
        path: the path without the query, which may contain a key; signed links' tokens are in it.
        status: the HTTP status; 499 if the client disconnected before there was one.
        code: the code of the error that ended the request; None: it succeeded.
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
    """Receives observations."""

    def observe(self, observation: Observation) -> None:
        """Record a request; called in the event loop, so it must not do slow work."""


class NoObserver:
    """Ignores observations, in tests and tools."""

    def observe(self, observation: Observation) -> None:
        return None


def access_line(observation: Observation) -> str:
    """Return the line of a request in the access log, as JSON."""
    line = {
        "service": observation.service,
        "request_id": observation.request_id,
        "method": observation.method,
        "path": redact(observation.path),
        "status": observation.status,
        "ms": round(observation.seconds * 1000, 2),
        "owner": observation.owner,
        "key": observation.key_id,
    }
    if observation.code is not None:
        line["code"] = observation.code
    return json.dumps(line)
