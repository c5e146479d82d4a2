"""Validates the input files of batches, and reads single lines again when they are run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from moyin.domain.text_batch import BatchError, BatchLine, NewLine
from moyin.store.blobs import BlobStore
from moyin.text.batches.formats import BatchFormat
from moyin.text.protocol.openai.batches import InvalidLine

_MAX_ERRORS = 100
_LINES_PER_PART = 1_000
_BYTES_PER_PART = 1024 * 1024
# Neighbouring lines of up to this many bytes in total are read together.
_SPAN_BYTES = 4 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class _RawLine:
    number: int
    start: int
    content: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class InputBounds:
    """The maximum number of lines and of bytes per line.

    If ``max_lines`` is None, the limit of the batch format applies.
    """

    max_lines: int | None = None
    max_line_bytes: int = 64 * 1024 * 1024


async def check_input(
    blobs: BlobStore,
    sha256: str,
    batch_format: BatchFormat,
    endpoint: str,
    *,
    add_lines: Callable[[Sequence[NewLine]], Awaitable[None]],
    bounds: InputBounds,
) -> tuple[int, list[BatchError]]:
    """Validate all lines of a file, and pass the valid ones to ``add_lines`` in groups.

    Returns:
        The number of lines, and the first hundred errors.

    Raises:
        FileNotFoundError: the file's blob was deleted.
    """
    checker = _LineChecker(batch_format, endpoint)
    max_lines = batch_format.max_lines if bounds.max_lines is None else bounds.max_lines
    line_count = 0
    try:
        async for raw_lines in _read_line_groups(blobs, sha256, bounds):
            line_count += len(raw_lines)
            if line_count > max_lines:
                message = f"the file has more than {max_lines} lines; split it"
                return line_count, [BatchError(code="too_many_lines", message=message)]
            # Parsing a megabyte takes milliseconds, too long for the event loop.
            lines = await asyncio.to_thread(checker.check, raw_lines)
            if len(checker.errors) >= _MAX_ERRORS:
                break
            await add_lines(lines)
    except _LineTooLarge as error:
        message = f"the line is too large; a line may have at most {bounds.max_line_bytes} bytes"
        return line_count, [BatchError(code="line_too_large", message=message, line=error.number)]
    if not line_count:
        return 0, [
            BatchError(
                code="empty_file",
                message="the file has no lines; it must have at least one request",
            )
        ]
    return line_count, checker.errors[:_MAX_ERRORS]


async def read_lines(blobs: BlobStore, sha256: str, lines: Sequence[BatchLine]) -> list[bytes]:
    """Return the content of each of ``lines``, which must be sorted by line number.

    Raises:
        FileNotFoundError: the file's blob was deleted.
    """
    contents: list[bytes] = []
    for neighbours in _group_neighbours(lines):
        start, end = neighbours[0].start, neighbours[-1].start + neighbours[-1].size
        pieces = [piece async for piece in blobs.read_chunks(sha256, start=start, end=end)]
        content = b"".join(pieces)
        contents += [
            content[line.start - start : line.start - start + line.size] for line in neighbours
        ]
    return contents


class _LineTooLarge(Exception):
    def __init__(self, line_number: int) -> None:
        self.number = line_number


class _LineChecker:
    """Validates the lines of one file; blank lines are skipped and not counted."""

    def __init__(self, batch_format: BatchFormat, endpoint: str) -> None:
        self._format = batch_format
        self._endpoint = endpoint
        self._numbers_by_id: dict[str, int] = {}
        self.errors: list[BatchError] = []

    def check(self, raw_lines: Sequence[_RawLine]) -> list[NewLine]:
        valid_lines = []
        for line in raw_lines:
            try:
                custom_id = self._format.check_line(line.content, self._endpoint)
                first_number = self._numbers_by_id.setdefault(custom_id, line.number)
                if first_number != line.number:
                    raise InvalidLine(
                        "duplicate_custom_id",
                        f"custom_id must be unique; line {first_number} has the same one",
                        "custom_id",
                    )
            except InvalidLine as error:
                self.errors.append(
                    BatchError(
                        code=error.line_code,
                        message=error.message,
                        line=line.number,
                        param=error.field,
                    )
                )
                continue
            valid_lines.append(
                NewLine(
                    number=line.number,
                    custom_id=custom_id,
                    start=line.start,
                    size=len(line.content),
                )
            )
        return valid_lines


async def _read_line_groups(
    blobs: BlobStore, sha256: str, bounds: InputBounds
) -> AsyncIterator[list[_RawLine]]:
    """Yield the non-blank lines in groups of about a megabyte."""
    group: list[_RawLine] = []
    size = 0
    async for line in _read_raw_lines(blobs, sha256, bounds):
        group.append(line)
        size += len(line.content)
        if len(group) >= _LINES_PER_PART or size >= _BYTES_PER_PART:
            yield group
            group, size = [], 0
    if group:
        yield group


async def _read_raw_lines(
    blobs: BlobStore, sha256: str, bounds: InputBounds
) -> AsyncIterator[_RawLine]:
    # The pieces of a long line are joined once, at its end.
    pieces: list[bytes] = []
    size = start = number = 0
    async for chunk in blobs.read_chunks(sha256):
        pieces.append(chunk)
        size += len(chunk)
        if b"\n" in chunk:
            *lines, incomplete_line = b"".join(pieces).split(b"\n")
            pieces, size = [incomplete_line], len(incomplete_line)
            for content in lines:
                number += 1
                if len(content) > bounds.max_line_bytes:
                    raise _LineTooLarge(number)
                if (line := _strip_line(number, start, content)) is not None:
                    yield line
                start += len(content) + 1
        if size > bounds.max_line_bytes:
            raise _LineTooLarge(number + 1)
    if (line := _strip_line(number + 1, start, b"".join(pieces))) is not None:
        yield line


def _strip_line(line_number: int, start: int, content: bytes) -> _RawLine | None:
    """Return a line without white space at its ends, or None if nothing is left.

    Args:
        line_number: the number of the line, from 1.
        start: the offset of ``content`` in the file, in bytes.
    """
    if line_number == 1 and content.startswith(_BOM):
        start, content = start + len(_BOM), content[len(_BOM) :]
    stripped_content = content.lstrip()
    start += len(content) - len(stripped_content)
    stripped_content = stripped_content.rstrip()
    return _RawLine(line_number, start, stripped_content) if stripped_content else None


def _group_neighbours(lines: Sequence[BatchLine]) -> list[list[BatchLine]]:
    """Group lines that are close enough in the file to be read together."""
    groups: list[list[BatchLine]] = []
    for line in lines:
        if groups and line.start + line.size - groups[-1][0].start <= _SPAN_BYTES:
            groups[-1].append(line)
        else:
            groups.append([line])
    return groups
