"""Tests that calls which a server lacks, such as text completions, are translated to chats."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from decimal import Decimal
from typing import Any

import pytest

from moyin.domain.backend import RawRequest
from moyin.domain.chat import ChatRequest
from moyin.errors import ModelNotFound, UnsupportedFeature
from moyin.testing.backends import FakeBackend
from moyin.text.protocol.openai.completions import OpenAICompletionsCodec
from moyin.text.routing.answer import RoutingContext
from tests.unit.text.routing.router_rig import CHEAP, Rig, read_stream

CODEC = OpenAICompletionsCodec()


class ChatOnlyBackend(FakeBackend):
    """A server of OpenAI's format that supports chats but no other calls."""

    async def forward(self, request: RawRequest) -> bytes:
        self.requests.append(request)
        raise ModelNotFound("404")

    async def forward_stream(self, request: RawRequest) -> AsyncGenerator[bytes, None]:
        self.requests.append(request)
        raise ModelNotFound("404")
        yield b""


class ModelNotFoundBackend(ChatOnlyBackend):
    """A server that does not have the model, so that chats fail, too."""

    async def chat(self, request: ChatRequest, deadline: float) -> Any:
        self.requests.append(request)
        raise ModelNotFound("404")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_with_chats_only_gets_a_chat(stream: bool) -> None:
    backend = ChatOnlyBackend()
    rig = Rig(backend)
    for _ in range(2):
        answer = await rig.ask(CODEC, model="m0", messages=None, prompt="hello", stream=stream)
        body = await read_stream(answer) if stream else answer.body
        assert b"text_completion" in body
    # It is not asked again for what it lacks.
    assert [type(request) for request in backend.requests] == [RawRequest, ChatRequest, ChatRequest]
    [runtime] = rig.runtimes
    assert runtime.get_model_breaker("up").ready
    assert [entry.complete for entry in rig.ledger] == [True, True]


async def test_a_missing_model_is_not_recorded_as_a_missing_call() -> None:
    backend = ModelNotFoundBackend()
    rig = Rig(backend)
    with pytest.raises(ModelNotFound):
        await rig.ask(CODEC, model="m0", messages=None, prompt="hello")
    assert rig.runtimes[0].missing_calls == {}


async def test_a_server_with_the_call_gets_the_bytes() -> None:
    backend = FakeBackend(raw=b'{"choices":[{"text":"a"}],"usage":{"completion_tokens":1}}')
    answer = await Rig(backend).ask(CODEC, model="m0", prompt=["a", "b"])
    assert answer.body == backend.raw
    [request] = backend.requests
    assert isinstance(request, RawRequest)
    assert (request.path, json.loads(request.body)["prompt"]) == ("/completions", ["a", "b"])


async def test_calls_that_cannot_be_translated_go_to_a_server_with_that_call() -> None:
    able_backend = FakeBackend(raw=b'{"choices":[{"text":"a"}],"usage":{"completion_tokens":1}}')
    answer = await Rig(ChatOnlyBackend(), able_backend).ask(CODEC, prompt=[1, 2])
    assert answer.body == able_backend.raw
    with pytest.raises(UnsupportedFeature) as exc_info:
        await Rig(ChatOnlyBackend()).ask(CODEC, prompt=[1, 2])
    assert exc_info.value.field == "prompt"


class FakeBudget:
    """A budget that records what is reserved."""

    limits_spending = True

    def __init__(self) -> None:
        self.taken_amounts: list[tuple[Decimal, int]] = []

    async def reserve(self, usd: Decimal, tokens: int) -> None:
        self.taken_amounts.append((usd, tokens))

    def record(self, usd: Decimal, tokens: int) -> None:
        return None


async def test_every_answer_to_every_prompt_is_reserved() -> None:
    raw_response = b'{"choices":[{"text":"a"}],"usage":{"completion_tokens":1}}'
    rig = Rig(FakeBackend(raw=raw_response), tariff=CHEAP)
    budget = FakeBudget()
    for changes in ({"prompt": "a"}, {"prompt": ["a", "a"], "n": 2, "best_of": 3}):
        parsed_request = CODEC.parse(
            json.dumps({"model": "m0", "max_tokens": 1000, **changes}).encode()
        )
        context = RoutingContext(request_id="r1", owner="ada", headers=(), budget=budget)
        await rig.router.answer(CODEC, parsed_request, context)
    (single_usd, single_tokens), (usd, tokens) = budget.taken_amounts
    assert (single_tokens, tokens) == (1001, 6002)
    # Two US dollars for a million tokens of answers, and the same reserve for the prompt.
    assert usd - single_usd == pytest.approx(Decimal("0.01"), abs=Decimal("0.0001"))
