"""Contains what the steps of native batches share."""

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
# The step of a replica that died is taken by another after so long.
LEASE_SECONDS = 60.0
# The time limits of a question to a back end, and of sending requests or reading results.
CALL_SECONDS = 120.0
TRANSFER_SECONDS = 1_800.0
# Lines whose rows are read at once, and those whose contents are held in memory.
PAGE = 500
_PART_LINES = 50
_PART_BYTES = 8 * 1024 * 1024


@dataclass(kw_only=True, slots=True)
class NativeWork:
    """What a step needs to know of the batch."""

    batch: TextBatch
    format: BatchFormat
    input: StoredFile


async def give_up(store: NativeBatchStore, native: NativeBatch, reason: str) -> None:
    """Give all lines of a native batch back, which single calls then answer."""
    _log.warning("native batch %s at %s is not used: %s", native.id, native.backend, reason)
    await finish(store, native)


async def finish(store: NativeBatchStore, native: NativeBatch) -> None:
    """Give the lines without a result back, and record that the native batch is done."""
    released = await store.release(native)
    if released:
        _log.info("native batch %s gives %d lines back", native.id, released)
    await store.save(replace(native, status=NativeStatus.DONE))


async def run_gently(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return the result of work in a thread, and leave other requests as much time as it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    result = await asyncio.to_thread(work, *args, **kwargs)
    await asyncio.sleep(loop.time() - began)
    return result


def split_lines(page: Sequence[BatchLine]) -> Iterator[list[BatchLine]]:
    """Yield the lines in parts that may be held in memory."""
    part: list[BatchLine] = []
    size = 0
    for line in page:
        if part and (len(part) >= _PART_LINES or size + line.size > _PART_BYTES):
            yield part
            part, size = [], 0
        part.append(line)
        size += line.size
    if part:
        yield part


def encode_line(api: BatchApi, custom_id: str, line: NativeLine) -> bytes:
    """Encode a line as a request of a batch API."""
    return api.encode_request(custom_id, line.path, line.body)
