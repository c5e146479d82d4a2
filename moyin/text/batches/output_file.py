"""Writes the results of a batch to files."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from moyin.domain.stored_file import BATCH_OUTPUT, INTERNAL, StoredFile
from moyin.domain.text_batch import BatchDialect, BatchLine, LineStatus, TextBatch
from moyin.store.batch_lines import BatchLineStore
from moyin.store.blobs import BlobStore
from moyin.text.batches.formats import FORMATS
from moyin.text.protocol.openai.batches import compute_output_expiry

_PAGE = 200
_MEDIA_TYPE = "application/jsonl"


async def write_results(
    batch: TextBatch, lines: BatchLineStore, blobs: BlobStore
) -> tuple[StoredFile | None, StoredFile | None]:
    """Store the results of a batch as blobs. No line of the batch may be running or run later.

    The files' ids are derived from the batch, so that a retry creates the same files.

    Returns:
        The output file and the error file; None for a file without lines. The caller must add the
        files' rows to the database.
    """
    with tempfile.TemporaryDirectory(prefix="moyin-") as folder:
        paths = {name: Path(folder) / name for name in ("output", "errors")}
        await _write_pages(batch, lines, paths)
        files = []
        for name, path in paths.items():
            is_written = path.stat().st_size > 0
            files.append(await _store_file(batch, name, path, blobs) if is_written else None)
    return files[0], files[1]


async def _write_pages(batch: TextBatch, lines: BatchLineStore, paths: dict[str, Path]) -> None:
    last_number = 0
    with ExitStack() as stack:
        output_file, error_file = (stack.enter_context(path.open("wb")) for path in paths.values())
        while page := await lines.list_page(batch.id, last_number, _PAGE):
            await asyncio.to_thread(_write_page, batch, page, output_file, error_file)
            last_number = page[-1].number


def _write_page(
    batch: TextBatch, page: list[BatchLine], output_file: IO[bytes], error_file: IO[bytes]
) -> None:
    batch_format = FORMATS[batch.dialect]
    for line in page:
        is_answered = line.result is not None and line.result.status is LineStatus.COMPLETED
        file = output_file if is_answered or not batch_format.has_error_file else error_file
        file.write(batch_format.render_result(batch, line) + b"\n")


async def _store_file(batch: TextBatch, name: str, path: Path, blobs: BlobStore) -> StoredFile:
    blob = await blobs.put_file(path)
    created_at = datetime.now(UTC)
    return StoredFile(
        id=f"file-{hashlib.sha256(f'{batch.id}/{name}'.encode()).hexdigest()[:32]}",
        owner=batch.owner,
        # Anthropic's batch API has no files.
        purpose=BATCH_OUTPUT if batch.dialect is BatchDialect.OPENAI else INTERNAL,
        filename=f"{batch.id}_{'error' if name == 'errors' else name}.jsonl",
        media_type=_MEDIA_TYPE,
        size=blob.size,
        sha256=blob.sha256,
        created_at=created_at,
        expires_at=compute_output_expiry(batch, created_at),
    )
