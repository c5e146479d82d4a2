"""Runs lines of batches in a replica: claims them, calls models, and writes the results."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from moyin.domain.identity import Identity
from moyin.domain.stored_file import StoredFile
from moyin.domain.text_batch import (
    BatchLine,
    BatchStatus,
    LineResult,
    TextBatch,
    get_line_request_id,
)
from moyin.errors import BackendError, MoyinError, ServiceUnavailable
from moyin.store.batch_lines import BatchLineStore, FinishedLine
from moyin.store.blobs import BlobStore
from moyin.store.files import FileStore
from moyin.store.sql import now
from moyin.store.text_batches import TextBatchStore
from moyin.store.usage import UsageEntry
from moyin.text.batches.formats import FORMATS, BatchFormat
from moyin.text.batches.input_file import read_lines
from moyin.text.batches.native import NativeBatches
from moyin.text.batches.pacer import Pacer
from moyin.text.batches.result_writer import ResultWriter

_log = logging.getLogger(__name__)
# Seconds after which other replicas may claim the lines of a replica that did not renew its lease.
_LEASE_SECONDS = 15.0
_RENEW_SECONDS = 5.0
_RETRY_SECONDS = 0.5
# Duration of one call of `BatchRunner.run_lines`, in seconds.
_WORK_SECONDS = 10.0
_IDLE_SECONDS = 1.0
_WINDOW = 32
# Maximum number of attempts for a line whose back end returns transient errors. Waiting for a back
# end that is down, or for a limit of the tenant, does not count.
_MAX_FAILURES = 5
_MAX_PAUSE_SECONDS = 30.0
# A larger exponent would overflow after very many attempts.
_MAX_DOUBLINGS = 10
# Seconds that running calls may take when the replica stops.
_CLOSE_SECONDS = 8.0


class WorkState(StrEnum):
    """Shows whether a batch needs another call of `BatchRunner.run_lines`.

    ``more`` means that lines are left to run or are running; otherwise the state is ``done``.
    """

    MORE = "more"
    DONE = "done"


@dataclass(kw_only=True, slots=True)
class LineOutcome:
    """The outcome of one model call for a line.

    Attributes:
        result: the answer or the error, as a client would have received it.
        error: the error; None for an answer.
        usage: the ledger entries of complete answers, which are stored together with the result.
            The entries of failed attempts are in the ledger already.
    """

    result: LineResult
    error: MoyinError | None = None
    usage: list[UsageEntry] = field(default_factory=list)


class LineCaller(Protocol):
    """Sends the request of a line to a model, with a lower priority than interactive requests."""

    async def call(
        self, endpoint: str, body: bytes, *, number: int, request_id: str, identity: Identity
    ) -> LineOutcome:
        """Call the model and return the outcome, which may be an error.

        Args:
            endpoint: the path of the call, such as ``/v1/chat/completions``.
            body: the request body.
            number: the number of the line.
            identity: the submitter of the batch.
        """


@dataclass(kw_only=True, eq=False)
class _OpenBatch:
    """The lines of one batch that this replica runs."""

    batch: TextBatch
    format: BatchFormat
    input: StoredFile
    identity: Identity
    # Line numbers by the task that runs the line.
    running: dict[asyncio.Task[None], int] = field(default_factory=dict)
    claim_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    # Set when the batch is over, so that lines waiting for another attempt give up.
    end_event: asyncio.Event = field(default_factory=asyncio.Event)


class BatchRunner:
    """Runs the lines of batches in one replica.

    A running line continues after the caller of `run_lines` is gone, and its result is stored, so that
    the line is not paid for twice.

    Args:
        get_window: returns the maximum number of lines of one batch that run or wait for a slot in
            this replica.
        on_result: called with each stored result.
        native: runs lines through back ends' own batch APIs; None to use only single calls.
    """

    def __init__(
        self,
        *,
        batches: TextBatchStore,
        lines: BatchLineStore,
        files: FileStore,
        blobs: BlobStore,
        caller: LineCaller,
        pacer: Pacer | None = None,
        get_window: Callable[[], int] = lambda: _WINDOW,
        on_result: Callable[[LineResult], None] | None = None,
        native: NativeBatches | None = None,
    ) -> None:
        self.id = f"replica-{secrets.token_hex(12)}"
        self._get_window = get_window
        self._batches = batches
        self._lines = lines
        self._files = files
        self._blobs = blobs
        self._caller = caller
        self._native = native
        self._pacer = pacer or Pacer()
        self._writer = ResultWriter(lines, on_result)
        self._open: dict[str, _OpenBatch] = {}
        # Number of running calls of `run_lines`, by batch.
        self._running_calls: Counter[str] = Counter()
        self._renewal_task: asyncio.Task[None] | None = None
        self._is_closing = False

    async def run_lines(
        self, batch_id: str, identity: Identity, seconds: float = _WORK_SECONDS
    ) -> WorkState:
        """Run lines of a batch for some seconds; lines that still run afterwards continue.

        Args:
            identity: the submitter of the batch, with the current limits.

        Returns:
            `WorkState.MORE` if lines are left to run or still run.

        Raises:
            BatchNotFound: there is no such batch.
            ServiceUnavailable: the replica is stopping, or the database is unavailable.
        """
        self._start_renewing_lease()
        self._running_calls[batch_id] += 1
        loop = asyncio.get_running_loop()
        end_time = loop.time() + seconds
        try:
            while True:
                state = await self._fill_window(batch_id, identity)
                remaining_seconds = end_time - loop.time()
                if state is WorkState.DONE or remaining_seconds <= 0:
                    return state
                open_batch = self._open.get(batch_id)
                running_tasks = () if open_batch is None else tuple(open_batch.running)
                pause = min(_IDLE_SECONDS, remaining_seconds)
                if running_tasks:
                    await asyncio.wait(
                        running_tasks, timeout=pause, return_when=asyncio.FIRST_COMPLETED
                    )
                else:
                    await asyncio.sleep(pause)
        except (SQLAlchemyError, OSError) as error:
            _log.warning("lines of batch %s cannot be run: %s", batch_id, type(error).__name__)
            raise ServiceUnavailable(
                "the database or the artifact store is unavailable; retry later", retry_after=1
            ) from error
        finally:
            self._running_calls[batch_id] -= 1
            self._drop_if_idle(batch_id)

    async def close(self) -> None:
        """Wait some seconds for running lines, then cancel the rest and release all claims."""
        self._is_closing = True
        loop = asyncio.get_running_loop()
        end_time = loop.time() + _CLOSE_SECONDS
        tasks: list[asyncio.Task[None]] = []
        open_batches = list(self._open.values())
        for open_batch in open_batches:
            open_batch.end_event.set()
        for open_batch in open_batches:
            # Lines that are being started notice the stop. An unavailable database must not delay
            # it.
            with suppress(TimeoutError):
                async with asyncio.timeout_at(end_time), open_batch.claim_lock:
                    pass
            tasks += open_batch.running
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, end_time - loop.time()))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._writer.close()
        if self._native is not None:
            await self._native.close()
        if self._renewal_task is not None:
            self._renewal_task.cancel()
            await asyncio.gather(self._renewal_task, return_exceptions=True)
            with suppress(SQLAlchemyError, OSError):
                await self._lines.remove_runner(self.id)

    async def _fill_window(self, batch_id: str, identity: Identity) -> WorkState:
        """Claim and start lines until the batch's window is full.

        Returns:
            `WorkState.MORE` if lines are left to run or still run.
        """
        open_batch = await self._get_open_batch(batch_id, identity)
        batch = open_batch.batch
        may_start_lines = True
        if self._native is not None:
            has_limits = bool(identity.limits)
            may_start_lines = await self._native.advance(
                batch, open_batch.input, has_limits=has_limits
            )
        if batch.status is not BatchStatus.IN_PROGRESS or batch.expires_at <= now():
            return await self._end_batch(open_batch)
        if not may_start_lines:
            return WorkState.MORE
        async with open_batch.claim_lock:
            window = self._get_window()
            free_count = window - len(open_batch.running)
            # Claiming few lines at a time would take many transactions.
            if free_count < max(1, window // 2):
                return WorkState.MORE
            running_numbers = list(open_batch.running.values())
            claimed_lines = await self._lines.claim(
                batch_id,
                self.id,
                free_count,
                running_numbers=running_numbers,
                alive_seconds=_LEASE_SECONDS,
            )
            await self._start_lines(open_batch, claimed_lines)
        if claimed_lines or open_batch.running:
            return WorkState.MORE
        counts = await self._lines.count(batch_id)
        return WorkState.MORE if counts.pending else WorkState.DONE

    async def _end_batch(self, open_batch: _OpenBatch) -> WorkState:
        """Release this replica's claims on the lines of an ended batch, once none of them runs.

        Returns:
            `WorkState.MORE` while lines run: the caller must try again later.
        """
        open_batch.end_event.set()
        async with open_batch.claim_lock:
            if open_batch.running:
                return WorkState.MORE
            # A cancelled claim or a failed release may have left lines claimed by this replica.
            await self._lines.release_all(open_batch.batch.id, self.id)
        return WorkState.DONE

    async def _get_open_batch(self, batch_id: str, identity: Identity) -> _OpenBatch:
        """Return this replica's state of a batch, after reloading the batch's row."""
        if self._is_closing:
            raise _new_closing_error()
        batch = await self._batches.get(identity.owner, batch_id)
        open_batch = self._open.get(batch_id)
        if open_batch is None:
            input_file = await self._files.find(batch.owner, batch.input_file_id, with_deleted=True)
            if input_file is None:
                raise ServiceUnavailable(
                    f"the input file {batch.input_file_id} of batch {batch_id} does not exist"
                )
            open_batch = self._open.setdefault(
                batch_id,
                _OpenBatch(
                    batch=batch, format=FORMATS[batch.dialect], input=input_file, identity=identity
                ),
            )
        open_batch.batch, open_batch.identity = batch, identity
        return open_batch

    async def _start_lines(
        self, open_batch: _OpenBatch, claimed_lines: Sequence[BatchLine]
    ) -> None:
        """Start to run claimed lines, or release them if their content cannot be read."""
        started_count = 0
        try:
            contents = await read_lines(self._blobs, open_batch.input.sha256, claimed_lines)
            for line, content in zip(claimed_lines, contents, strict=True):
                await self._pacer.wait()
                if self._is_closing:
                    raise _new_closing_error()
                task = asyncio.create_task(self._run_line(open_batch, line, content))
                open_batch.running[task] = line.number
                task.add_done_callback(
                    lambda finished_task: self._end_line(open_batch, finished_task)
                )
                started_count += 1
        except BaseException:
            await self._release_lines(
                open_batch.batch.id, [line.number for line in claimed_lines[started_count:]]
            )
            raise

    def _end_line(self, open_batch: _OpenBatch, task: asyncio.Task[None]) -> None:
        open_batch.running.pop(task, None)
        self._drop_if_idle(open_batch.batch.id)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error(
                "a line of batch %s was not run to its end", open_batch.batch.id, exc_info=error
            )

    def _drop_if_idle(self, batch_id: str) -> None:
        """Drop the state of a batch that has no running line and no running call of `run_lines`."""
        open_batch = self._open.get(batch_id)
        if self._running_calls[batch_id] <= 0:
            del self._running_calls[batch_id]
            if open_batch is not None and not open_batch.running:
                del self._open[batch_id]

    async def _run_line(self, open_batch: _OpenBatch, line: BatchLine, content: bytes) -> None:
        """Call a model for a line until it has a result, and write the result."""
        batch = open_batch.batch
        try:
            outcome = await self._call_until_final(open_batch, line, content)
        except BaseException:
            await self._release_lines(batch.id, [line.number])
            raise
        if outcome is None:
            await self._release_lines(batch.id, [line.number])
            return
        await self._writer.write(
            FinishedLine(
                batch_id=batch.id,
                result=outcome.result,
                usage=tuple(outcome.usage),
                run=secrets.token_hex(8),
            )
        )

    async def _call_until_final(
        self, open_batch: _OpenBatch, line: BatchLine, content: bytes
    ) -> LineOutcome | None:
        """Call a model, and call it again after temporary errors, until the outcome is final.

        Returns:
            The outcome; None if the batch ends first.
        """
        body = open_batch.format.read_body(content)
        backend_failure_count = failed_call_count = 0
        while True:
            outcome = await self._caller.call(
                open_batch.batch.endpoint,
                body,
                number=line.number,
                request_id=get_line_request_id(open_batch.batch.id, line.number),
                identity=open_batch.identity,
            )
            error = outcome.error
            # A complete call is paid for; another attempt would cost as much again.
            if error is None or not error.retryable or outcome.usage:
                return outcome
            backend_failure_count += isinstance(error, BackendError)
            if backend_failure_count >= _MAX_FAILURES:
                return outcome
            pause = min(
                max(error.retry_after or 0.0, 0.5 * 2 ** min(failed_call_count, _MAX_DOUBLINGS)),
                _MAX_PAUSE_SECONDS,
            )
            failed_call_count += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await open_batch.end_event.wait()
                return None

    async def _release_lines(self, batch_id: str, numbers: Sequence[int]) -> None:
        try:
            await self._lines.release(batch_id, numbers, self.id)
        except (SQLAlchemyError, OSError) as error:
            # This replica's next claim takes the lines, or another replica's after the lease has
            # expired.
            _log.warning(
                "lines of batch %s were not given back: %s", batch_id, type(error).__name__
            )

    def _start_renewing_lease(self) -> None:
        if self._renewal_task is None:
            self._renewal_task = asyncio.create_task(self._renew_lease_forever())

    async def _renew_lease_forever(self) -> None:
        while True:
            pause = _RENEW_SECONDS
            try:
                await self._lines.renew_runner(self.id, _LEASE_SECONDS)
            except (SQLAlchemyError, OSError) as error:
                _log.warning("the lease on lines was not renewed: %s", type(error).__name__)
                pause = _RETRY_SECONDS
            await asyncio.sleep(pause)


def _new_closing_error() -> ServiceUnavailable:
    return ServiceUnavailable("the replica is stopping; send the request again", retry_after=0.2)
