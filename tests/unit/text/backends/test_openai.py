from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace

import pytest
from pydantic_core import from_json

from moyin.domain.chat import Finished, Reasoning, Sampling, StopReason
from moyin.errors import StreamInterrupted, UnsupportedFeature
from moyin.text.backends.http import Endpoint, FixedEndpoint, HttpClient
from moyin.text.backends.openai import OPENAI_URL, OpenAIBackend
from tests.unit.text.protocol.conversations import FULL

HERE = "http://127.0.0.1:8080/v1"


@pytest.mark.parametrize(
    ("url", "member", "other_member"),
    [
        (OPENAI_URL, "max_completion_tokens", "max_tokens"),
        (HERE, "max_tokens", "max_completion_tokens"),
    ],
)
async def test_token_limit_has_the_member_name_of_the_server(
    monkeypatch: pytest.MonkeyPatch, url: str, member: str, other_member: str
) -> None:
    sent_bodies: list[Mapping[str, object]] = []

    async def post(self: HttpClient, path: str, body: bytes, deadline: float) -> bytes:
        sent_bodies.append(from_json(body))
        return b'{"choices":[{"message":{"content":"hi"}}]}'

    async def stream(
        self: HttpClient, path: str, body: bytes, deadline: float
    ) -> AsyncGenerator[bytes, None]:
        sent_bodies.append(from_json(body))
        yield b"data: [DONE]\n\n"

    monkeypatch.setattr(HttpClient, "post", post)
    monkeypatch.setattr(HttpClient, "stream", stream)
    backend = OpenAIBackend(FixedEndpoint(Endpoint(url=url)), max_connections=1)
    call_deadline = asyncio.get_running_loop().time() + 5
    await backend.chat(FULL, call_deadline)
    assert [delta async for delta in backend.stream(FULL, call_deadline)]
    assert [(body[member], other_member in body) for body in sent_bodies] == [(99, False)] * 2


async def test_stream_without_done_is_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finish_reason = "null"

    async def stream(
        self: HttpClient, path: str, body: bytes, deadline: float
    ) -> AsyncGenerator[bytes, None]:
        choice = f'{{"index":0,"delta":{{"content":"hi"}},"finish_reason":{finish_reason}}}'
        yield f'data: {{"choices":[{choice}]}}\n\n'.encode()

    monkeypatch.setattr(HttpClient, "stream", stream)
    backend = OpenAIBackend(FixedEndpoint(Endpoint(url=HERE)), max_connections=1)
    call_deadline = asyncio.get_running_loop().time() + 5
    with pytest.raises(StreamInterrupted):
        [delta async for delta in backend.stream(FULL, call_deadline)]
    finish_reason = '"length"'
    *_, last_delta = [delta async for delta in backend.stream(FULL, call_deadline)]
    assert isinstance(last_delta, Finished) and last_delta.stop is StopReason.MAX_TOKENS


@pytest.mark.parametrize(
    ("owner", "sent_members"),
    [
        ("llamacpp", {"min_p": 0.1, "repeat_penalty": 1.2}),
        ("vllm", {"min_p": 0.1, "repetition_penalty": 1.2}),
        ("someone", None),
    ],
)
async def test_extra_members_depend_on_the_server(
    monkeypatch: pytest.MonkeyPatch, owner: str, sent_members: dict[str, float] | None
) -> None:
    sent_bodies: list[dict[str, object]] = []

    async def get(self: HttpClient, path: str, timeout_seconds: float) -> bytes:
        return f'{{"data":[{{"owned_by":"{owner}"}}]}}'.encode()

    async def post(self: HttpClient, path: str, body: bytes, deadline: float) -> bytes:
        sent_bodies.append(from_json(body))
        return b'{"choices":[{"message":{"content":"hi"}}]}'

    monkeypatch.setattr(HttpClient, "get", get)
    monkeypatch.setattr(HttpClient, "post", post)
    backend = OpenAIBackend(FixedEndpoint(Endpoint(url=HERE)), max_connections=1)
    await backend.probe()
    call_deadline = asyncio.get_running_loop().time() + 5
    await backend.chat(replace(FULL, reasoning=Reasoning(enabled=False)), call_deadline)
    template_arguments = {"enable_thinking": False}
    assert sent_bodies[-1].get("chat_template_kwargs") == (
        template_arguments if sent_members else None
    )
    assert "reasoning_effort" not in sent_bodies[-1]
    request_with_sampling = replace(FULL, sampling=Sampling(min_p=0.1, repeat_penalty=1.2))
    if sent_members is None:
        with pytest.raises(UnsupportedFeature):
            await backend.chat(request_with_sampling, call_deadline)
    else:
        await backend.chat(request_with_sampling, call_deadline)
        assert sent_bodies[-1].items() >= sent_members.items()
