"""Describes finished requests for the access log and metrics, and redacts secrets in log lines."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Protocol

_SECRETS = re.compile(
    r"(?P<key>moyin_[0-9A-Za-z]{1,32}_)[\w-]{8,}"  # API keys; the id is not secret
    r"|(?P<token>moyin[a-z]_)[\w-]{8,}"  # refresh and reset tokens
    r"|(?P<jwt>eyJ[\w-]{5,}\.)[\w-]+\.[\w-]*"
    r"|(?P<vendor>\bsk-(?:ant-)?)[\w-]{8,}"
    r"|(?P<query>[?&](?:api_key|key|token|code|state)=)[^&\s\"']+"
    r"|(?P<cookie>\bmoyin_(?:session|refresh)=)[^;\s\"']+"
    r"|(?P<header>(?i:\b(?:bearer|basic)\s+))[\w.~+/=-]{8,}"
    r"|(?P<url>\w://[^\s:/@]*:)[^\s@/]+(?=@)"  # a password in a URL
)


# Not frozen: freezing doubles the cost of creating one per request.
@dataclass(slots=True)
class Observation:
    """Describes a finished request for the access log and metrics.

    Attributes:
        path: the path without the query; it may contain the token of a signed link.
        status: the HTTP status, or 499 if the client disconnected before it was sent.
        seconds: the duration of the request.
        code: the code of the error that ended the request, or None if it succeeded.
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
    """Records finished requests in logs or metrics."""

    def observe(self, observation: Observation) -> None:
        """Record a request without blocking, because the event loop calls this method."""


class NoObserver:
    """Implements `Observer` without any log or metrics, for tests and tools."""

    def observe(self, observation: Observation) -> None:
        return None


def format_access_line(observation: Observation) -> str:
    """Return the JSON line of a request for the access log, without secrets."""
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


def redact(text: str) -> str:
    """Return a text for the log, with its keys, tokens and passwords replaced by ``…``."""
    return _SECRETS.sub(lambda match: f"{match[match.lastgroup or 0]}…", text)
