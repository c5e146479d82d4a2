"""Holds the limits of keys, users and tenants."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from moyin.domain.pools import matches_any

__all__ = ["Limit", "permitted_pools"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """The limits of a subject. None means no limit.

    Attributes:
        subject: ``key:<id>``, ``user:<id>`` or ``owner:<tenant>``.
        requests_per_minute: in any minute that begins with a request.
        tokens_per_minute: tokens of prompts and answers, in the same minute.
        concurrent_requests: at the same time, in all replicas together.
        open_jobs: jobs that are queued or running.
        best_priority: the best priority that jobs may have, 1 (first) to 5 (last).
        usd_per_day: budget of a UTC day.
        usd_per_month: budget of a UTC calendar month.
        pools: render pools that may be used.
        allowed_nodes: patterns of the node classes that graphs may contain.
        denied_nodes: patterns of node classes that graphs may not contain; they win.
    """

    subject: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    open_jobs: int | None = None
    best_priority: int | None = None
    usd_per_day: Decimal | None = None
    usd_per_month: Decimal | None = None
    pools: tuple[str, ...] | None = None
    allowed_nodes: tuple[str, ...] | None = None
    denied_nodes: tuple[str, ...] | None = None

    @property
    def has_budget(self) -> bool:
        """True if there is a budget."""
        return self.usd_per_day is not None or self.usd_per_month is not None

    @property
    def limits_requests(self) -> bool:
        """True if requests must be counted. Jobs are limited when they are accepted."""
        return (
            self.requests_per_minute is not None
            or self.tokens_per_minute is not None
            or self.concurrent_requests is not None
            or self.has_budget
        )

    def permits_node(self, class_type: str) -> bool:
        """Tell if graphs may contain nodes of the class."""
        allowed = self.allowed_nodes is None or matches_any(class_type, self.allowed_nodes)
        return allowed and not matches_any(class_type, self.denied_nodes or ())


def permitted_pools(limits: Iterable[Limit], pools: Iterable[str]) -> list[str]:
    """Return the pools that every limit permits."""
    allowed = [limit.pools for limit in limits if limit.pools is not None]
    return [pool for pool in pools if all(pool in names for names in allowed)]
