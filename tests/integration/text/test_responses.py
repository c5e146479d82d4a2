"""Tests the Responses API with failing back ends and with the answer cache."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moyin.http.sse import FrameSplitter, parse_event
from moyin.store.response_cache import ResponseCache
from tests.integration.servers import ValkeyServer
from tests.integration.text.fixtures import ModelsApp, serving
from tests.integration.text.upstreams import BEGUN, FINE, KINDS, SSE, Upstream, build_backend_config

STREAM = (
    SSE + 'data: {"id":"1","model":"m","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
    'data: {"id":"1","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    'data: {"id":"1","model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}'
    "\n\ndata: [DONE]\n\n"
)


async def call_responses(
    models_app: ModelsApp, method: str, path: str = "", body: Any = None
) -> tuple[aiohttp.ClientResponse, str]:
    headers = {"authorization": f"Bearer {models_app.api_key}"}
    url = f"{models_app.url}/v1/responses{path}"
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.request(method, url, json=body) as response,
    ):
        return response, await response.text()


def parse_events(text: str) -> list[dict[str, Any]]:
    frames = FrameSplitter().feed(text.encode())
    return [parse_event(frame) for frame in frames if frame.data is not None]


@pytest.mark.parametrize("kind", KINDS)
async def test_broken_stream_ends_with_an_error_of_the_next_sequence_number(
    tmp_path: Path, kind: str
) -> None:
    async with (
        Upstream(BEGUN[kind]).running() as upstream,
        serving(tmp_path, build_backend_config(kind, upstream.url)) as models_app,
    ):
        body = {"model": f"m-{kind}", "input": "hi", "stream": True}
        response, text = await call_responses(models_app, "POST", "", body)
        assert response.status == 200, text
        received_events = parse_events(text)
        assert [event["sequence_number"] for event in received_events] == list(
            range(len(received_events))
        )
        assert received_events[0]["type"] == "response.created"
        assert received_events[-1]["type"] == "error" and received_events[-1]["code"]
        deltas = [e["delta"] for e in received_events if e["type"] == "response.output_text.delta"]
        assert deltas == ["Hi"]
        response, _ = await call_responses(
            models_app, "GET", f"/{received_events[0]['response']['id']}"
        )
        assert response.status == 404, "an answer that broke is not stored"


@pytest.fixture
async def cache(valkey_server: ValkeyServer) -> AsyncIterator[ResponseCache]:
    cache = ResponseCache(valkey_server.url)
    yield cache
    await cache.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_cached_answer_becomes_a_response_with_an_id_of_its_own(
    tmp_path: Path, cache: ResponseCache, stream: bool
) -> None:
    faq = {"models": ["m-openai"], "cache": {"ttl_s": 60}}
    body = {"model": "faq", "input": f"hi {tmp_path}", "stream": stream}
    async with (
        Upstream(STREAM if stream else FINE).running() as upstream,
        serving(
            tmp_path, build_backend_config("openai", upstream.url), cache=cache, faq=faq
        ) as models_app,
    ):
        first_response, first_text = await call_responses(models_app, "POST", "", body)
        answer_cache = models_app.text_router._answer_cache
        assert answer_cache is not None
        await asyncio.gather(*answer_cache._writes)
        await call_responses(models_app, "DELETE", f"/{_read_response(first_text, stream)['id']}")
        second_response, second_text = await call_responses(models_app, "POST", "", body)
        assert (
            first_response.headers["x-moyin-cache"],
            second_response.headers["x-moyin-cache"],
        ) == (
            "miss",
            "hit",
        )
        assert upstream.request_count == 1
        original_response, cached_response = (
            _read_response(first_text, stream),
            _read_response(second_text, stream),
        )
        assert cached_response["id"] != original_response["id"]
        # The ids of its items contain the response's.
        renewed_json = json.dumps(original_response).replace(
            original_response["id"][5:], cached_response["id"][5:]
        )
        assert cached_response == json.loads(renewed_json)
        if stream:
            assert {
                event["response"]["id"]
                for event in parse_events(second_text)
                if "response" in event
            } == {cached_response["id"]}
        response, stored_text = await call_responses(models_app, "GET", f"/{cached_response['id']}")
        assert (response.status, json.loads(stored_text)) == (200, cached_response)


def _read_response(text: str, stream: bool) -> dict[str, Any]:
    if not stream:
        return dict(json.loads(text))
    return dict(parse_events(text)[-1]["response"])
