"""Tests that streams held back until complete are cached as sent, and end if the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from moyin.domain.backend import ApiFormat
from moyin.domain.chat import ChatRequest, Delta
from moyin.store.quality import QualityStore
from moyin.store.sql import Database
from moyin.testing.backends import FakeBackend
from moyin.text.quality.estimator import Estimator
from moyin.text.routing.catalog import Alias, CachingPolicy
from moyin.text.routing.compiled_route import CompiledRoute
from moyin.text.routing.conversation import Conversation
from moyin.text.routing.learning import QualityLearner
from moyin.text.routing.metered_stream import MeteredStream
from moyin.text.routing.router import Router
from tests.unit.text.routing.router_rig import read_stream
from tests.unit.text.routing.test_answer_cache import InMemoryAnswers
from tests.unit.text.routing.test_rescue import FORMAT, GOOD
from tests.unit.text.routing.test_rescue_streams import (
    StreamGateway,
    encode_stream,
    make_forwarding_gateway,
)

CACHED = {"own": Alias(cache=CachingPolicy(ttl=60, max_bytes=10_000, max_entries=10))}


def enable_cache(gateway: StreamGateway) -> InMemoryAnswers:
    """Enable the answer cache of the gateway, and return the store that holds the answers."""
    cache, fleet = InMemoryAnswers(), gateway.router.fleet
    gateway.router = Router(fleet, gateway.ledger, cache=cache, estimator=Estimator())
    return cache


async def ask_twice(gateway: StreamGateway, **changes: Any) -> tuple[bytes, bytes]:
    """Send a request twice; return both bodies, of which the second comes from the cache.

    Args:
        changes: other members of the request's body.
    """
    _, _, answer = await gateway.ask(stream=True, model="own", **changes)
    first_body = await read_stream(answer)
    await asyncio.sleep(0)  # it is written beside the answer
    _, route, answer = await gateway.ask(stream=True, model="own", **changes)
    assert route == "cache"
    return first_body, answer.body


async def test_fully_held_stream_is_cached_as_it_was_sent() -> None:
    gateway = StreamGateway(first_answer=GOOD, hold_streams=True, aliases=CACHED)
    enable_cache(gateway)
    first_body, cached_body = await ask_twice(gateway, response_format=FORMAT)
    assert b"[DONE]" in first_body
    assert cached_body == first_body


async def test_short_stream_in_one_piece_is_cached_as_it_was_sent() -> None:
    gateway = make_forwarding_gateway(
        ApiFormat.OPENAI, [b"".join(encode_stream("Yes."))], aliases=CACHED
    )
    gateway.router.fleet = replace(
        gateway.router.fleet,
        catalog=replace(gateway.router.fleet.catalog, aliases=CACHED),
    )
    enable_cache(gateway)
    first_body, cached_body = await ask_twice(gateway)
    assert b"Yes." in first_body
    assert cached_body == first_body


async def test_cached_answer_is_no_follow_up() -> None:
    """A request that is answered from the cache does not count as a complaint about an answer."""
    gateway, detected_conversations = (
        StreamGateway(first_answer=GOOD, aliases=CACHED),
        list[Conversation](),
    )

    class FakeFollowUps:
        def may_match(self, _: CompiledRoute) -> bool:
            return True

        def detect(self, conversation: Conversation, *_: Any) -> bool:
            detected_conversations.append(conversation)
            return False

        def remember_answer(self, *_: Any) -> None: ...

    follow_ups: Any = FakeFollowUps()
    gateway.router = Router(
        gateway.router.fleet,
        gateway.ledger,
        cache=InMemoryAnswers(),
        estimator=Estimator(),
        learning=cast(Any, gateway.learning),
        follow_ups=follow_ups,
    )
    await ask_twice(gateway)
    gateway.learning.background.run_tasks()
    assert len(detected_conversations) == 1


class WaitingBackend(FakeBackend):
    """A back end that starts when the test releases it."""

    def __init__(self) -> None:
        super().__init__(api_format=ApiFormat.OLLAMA)
        self.is_waiting, self.may_proceed = asyncio.Event(), asyncio.Event()

    async def stream(self, request: ChatRequest, deadline: float) -> AsyncGenerator[Delta, None]:
        self.is_waiting.set()
        await self.may_proceed.wait()
        async for delta in super().stream(request, deadline):
            yield delta


async def test_disconnect_during_the_rescue_ends_both_calls() -> None:
    gateway, better_backend = StreamGateway(), WaitingBackend()
    runtimes = gateway.router.fleet.runtimes
    runtimes["claude"].backend = better_backend
    call_task = asyncio.create_task(gateway.ask(stream=True, response_format=FORMAT))
    await better_backend.is_waiting.wait()
    call_task.cancel()
    await asyncio.wait([call_task])
    assert call_task.cancelled()
    assert gateway.small.closed_early == 1
    assert [runtime.load for runtime in runtimes.values()] == [0, 0]
    assert sorted((entry.model, entry.complete) for entry in gateway.ledger) == [
        ("claude-haiku-5-5", False),
        ("smollm2-135m", False),
    ]


async def test_disconnect_while_the_first_stream_closes_ends_both_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway, is_closing, closed_streams = StreamGateway(), asyncio.Event(), list[MeteredStream]()
    original_close = MeteredStream.aclose

    async def close_slowly(stream: MeteredStream) -> None:
        await original_close(stream)
        if not closed_streams:
            closed_streams.append(stream)
            is_closing.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(MeteredStream, "aclose", close_slowly)
    call_task: asyncio.Task[Any] = asyncio.create_task(
        gateway.ask(stream=True, response_format=FORMAT)
    )
    await is_closing.wait()
    call_task.cancel()
    await asyncio.wait([call_task])
    assert call_task.cancelled()
    assert [runtime.load for runtime in gateway.router.fleet.runtimes.values()] == [0, 0]
    assert len(gateway.ledger) == 2


@pytest.mark.parametrize("streams", [True, False])
async def test_faults_of_both_answers_are_recorded(streams: bool, tmp_path: Path) -> None:
    """Each fault has a source of its own, because a request keeps only one signal per source."""
    database = Database(f"sqlite:///{tmp_path}/moyin.db")
    await database.ensure_schema()
    store, estimator = QualityStore(database), Estimator()
    learning = QualityLearner(estimator, store)
    gateway = StreamGateway(first_answer="Sure!", second_answer="Here it is.")
    fleet = gateway.router.fleet
    gateway.router = Router(fleet, gateway.ledger, estimator=estimator, learning=learning)
    _, _, answer = await gateway.ask(stream=streams, response_format=FORMAT)
    if streams:
        await read_stream(answer)
        await asyncio.sleep(0)
    await learning.flush()
    rows = await store.list_signals(0, 10)
    assert [(row.model, row.source, row.comment) for row in rows] == [
        ("smollm2-135m", "checked", "json"),
        ("claude-haiku-5-5", "rescue", "json"),
    ]
    # Only one of the two decisions has the options.
    assert [bool(options) for options in await store.list_options("ada", 10)] == [False, True]
    decision = await store.get_decision("ada", "r1")
    assert decision is not None
    assert decision.model == "claude-haiku-5-5"
    await database.close()
