"""`Pruner`: jobs that ended long ago go, and of their files those that nothing else refers to."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
from pydantic_core import from_json

from moyin.domain.job import JobSpec, StepKind
from moyin.domain.serialization import decode
from moyin.store.blobs import BlobStore
from moyin.store.job_rows import OPEN
from moyin.store.schema import artifacts, jobs
from moyin.store.sql import Database, now

__all__ = ["Pruned", "Pruner"]

_log = logging.getLogger(__name__)
# All rows are read once for so many jobs, whose digests are in memory meanwhile.
_ROUND = 10_000
# Jobs of one transaction; if the process dies or S3 fails after it, their files stay for ever.
_CHUNK = 100
_PAGE = 2_000
_SIDE_BY_SIDE = 8
_PAUSE_SECONDS = 3_600.0
# What a job needs is stored a little before its row is written.
_MARGIN = timedelta(hours=1)
_ARTIFACT_ID = re.compile(rb"art_[0-9a-f]{32}")
T = TypeVar("T")
R = TypeVar("R")


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

    A file that was stored again, or renewed, after the moment that the caller names is left alone:
    somebody may be about to refer to it. So that moment should be a day ago or longer. An output
    that an open job names as its input stays for that job, unless it is accepted in the seconds
    between the look at the open ones and the end of those that go.
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
            inputs = await self._inputs()
            spare = await self._spare(files, inputs, before)
            users = Counter(file for found in files.values() for file in found)
            for chunk in _chunks(list(files)):
                removed, kept = await self._database.write(partial(_remove, chunk, before, inputs))
                # Whoever is retried meanwhile is not gone, and keeps what he has. Whom another
                # pruner has removed is.
                gone = [job for job in chunk if job not in kept]
                users.subtract(file for job in gone for file in files[job])
                unused = {f for job in gone for f in files[job] if f in spare and not users[f]}
                yield Pruned(jobs=removed) + await self._delete(unused, before)

    async def keep_pruning(self, days: int) -> None:
        """Once an hour, until cancelled, what ended so many days ago; 0: never. While somebody else
        keeps pruning the same database there is nothing to do."""
        while days:
            try:
                async with self._database.alone("pruning") as alone:
                    if alone:
                        async for _ in self.run(now() - timedelta(days=days)):
                            pass
            except Exception:
                _log.exception("pruning failed; trying again in an hour")
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _oldest(self, before: datetime) -> Sequence[Mapping[Any, Any]]:
        query = (
            sa.select(jobs.c.id, *_REFERRING)
            .where(_ended(before))
            .order_by(jobs.c.finished_at)
            .limit(_ROUND)
        )
        return await self._database.read(lambda c: c.execute(query).mappings().all())

    async def _files(self, rows: Sequence[Mapping[Any, Any]]) -> dict[str, set[str]]:
        """All that each of the jobs refers to."""
        inside = await self._side_by_side(self._inside, rows)
        files = {
            row["id"]: {*_referred(row), *more} for row, more in zip(rows, inside, strict=True)
        }
        for chunk in _chunks(list(files)):
            query = sa.select(artifacts.c.job_id, artifacts.c.sha256).where(
                artifacts.c.job_id.in_(chunk)
            )
            for row in await self._database.read(partial(_mappings, query)):
                files[row["job_id"]].add(row["sha256"])
        return files

    async def _inside(self, row: Mapping[Any, Any]) -> list[str]:
        """What a job refers to in its blobs: bodies of requests that were put off (see
        `moyin.domain.job.Step`), and files of renders that are no result, such as previews."""
        kind, found = row["kind"], []
        if kind != StepKind.RENDER.value and (spec := await self._content(row["spec"])):
            steps = decode(JobSpec, spec).steps
            found += [step.payload.get("blob") for step in steps if step.kind is StepKind.HTTP]
        if kind not in (StepKind.CHAT.value, StepKind.HTTP.value):
            for output in list(_referred(row))[1:]:
                found += _recorded(await self._content(output))
        return [file for file in found if isinstance(file, str)]

    async def _content(self, sha256: str) -> bytes | None:
        try:
            return await self._blobs.get(sha256)
        except FileNotFoundError:
            return None

    async def _inputs(self) -> set[str]:
        """Ids of the artifacts that open jobs name; some may be outputs of jobs that are to go."""
        query = sa.select(jobs.c.spec).where(jobs.c.status.in_(OPEN)).distinct()
        specs = await self._database.read(lambda c: c.execute(query).scalars().all())
        contents = await self._side_by_side(self._content, specs)
        return {i.decode() for spec in contents for i in _ARTIFACT_ID.findall(spec or b"")}

    async def _spare(
        self, files: Mapping[str, set[str]], inputs: Collection[str], before: datetime
    ) -> set[str]:
        """Of these files those that only these jobs refer to."""
        spare = set().union(*files.values())
        async for row in self._pages(artifacts.c.id, artifacts.c.job_id, artifacts.c.sha256):
            if row["job_id"] not in files or row["id"] in inputs:
                spare.discard(row["sha256"])
        async for row in self._pages(jobs.c.id, *_REFERRING, _lasting(before).label("lasting")):
            if row["id"] not in files:
                spare.difference_update(_referred(row))
                if row["lasting"]:
                    spare.difference_update(await self._inside(row))
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
        found = await self._side_by_side(lambda f: self._blobs.delete(f, before), list(files))
        sizes = [size for size in found if size is not None]
        return Pruned(files=len(sizes), size=sum(sizes))

    async def _side_by_side(self, do: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
        limit = asyncio.Semaphore(_SIDE_BY_SIDE)

        async def one(item: T) -> R:
            async with limit:
                return await do(item)

        return await asyncio.gather(*map(one, items))


# What says which blobs a job refers to.
_REFERRING = (jobs.c.kind, jobs.c.spec, jobs.c.record, jobs.c.results)


def _referred(row: Mapping[Any, Any]) -> Iterator[str]:
    yield row["spec"]
    if row["record"] is not None:
        yield row["record"]
    for result in row["results"]:
        yield result["output"]


def _recorded(output: bytes | None) -> list[str]:
    """Digests of the files of which a step's output says what ComfyUI's history says."""
    record = (from_json(output) if output else {}).get("record") or {}
    return [file["sha256"] for file in record.get("files", ())]


def _chunks(items: list[str]) -> Iterator[list[str]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))


def _ended(before: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(jobs.c.status.not_in(OPEN), jobs.c.finished_at < before)


def _lasting(before: datetime) -> sa.ColumnElement[bool]:
    """What had begun by then and not ended. What others have stored is too new to be deleted."""
    return sa.and_(
        jobs.c.created_at < before + _MARGIN,
        sa.or_(jobs.c.status.in_(OPEN), jobs.c.finished_at >= before),
    )


def _remove(
    chunk: Sequence[str], before: datetime, inputs: Collection[str], connection: sa.Connection
) -> tuple[int, set[str]]:
    """Delete those that still are as they were; returns how many, and which are not.

    Of their artifacts, ``inputs`` become what a deleted upload is: gone for their owner, but not
    for the jobs that were accepted with them.
    """
    query = sa.select(jobs.c.id, _ended(before)).where(jobs.c.id.in_(chunk)).order_by(jobs.c.id)
    found = connection.execute(query.with_for_update()).all()
    gone = [job for job, ended in found if ended]
    theirs = artifacts.c.job_id.in_(gone)
    ids = connection.execute(sa.select(artifacts.c.id).where(theirs)).scalars()
    for part in _chunks([artifact for artifact in ids if artifact in inputs]):
        named = artifacts.update().where(artifacts.c.id.in_(part))
        connection.execute(named.values(job_id=None, deleted_at=now()))
    connection.execute(artifacts.delete().where(theirs))
    connection.execute(jobs.delete().where(jobs.c.id.in_(gone)))
    return len(gone), {job for job, ended in found if not ended}


def _mappings(query: sa.Select[Any], connection: sa.Connection) -> Sequence[Mapping[Any, Any]]:
    return connection.execute(query).mappings().all()
