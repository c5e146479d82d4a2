"""Tests that an answer in OpenAI's member ``refusal`` does not count as faulty."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from moyin.domain.backend import ApiFormat
from moyin.domain.chat import Finished, StopReason, TextDelta
from moyin.text.protocol.openai.response import chat_response_to_domain
from moyin.text.protocol.openai.stream import StreamReader
from tests.unit.text.routing.router_rig import read_stream
from tests.unit.text.routing.test_rescue import FORMAT
from tests.unit.text.routing.test_rescue_streams import USED, make_forwarding_gateway

NO = "I can't help with that."
WHOLE = {
    "id": "1",
    "model": "m",
    "choices": [
        {
            "message": {"role": "assistant", "content": None, "refusal": NO},
            "finish_reason": "stop",
        }
    ],
    "usage": json.loads(USED),
}


def encode_refusal_stream() -> list[bytes]:
    deltas = [{"role": "assistant", "content": "", "refusal": None}]
    deltas += [{"refusal": word} for word in ("I can't", " help with that.")]
    chunks: list[dict[str, Any]] = [{"choices": [{"delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    return [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks] + [
        b"data: [DONE]\n\n"
    ]


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("hold_streams", [True, False])
async def test_refusal_does_not_cause_a_rescue(streams: bool, hold_streams: bool) -> None:
    gateway = make_forwarding_gateway(
        ApiFormat.OPENAI, encode_refusal_stream(), hold_streams=hold_streams
    )
    gateway.small.raw = json.dumps(WHOLE).encode()
    model, _, answer = await gateway.ask(stream=streams, response_format=FORMAT)
    body = await read_stream(answer) if streams else answer.body
    await asyncio.sleep(0)  # what looks at the end of a stream comes right after it
    gateway.learning.background.run_tasks()
    assert model == "smollm2-135m"
    assert b"I can't" in body
    assert gateway.claude.requests == []
    assert gateway.learning.signals == [("smollm2-135m", "checked", "refused", 0.0)]


def test_clients_of_other_protocols_read_a_refusal_as_text() -> None:
    answer = chat_response_to_domain(WHOLE)
    assert (answer.text, answer.stop) == (NO, StopReason.REFUSAL)
    deltas = StreamReader().feed(b"".join(encode_refusal_stream()))
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    (finished_event,) = (delta for delta in deltas if isinstance(delta, Finished))
    assert (text, finished_event.stop) == (NO, StopReason.REFUSAL)
