"""`Pruner`: jobs that ended long ago go, and of their files those that nothing else refers to."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa

from moyin.domain.codec import decode
from moyin.domain.job import JobSpec, StepKind
from moyin.store.blobs import BlobStore
from moyin.store.job_rows import OPEN
from moyin.store.schema import artifacts, jobs
from moyin.store.sql import Database, now

__all__ = ["Pruned", "Pruner"]

_log = logging.getLogger(__name__)
# All rows are read once for so many jobs, whose digests are in memory meanwhile.
_ROUND = 10_000
# Jobs of one transaction; if the process dies after it, their files stay for ever.
_CHUNK = 100
_PAGE = 2_000
_SIDE_BY_SIDE = 8
_PAUSE_SECONDS = 3_600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruned:
    """What went; ``size`` of the files in bytes."""

    jobs: int = 0
    files: int = 0
    size: int = 0

    def __add__(self, other: Pruned) -> Pruned:
        return Pruned(
            jobs=self.jobs + other.jobs, files=self.files + other.files, size=self.size + other.size
        )


class Pruner:
    """Any number may run side by side, while jobs come and end.

    A file that was stored again after the moment that the caller names is left alone: somebody may
    be about to refer to it. So that moment should be a day ago or longer.
    """

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs

    async def due(self, before: datetime) -> int:
        """How many jobs ended before that moment."""
        query = sa.select(sa.func.count()).select_from(jobs).where(_ended(before))
        return int(await self._database.read(lambda c: c.execute(query).scalar_one()))

    async def run(self, before: datetime) -> AsyncIterator[Pruned]:
        """Take away what ended before that moment; tells what went, some jobs at a time.

        Raises:
            ServiceUnavailable: the artifact store does not answer; what is left goes the next time.
        """
        while oldest := await self._oldest(before):
            files = await self._files(oldest)
            spare = await self._spare(files)
            users = Counter(file for found in files.values() for file in found)
            for chunk in _chunks(list(files)):
                gone = await self._database.write(partial(_remove, chunk, before))
                # Whoever is retried meanwhile is not gone, and keeps what he has.
                users.subtract(file for job in gone for file in files[job])
                unused = {f for job in gone for f in files[job] if f in spare and not users[f]}
                yield Pruned(jobs=len(gone)) + await self._delete(unused, before)

    async def keep_pruning(self, days: int) -> None:
        """Once an hour, until cancelled, what ended so many days ago; 0: never."""
        while days:
            try:
                async for _ in self.run(now() - timedelta(days=days)):
                    pass
            except Exception:
                _log.exception("pruning failed; trying again in an hour")
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _oldest(self, before: datetime) -> Sequence[Mapping[Any, Any]]:
        query = (
            sa.select(jobs.c.id, jobs.c.kind, *_REFERENCES)
            .where(_ended(before))
            .order_by(jobs.c.finished_at)
            .limit(_ROUND)
        )
        return await self._database.read(lambda c: c.execute(query).mappings().all())

    async def _files(self, rows: Sequence[Mapping[Any, Any]]) -> dict[str, set[str]]:
        """All that each of the jobs refers to."""
        files = {row["id"]: set(_referred(row)) for row in rows}
        for row in rows:
            if row["kind"] != StepKind.RENDER.value:
                files[row["id"]].update(await self._bodies(row["spec"]))
        for chunk in _chunks(list(files)):
            query = sa.select(artifacts.c.job_id, artifacts.c.sha256).where(
                artifacts.c.job_id.in_(chunk)
            )
            for row in await self._database.read(partial(_mappings, query)):
                files[row["job_id"]].add(row["sha256"])
        return files

    async def _bodies(self, spec: str) -> list[str]:
        """Of requests that were put off; see `moyin.domain.job.Step`."""
        try:
            steps = decode(JobSpec, await self._blobs.get(spec)).steps
        except FileNotFoundError:
            return []
        found = [step.payload.get("blob") for step in steps if step.kind is StepKind.HTTP]
        return [body for body in found if isinstance(body, str)]

    async def _spare(self, files: Mapping[str, set[str]]) -> set[str]:
        """Of these files those that only these jobs refer to."""
        spare = set().union(*files.values())
        async for row in self._pages(artifacts.c.id, artifacts.c.job_id, artifacts.c.sha256):
            if row["job_id"] not in files:
                spare.discard(row["sha256"])
        async for row in self._pages(jobs.c.id, *_REFERENCES):
            if row["id"] not in files:
                spare.difference_update(_referred(row))
        return spare

    async def _pages(self, key: sa.Column[Any], *columns: Any) -> AsyncIterator[Mapping[Any, Any]]:
        """All rows of a table, a page at a time, so that nobody waits for the database."""
        after = ""
        while True:
            query = sa.select(key, *columns).where(key > after).order_by(key).limit(_PAGE)
            page = await self._database.read(partial(_mappings, query))
            for row in page:
                yield row
            if len(page) < _PAGE:
                return
            after = page[-1][key.name]

    async def _delete(self, files: Collection[str], before: datetime) -> Pruned:
        limit = asyncio.Semaphore(_SIDE_BY_SIDE)

        async def delete(file: str) -> int | None:
            async with limit:
                return await self._blobs.delete(file, before)

        sizes = [s for s in await asyncio.gather(*map(delete, files)) if s is not None]
        return Pruned(files=len(sizes), size=sum(sizes))


# Columns with digests of blobs.
_REFERENCES = (jobs.c.spec, jobs.c.record, jobs.c.results)


def _referred(row: Mapping[Any, Any]) -> Iterator[str]:
    yield row["spec"]
    if row["record"] is not None:
        yield row["record"]
    for result in row["results"]:
        yield result["output"]


def _chunks(items: list[str]) -> Iterator[list[str]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))


def _ended(before: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(jobs.c.status.not_in(OPEN), jobs.c.finished_at < before)


def _remove(chunk: Sequence[str], before: datetime, connection: sa.Connection) -> set[str]:
    """Delete those that still are as they were; returns which."""
    query = sa.select(jobs.c.id).where(jobs.c.id.in_(chunk), _ended(before)).with_for_update()
    gone = set(connection.execute(query).scalars())
    connection.execute(artifacts.delete().where(artifacts.c.job_id.in_(gone)))
    connection.execute(jobs.delete().where(jobs.c.id.in_(gone)))
    return gone


def _mappings(query: sa.Select[Any], connection: sa.Connection) -> Sequence[Mapping[Any, Any]]:
    return connection.execute(query).mappings().all()
