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
    BatchInput,
    abandon_native_batch,
    encode_line,
    run_in_thread_with_pause,
    split_lines,
)

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 15.0
# How long a failed search is retried, and how long a batch that is over waits for one that may be
# running.
_SEARCH_PERIOD = timedelta(hours=6)


@dataclass(slots=True)
class _PayloadContent:
    """The number and size of the requests in a payload file, and the path of the call they make."""

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

    async def send(self, batch_input: BatchInput, native_batch: NativeBatch, api: BatchApi) -> None:
        """Record that a native batch is being sent, then send it.

        After a crash, the record shows that the back end may have received the batch.
        """
        with tempfile.TemporaryDirectory(prefix="moyin-batch-") as folder:
            payload = await self._write_payload(
                batch_input, native_batch, api, Path(folder) / "requests"
            )
            if payload is None:
                await abandon_native_batch(self._store, native_batch, "it has no lines")
                return
            sent_batch = replace(
                native_batch,
                status=NativeStatus.SENDING,
                state={"since": datetime.now(UTC).isoformat(), "count": payload.count},
            )
            await self._store.save(sent_batch, due_in_seconds=LEASE_SECONDS)
            deadline = asyncio.get_running_loop().time() + TRANSFER_SECONDS
            try:
                remote_batch = await api.submit(payload, deadline)
            except (BackendRejected, BackendKeyRejected, ModelNotFound) as error:
                await abandon_native_batch(self._store, native_batch, error.message)
                return
            except (BackendError, Overloaded) as error:
                # Overloaded is included, because a proxy may report it after the server accepted
                # the batch.
                _log.warning(
                    "native batch %s: whether %s has received it is unknown: %s",
                    native_batch.id, native_batch.backend, error.message,
                )  # fmt: skip
                pause = max(error.retry_after or 0.0, self._retry_seconds)
                await self._store.save(sent_batch, due_in_seconds=pause)
                return
        await self._record_remote_id(sent_batch, remote_batch)

    async def recover(self, native_batch: NativeBatch, api: BatchApi, *, is_open: bool) -> None:
        """Find a sent native batch whose id was lost, or send it again if the back end has none.

        Args:
            is_open: False if the client's batch is over. The search then ends after a while, even if
                a running batch may be the one sent.
        """
        if "lost_at" not in native_batch.state:
            native_batch = replace(
                native_batch, state={**native_batch.state, "lost_at": now().isoformat()}
            )
        lost_at = datetime.fromisoformat(native_batch.state["lost_at"])
        is_late = now() > lost_at + _SEARCH_PERIOD
        await self._store.save(native_batch, due_in_seconds=LEASE_SECONDS)
        known_ids = await self._store.list_remote_ids(native_batch.backend)
        try:
            remote_batch, may_run = await self._find_remote_batch(native_batch, api, known_ids)
        except Exception as error:
            # The search may fail every time, for example if the back end has no batch API.
            if not is_late:
                raise
            reason = error.message if isinstance(error, MoyinError) else type(error).__name__
            await abandon_native_batch(
                self._store, native_batch, f"unknown if its back end received it: {reason}"
            )
            return
        if remote_batch is not None:
            await self._record_remote_id(native_batch, remote_batch)
        elif may_run and is_late and not is_open:
            await abandon_native_batch(self._store, native_batch, "unknown if its back end runs it")
        elif may_run or now() < lost_at + self._appearance:
            # Releasing the lines of a running batch would get them answered twice.
            await self._store.save(native_batch, due_in_seconds=self._get_poll_seconds())
        else:
            unsent_batch = replace(native_batch, status=NativeStatus.ASSIGNED, state={})
            await self._store.save(unsent_batch)

    async def _find_remote_batch(
        self, native_batch: NativeBatch, api: BatchApi, known_ids: Collection[str]
    ) -> tuple[RemoteBatch | None, bool]:
        """Search the back end for this native batch.

        Args:
            known_ids: the ids of batches at the back end that belong to other native batches.

        Returns:
            The batch that matches, or None; and True if a running batch may be the right one.
        """
        may_run = False
        since = datetime.fromisoformat(native_batch.state["since"])
        deadline = asyncio.get_running_loop().time() + CALL_SECONDS
        async for remote_batch in api.find_submitted(
            native_batch.id, native_batch.state["count"], since, deadline
        ):
            if remote_batch.id in known_ids:
                continue
            is_match = api.identifies_by_key or await self._matches_native_batch(
                native_batch, api, remote_batch
            )
            if is_match:
                return remote_batch, False
            # Only the results show which batch this is.
            may_run |= is_match is None
        return None, may_run

    async def _matches_native_batch(
        self, native_batch: NativeBatch, api: BatchApi, remote_batch: RemoteBatch
    ) -> bool | None:
        """Return True if the results of ``remote_batch`` belong to this native batch.

        Returns None while the remote batch runs, because it has no results before its end.
        """
        if remote_batch.state is RemoteState.RUNNING:
            return None
        deadline = asyncio.get_running_loop().time() + CALL_SECONDS
        async with aclosing(api.read_results(remote_batch, deadline)) as results:
            async for result in results:
                return native_batch.parse_line_number(result.custom_id) is not None
        return False

    async def _record_remote_id(self, native_batch: NativeBatch, remote_batch: RemoteBatch) -> None:
        """Record the id that the back end gave a native batch."""
        running_batch = replace(
            native_batch, status=NativeStatus.RUNNING, remote_id=remote_batch.id
        )
        await self._store.save(running_batch, due_in_seconds=self._get_poll_seconds())
        _log.info(
            "native batch %s is %s at %s", native_batch.id, remote_batch.id, native_batch.backend
        )

    async def _write_payload(
        self, batch_input: BatchInput, native_batch: NativeBatch, api: BatchApi, path: Path
    ) -> Payload | None:
        """Write the requests of a native batch to the file ``path``.

        Returns:
            The payload to send; None if the native batch has no requests.
        """
        payload_content = _PayloadContent()
        last_number = 0
        while page := await self._store.list_lines(native_batch, last_number, PAGE):
            for page_lines in split_lines(page):
                contents = await read_lines(self._blobs, batch_input.input.sha256, page_lines)
                lines = list(zip(page_lines, contents, strict=True))
                await run_in_thread_with_pause(
                    self._append_requests,
                    batch_input,
                    native_batch,
                    api,
                    lines,
                    path,
                    payload_content,
                )
            last_number = page[-1].number
        if not payload_content.count:
            return None
        return Payload(
            key=native_batch.id,
            path=payload_content.path,
            file=path,
            size=payload_content.size,
            count=payload_content.count,
        )

    def _append_requests(
        self,
        batch_input: BatchInput,
        native_batch: NativeBatch,
        api: BatchApi,
        lines: Sequence[tuple[BatchLine, bytes]],
        path: Path,
        payload_content: _PayloadContent,
    ) -> None:
        """Append the requests of ``lines`` to the payload file.

        Args:
            lines: pairs of a line and its content.
            path: the payload file.
            payload_content: describes the requests in the file; it is updated.
        """
        with path.open("ab") as file:
            for line, content in lines:
                encoded_line = self._native_lines.encode_line(
                    batch_input.batch,
                    batch_input.format.read_body(content),
                    native_batch.backend,
                    native_batch.model,
                )
                # A line that can no longer be encoded gets no result, and is released later.
                if encoded_line is not None:
                    payload_content.size += file.write(
                        encode_line(api, native_batch.get_custom_id(line.number), encoded_line)
                    )
                    payload_content.count += 1
                    payload_content.path = encoded_line.path

    @property
    def _retry_seconds(self) -> float:
        return min(self._get_poll_seconds(), _RETRY_SECONDS)
