from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from moyin.errors import BackendUnavailable, StreamInterrupted
from moyin.store.response_cache import CachedResponse
from moyin.store.usage import UsageEntry
from moyin.testing.backends import FakeBackend
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.catalog import Alias, CachingPolicy
from tests.unit.text.routing.router_rig import CHEAP, CHUNK, DONE, RAW, TOTAL, Rig, read_stream

COST = b": x-moyin-cost-usd=0\n\n"


class InMemoryAnswers:
    """A response cache in memory."""

    def __init__(self) -> None:
        self.kept_responses: dict[tuple[str, str], CachedResponse] = {}

    async def get(self, owner: str, digest: str) -> CachedResponse | None:
        return self.kept_responses.get((owner, digest))

    async def put(
        self,
        owner: str,
        digest: str,
        response: CachedResponse,
        *,
        ttl_seconds: int,
        max_entries: int,
    ) -> None:
        self.kept_responses[owner, digest] = response


def make_rig(backend: FakeBackend, *, max_bytes: int = 10_000) -> Rig:
    caching_policy = CachingPolicy(ttl=60, max_bytes=max_bytes, max_entries=10)
    aliases = {"fast": Alias(cache=caching_policy), "plain": Alias()}
    return Rig(backend, tariff=CHEAP, cache=InMemoryAnswers(), aliases=aliases)


def make_backend() -> FakeBackend:
    return FakeBackend(raw=RAW, raw_stream=[CHUNK, TOTAL, DONE])


async def test_repeated_request_is_free_and_calls_no_back_end() -> None:
    fake_backend = make_backend()
    rig = make_rig(fake_backend)
    first_answer = await rig.ask(model="fast")
    await asyncio.sleep(0)
    second_answer = await rig.ask(model="fast")
    assert second_answer.body == first_answer.body == RAW
    assert dict(first_answer.headers)[b"x-moyin-cache"] == b"miss"
    headers = dict(second_answer.headers)
    assert headers[b"x-moyin-cache"] == b"hit"
    assert (headers[b"x-moyin-backend"], headers[b"x-moyin-cost-usd"]) == (b"b0", b"0")
    assert len(fake_backend.requests) == 1
    booked_calls = [(entry.backend, entry.cost_usd, entry.output_tokens) for entry in rig.ledger]
    assert booked_calls == [("b0", Decimal("0.002"), 500), ("cache", 0, 500)]


async def test_cached_answer_to_a_line_of_a_batch_is_booked_with_the_line() -> None:
    rig = make_rig(make_backend())
    await rig.ask(model="fast")
    await asyncio.sleep(0)
    codec, booked_entries = OpenAICodec(), list[UsageEntry]()
    context = RoutingContext(
        request_id="batch_1-1", owner="ada", headers=(), record_usage=booked_entries.append
    )
    parsed_request = codec.parse(rig.make_body(model="fast"))
    answer = await rig.router.answer(codec, parsed_request, context)
    assert dict(answer.headers)[b"x-moyin-cache"] == b"hit"
    assert [entry.backend for entry in booked_entries] == ["cache"] and len(rig.ledger) == 1


async def test_cached_stream_states_its_own_cost() -> None:
    fake_backend = make_backend()
    rig = make_rig(fake_backend)
    first_body = await read_stream(await rig.ask(model="fast", stream=True))
    await asyncio.sleep(0)
    second_answer = await rig.ask(model="fast", stream=True)
    assert first_body == CHUNK + DONE + b": x-moyin-cost-usd=0.002\n\n"
    assert second_answer.body == CHUNK + DONE + COST
    assert dict(second_answer.headers)[b"content-type"].startswith(b"text/event-stream")
    assert len(fake_backend.requests) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"owner": "eve"},
        {"temperature": 0.5},
        {"stream": True},
        {"messages": [{"role": "user", "content": "hello!"}]},
        {"headers": [(b"cache-control", b"no-cache")]},
        {"codec": AnthropicCodec()},
        {"model": "plain"},
    ],
    ids=["tenant", "sampling", "stream", "prompt", "fresh", "protocol", "alias without"],
)
async def test_changed_request_is_not_served_from_the_cache(changes: dict[str, object]) -> None:
    fake_backend = make_backend()
    rig = make_rig(fake_backend)
    await rig.ask(model="fast")
    await asyncio.sleep(0)
    answer = await rig.ask(**{"model": "fast", **changes})  # type: ignore[arg-type]
    if answer.stream is not None:
        await read_stream(answer)
    assert len(fake_backend.requests) == 2
    assert dict(answer.headers).get(b"x-moyin-cache", b"miss") == b"miss"


@pytest.mark.parametrize("stream", [False, True])
async def test_long_answer_is_not_cached(stream: bool) -> None:
    fake_backend = make_backend()
    rig = make_rig(fake_backend, max_bytes=50)
    for _ in range(2):
        answer = await rig.ask(model="fast", stream=stream)
        if answer.stream is not None:
            assert (await read_stream(answer)).startswith(CHUNK)
        await asyncio.sleep(0)
    assert len(fake_backend.requests) == 2


async def test_interrupted_answer_is_not_cached() -> None:
    fake_backend = FakeBackend(
        raw_stream=[CHUNK, CHUNK], error=StreamInterrupted("x"), chunks_before_error=1
    )
    rig = make_rig(fake_backend)
    for _ in range(2):
        assert b"stream_interrupted" in await read_stream(await rig.ask(model="fast", stream=True))
        await asyncio.sleep(0)
    interrupted_answer = await rig.ask(model="fast", stream=True)
    assert interrupted_answer.stream is not None
    await interrupted_answer.stream.aclose()
    assert len(fake_backend.requests) == 3


async def test_failure_is_not_cached() -> None:
    fake_backend = FakeBackend(error=BackendUnavailable("x"))
    rig = make_rig(fake_backend)
    for _ in range(2):
        with pytest.raises(BackendUnavailable):
            await rig.ask(model="fast")
    assert len(fake_backend.requests) == 2
