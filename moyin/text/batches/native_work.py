"""Contains the data and functions that all steps of native batches share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

from moyin.domain.native_batch import NativeBatch, NativeStatus
from moyin.domain.stored_file import StoredFile
from moyin.domain.text_batch import BatchLine, TextBatch
from moyin.store.native_batches import NativeBatchStore
from moyin.text.backends.batches import BatchApi
from moyin.text.batches.formats import BatchFormat
from moyin.text.batches.native_lines import NativeLine

P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger(__name__)
# Seconds after which another replica takes over the step of a replica that died.
LEASE_SECONDS = 60.0
# Timeouts in seconds of a poll, and of sending requests or reading results.
CALL_SECONDS = 120.0
TRANSFER_SECONDS = 1_800.0
# Number of line rows read at once, and of line contents held in memory.
PAGE = 500
_PART_LINES = 50
_PART_BYTES = 8 * 1024 * 1024


@dataclass(kw_only=True, slots=True)
class BatchInput:
    """The data for the steps of native batches: a batch, its input file and its format."""

    batch: TextBatch
    format: BatchFormat
    input: StoredFile


async def abandon_native_batch(
    store: NativeBatchStore, native_batch: NativeBatch, reason: str
) -> None:
    """End a native batch and release its lines, which single calls then answer.

    Args:
        reason: why the back end does not run the batch, for the log.
    """
    _log.warning(
        "native batch %s at %s is not used: %s", native_batch.id, native_batch.backend, reason
    )
    await finish_native_batch(store, native_batch)


async def finish_native_batch(store: NativeBatchStore, native_batch: NativeBatch) -> None:
    """Release the lines without a result, and record that the native batch is done."""
    released_count = await store.release_lines(native_batch)
    if released_count:
        _log.info("native batch %s gives %d lines back", native_batch.id, released_count)
    await store.save(replace(native_batch, status=NativeStatus.DONE))


async def run_in_thread_with_pause(
    function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run ``function`` in a thread, pause for as long as it took, and return its result.

    The pause leaves processor time for other requests.
    """
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    result = await asyncio.to_thread(function, *args, **kwargs)
    await asyncio.sleep(loop.time() - started_at)
    return result


def split_lines(page: Sequence[BatchLine]) -> Iterator[list[BatchLine]]:
    """Yield the lines of ``page`` in groups whose contents are small enough to hold in memory."""
    group: list[BatchLine] = []
    size = 0
    for line in page:
        if group and (len(group) >= _PART_LINES or size + line.size > _PART_BYTES):
            yield group
            group, size = [], 0
        group.append(line)
        size += line.size
    if group:
        yield group


def encode_line(api: BatchApi, custom_id: str, line: NativeLine) -> bytes:
    """Encode a line as a request of a batch API."""
    return api.encode_request(custom_id, line.path, line.body)
