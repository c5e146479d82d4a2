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
    BatchInput,
    abandon_native_batch,
    finish_native_batch,
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
        self, batch_input: BatchInput, native_batch: NativeBatch, api: BatchApi, *, is_open: bool
    ) -> None:
        """Collect the results if the back end has run the whole batch; else schedule the next poll.

        Args:
            is_open: False if the client's batch was cancelled or expired. A native batch that still
                runs is then cancelled.
        """
        assert native_batch.remote_id is not None, "a running native batch must have an id"
        deadline = asyncio.get_running_loop().time() + CALL_SECONDS
        try:
            remote_batch = await api.poll(native_batch.remote_id, deadline)
        except ModelNotFound:
            await abandon_native_batch(self._store, native_batch, "its back end no longer knows it")
            return
        match remote_batch.state:
            case RemoteState.REJECTED:
                await abandon_native_batch(
                    self._store, native_batch, remote_batch.reason or "its back end rejected it"
                )
            case RemoteState.ENDED:
                await self._collect_results(batch_input, native_batch, api, remote_batch)
            case RemoteState.RUNNING:
                if not is_open and not native_batch.state.get("is_cancelled"):
                    await api.cancel(native_batch.remote_id, deadline)
                    native_batch = replace(
                        native_batch, state={**native_batch.state, "is_cancelled": True}
                    )
                await self._store.save(native_batch, due_in_seconds=self._get_poll_seconds())

    async def _collect_results(
        self,
        batch_input: BatchInput,
        native_batch: NativeBatch,
        api: BatchApi,
        remote_batch: RemoteBatch,
    ) -> None:
        """Store the results of a native batch; single calls then run the lines without a result."""
        deadline = asyncio.get_running_loop().time() + TRANSFER_SECONDS
        results_by_number: dict[int, RemoteResult] = {}
        async with aclosing(api.read_results(remote_batch, deadline)) as results:
            async for result in results:
                line_number = native_batch.parse_line_number(result.custom_id)
                if line_number is None:
                    _log.error(
                        "native batch %s: the back end sent a result with an unknown custom_id",
                        native_batch.id,
                    )
                elif result.outcome is not RemoteOutcome.UNANSWERED:
                    results_by_number[line_number] = result
                if len(results_by_number) >= _GROUP:
                    await self._store_results(batch_input, native_batch, api, results_by_number)
                    results_by_number = {}
        await self._store_results(batch_input, native_batch, api, results_by_number)
        await finish_native_batch(self._store, native_batch)
        try:
            await api.discard(remote_batch, asyncio.get_running_loop().time() + CALL_SECONDS)
        except MoyinError as error:
            _log.info("native batch %s stays at its back end: %s", native_batch.id, error.message)

    async def _store_results(
        self,
        batch_input: BatchInput,
        native_batch: NativeBatch,
        api: BatchApi,
        results_by_number: dict[int, RemoteResult],
    ) -> None:
        """Store the results of those lines that are still assigned to the native batch.

        Args:
            results_by_number: the back end's results, by the number of the line.
        """
        if not results_by_number:
            return
        lines = await self._lines.list_claimed_lines(
            native_batch.batch_id, sorted(results_by_number), native_batch.id
        )
        contents = await read_lines(self._blobs, batch_input.input.sha256, lines)
        finished_lines = await run_in_thread_with_pause(
            self._decode_results,
            batch_input,
            native_batch,
            api,
            results_by_number,
            list(zip(lines, contents, strict=True)),
        )
        refused_lines = await self._lines.finish(finished_lines) if finished_lines else []
        if self._on_result is not None:
            refused_numbers = {finished_line.result.number for finished_line in refused_lines}
            for finished_line in finished_lines:
                if finished_line.result.number not in refused_numbers:
                    self._on_result(finished_line.result)

    def _decode_results(
        self,
        batch_input: BatchInput,
        native_batch: NativeBatch,
        api: BatchApi,
        results_by_number: dict[int, RemoteResult],
        lines: Sequence[tuple[BatchLine, bytes]],
    ) -> list[FinishedLine]:
        deployment = self._native_lines.find_deployment(native_batch.backend, native_batch.model)
        if deployment is None:
            raise ServiceUnavailable(
                f"the model {native_batch.model!r} of {native_batch.backend!r} is no longer configured "
                "for batches; set 'batch_price'"
            )
        finished_lines = []
        for line, content in lines:
            body = batch_input.format.read_body(content)
            decoded_result = self._native_lines.decode_result(
                batch_input.batch,
                line.number,
                body,
                results_by_number[line.number],
                deployment,
                api,
            )
            if decoded_result is not None:
                result, usage = decoded_result
                finished_lines.append(
                    FinishedLine(batch_id=native_batch.batch_id, result=result, usage=usage)
                )
        return finished_lines
