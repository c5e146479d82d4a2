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


def line(name: str, size: int = 0) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * size}]}
    data = {"custom_id": name, "method": "POST", "url": ENDPOINT, "body": body}
    return json.dumps(data).encode()


@pytest.fixture
def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BlobStore:
    # So that lines are cut in all places.
    monkeypatch.setattr(blob_module, "_CHUNK", 37)
    return BlobStore(f"file://{tmp_path}")


async def check(
    blobs: BlobStore, content: bytes, **bounds: int
) -> tuple[int, list[tuple[str, int | None]], list[NewLine], str]:
    added_lines: list[NewLine] = []

    async def add_lines(lines: Sequence[NewLine]) -> None:
        added_lines.extend(lines)

    sha256 = await blobs.put(content)
    total, errors = await check_input(
        blobs,
        sha256,
        OpenAIBatchFormat(),
        ENDPOINT,
        add_lines=add_lines,
        bounds=InputBounds(**bounds),
    )
    return total, [(error.code, error.line) for error in errors], added_lines, sha256


@pytest.mark.parametrize("line_ending", [b"", b"\n", b"\r\n", b"\n\n"])
async def test_lines_are_found_again_where_they_were(blobs: BlobStore, line_ending: bytes) -> None:
    lines = [line("a"), b"  " + line("b", 90) + b"\r", b"", line("ü")]
    content = b"\xef\xbb\xbf" + b"\n".join(lines) + line_ending
    total, errors, added_lines, sha256 = await check(blobs, content)
    assert (total, errors) == (3, [])
    assert [(x.number, x.custom_id) for x in added_lines] == [(1, "a"), (2, "b"), (4, "ü")]
    results = [
        BatchLine(number=x.number, custom_id=x.custom_id, start=x.start, size=x.size)
        for x in added_lines
    ]
    assert await read_lines(blobs, sha256, results) == [part.strip() for part in lines if part]
    assert await read_lines(blobs, sha256, results[1:2]) == [line("b", 90)]


async def test_errors_name_their_lines(blobs: BlobStore) -> None:
    content = b"\n".join([line("a"), b"[]", line("a"), line("b")])
    total, errors, added_lines, _ = await check(blobs, content)
    assert total == 4
    assert errors == [("invalid_json_line", 2), ("duplicate_custom_id", 3)]
    assert [x.custom_id for x in added_lines] == ["a", "b"]


async def test_bounds(blobs: BlobStore) -> None:
    content = b"\n".join([line("a"), line("b"), line("c")])
    assert (await check(blobs, content, max_lines=2))[1] == [("too_many_lines", None)]
    assert (await check(blobs, content, max_lines=3))[1] == []
    assert (await check(blobs, b"\n", max_lines=3))[1] == [("empty_file", None)]
    size = len(line("a"))
    assert (await check(blobs, content, max_line_bytes=size))[1] == []
    for long_line in (line("d", 100) + b"\n" + line("e"), line("d", 10_000)):
        whole_content = content + b"\n" + long_line
        assert (await check(blobs, whole_content, max_line_bytes=size))[1] == [
            ("line_too_large", 4)
        ]


async def test_at_most_a_hundred_errors_are_listed(blobs: BlobStore) -> None:
    _, errors, added_lines, _ = await check(blobs, b"{}\n" * 500)
    assert len(errors) == 100 and added_lines == []


async def test_a_missing_blob_is_reported(blobs: BlobStore) -> None:
    with pytest.raises(FileNotFoundError):
        await check_input(
            blobs, "a" * 64, OpenAIBatchFormat(), ENDPOINT, add_lines=_nothing, bounds=InputBounds()
        )


async def _nothing(_: Sequence[NewLine]) -> None:
    return None
