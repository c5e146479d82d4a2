"""Fills a pool's table of durations with the renders that it measured before its start."""

from __future__ import annotations

import logging

from sqlalchemy.exc import SQLAlchemyError

from moyin.domain.job import JobSpec
from moyin.domain.serialization import decode
from moyin.render.protocol.shape import compute_shape
from moyin.render.scheduling.durations import RenderDurations
from moyin.store.blobs import BlobStore
from moyin.store.measured_renders import list_measured_renders
from moyin.store.sql import Database

_log = logging.getLogger(__name__)


async def load_durations(
    durations: RenderDurations, database: Database, blobs: BlobStore, pool: str
) -> None:
    """Record the latest renders of the pool, as if their models had been loaded.

    If the database or the store fails, estimates start with the renders from now on.
    """
    try:
        for render in await list_measured_renders(database, pool):
            try:
                spec = decode(JobSpec, await blobs.get(render.spec))
            except FileNotFoundError:
                continue  # the job was deleted meanwhile
            durations.record(compute_shape(spec.steps[0].payload), render.seconds)
    except (SQLAlchemyError, OSError) as error:
        _log.warning("pool %s starts without measured durations of renders: %s", pool, error)
