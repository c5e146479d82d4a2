"""Who is asking."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """The proven caller of one request.

    Attributes:
        owner: the tenant that owns what the request makes; the unit of isolation.
        key_id: public id of the API key, or the issuer of an internal token; safe to log.
    """

    owner: str
    key_id: str
