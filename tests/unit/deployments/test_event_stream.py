"""Tests the merging of streams of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from deployments.event_stream import merge_streams


class FakeSource:
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
    first_source, second_source = FakeSource(), FakeSource()
    merged_stream = merge_streams(
        {"a": first_source.stream(), "b": second_source.stream()}, heartbeat_seconds=60
    )
    async with aclosing(merged_stream):
        for number in (1, 2):
            second_source.values.put_nowait(number)
            assert await anext(merged_stream) == ("b", number)
        first_source.values.put_nowait(3)
        assert await anext(merged_stream) == ("a", 3)
        first_source.values.put_nowait(4)
        second_source.values.put_nowait(5)
        assert {await anext(merged_stream), await anext(merged_stream)} == {("a", 4), ("b", 5)}
    assert first_source.is_closed and second_source.is_closed


async def test_silence_is_reported_and_loses_no_value() -> None:
    source = FakeSource()
    async with aclosing(
        merge_streams({"a": source.stream()}, heartbeat_seconds=0.01)
    ) as merged_stream:
        assert await anext(merged_stream) is None
        source.values.put_nowait(1)
        value = await anext(merged_stream)
        while value is None:
            value = await anext(merged_stream)
        assert value == ("a", 1)


async def test_an_error_of_one_stream_ends_all() -> None:
    first_source, second_source = FakeSource(), FakeSource()
    merged_stream = merge_streams(
        {"a": first_source.stream(), "b": second_source.stream()}, heartbeat_seconds=60
    )
    first_source.values.put_nowait(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await anext(merged_stream)
    assert first_source.is_closed and second_source.is_closed


async def test_no_streams_count_as_silence() -> None:
    streams: dict[str, AsyncGenerator[int, None]] = {}
    async with aclosing(merge_streams(streams, heartbeat_seconds=0.01)) as merged_stream:
        assert [await anext(merged_stream), await anext(merged_stream)] == [None, None]
