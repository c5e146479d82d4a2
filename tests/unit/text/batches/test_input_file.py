from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from moyin.domain.text_batch import BatchLine, NewLine
from moyin.store import blobs as blob_module
from moyin.store.blobs import BlobStore
from moyin.text.batches.input_file import InputBounds, check_input, read_lines
from moyin.text.protocol.openai.batches import OpenAIBatchFormat

ENDPOINT = "/v1/chat/completions"


def make_line(custom_id: str, size: int = 0) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * size}]}
    line_object = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}
    return json.dumps(line_object).encode()


@pytest.fixture
def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BlobStore:
    # So that lines are cut in all places.
    monkeypatch.setattr(blob_module, "_CHUNK", 37)
    return BlobStore(f"file://{tmp_path}")


async def check_content(
    blobs: BlobStore, content: bytes, **bounds: int
) -> tuple[int, list[tuple[str, int | None]], list[NewLine], str]:
    """Check an input file with this content.

    Returns:
        The number of lines, the codes and line numbers of errors, the added lines, and the digest.
    """
    added_lines: list[NewLine] = []

    async def add_lines(lines: Sequence[NewLine]) -> None:
        added_lines.extend(lines)

    sha256 = await blobs.put(content)
    line_count, errors = await check_input(
        blobs,
        sha256,
        OpenAIBatchFormat(),
        ENDPOINT,
        add_lines=add_lines,
        bounds=InputBounds(**bounds),
    )
    return line_count, [(error.code, error.line) for error in errors], added_lines, sha256


@pytest.mark.parametrize("line_ending", [b"", b"\n", b"\r\n", b"\n\n"])
async def test_recorded_positions_find_the_lines(blobs: BlobStore, line_ending: bytes) -> None:
    lines = [make_line("a"), b"  " + make_line("b", 90) + b"\r", b"", make_line("ü")]
    content = b"\xef\xbb\xbf" + b"\n".join(lines) + line_ending
    line_count, errors, added_lines, sha256 = await check_content(blobs, content)
    assert (line_count, errors) == (3, [])
    assert [(x.number, x.custom_id) for x in added_lines] == [(1, "a"), (2, "b"), (4, "ü")]
    batch_lines = [
        BatchLine(number=x.number, custom_id=x.custom_id, start=x.start, size=x.size)
        for x in added_lines
    ]
    assert await read_lines(blobs, sha256, batch_lines) == [
        raw_line.strip() for raw_line in lines if raw_line
    ]
    assert await read_lines(blobs, sha256, batch_lines[1:2]) == [make_line("b", 90)]


async def test_errors_name_their_lines(blobs: BlobStore) -> None:
    content = b"\n".join([make_line("a"), b"[]", make_line("a"), make_line("b")])
    line_count, errors, added_lines, _ = await check_content(blobs, content)
    assert line_count == 4
    assert errors == [("invalid_json_line", 2), ("duplicate_custom_id", 3)]
    assert [x.custom_id for x in added_lines] == ["a", "b"]


async def test_bounds_of_input_files_are_enforced(blobs: BlobStore) -> None:
    content = b"\n".join([make_line("a"), make_line("b"), make_line("c")])
    assert (await check_content(blobs, content, max_lines=2))[1] == [("too_many_lines", None)]
    assert (await check_content(blobs, content, max_lines=3))[1] == []
    assert (await check_content(blobs, b"\n", max_lines=3))[1] == [("empty_file", None)]
    line_bytes = len(make_line("a"))
    assert (await check_content(blobs, content, max_line_bytes=line_bytes))[1] == []
    for long_line in (make_line("d", 100) + b"\n" + make_line("e"), make_line("d", 10_000)):
        whole_content = content + b"\n" + long_line
        assert (await check_content(blobs, whole_content, max_line_bytes=line_bytes))[1] == [
            ("line_too_large", 4)
        ]


async def test_at_most_a_hundred_errors_are_listed(blobs: BlobStore) -> None:
    _, errors, added_lines, _ = await check_content(blobs, b"{}\n" * 500)
    assert len(errors) == 100 and added_lines == []


async def test_a_missing_blob_is_reported(blobs: BlobStore) -> None:
    with pytest.raises(FileNotFoundError):
        await check_input(
            blobs,
            "a" * 64,
            OpenAIBatchFormat(),
            ENDPOINT,
            add_lines=ignore_lines,
            bounds=InputBounds(),
        )


async def ignore_lines(_: Sequence[NewLine]) -> None:
    return None
