"""Chooses the lines of a batch that back ends run natively, and creates their native batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from moyin.domain.native_batch import NativeBatch, NativeStatus, new_native_id
from moyin.domain.text_batch import BatchLine, TextBatch
from moyin.store.blobs import BlobStore
from moyin.store.native_batches import NativeBatchStore
from moyin.store.sql import now
from moyin.text.batches.input_file import read_lines
from moyin.text.batches.native_lines import NativeLines
from moyin.text.batches.native_work import (
    LEASE_SECONDS,
    PAGE,
    NativeWork,
    encode_line,
    run_in_thread_with_pause,
    split_lines,
)

# Maximum number of lines in a native batch.
_MAX_LINES = 10_000


@dataclass(slots=True)
class _Group:
    """A native batch that is still being filled with lines."""

    native: NativeBatch
    count: int = 0
    size: int = 0


class NativePlanner:
    """Assigns the lines of batches to native batches."""

    def __init__(
        self, store: NativeBatchStore, blobs: BlobStore, native_lines: NativeLines
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._native_lines = native_lines

    async def divide(self, work: NativeWork, plan: NativeBatch) -> None:
        """Choose the lines of a batch that back ends run natively, and create their native batches.

        Args:
            plan: the row that represents this step; it is marked as done at the end.
        """
        groups: dict[tuple[str, str], _Group] = {}
        last_number = 0
        while page := await self._store.list_free_lines(work.batch.id, last_number, PAGE):
            for part in split_lines(page):
                contents = await read_lines(self._blobs, work.input.sha256, part)
                lines_by_target = await run_in_thread_with_pause(
                    self._choose_lines, work, part, contents
                )
                for key, chosen_lines in lines_by_target.items():
                    await self._assign_lines(work, groups, key, chosen_lines)
            last_number = page[-1].number
        for group in groups.values():
            await self._store.make_first_step_due(group.native)
        await self._store.save(replace(plan, status=NativeStatus.DONE))

    def _choose_lines(
        self, work: NativeWork, page: Sequence[BatchLine], contents: Sequence[bytes]
    ) -> dict[tuple[str, str], list[tuple[int, int]]]:
        """Choose those lines that back ends run natively.

        Args:
            page: lines of the batch that are not assigned yet.
            contents: the content of each line of ``page``.

        Returns:
            Number and size in bytes of each chosen line, by back end and model.
        """
        chosen_lines: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for line, content in zip(page, contents, strict=True):
            choice = self._native_lines.choose(work.batch, work.format.read_body(content))
            if choice is None:
                continue
            target, native_line = choice
            assert target.runtime.batch_api is not None
            size = len(encode_line(target.runtime.batch_api, "x" * 64, native_line))
            key = (target.runtime.name, target.model.name)
            chosen_lines.setdefault(key, []).append((line.number, size))
        return chosen_lines

    async def _assign_lines(
        self,
        work: NativeWork,
        groups: dict[tuple[str, str], _Group],
        key: tuple[str, str],
        chosen_lines: Sequence[tuple[int, int]],
    ) -> None:
        api = self._native_lines.get_api(key[0])
        if api is None:
            return
        numbers: list[int] = []
        for number, size in chosen_lines:
            group = groups.get(key)
            limit = min(api.max_requests, _MAX_LINES)
            if group is not None and (group.count >= limit or group.size + size > api.max_bytes):
                await self._store.assign_lines(group.native, numbers)
                await self._store.make_first_step_due(group.native)
                numbers, group = [], None
            if group is None:
                group = groups[key] = _Group(await self._add_native_batch(work.batch, *key))
            group.count, group.size = group.count + 1, group.size + size
            numbers.append(number)
        await self._store.assign_lines(groups[key].native, numbers)

    async def _add_native_batch(self, batch: TextBatch, backend: str, model: str) -> NativeBatch:
        moment = now()
        native = NativeBatch(
            id=new_native_id(), batch_id=batch.id, backend=backend, model=model,
            status=NativeStatus.ASSIGNED, created_at=moment,
            # No replica sends the batch before all of its lines are assigned, unless this replica
            # dies.
            due_at=moment + timedelta(seconds=2 * LEASE_SECONDS),
        )  # fmt: skip
        await self._store.add(native)
        return native
