"""Defines the limits of keys, users and tenants, and the restrictions of render pools."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase

# Node classes of ComfyUI that use the worker's own disk: they list or load folders, write files
# that belong to no job, and write or train models.
DISK_NODES = (
    "Load*FromFolder*",
    "Save*ToFolder*",
    "LoadTrainingDataset",
    "SaveTrainingDataset",
    "Train*Node",
    "LossGraphNode",
    "CheckpointSave",
    "ImageOnlyCheckpointSave",
    "CLIPSave",
    "VAESave",
    "ModelSave",
    "LoraSave",
    "SaveLoRA*",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """The limits of a key, a user or a tenant; None means no limit.

    Attributes:
        subject: the key, user or tenant: ``key:<id>``, ``user:<id>`` or ``owner:<tenant>``.
        requests_per_minute: the maximum number of requests in a minute. A minute begins with the
            first request after the previous minute.
        tokens_per_minute: the maximum number of tokens of prompts and answers in such a minute.
        concurrent_requests: the maximum number of concurrent requests in all replicas together.
        open_jobs: the maximum number of queued and running jobs.
        best_priority: the best priority that jobs may have, 1 (first) to 5 (last).
        graph_nodes, graph_links, graph_bytes: the largest graphs (`moyin.domain.graph_bounds`).
            Those of a tenant replace the defaults, those of a key or user can only lower them.
        usd_per_day: the budget for a UTC day in US dollars.
        usd_per_month: the budget for a UTC calendar month in US dollars.
        pools: the render pools that may be used.
        allowed_nodes: patterns of the node classes that graphs may contain.
        denied_nodes: patterns of the node classes that graphs may not contain, even if
            ``allowed_nodes`` matches them.
    """

    subject: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    open_jobs: int | None = None
    best_priority: int | None = None
    graph_nodes: int | None = None
    graph_links: int | None = None
    graph_bytes: int | None = None
    usd_per_day: Decimal | None = None
    usd_per_month: Decimal | None = None
    pools: tuple[str, ...] | None = None
    allowed_nodes: tuple[str, ...] | None = None
    denied_nodes: tuple[str, ...] | None = None

    @property
    def has_budget(self) -> bool:
        """True if a daily or monthly budget limits the cost."""
        return self.usd_per_day is not None or self.usd_per_month is not None

    @property
    def limits_requests(self) -> bool:
        """True if the limits apply to every request, so that requests must be counted."""
        return (
            self.requests_per_minute is not None
            or self.tokens_per_minute is not None
            or self.concurrent_requests is not None
            or self.has_budget
        )

    def permits_node(self, class_type: str) -> bool:
        """Return True if graphs may contain nodes of the class."""
        is_allowed = self.allowed_nodes is None or matches_any_pattern(
            class_type, self.allowed_nodes
        )
        return is_allowed and not matches_any_pattern(class_type, self.denied_nodes or ())


def filter_permitted_pools(limits: Iterable[Limit], pools: Iterable[str]) -> list[str]:
    """Return the render pools that every limit permits."""
    permitted_pools = [limit.pools for limit in limits if limit.pools is not None]
    return [pool for pool in pools if all(pool in pool_names for pool_names in permitted_pools)]


@dataclass(frozen=True, kw_only=True, slots=True)
class JobReservation:
    """Money that budgets reserve for the renders of a job until the job has ended.

    The reservation counts for the day and month of the submission, however long the job waits.

    Attributes:
        id: the id of the reservation in the budgets.
        owner: the tenant.
        subjects: the keys, users and tenants from whose budgets the money is reserved, each written
            as ``key:<id>``, ``user:<id>`` or ``owner:<tenant>``.
        usd: the estimated cost in US dollars.
        day: the UTC day, such as ``2026-11-28``.
        month: the UTC month, such as ``2026-11``.
    """

    id: str
    owner: str
    subjects: tuple[str, ...]
    usd: Decimal
    day: str
    month: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolRules:
    """The operator's restrictions on a render pool; patterns of node classes follow ``fnmatch``.

    Attributes:
        tenants: the tenants whose jobs the pool runs; empty means all.
        allow: patterns of the node classes that graphs may contain.
        deny: patterns of the node classes that graphs may not contain, even if ``allow`` matches.
        unchecked: patterns of ``Class.input`` whose values are not checked as file names.
    """

    tenants: tuple[str, ...] = ()
    allow: tuple[str, ...] = ("*",)
    deny: tuple[str, ...] = DISK_NODES
    unchecked: tuple[str, ...] = ()

    def serves_tenant(self, owner: str) -> bool:
        return not self.tenants or owner in self.tenants

    def permits_node(self, class_type: str) -> bool:
        return matches_any_pattern(class_type, self.allow) and not matches_any_pattern(
            class_type, self.deny
        )

    def checks_input(self, class_type: str, name: str) -> bool:
        """Return True if the value of the node's input must be checked as a file name."""
        return not matches_any_pattern(f"{class_type}.{name}", self.unchecked)


def matches_any_pattern(text: str, patterns: Iterable[str]) -> bool:
    """Return True if any of the ``fnmatch`` patterns matches ``text``, with its exact case."""
    return any(fnmatchcase(text, pattern) for pattern in patterns)
