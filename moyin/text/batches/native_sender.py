"""Sends each native batch to its back end once, and finds sent batches whose ids were lost."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from moyin.domain.native_batch import NativeBatch, NativeStatus
from moyin.domain.text_batch import BatchLine
from moyin.errors import (
    BackendError,
    BackendKeyRejected,
    BackendRejected,
    ModelNotFound,
    MoyinError,
    Overloaded,
)
from moyin.store.blobs import BlobStore
from moyin.store.native_batches import NativeBatchStore
from moyin.store.sql import now
from moyin.text.backends.batches import BatchApi, Payload, RemoteBatch, RemoteState
from moyin.text.batches.input_file import read_lines
from moyin.text.batches.native_lines import NativeLines
from moyin.text.batches.native_work import (
    CALL_SECONDS,
    LEASE_SECONDS,
    PAGE,
    TRANSFER_SECONDS,
    NativeWork,
    abandon,
    encode_line,
    run_in_thread_with_pause,
    split_lines,
)

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 15.0
# Seconds for which a failed search is retried, and for which a batch that is over waits for a
# running one.
_SEARCH_PERIOD = timedelta(hours=6)


@dataclass(slots=True)
class _PayloadContent:
    """The requests written to a payload so far; ``path`` is the path of the call they all make."""

    count: int = 0
    size: int = 0
    path: str = ""


class NativeSender:
    """Sends native batches.

    Args:
        get_poll_seconds: returns the seconds between two polls of a batch's state.
        appearance_seconds: how long (in seconds) a sent batch whose id was lost may take to appear
            at the back end.
    """

    def __init__(
        self,
        store: NativeBatchStore,
        blobs: BlobStore,
        native_lines: NativeLines,
        *,
        get_poll_seconds: Callable[[], float],
        appearance_seconds: float,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._native_lines = native_lines
        self._get_poll_seconds = get_poll_seconds
        self._appearance = timedelta(seconds=appearance_seconds)

    async def send(self, work: NativeWork, native: NativeBatch, api: BatchApi) -> None:
        """Send a native batch whose lines are assigned, after recording that it is being sent."""
        with tempfile.TemporaryDirectory(prefix="moyin-batch-") as folder:
            payload = await self._write_payload(work, native, api, Path(folder) / "requests")
            if payload is None:
                await abandon(self._store, native, "it has no lines")
                return
            sent_batch = replace(
                native,
                status=NativeStatus.SENDING,
                state={"since": datetime.now(UTC).isoformat(), "count": payload.count},
            )
            await self._store.save(sent_batch, due_in_seconds=LEASE_SECONDS)
            deadline = asyncio.get_running_loop().time() + TRANSFER_SECONDS
            try:
                remote = await api.submit(payload, deadline)
            except (BackendRejected, BackendKeyRejected, ModelNotFound) as error:
                await abandon(self._store, native, error.message)
                return
            except (BackendError, Overloaded) as error:
                # Overloaded is included, because a proxy may report it after the server accepted
                # the batch.
                _log.warning(
                    "native batch %s: whether %s has received it is unknown: %s",
                    native.id, native.backend, error.message,
                )  # fmt: skip
                pause = max(error.retry_after or 0.0, self._retry_seconds)
                await self._store.save(sent_batch, due_in_seconds=pause)
                return
        await self._record_remote_id(sent_batch, remote)

    async def recover(self, native: NativeBatch, api: BatchApi, *, is_open: bool) -> None:
        """Find a sent native batch whose id was lost, or send it again if the back end has none.

        Args:
            is_open: False if the client's batch is over. The search then ends after a while, even if
                a running batch may be the one sent.
        """
        if "lost_at" not in native.state:
            native = replace(native, state={**native.state, "lost_at": now().isoformat()})
        lost_at = datetime.fromisoformat(native.state["lost_at"])
        is_late = now() > lost_at + _SEARCH_PERIOD
        await self._store.save(native, due_in_seconds=LEASE_SECONDS)
        known_ids = await self._store.list_remote_ids(native.backend)
        try:
            remote, may_run = await self._find_remote_batch(native, api, known_ids)
        except Exception as error:
            # The search may fail every time, for example if the back end has no batch API.
            if not is_late:
                raise
            reason = error.message if isinstance(error, MoyinError) else type(error).__name__
            await abandon(self._store, native, f"unknown if its back end received it: {reason}")
            return
        if remote is not None:
            await self._record_remote_id(native, remote)
        elif may_run and is_late and not is_open:
            await abandon(self._store, native, "unknown if its back end runs it")
        elif may_run or now() < lost_at + self._appearance:
            # Releasing the lines of a running batch would get them answered twice.
            await self._store.save(native, due_in_seconds=self._get_poll_seconds())
        else:
            unsent_batch = replace(native, status=NativeStatus.ASSIGNED, state={})
            await self._store.save(unsent_batch)

    async def _find_remote_batch(
        self, native: NativeBatch, api: BatchApi, known_ids: Collection[str]
    ) -> tuple[RemoteBatch | None, bool]:
        """Search the back end for this native batch.

        Args:
            known_ids: the ids of batches at the back end that belong to other native batches.

        Returns:
            The batch that matches, or None; and True if a running batch may be the right one.
        """
        may_run = False
        since = datetime.fromisoformat(native.state["since"])
        deadline = asyncio.get_running_loop().time() + CALL_SECONDS
        async for remote in api.find_submitted(native.id, native.state["count"], since, deadline):
            if remote.id in known_ids:
                continue
            match = api.identifies_by_key or await self._matches_native_batch(native, api, remote)
            if match:
                return remote, False
            # Only the results show which batch this is.
            may_run |= match is None
        return None, may_run

    async def _matches_native_batch(
        self, native: NativeBatch, api: BatchApi, remote_batch: RemoteBatch
    ) -> bool | None:
        """Return True if the results of ``remote_batch`` belong to this native batch.

        Returns None while the remote batch runs, because it has no results before its end.
        """
        if remote_batch.state is RemoteState.RUNNING:
            return None
        deadline = asyncio.get_running_loop().time() + CALL_SECONDS
        async with aclosing(api.read_results(remote_batch, deadline)) as results:
            async for result in results:
                return native.parse_line_number(result.custom_id) is not None
        return False

    async def _record_remote_id(self, native: NativeBatch, remote_batch: RemoteBatch) -> None:
        """Record the id that the back end gave a native batch."""
        running_batch = replace(native, status=NativeStatus.RUNNING, remote_id=remote_batch.id)
        await self._store.save(running_batch, due_in_seconds=self._get_poll_seconds())
        _log.info("native batch %s is %s at %s", native.id, remote_batch.id, native.backend)

    async def _write_payload(
        self, work: NativeWork, native: NativeBatch, api: BatchApi, path: Path
    ) -> Payload | None:
        """Write the requests of a native batch to the file ``path``.

        Returns:
            The payload to send; None if the native batch has no requests.
        """
        content = _PayloadContent()
        last_number = 0
        while page := await self._store.list_lines(native, last_number, PAGE):
            for part in split_lines(page):
                contents = await read_lines(self._blobs, work.input.sha256, part)
                lines = list(zip(part, contents, strict=True))
                await run_in_thread_with_pause(
                    self._write_part, work, native, api, lines, path, content
                )
            last_number = page[-1].number
        if not content.count:
            return None
        return Payload(
            key=native.id, path=content.path, file=path, size=content.size, count=content.count
        )

    def _write_part(
        self,
        work: NativeWork,
        native: NativeBatch,
        api: BatchApi,
        lines: Sequence[tuple[BatchLine, bytes]],
        path: Path,
        payload_content: _PayloadContent,
    ) -> None:
        """Append the requests of ``lines`` to the payload file.

        Args:
            lines: pairs of a line and its content.
            path: the payload file.
            payload_content: counts what the file contains.
        """
        with path.open("ab") as file:
            for line, content in lines:
                encoded_line = self._native_lines.encode(
                    work.batch, work.format.read_body(content), native.backend, native.model
                )
                # A line that can no longer be encoded gets no result, and is released later.
                if encoded_line is not None:
                    payload_content.size += file.write(
                        encode_line(api, native.get_custom_id(line.number), encoded_line)
                    )
                    payload_content.count += 1
                    payload_content.path = encoded_line.path

    @property
    def _retry_seconds(self) -> float:
        return min(self._get_poll_seconds(), _RETRY_SECONDS)
