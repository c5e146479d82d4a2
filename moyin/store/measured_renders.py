"""Lists how long the latest renders of a pool took."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from moyin.domain.job import JobStatus, StepKind
from moyin.store.schema import jobs
from moyin.store.sql import Database

# The newest jobs among which renders are searched; the index of these columns orders them.
_SEARCHED_JOBS = 4_000
_MAX_RENDERS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRender:
    """A finished render: the SHA-256 of its job's spec, and the seconds that it took."""

    spec: str
    seconds: float


async def list_measured_renders(database: Database, pool: str) -> list[MeasuredRender]:
    """Return the latest renders of the pool that succeeded, the oldest first.

    Only jobs of one step are searched, and only the newest jobs.
    """
    names = ("kind", "status", "children", "heads", "results", "spec", "created_at", "id")
    newest = (
        sa.select(*(jobs.c[name] for name in names))
        .where(jobs.c.dispatched == sa.true())
        .order_by(jobs.c.created_at.desc())
        .limit(_SEARCHED_JOBS)
        .subquery()
    )
    query = (
        sa.select(newest.c.heads, newest.c.results, newest.c.spec)
        .where(
            newest.c.kind == StepKind.RENDER.value,
            newest.c.status == JobStatus.SUCCEEDED.value,
            newest.c.children.is_(None),
        )
        .order_by(newest.c.created_at.desc(), newest.c.id)
    )
    measured: list[MeasuredRender] = []
    for row in await database.fetch_all(query):
        result = row["results"][-1]
        # Renders of earlier versions were not measured, and results from the cache took no time.
        if row["heads"] == [[StepKind.RENDER.value, pool]] and result.get("gpu_seconds"):
            measured.append(MeasuredRender(spec=row["spec"], seconds=result["gpu_seconds"]))
            if len(measured) == _MAX_RENDERS:
                break
    return measured[::-1]
