"""Queries the durations of a pool's latest renders."""

from __future__ import annotations

import sqlalchemy as sa

from moyin.domain.job import JobStatus, StepKind
from moyin.domain.render_run import MeasuredRender
from moyin.store.schema import jobs
from moyin.store.sql import Database

# The newest jobs among which renders are searched; the index of these columns orders them.
_SEARCHED_JOBS = 4_000
_MAX_RENDERS = 256
# Larger batches are left out, because the results of all their renders would be read.
_MAX_CHILDREN = 64


async def list_measured_renders(database: Database, pool: str) -> list[MeasuredRender]:
    """Return the latest renders of the pool in successful jobs, oldest first.

    Only the newest jobs are searched.
    """
    column_names = ("status", "children", "heads", "results", "created_at", "id")
    newest_jobs = (
        sa.select(*(jobs.c[name] for name in column_names))
        .where(jobs.c.dispatched == sa.true())
        .order_by(jobs.c.created_at.desc())
        .limit(_SEARCHED_JOBS)
        .subquery()
    )
    # Names of pools have no characters that JSON escapes.
    render_head = f'["{StepKind.RENDER.value}","{pool}"]'
    query = (
        sa.select(newest_jobs.c.results)
        .where(
            newest_jobs.c.status == JobStatus.SUCCEEDED.value,
            sa.func.coalesce(newest_jobs.c.children, 0) <= _MAX_CHILDREN,
            sa.cast(newest_jobs.c.heads, sa.Text).contains(render_head, autoescape=True),
        )
        .order_by(newest_jobs.c.created_at.desc(), newest_jobs.c.id)
        .limit(_MAX_RENDERS)
    )
    measured_renders = [
        MeasuredRender(
            shape=result["shape"],
            seconds=result["gpu_seconds"],
            load_seconds=result["load_seconds"],
            pictures=result["pictures"],
        )
        for results in await database.fetch_values(query)
        for result in reversed(results)
        # Results from the cache have no shape. A render may have needed another pool's memory.
        if result.get("shape") and (result["backend"] or "").rpartition("-")[0] == f"comfyui-{pool}"
    ]
    return measured_renders[:_MAX_RENDERS][::-1]
