"""Deletes batches that ended long ago, and the blobs of files that were deleted or have expired."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from moyin.domain.text_batch import BatchStatus
from moyin.store.schema import files, native_batches, text_batches
from moyin.store.sql import Database, now

_OPEN = tuple(status.value for status in BatchStatus if not status.is_final)
_CHUNK = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class PrunedText:
    """Holds the number of deleted batches, and the digests of blobs to which nothing refers now."""

    batches: int
    blobs: frozenset[str]


class TextPruner:
    """Deletes rows of batches and files.

    Args:
        find_unreferenced: returns those of the given digests to which no job and no artifact
            refers.
    """

    def __init__(
        self,
        database: Database,
        find_unreferenced: Callable[[Collection[str]], Awaitable[Collection[str]]],
    ) -> None:
        self._database = database
        self._find_unreferenced = find_unreferenced

    async def run(self, cutoff: datetime) -> PrunedText:
        """Delete batches that ended before ``cutoff``, and files deleted or expired before then.

        The results of a batch are deleted with it; its input stays until its owner deletes it.

        Returns:
            The number of deleted batches, and the digests of blobs that nothing refers to any more.
        """
        batch_count = await self._delete_batches(cutoff)
        return PrunedText(batches=batch_count, blobs=await self.delete_files(cutoff))

    async def delete_files(self, cutoff: datetime) -> frozenset[str]:
        """Delete files that expired or were deleted before ``cutoff``.

        Returns:
            The digests of blobs that nothing refers to any more.
        """
        digests: set[str] = set()
        while rows := await self._fetch_deletable_files(cutoff):
            kept_digests = await self._find_kept_digests([row["sha256"] for row in rows], cutoff)
            digests.update(row["sha256"] for row in rows if row["sha256"] not in kept_digests)
            statement = files.delete().where(files.c.id.in_([row["id"] for row in rows]))
            await self._database.execute(statement)
        unused_digests = await self._find_unreferenced(digests) if digests else ()
        return frozenset(unused_digests)

    async def _delete_batches(self, cutoff: datetime) -> int:
        deleted_count = 0
        query = (
            sa.select(
                text_batches.c.id, text_batches.c.output_file_id, text_batches.c.error_file_id
            )
            .where(_has_ended(cutoff))
            .order_by(text_batches.c.ended_at)
            .limit(_CHUNK)
        )
        while rows := await self._database.fetch_all(query):
            ids = [row["id"] for row in rows]
            result_file_ids = [
                file
                for row in rows
                for file in (row["output_file_id"], row["error_file_id"])
                if file is not None
            ]

            def write(
                connection: sa.Connection,
                ids: list[str] = ids,
                result_file_ids: list[str] = result_file_ids,
            ) -> None:
                # In the past, so that the files are deleted at once.
                hide_files = files.update().where(
                    files.c.id.in_(result_file_ids), files.c.deleted_at.is_(None)
                )
                connection.execute(hide_files.values(deleted_at=cutoff))
                connection.execute(
                    native_batches.delete().where(native_batches.c.batch_id.in_(ids))
                )
                connection.execute(text_batches.delete().where(text_batches.c.id.in_(ids)))

            await self._database.write(write)
            deleted_count += len(ids)
        return deleted_count

    async def _fetch_deletable_files(self, cutoff: datetime) -> Sequence[Any]:
        query = sa.select(files.c.id, files.c.sha256).where(_is_deletable(cutoff)).limit(_CHUNK)
        return await self._database.fetch_all(query)

    async def _find_kept_digests(self, digests: Sequence[str], cutoff: datetime) -> set[str]:
        """Return the subset of ``digests`` that undeleted files still need.

        Args:
            cutoff: the time by which the files that `delete_files` deletes were deleted or expired.
        """
        query = sa.select(files.c.sha256).where(
            files.c.sha256.in_(digests), sa.not_(_is_deletable(cutoff))
        )
        return set(await self._database.fetch_values(query))


async def count_prunable_batches(database: Database, cutoff: datetime) -> int:
    """Return the number of batches that ended before ``cutoff``."""
    query = sa.select(sa.func.count()).select_from(text_batches).where(_has_ended(cutoff))
    return int(await database.fetch_value(query))


async def find_file_digests(database: Database, digests: Collection[str]) -> set[str]:
    """Return those of ``digests`` that belong to a file, even to one hidden from its owner."""
    found_digests: set[str] = set()
    digest_list = list(digests)
    for start in range(0, len(digest_list), _CHUNK):
        query = sa.select(files.c.sha256).where(
            files.c.sha256.in_(digest_list[start : start + _CHUNK])
        )
        found_digests.update(await database.fetch_values(query))
    return found_digests


def _has_ended(cutoff: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(text_batches.c.status.not_in(_OPEN), text_batches.c.ended_at < cutoff)


def _is_deletable(cutoff: datetime) -> sa.ColumnElement[bool]:
    """Return the SQL condition for deleted or expired files that no open batch reads."""
    is_read_by_batch = sa.exists().where(
        text_batches.c.input_file_id == files.c.id, text_batches.c.status.in_(_OPEN)
    )
    has_expired = sa.and_(files.c.expires_at < cutoff, files.c.expires_at < now())
    return sa.and_(sa.or_(files.c.deleted_at <= cutoff, has_expired), sa.not_(is_read_by_batch))
