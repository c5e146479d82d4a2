from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from decimal import Decimal

import pytest

from moyin.domain.backend import RawRequest
from moyin.domain.chat import Text, ToolUse
from moyin.errors import (
    BackendKeyRejected,
    BackendTimeout,
    BackendUnavailable,
    InvalidRequest,
    InvalidToolCall,
    ModelNotFound,
    Overloaded,
    ServiceUnavailable,
    StreamInterrupted,
    UnsupportedFeature,
)
from moyin.system.slots import Slots
from moyin.testing.backends import FakeBackend, text_answer
from moyin.text.backends.responses import error_from_status
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.ollama.codec import OllamaChatCodec
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.routing.answer import Answer, RoutingContext
from moyin.text.routing.catalog import Hedging
from moyin.text.routing.explain import why_lost
from moyin.text.routing.hedge import Hedge, race
from tests.unit.text.routing.dispatching import CHEAP, CHUNK, DONE, RAW, TOTAL, Rig, drained
from tests.unit.text.routing.rig import Clock


class Flaky(FakeBackend):
    """Fails ``times`` times, then answers."""

    def __init__(self, times: int) -> None:
        super().__init__(raw=RAW)
        self.times = times

    async def forward(self, request: RawRequest) -> bytes:
        await super().forward(request)
        if len(self.requests) <= self.times:
            raise BackendUnavailable("x")
        return RAW


class Held(FakeBackend):
    """Answers once it is let go; streams begin then."""

    def __init__(self) -> None:
        super().__init__(raw=RAW, raw_stream=[CHUNK, TOTAL, DONE])
        self.let_go = asyncio.Event()
        self.reached = asyncio.Event()

    async def forward(self, request: RawRequest) -> bytes:
        self.requests.append(request)
        await self.let_go.wait()
        return RAW

    async def forward_stream(self, request: RawRequest) -> AsyncGenerator[bytes, None]:
        self.requests.append(request)
        self.reached.set()
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.closed_early += 1
            raise
        for piece in self.raw_stream:
            yield piece


def backend_of(answer: object) -> bytes:
    return dict(answer.headers)[b"x-moyin-backend"]  # type: ignore[attr-defined,no-any-return]


async def test_a_call_that_failed_at_once_is_tried_again_before_another_is_asked() -> None:
    first = Flaky(1)
    rig = Rig(first, FakeBackend(raw=RAW), lane={"retries": 1})
    assert backend_of(await rig.ask()) == b"b0"
    assert len(first.requests) == 2
    assert [call.error for call in rig.telemetry.calls] == ["backend_unavailable", None]


async def test_retries_are_bounded_and_then_another_is_asked() -> None:
    first = Flaky(9)
    rig = Rig(first, FakeBackend(raw=RAW), lane={"retries": 1})
    answer = await rig.ask()
    assert dict(answer.headers)[b"x-moyin-route"] == b"fallback after backend_unavailable"
    assert len(first.requests) == 2


@pytest.mark.parametrize(
    "error", [BackendTimeout("x"), BackendKeyRejected("x"), Overloaded("x", retry_after=1)]
)
async def test_what_another_try_cannot_help_is_not_tried_again(error: Exception) -> None:
    first = FakeBackend(error=error)  # type: ignore[arg-type]
    rig = Rig(first, FakeBackend(raw=RAW), lane={"retries": 3})
    assert backend_of(await rig.ask()) == b"b1"
    assert len(first.requests) == 1


async def test_the_whole_call_has_one_deadline() -> None:
    seen: list[float] = []

    class Noting(FakeBackend):
        async def forward(self, request: RawRequest) -> bytes:
            seen.append(request.deadline - asyncio.get_running_loop().time())
            await asyncio.sleep(0.05)
            raise BackendUnavailable("x")

    rig = Rig(Noting(), Noting(), timeout=2.0)
    with pytest.raises(BackendUnavailable):
        await rig.ask()
    assert seen[0] <= 2.0
    assert seen[1] <= seen[0] - 0.05
    with pytest.raises(BackendUnavailable):
        await rig.ask(headers=[(b"x-moyin-timeout", b"0.5")])
    assert seen[2] <= 0.5


async def test_a_bad_wish_is_refused_before_anybody_is_asked() -> None:
    backend = FakeBackend(raw=RAW)
    with pytest.raises(InvalidRequest):
        await Rig(backend).ask(headers=[(b"x-moyin-residency", b"mars")])
    assert not backend.requests


async def test_a_stream_that_does_not_begin_in_time_goes_to_another() -> None:
    slow = Held()
    rig = Rig(slow, FakeBackend(raw_stream=[CHUNK, TOTAL, DONE]), lane={"first_byte": 0.05})
    answer = await rig.ask(stream=True)
    assert backend_of(answer) == b"b1"
    assert slow.closed_early == 1
    await drained(answer)


async def test_who_finds_no_slot_waits_for_one() -> None:
    held = Held()
    rig = Rig(held, lane={"slots": Slots(1, queue=1, patience=5)})
    first = asyncio.create_task(rig.ask())
    second = asyncio.create_task(rig.ask())
    await asyncio.sleep(0.01)
    lane = rig.lanes[0]
    assert (len(held.requests), lane.load, lane.standing.waiting) == (1, 1, 1)
    with pytest.raises(Overloaded) as caught:
        await rig.ask()
    assert caught.value.retry_after is not None and caught.value.retry_after >= 1
    held.let_go.set()
    assert (await first).body is (await second).body is RAW
    assert (lane.load, lane.standing.waiting) == (0, 0)


async def test_nobody_waits_for_ever() -> None:
    held = Held()
    rig = Rig(held, lane={"slots": Slots(1, queue=1, patience=0.03)})
    first = asyncio.create_task(rig.ask())
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await rig.ask()
    # That our own queue is full says nothing about the back end.
    assert rig.lanes[0].breaker.ready
    held.let_go.set()
    await first
    assert rig.lanes[0].load == 0


async def test_who_leaves_the_queue_leaves_no_trace() -> None:
    slots = Slots(1, queue=5, patience=5)
    assert slots.take("ada")
    waiting = [asyncio.create_task(slots.wait("ada", 5, 1)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    slots.free("ada")  # to the second, in the moment in which the first leaves
    waiting[1].cancel()  # whose slot goes on to the third
    await asyncio.gather(*waiting, return_exceptions=True)
    assert [task.cancelled() for task in waiting] == [True, True, False]
    assert (slots.taken, slots.waiting) == (1, 0)
    slots.free("ada")
    assert slots.taken == 0


async def test_a_client_that_leaves_before_the_answer_pays_for_the_prompt() -> None:
    rig = Rig(Held(), tariff=CHEAP)
    task = asyncio.create_task(rig.ask())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (entry,) = rig.books
    assert (entry.complete, entry.output_tokens) == (False, 0)
    assert entry.cost_usd == Decimal(entry.input_tokens) / 1_000_000 > 0
    assert rig.telemetry.calls[0].error == "cancelled"


def used_to_begin_at(rig: Rig, seconds: float) -> None:
    pace = rig.lanes[0].pace("m0")
    for _ in range(100):
        pace.note(prompt_tokens=1, output_tokens=2, first=seconds, seconds=seconds, sharing=1)


async def test_a_second_is_asked_when_the_first_is_slower_than_usual() -> None:
    slow = Held()
    rig = Rig(
        slow, FakeBackend(raw_stream=[CHUNK, TOTAL, DONE]), tariff=CHEAP, hedging=Hedging(share=0.5)
    )
    used_to_begin_at(rig, 0.02)
    rig.dispatcher._hedge.count(1)
    answer = await rig.ask(stream=True)
    headers = dict(answer.headers)
    assert (headers[b"x-moyin-backend"], headers[b"x-moyin-route"]) == (b"b1", b"hedged")
    assert b"12345678" in await drained(answer)
    assert slow.closed_early == 1
    assert [lane.load for lane in rig.lanes] == [0, 0]
    # Both are in the ledger: the loser has read the prompt.
    assert [(entry.backend, entry.complete) for entry in rig.books] == [("b0", False), ("b1", True)]


async def test_only_a_share_is_asked_twice() -> None:
    slow = Held()
    rig = Rig(slow, FakeBackend(raw_stream=[CHUNK, TOTAL, DONE]), hedging=Hedging(share=0.5))
    used_to_begin_at(rig, 0.005)
    routes = []
    async with asyncio.timeout(10):
        for number in range(6):
            asked = asyncio.create_task(rig.ask(stream=True))
            if number % 2 == 0:
                await asyncio.sleep(0.03)
                slow.let_go.set()
            answer = await asked
            routes.append(dict(answer.headers)[b"x-moyin-route"])
            await drained(answer)
            slow.let_go.clear()
    assert routes == [b"free", b"hedged"] * 3


async def test_a_client_that_leaves_stops_both() -> None:
    slow, other = Held(), Held()
    rig = Rig(slow, other, hedging=Hedging(share=1.0))
    used_to_begin_at(rig, 0.005)
    task = asyncio.create_task(rig.ask(stream=True))
    await asyncio.gather(slow.reached.wait(), other.reached.wait())
    assert len(slow.requests) == len(other.requests) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.closed_early == other.closed_early == 1
    assert [lane.load for lane in rig.lanes] == [0, 0]


def test_the_share_saves_up_but_not_for_ever() -> None:
    hedge = Hedge()
    for _ in range(10_000):
        hedge.count(0.5)
    assert [hedge.spend() for _ in range(12)] == [True] * 10 + [False] * 2


async def test_when_both_fail_the_firsts_failure_is_told() -> None:
    async def overloaded() -> None:
        await asyncio.sleep(0.02)
        raise Overloaded("x", retry_after=7)

    async def unable() -> None:
        await asyncio.sleep(0.04)
        raise UnsupportedFeature("x")

    with pytest.raises(Overloaded):
        await race(overloaded(), unable, after=0.001, may=lambda: True)


async def test_a_second_that_may_not_be_asked_does_not_stop_the_first() -> None:
    first = Answer(headers=(), body=b"first")

    async def slow() -> Answer:
        await asyncio.sleep(0.02)
        return first

    async def nobody() -> None:
        return None

    assert await race(slow(), nobody, after=0.001, may=lambda: True) is first


async def test_a_breaker_that_opens_meanwhile_costs_nobody_the_answer_under_way() -> None:
    slow, other = Held(), FakeBackend(raw_stream=[CHUNK, TOTAL, DONE])
    rig = Rig(slow, other, tariff=CHEAP, hedging=Hedging(share=1.0))
    used_to_begin_at(rig, 0.005)

    # Both were up when they were chosen.
    async def refused(tenant: str, seconds: float, expected: float) -> None:
        slow.let_go.set()

    rig.lanes[1].acquire = refused  # type: ignore[assignment, method-assign]
    answer = await rig.ask(stream=True)
    await drained(answer)
    assert dict(answer.headers)[b"x-moyin-route"] == b"cheapest"
    assert [(entry.backend, entry.complete) for entry in rig.books] == [("b0", True)]


async def test_a_file_that_is_not_there_takes_the_back_end_from_nobody() -> None:
    lacking = FakeBackend(error=error_from_status(404, "file_1 not found", None))
    rig = Rig(lacking, lane={"retries": 1})
    for _ in range(4):
        with pytest.raises(ModelNotFound) as caught:
            await rig.ask()
        assert "file_1" not in caught.value.message
    assert len(lacking.requests) == 4, "asking again does not help"
    assert rig.lanes[0].ready
    assert {call.error for call in rig.telemetry.calls} == {"model_not_found"}


async def test_a_model_that_is_not_there_is_asked_for_elsewhere() -> None:
    rig = Rig(FakeBackend(error=error_from_status(404, "", None)), FakeBackend(raw=RAW))
    answer = await rig.ask()
    assert dict(answer.headers)[b"x-moyin-route"] == b"fallback after model_not_found"


async def test_a_model_that_is_never_there_is_asked_last_for_a_while() -> None:
    clock = Clock()
    lacking, able = FakeBackend(error=error_from_status(404, "", None)), FakeBackend(raw=RAW)
    rig = Rig(lacking, able, lane={"clock": clock})
    routes = [dict((await rig.ask()).headers)[b"x-moyin-route"] for _ in range(5)]
    assert routes == [*[b"fallback after model_not_found"] * 3, b"cheapest", b"cheapest"]
    assert len(lacking.requests) == 3
    assert rig.lanes[0].ready, "its other models are there"
    dialect, asker = OpenAICodec(), RoutingContext(request_id="r1", owner="ada", headers=())
    call = dialect.parse(b'{"model": "auto", "messages": [{"role": "user", "content": "x"}]}')
    best, other = rig.dispatcher.explain(dialect, call, asker).candidates
    assert (best.offer.backend, other.offer.backend) == ("b1", "b0")
    assert why_lost(other, best, 0.0) == "its back end says that it has no such model"
    # It may be pulled at any time.
    clock.now += 2.1
    lacking.error, lacking.raw = None, RAW
    assert dict((await rig.ask()).headers)[b"x-moyin-backend"] == b"b0"
    rig.lanes[1].up = False
    assert dict((await rig.ask()).headers)[b"x-moyin-route"] == b"free"


async def test_who_alone_is_up_is_asked_though_it_had_no_such_model() -> None:
    lacking = FakeBackend(error=error_from_status(404, "", None))
    rig = Rig(lacking, FakeBackend(raw=RAW))
    for _ in range(3):
        await rig.ask()
    rig.lanes[1].up = False
    with pytest.raises(ServiceUnavailable):
        await rig.ask()
    assert len(lacking.requests) == 4


async def test_files_that_a_client_made_up_put_no_model_last() -> None:
    lacking = FakeBackend(error=error_from_status(404, "", None))
    rig = Rig(lacking, FakeBackend(raw=RAW))
    file = {"type": "file", "file": {"file_id": "made-up"}}
    for _ in range(5):
        await rig.ask(messages=[{"role": "user", "content": [file]}])
    assert len(lacking.requests) == 5


async def test_nor_does_it_speak_for_one_that_fails_for_a_while() -> None:
    lacking, failing = (
        FakeBackend(error=error_from_status(404, "", None)),
        FakeBackend(error=Overloaded("x")),
    )
    for backends in ((lacking, failing), (failing, lacking)):
        with pytest.raises(Overloaded):
            await Rig(*backends).ask()


async def test_nor_for_one_that_is_not_up() -> None:
    """A client asks again after a 503, but hardly after a 404."""
    rig = Rig(FakeBackend(error=error_from_status(404, "", None)), FakeBackend(raw=RAW))
    rig.lanes[1].up = False
    with pytest.raises(ServiceUnavailable) as caught:
        await rig.ask()
    assert caught.value.retry_after
    rig.lanes[1].up = True
    assert (await rig.ask()).body is RAW


async def test_a_tool_call_that_breaks_off_unseen_is_paid_for() -> None:
    """Ollama's clients get tool calls whole, so nothing of it was written yet."""
    use = ToolUse(id="c", name="f", arguments='{"a": "some words"}')
    broken = FakeBackend(
        replace(text_answer(), parts=(use,)),
        error=StreamInterrupted("broke off"),
        chunks_before_error=3,
    )
    rig = Rig(broken)
    with pytest.raises(StreamInterrupted):
        await rig.ask(OllamaChatCodec(), stream=True, max_tokens=0)
    (entry,) = rig.books
    assert (entry.complete, entry.output_tokens > 0) == (False, True)


@pytest.mark.parametrize("before", ["", "Wait"])
@pytest.mark.parametrize("streams", [False, True])
async def test_a_broken_tool_call_is_paid_for_and_no_outage(streams: bool, before: str) -> None:
    use = ToolUse(id="c", name="f", arguments="{oops")
    broken = FakeBackend(replace(text_answer(), parts=(Text(text=before), use)))
    rig = Rig(broken)
    # Ollama's clients have another word for it.
    limit = {"max_tokens": 0} if streams else {}
    for _ in range(5):
        if streams and before:
            answer = await rig.ask(OllamaChatCodec(), stream=True, **limit)
            assert b'"code":"invalid_tool_call"' in await drained(answer)
        else:
            dialect = OllamaChatCodec() if streams else AnthropicCodec()
            with pytest.raises(InvalidToolCall):
                await rig.ask(dialect, stream=streams, **limit)
    assert rig.lanes[0].ready
    assert len(broken.requests) == 5
    assert [entry.complete for entry in rig.books] == [False] * 5
    assert {entry.output_tokens > 0 for entry in rig.books} == {True}
