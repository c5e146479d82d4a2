"""Collects the results of native batches from back ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from moyin.domain.native_batch import NativeBatch
from moyin.domain.text_batch import BatchLine, LineResult
from moyin.errors import ModelNotFound, MoyinError, ServiceUnavailable
from moyin.store.batch_lines import BatchLineStore, FinishedLine
from moyin.store.blobs import BlobStore
from moyin.store.native_batches import NativeBatchStore
from moyin.text.backends.batches import (
    BatchApi,
    RemoteBatch,
    RemoteOutcome,
    RemoteResult,
    RemoteState,
)
from moyin.text.batches.input_file import read_lines
from moyin.text.batches.native_lines import NativeLines
from moyin.text.batches.native_work import (
    CALL_SECONDS,
    TRANSFER_SECONDS,
    NativeWork,
    abandon,
    finish,
    run_in_thread_with_pause,
)

_log = logging.getLogger(__name__)
# Number of results that are written in one transaction.
_GROUP = 50


class NativeCollector:
    """Polls back ends for ended native batches, and stores their results.

    Args:
        get_poll_seconds: returns the seconds between two polls of a batch's state.
        on_result: called with each stored result.
    """

    def __init__(
        self,
        store: NativeBatchStore,
        lines: BatchLineStore,
        blobs: BlobStore,
        native_lines: NativeLines,
        *,
        get_poll_seconds: Callable[[], float],
        on_result: Callable[[LineResult], None] | None,
    ) -> None:
        self._store = store
        self._lines = lines
        self._blobs = blobs
        self._native_lines = native_lines
        self._get_poll_seconds = get_poll_seconds
        self._on_result = on_result

    async def poll(
        self, work: NativeWork, native: NativeBatch, api: BatchApi, *, is_open: bool
    ) -> None:
        """Collect the results if the back end has run the whole batch; else schedule the next poll.

        Args:
            is_open: False if the client's batch was cancelled or expired. A native batch that still
                runs is then cancelled.
        """
        assert native.remote_id is not None, "a running native batch must have an id"
        deadline = asyncio.get_running_loop().time() + CALL_SECONDS
        try:
            remote = await api.poll(native.remote_id, deadline)
        except ModelNotFound:
            await abandon(self._store, native, "its back end no longer knows it")
            return
        match remote.state:
            case RemoteState.REJECTED:
                await abandon(self._store, native, remote.reason or "its back end rejected it")
            case RemoteState.ENDED:
                await self._collect_results(work, native, api, remote)
            case RemoteState.RUNNING:
                if not is_open and not native.state.get("is_cancelled"):
                    await api.cancel(native.remote_id, deadline)
                    native = replace(native, state={**native.state, "is_cancelled": True})
                await self._store.save(native, due_in_seconds=self._get_poll_seconds())

    async def _collect_results(
        self, work: NativeWork, native: NativeBatch, api: BatchApi, remote_batch: RemoteBatch
    ) -> None:
        """Store the results of a native batch, and release the lines without a result."""
        deadline = asyncio.get_running_loop().time() + TRANSFER_SECONDS
        group: dict[int, RemoteResult] = {}
        async with aclosing(api.read_results(remote_batch, deadline)) as results:
            async for result in results:
                number = native.parse_line_number(result.custom_id)
                if number is None:
                    _log.error("native batch %s: a result has a foreign id", native.id)
                elif result.outcome is not RemoteOutcome.UNANSWERED:
                    group[number] = result
                if len(group) >= _GROUP:
                    await self._store_results(work, native, api, group)
                    group = {}
        await self._store_results(work, native, api, group)
        await finish(self._store, native)
        try:
            await api.discard(remote_batch, asyncio.get_running_loop().time() + CALL_SECONDS)
        except MoyinError as error:
            _log.info("native batch %s stays at its back end: %s", native.id, error.message)

    async def _store_results(
        self, work: NativeWork, native: NativeBatch, api: BatchApi, group: dict[int, RemoteResult]
    ) -> None:
        """Store the results of those lines that are still assigned to the native batch.

        Args:
            group: the back end's results, by the number of the line.
        """
        if not group:
            return
        lines = await self._lines.list_claimed_lines(native.batch_id, sorted(group), native.id)
        contents = await read_lines(self._blobs, work.input.sha256, lines)
        finished_lines = await run_in_thread_with_pause(
            self._decode_results, work, native, api, group, list(zip(lines, contents, strict=True))
        )
        refused_lines = await self._lines.finish(finished_lines) if finished_lines else []
        if self._on_result is not None:
            refused_numbers = {item.result.number for item in refused_lines}
            for item in finished_lines:
                if item.result.number not in refused_numbers:
                    self._on_result(item.result)

    def _decode_results(
        self,
        work: NativeWork,
        native: NativeBatch,
        api: BatchApi,
        group: dict[int, RemoteResult],
        lines: Sequence[tuple[BatchLine, bytes]],
    ) -> list[FinishedLine]:
        deployment = self._native_lines.find_deployment(native.backend, native.model)
        if deployment is None:
            raise ServiceUnavailable(f"the model {native.model!r} is no longer configured")
        finished_lines = []
        for line, content in lines:
            body = work.format.read_body(content)
            decoded_result = self._native_lines.decode(
                work.batch, line.number, body, group[line.number], deployment, api
            )
            if decoded_result is not None:
                result, usage = decoded_result
                finished_lines.append(
                    FinishedLine(batch_id=native.batch_id, result=result, usage=usage)
                )
        return finished_lines
