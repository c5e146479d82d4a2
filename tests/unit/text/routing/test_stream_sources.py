from __future__ import annotations

import json
from collections.abc import AsyncGenerator

import openai.types.chat
import pytest

from moyin.domain.chat import Delta, Finished, Started, StopReason, TextDelta, UsageUpdate
from moyin.domain.money import Usage
from moyin.errors import StreamInterrupted
from moyin.text.protocol.anthropic.stream import StreamWriter as AnthropicWriter
from moyin.text.protocol.openai.stream import StreamTap, StreamWriter
from moyin.text.routing.stream_sources import ForwardedSource, TranslatedSource

STARTED = Started(id="1", model="m")
TEXTS: list[Delta] = [TextDelta(text="中文字"), TextDelta(text="👌")]
FINISHED = Finished(stop=StopReason.END, usage=Usage(input_tokens=1, output_tokens=2))


async def read_usage(*deltas: Delta, by_token: bool) -> Usage:
    """Read a translated stream of ``deltas`` to its end, and return its usage.

    Args:
        by_token: True to count each delta as one token, False to estimate tokens from the text.
    """

    async def upstream() -> AsyncGenerator[Delta, None]:
        for delta in deltas:
            yield delta

    writer = StreamWriter(created=1, include_usage=False)
    source = TranslatedSource(upstream(), writer, by_token=by_token, prompt_tokens=10)
    async for _ in source.iterate_pieces():
        pass
    return source.usage


@pytest.mark.parametrize("states_zero", [False, True])
@pytest.mark.parametrize("include_usage", [False, True])
async def test_a_client_that_asks_for_the_usage_gets_the_estimate_that_is_booked(
    include_usage: bool, states_zero: bool
) -> None:
    choice = {"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}
    event = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    zero_usage_event = event | {
        "choices": [],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0},
    }
    sent_events = [event | {"choices": [choice]}, *([zero_usage_event] if states_zero else [])]

    async def upstream() -> AsyncGenerator[bytes, None]:
        for sent_event in sent_events:
            yield b"data: " + json.dumps(sent_event).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"

    tap = StreamTap(hide_usage=not include_usage)
    source = ForwardedSource(upstream(), tap, prompt_tokens=10)
    body = b"".join([piece async for piece in source.iterate_pieces()])
    assert source.usage == Usage(input_tokens=10, output_tokens=1)
    events = [json.loads(line) for line in body.replace(b"data: ", b"").split(b"\n\n")[:-2]]
    assert len(events) == 1 + include_usage
    if include_usage:
        last_chunk = openai.types.chat.ChatCompletionChunk.model_validate(events[-1], strict=True)
        assert last_chunk.usage is not None
        assert (last_chunk.usage.prompt_tokens, last_chunk.usage.completion_tokens) == (10, 1)


@pytest.mark.parametrize(("by_token", "output_tokens"), [(True, 2), (False, 4)])
async def test_a_cut_stream_is_counted_by_its_pieces_or_else_by_its_length(
    by_token: bool, output_tokens: int
) -> None:
    usage = await read_usage(STARTED, *TEXTS, by_token=by_token)
    assert usage == Usage(input_tokens=10, output_tokens=output_tokens)


async def test_running_usage_of_a_server_is_used() -> None:
    stated_usage = Usage(input_tokens=7, cached_tokens=3, output_tokens=6)
    usage = await read_usage(STARTED, *TEXTS, UsageUpdate(usage=stated_usage), by_token=True)
    assert usage == stated_usage


async def test_prompt_tokens_from_the_start_and_counted_output_add_up() -> None:
    started_event = Started(id="1", model="m", usage=Usage(input_tokens=7, output_tokens=1))
    usage = await read_usage(started_event, *TEXTS, by_token=True)
    assert usage == Usage(input_tokens=7, output_tokens=2)


async def test_complete_stream_uses_its_final_usage() -> None:
    assert await read_usage(STARTED, *TEXTS, FINISHED, by_token=True) == FINISHED.usage


async def test_complete_stream_without_usage_is_counted() -> None:
    finished_without_usage = Finished(stop=StopReason.END, usage=Usage())
    usage = await read_usage(STARTED, *TEXTS, finished_without_usage, by_token=True)
    assert usage == Usage(input_tokens=10, output_tokens=2)
    started_with_usage = Started(id="1", model="m", usage=Usage(input_tokens=7, output_tokens=1))
    usage = await read_usage(started_with_usage, *TEXTS, finished_without_usage, by_token=False)
    assert usage == Usage(input_tokens=7, output_tokens=4)


async def read_forwarded_stream(*pieces: bytes) -> ForwardedSource:
    """Read a forwarded OpenAI stream to its end, and return its source."""

    async def upstream() -> AsyncGenerator[bytes, None]:
        for piece in pieces:
            yield piece

    source = ForwardedSource(upstream(), StreamTap(hide_usage=False), prompt_tokens=10)
    assert b"".join([piece async for piece in source.iterate_pieces()]).endswith(
        b"data: [DONE]\n\n"
    )
    return source


async def test_stream_with_a_finish_reason_is_complete_without_done() -> None:
    text_event = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
    last_event = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    source = await read_forwarded_stream(text_event, last_event)
    assert source.usage == Usage(input_tokens=10, output_tokens=1)
    with pytest.raises(StreamInterrupted):
        await read_forwarded_stream(text_event)


async def read_stated_usage(*deltas: Delta) -> list[tuple[int, int]]:
    """Return the (input, output) tokens that a stream reports, in order, to an Anthropic client."""

    async def upstream() -> AsyncGenerator[Delta, None]:
        for delta in deltas:
            yield delta

    source = TranslatedSource(upstream(), AnthropicWriter(), by_token=True, prompt_tokens=10)
    lines = b"".join([piece async for piece in source.iterate_pieces()]).splitlines()
    bodies = [json.loads(line[6:]) for line in lines if line.startswith(b"data: ")]
    usages = [body.get("usage") or body.get("message", {}).get("usage") for body in bodies]
    return [(usage["input_tokens"], usage["output_tokens"]) for usage in usages if usage]


async def test_the_prompt_is_estimated_at_the_start_and_settled_at_the_end() -> None:
    finished_with_usage = Finished(
        stop=StopReason.END, usage=Usage(input_tokens=8, output_tokens=3)
    )
    assert await read_stated_usage(STARTED, *TEXTS, finished_with_usage) == [(10, 0), (8, 3)]
    started_with_usage = Started(id="1", model="m", usage=Usage(input_tokens=8))
    assert (await read_stated_usage(started_with_usage, *TEXTS, finished_with_usage))[0] == (8, 0)


async def test_client_gets_an_estimate_if_the_back_end_reports_no_usage() -> None:
    finished_without_usage = Finished(stop=StopReason.END, usage=Usage())
    assert await read_stated_usage(STARTED, *TEXTS, finished_without_usage) == [(10, 0), (10, 2)]
