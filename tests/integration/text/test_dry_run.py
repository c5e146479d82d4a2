"""Tests that `POST /v1/route` predicts the back end and model of a call, or its error."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from tests.integration.text.fixtures import serving, wait_until_probed
from tests.integration.text.random_calls import RandomCall, RandomCalls
from tests.integration.text.wires.server import WireServer

CALLS = 200
SEED = 19
# An answer that fails a check would be another model's.
_RULES = {"routing": {"rescue": "off"}}


class _LenientServer(WireServer):
    """Accepts unknown members, as real servers do, and supports text completions."""

    async def _read_body(
        self, request: web.Request, known_members: frozenset[str] | None
    ) -> dict[str, Any]:
        return await super()._read_body(request, None)

    def _add_routes(self, app: web.Application) -> None:
        app.router.add_post("/v1/completions", self._answer_completion)

    async def _answer_completion(self, request: web.Request) -> web.StreamResponse:
        body = await self._read_body(request, None)
        choice = {"index": 0, "text": "Hello", "finish_reason": "stop", "logprobs": None}
        completion = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "up"}
        choices = [{**choice, "index": index} for index in range(body.get("n") or 1)]
        usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
        completion |= {"choices": choices, "usage": usage}
        if not body.get("stream"):
            return web.json_response(completion)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(f"data: {json.dumps(completion)}\n\ndata: [DONE]\n\n".encode())
        return response


def _build_backend_configs(url: str) -> list[dict[str, Any]]:
    capabilities = dict.fromkeys(("tools", "vision", "schema", "thinking"), True)
    chat_model = {"upstream": "up", "context": 100_000}
    claude_model = (
        chat_model
        | capabilities
        | {"name": "m-claude", "price": {"input": 3, "output": 15}, "quality": 3}
    )
    ollama_model = chat_model | {"name": "m-ollama", "tools": True, "vision": True, "schema": True}
    fast_model = (
        chat_model
        | capabilities
        | {"name": "m-openai", "price": {"input": 1, "output": 5}, "quality": 2}
    )
    plain_model = {"name": "m-plain", "upstream": "up", "context": 4_000}
    embedding_model = {"upstream": "up", "context": 8_000, "embeddings": True}
    free_price = {"price": {"input": 0, "output": 0}}
    return [
        {"name": "claude", "type": "anthropic", "base_url": url, "api_key_env": "LLAMA_KEY",
         "models": [claude_model]},
        {"name": "ollama", "type": "ollama", "hosts": [url],
         "models": [ollama_model, embedding_model | {"name": "v-ollama"}]},
        {"name": "fast", "type": "openai", "base_url": f"{url}/v1",
         "models": [
             fast_model, embedding_model | {"name": "v-openai", "price": {"input": 1, "output": 0}}
         ]},
        {"name": "house", "type": "openai", "base_url": f"{url}/v1",
         "models": [plain_model | free_price]},
    ]  # fmt: skip


async def _run_dry(http: aiohttp.ClientSession, call: RandomCall) -> tuple[str, ...]:
    async with http.post(f"/v1/route?protocol={call.protocol}", json=call.body) as response:
        body = await response.json()
    if response.status != 200:
        return (body["code"],)
    if body["chosen"] is None:
        return (body["error"]["code"],)
    return body["chosen"]["backend"], body["chosen"]["model"]


async def _run_for_real(http: aiohttp.ClientSession, call: RandomCall) -> tuple[str, ...]:
    async with http.post(f"/v1/{call.path}", json=call.body) as response:
        response_text = await response.text()
    if response.status == 200:
        return response.headers["x-moyin-backend"], response.headers["x-moyin-model"]
    body = json.loads(response_text)
    inner_error = body["error"] if isinstance(body.get("error"), dict) else body
    return (inner_error["code"],)


async def test_a_dry_run_names_the_model_that_answers(tmp_path: Path) -> None:
    aliases: dict[str, Any] = {"work": {"quality": 2}, "cheap": ["m-plain", "m-ollama"]}
    async with (
        _LenientServer().running() as server,
        serving(
            tmp_path, *_build_backend_configs(server.url), rules=_RULES, **aliases
        ) as models_app,
        aiohttp.ClientSession(
            models_app.url, headers={"authorization": f"Bearer {models_app.api_key}"}
        ) as http,
    ):
        await wait_until_probed(models_app)
        calls = RandomCalls(SEED, f"{server.url}/picture.png")
        outcomes: Counter[tuple[str, ...]] = Counter()
        for number in range(CALLS):
            call = calls.draw_call()
            requests_before = len(server.requests)
            named_model = await _run_dry(http, call)
            assert len(server.requests) == requests_before, "a dry run calls no back end"
            assert named_model == await _run_for_real(http, call), f"{number}: {call}"
            outcomes[named_model] += 1
    # The calls are of many kinds: all back ends answer some, and several refusals occur.
    assert {name for name, *_ in outcomes} >= {
        "claude", "ollama", "fast", "house", "unsupported_feature", "context_too_long"
    }, outcomes  # fmt: skip
