"""Converts bodies of the accounts API to domain objects."""

from __future__ import annotations

from moyin.access.protocol import wire
from moyin.domain.limits import Limit


def parse_limit(subject: str, body: wire.LimitBody) -> Limit:
    return Limit(subject=subject, **body.model_dump())
