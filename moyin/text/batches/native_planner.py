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
    BatchInput,
    encode_line,
    run_in_thread_with_pause,
    split_lines,
)

# Maximum number of lines in a native batch.
_MAX_LINES = 10_000


@dataclass(slots=True)
class _NativeBatchDraft:
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

    async def create_native_batches(self, batch_input: BatchInput, plan: NativeBatch) -> None:
        """Choose the lines of a batch that back ends run natively, and create their native batches.

        Args:
            plan: the native batch without lines that stands for this step in the database. It is
                marked as done at the end, so that the step is not repeated.
        """
        drafts: dict[tuple[str, str], _NativeBatchDraft] = {}
        last_number = 0
        while page := await self._store.list_free_lines(batch_input.batch.id, last_number, PAGE):
            for page_lines in split_lines(page):
                contents = await read_lines(self._blobs, batch_input.input.sha256, page_lines)
                lines_by_target = await run_in_thread_with_pause(
                    self._choose_lines, batch_input, page_lines, contents
                )
                for key, chosen_lines in lines_by_target.items():
                    await self._assign_lines(batch_input, drafts, key, chosen_lines)
            last_number = page[-1].number
        for draft in drafts.values():
            await self._store.make_first_step_due(draft.native)
        await self._store.save(replace(plan, status=NativeStatus.DONE))

    def _choose_lines(
        self, batch_input: BatchInput, lines: Sequence[BatchLine], contents: Sequence[bytes]
    ) -> dict[tuple[str, str], list[tuple[int, int]]]:
        """Choose those lines that back ends run natively.

        Args:
            lines: lines of the batch that are not assigned yet.
            contents: the content of each of ``lines``.

        Returns:
            Number and size in bytes of each chosen line, by back end and model.
        """
        chosen_lines: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for line, content in zip(lines, contents, strict=True):
            choice = self._native_lines.choose_backend(
                batch_input.batch, batch_input.format.read_body(content)
            )
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
        batch_input: BatchInput,
        drafts: dict[tuple[str, str], _NativeBatchDraft],
        key: tuple[str, str],
        chosen_lines: Sequence[tuple[int, int]],
    ) -> None:
        api = self._native_lines.get_api(key[0])
        if api is None:
            return
        numbers: list[int] = []
        for number, size in chosen_lines:
            draft = drafts.get(key)
            limit = min(api.max_requests, _MAX_LINES)
            if draft is not None and (draft.count >= limit or draft.size + size > api.max_bytes):
                await self._store.assign_lines(draft.native, numbers)
                await self._store.make_first_step_due(draft.native)
                numbers, draft = [], None
            if draft is None:
                draft = drafts[key] = _NativeBatchDraft(
                    await self._add_native_batch(batch_input.batch, *key)
                )
            draft.count, draft.size = draft.count + 1, draft.size + size
            numbers.append(number)
        await self._store.assign_lines(drafts[key].native, numbers)

    async def _add_native_batch(self, batch: TextBatch, backend: str, model: str) -> NativeBatch:
        created_at = now()
        native_batch = NativeBatch(
            id=new_native_id(), batch_id=batch.id, backend=backend, model=model,
            status=NativeStatus.ASSIGNED, created_at=created_at,
            # No replica sends the batch before all of its lines are assigned, unless this replica
            # dies.
            due_at=created_at + timedelta(seconds=2 * LEASE_SECONDS),
        )  # fmt: skip
        await self._store.add(native_batch)
        return native_batch
