"""Drives native batches: assigns lines, sends the batches to back ends, and collects results.

The next step of a native batch depends only on its row in the database, so that a batch survives
the death of any process. One replica at a time runs the step. It first moves the row's ``due_at``
into the future: if the replica dies, the step becomes due again, and another replica repeats it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from sqlalchemy.exc import SQLAlchemyError

from moyin.domain.native_batch import PLAN, NativeBatch, NativeStatus, get_plan_id
from moyin.domain.stored_file import StoredFile
from moyin.domain.text_batch import BatchStatus, LineResult, TextBatch
from moyin.errors import MoyinError, ServiceUnavailable
from moyin.store.batch_lines import BatchLineStore
from moyin.store.blobs import BlobStore
from moyin.store.native_batches import NativeBatchStore
from moyin.store.sql import now
from moyin.text.batches.formats import FORMATS
from moyin.text.batches.native_collector import NativeCollector
from moyin.text.batches.native_lines import NativeLines
from moyin.text.batches.native_planner import NativePlanner
from moyin.text.batches.native_sender import NativeSender
from moyin.text.batches.native_work import LEASE_SECONDS, BatchInput, abandon_native_batch

_log = logging.getLogger(__name__)
_RENEW_SECONDS = 15.0
_RETRY_SECONDS = 15.0
# How long a sent batch whose response was lost may take to appear at the back end.
_APPEARANCE_SECONDS = 60.0
_POLL_SECONDS = 30.0
_CLOSE_SECONDS = 5.0


class NativeBatches:
    """Runs the due steps of native batches, such as sending; each replica has one instance.

    Args:
        get_poll_seconds: returns the seconds between two polls of a batch's state.
        on_result: called with each stored result.
        appearance_seconds: how long (in seconds) a sent batch whose id was lost may take to appear
            at the back end.
    """

    def __init__(
        self,
        store: NativeBatchStore,
        lines: BatchLineStore,
        blobs: BlobStore,
        native_lines: NativeLines,
        *,
        get_poll_seconds: Callable[[], float] = lambda: _POLL_SECONDS,
        on_result: Callable[[LineResult], None] | None = None,
        appearance_seconds: float = _APPEARANCE_SECONDS,
    ) -> None:
        self._store = store
        self._native_lines = native_lines
        self._get_poll_seconds = get_poll_seconds
        self._planner = NativePlanner(store, blobs, native_lines)
        self._sender = NativeSender(
            store,
            blobs,
            native_lines,
            get_poll_seconds=get_poll_seconds,
            appearance_seconds=appearance_seconds,
        )
        self._collector = NativeCollector(
            store,
            lines,
            blobs,
            native_lines,
            get_poll_seconds=get_poll_seconds,
            on_result=on_result,
        )
        self._steps: dict[str, asyncio.Task[None]] = {}

    async def advance(self, batch: TextBatch, input_file: StoredFile, *, has_limits: bool) -> bool:
        """Start the due steps of a batch's native batches.

        Args:
            has_limits: True if the submitter has limits, such as a budget. Native batches are not
                used then, because they would not stop when a limit is reached.

        Returns:
            True once the lines for native batches are chosen. Single calls may then run the
            remaining lines.
        """
        native_batches = await self._store.list_open(batch.id)
        is_open = batch.status is BatchStatus.IN_PROGRESS and batch.expires_at > now()
        if not native_batches and (
            has_limits or not is_open or not self._native_lines.has_batch_api
        ):
            return True
        if not native_batches:
            native_batches = [await self._add_plan(batch)]
        batch_input = BatchInput(batch=batch, format=FORMATS[batch.dialect], input=input_file)
        is_planned = False
        for native_batch in native_batches:
            if native_batch.is_plan and (native_batch.status is NativeStatus.DONE or not is_open):
                is_planned = True
            elif native_batch.id not in self._steps and native_batch.due_at <= now():
                await self._start_step(batch_input, native_batch, is_open=is_open)
        return is_planned

    @property
    def _retry_seconds(self) -> float:
        return min(self._get_poll_seconds(), _RETRY_SECONDS)

    async def close(self) -> None:
        """Wait some seconds for running steps, then cancel them; another replica repeats them."""
        tasks = list(self._steps.values())
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _add_plan(self, batch: TextBatch) -> NativeBatch:
        created_at = now()
        plan = NativeBatch(
            id=get_plan_id(batch.id), batch_id=batch.id, backend="", model=PLAN,
            status=NativeStatus.ASSIGNED, created_at=created_at, due_at=created_at,
        )  # fmt: skip
        await self._store.add(plan)
        return plan

    async def _start_step(
        self, batch_input: BatchInput, native_batch: NativeBatch, *, is_open: bool
    ) -> None:
        if not await self._store.reserve_step(native_batch, LEASE_SECONDS):
            return
        task = asyncio.create_task(self._run_step(batch_input, native_batch, is_open=is_open))
        self._steps[native_batch.id] = task
        task.add_done_callback(lambda _: self._steps.pop(native_batch.id, None))

    async def _run_step(
        self, batch_input: BatchInput, native_batch: NativeBatch, *, is_open: bool
    ) -> None:
        try:
            async with self._renewing_lease(native_batch.id):
                if native_batch.is_plan:
                    await self._planner.create_native_batches(batch_input, native_batch)
                else:
                    await self._advance_native_batch(batch_input, native_batch, is_open=is_open)
        except (MoyinError, SQLAlchemyError, OSError) as error:
            # The error's text may contain prompts.
            reason = error.message if isinstance(error, MoyinError) else type(error).__name__
            _log.warning(
                "native batch %s: a step failed and is tried again: %s", native_batch.id, reason
            )
            await self._postpone_step(native_batch.id)
        except Exception:
            _log.exception("native batch %s: a step failed unexpectedly", native_batch.id)
            await self._postpone_step(native_batch.id)
            if native_batch.is_plan:
                # A defect in the choice of lines must not block the batch: single calls run its
                # lines instead.
                with suppress(SQLAlchemyError, OSError):
                    await self._store.save(replace(native_batch, status=NativeStatus.DONE))

    async def _postpone_step(self, native_batch_id: str) -> None:
        with suppress(SQLAlchemyError, OSError):
            await self._store.renew_step(native_batch_id, self._retry_seconds)

    @asynccontextmanager
    async def _renewing_lease(self, native_batch_id: str) -> AsyncIterator[None]:
        """Renew this replica's claim on a native batch's current step during the ``with`` block."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(_RENEW_SECONDS)
                with suppress(SQLAlchemyError, OSError):
                    await self._store.renew_step(native_batch_id, LEASE_SECONDS)

        task = asyncio.create_task(renew())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _advance_native_batch(
        self, batch_input: BatchInput, native_batch: NativeBatch, *, is_open: bool
    ) -> None:
        api = self._native_lines.get_api(native_batch.backend)
        if (
            api is None
            or self._native_lines.find_deployment(native_batch.backend, native_batch.model) is None
        ):
            if not is_open:
                await abandon_native_batch(
                    self._store, native_batch, "its back end is no longer configured"
                )
                return
            raise ServiceUnavailable(
                f"the batch API of {native_batch.backend!r} is not configured for the model "
                f"{native_batch.model!r}; set 'batch: true' and 'batch_price'"
            )
        match native_batch.status:
            case NativeStatus.ASSIGNED if not is_open:
                await abandon_native_batch(self._store, native_batch, "the batch is over")
            case NativeStatus.ASSIGNED:
                await self._sender.send(batch_input, native_batch, api)
            case NativeStatus.SENDING:
                await self._sender.recover(native_batch, api, is_open=is_open)
            case NativeStatus.RUNNING:
                await self._collector.poll(batch_input, native_batch, api, is_open=is_open)
