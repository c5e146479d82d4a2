"""Tests the merging of streams of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from deployments.event_stream import merge_streams


class Source:
    """A stream whose values a test sends."""

    def __init__(self) -> None:
        self.values: asyncio.Queue[int | Exception] = asyncio.Queue()
        self.is_closed = False

    async def stream(self) -> AsyncGenerator[int, None]:
        try:
            while True:
                value = await self.values.get()
                if isinstance(value, Exception):
                    raise value
                yield value
        finally:
            self.is_closed = True


async def test_values_come_with_the_name_of_their_stream() -> None:
    first, second = Source(), Source()
    merged = merge_streams({"a": first.stream(), "b": second.stream()}, heartbeat=60)
    async with aclosing(merged):
        for number in (1, 2):
            second.values.put_nowait(number)
            assert await anext(merged) == ("b", number)
        first.values.put_nowait(3)
        assert await anext(merged) == ("a", 3)
        first.values.put_nowait(4)
        second.values.put_nowait(5)
        assert {await anext(merged), await anext(merged)} == {("a", 4), ("b", 5)}
    assert first.is_closed and second.is_closed


async def test_silence_is_reported_and_loses_no_value() -> None:
    source = Source()
    async with aclosing(merge_streams({"a": source.stream()}, heartbeat=0.01)) as merged:
        assert await anext(merged) is None
        source.values.put_nowait(1)
        seen = await anext(merged)
        while seen is None:
            seen = await anext(merged)
        assert seen == ("a", 1)


async def test_an_error_of_one_stream_ends_all() -> None:
    first, second = Source(), Source()
    merged = merge_streams({"a": first.stream(), "b": second.stream()}, heartbeat=60)
    first.values.put_nowait(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await anext(merged)
    assert first.is_closed and second.is_closed


async def test_no_stream_is_silence() -> None:
    streams: dict[str, AsyncGenerator[int, None]] = {}
    async with aclosing(merge_streams(streams, heartbeat=0.01)) as merged:
        assert [await anext(merged), await anext(merged)] == [None, None]
