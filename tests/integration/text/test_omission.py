"""Tests ``omit``, which drops tools or reasoning if no model under the requested name has them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.text.fixtures import serving
from tests.integration.text.wires.script import SCHEMA
from tests.integration.text.wires.server import WireServer

FUNCTION = {"name": "weather", "parameters": SCHEMA}
MESSAGES = [{"role": "user", "content": "weather?"}]
# Path and body of a request with tools and reasoning, in each protocol.
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": (
        "chat/completions",
        {
            "messages": MESSAGES,
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": "auto",
            "reasoning_effort": "low",
        },
    ),
    "responses": (
        "responses",
        {
            "input": "weather?",
            "tools": [{"type": "function", **FUNCTION}],
            "parallel_tool_calls": False,
            "reasoning": {"effort": "low"},
        },
    ),
    "anthropic": (
        "messages",
        {
            "messages": MESSAGES,
            "max_tokens": 4000,
            "tools": [{"name": "weather", "input_schema": SCHEMA}],
            "thinking": {"type": "enabled", "budget_tokens": 2000},
        },
    ),
    "ollama": (
        "ollama/api/chat",
        {
            "messages": MESSAGES,
            "tools": [{"type": "function", "function": FUNCTION}],
            "think": True,
            "stream": False,
        },
    ),
}
FORCED: dict[str, Any] = {
    "openai": "required",
    "responses": {"type": "function", "name": "weather"},
    "anthropic": {"type": "any"},
}


@asynccontextmanager
async def open_client(folder: Path) -> AsyncIterator[tuple[httpx.AsyncClient, WireServer]]:
    """Run the app with models with and without tools, and aliases; yield a client and the server."""
    plain_model = {"context": 100_000, "upstream": "up", "price": {"input": 0, "output": 0}}
    models = [
        {"name": "plain", **plain_model},
        {"name": "lenient", **plain_model, "omit": ["tools", "thinking"]},
        {"name": "able", **plain_model, "tools": True, "omit": ["tools", "thinking"]},
    ]
    async with (
        WireServer().running() as server,
        serving(
            folder,
            {"name": "wire", "type": "openai", "base_url": f"{server.url}/v1", "models": models},
            chat={"models": ["plain"], "omit": ["tools"]},
            both=["lenient", "able"],
        ) as models_app,
        httpx.AsyncClient(
            base_url=f"{models_app.url}/v1/",
            headers={"authorization": f"Bearer {models_app.api_key}"},
        ) as client,
    ):
        yield client, server


@pytest.mark.parametrize("protocol", REQUESTS)
async def test_a_request_is_sent_without_unsupported_features(
    tmp_path: Path, protocol: str
) -> None:
    path, body = REQUESTS[protocol]
    async with open_client(tmp_path) as (client, server):
        refused_response = await client.post(path, json={**body, "model": "plain"})
        assert refused_response.status_code == 400 and "tools" in refused_response.text
        response = await client.post(path, json={**body, "model": "lenient"})
        assert response.status_code == 200, response.text
        assert response.headers["x-moyin-route"] == "free; without thinking and tools"
        _, request_body = server.requests[-1]
        assert (
            not {"tools", "tool_choice", "parallel_tool_calls", "reasoning_effort"}
            & request_body.keys()
        )
        route_response = await client.post(
            f"route?protocol={protocol}", json={**body, "model": "lenient"}
        )
        assert route_response.json()["omitted"] == ["thinking", "tools"]
        assert route_response.json()["route"].endswith("; without thinking and tools")
        # The alias allows it for tools only.
        basic_body = {name: value for name, value in body.items() if name not in _REASONING}
        response = await client.post(path, json={**basic_body, "model": "chat"})
        assert response.headers["x-moyin-route"] == "free; without tools"
        assert (await client.post(path, json={**body, "model": "chat"})).status_code == 400
        # A model under this name can call tools.
        response = await client.post(path, json={**body, "model": "both"})
        assert response.headers["x-moyin-route"] == "free; without thinking"
        assert response.headers["x-moyin-model"] == "able"
        assert len(server.requests[-1][1]["tools"]) == 1


_REASONING = {"reasoning_effort", "reasoning", "thinking", "think"}


@pytest.mark.parametrize("protocol", FORCED)
async def test_request_with_forced_tool_is_refused(tmp_path: Path, protocol: str) -> None:
    path, body = REQUESTS[protocol]
    async with open_client(tmp_path) as (client, _):
        forced_body = {**body, "model": "lenient", "tool_choice": FORCED[protocol]}
        response = await client.post(path, json=forced_body)
        assert response.status_code == 400 and "tools" in response.text


async def test_effort_level_is_dropped_for_models_that_do_not_reason(tmp_path: Path) -> None:
    body = {"messages": MESSAGES, "max_tokens": 9, "output_config": {"effort": "high"}}
    async with open_client(tmp_path) as (client, server):
        response = await client.post("messages", json={**body, "model": "plain"})
        assert response.status_code == 200, response.text
        assert "reasoning_effort" not in server.requests[-1][1]
        stream_response = await client.post(
            "messages", json={**body, "model": "plain", "stream": True}
        )
        assert "message_stop" in stream_response.text
        assert "reasoning_effort" not in server.requests[-1][1]


async def test_responses_continue_and_show_the_usage(tmp_path: Path) -> None:
    path, body = REQUESTS["responses"]
    async with open_client(tmp_path) as (client, _):
        first_response = (await client.post(path, json={**body, "model": "lenient"})).json()
        assert first_response["tools"] == [] and first_response["reasoning"]["effort"] is None
        next_members = {
            "model": "lenient",
            "input": "And now?",
            "previous_response_id": first_response["id"],
        }
        assert (await client.post(path, json={**body, **next_members})).status_code == 200
        stored_response = (await client.get(f"responses/{first_response['id']}")).json()
        assert stored_response == first_response
        stream_response = await client.post(path, json={**body, "model": "lenient", "stream": True})
        assert stream_response.headers["x-moyin-route"].endswith("; without thinking and tools")
        assert "response.completed" in stream_response.text
