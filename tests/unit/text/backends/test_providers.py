"""Tests the requests to cloud providers, and the interpretation of their errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from deployments.models.config import ModelsConfig
from deployments.models.fleet import FleetBuilder
from moyin.domain.backend import RawRequest
from moyin.domain.chat import ChatRequest, Message, Role, Text
from moyin.errors import (
    BackendError,
    BackendKeyRejected,
    BackendRejected,
    ModelNotFound,
    Overloaded,
)
from moyin.settings import Settings
from moyin.text.routing.backend_runtime import BackendRuntime

ANSWER = {
    "id": "1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}  # fmt: skip
CLAUDE_ANSWER = {
    "id": "1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
    "stop_sequence": None, "content": [{"type": "text", "text": "Hi"}],
    "usage": {"input_tokens": 3, "output_tokens": 1},
}  # fmt: skip


@dataclass
class FakeProvider:
    """A fake provider that records requests and answers with ``status`` and ``body``."""

    body: Any = field(default_factory=lambda: ANSWER)
    status: int = 200
    location: str | None = None
    url: str = ""
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.method, request.path_qs, headers, await request.read()))
        location_headers = {} if self.location is None else {"location": self.location}
        return web.json_response(self.body, status=self.status, headers=location_headers)


@asynccontextmanager
async def run_backend(provider: FakeProvider, **settings: Any) -> AsyncIterator[BackendRuntime]:
    """Run the provider, and a back end with these settings and the key ``secret``."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", provider.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    provider.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    settings["base_url"] = provider.url + settings["base_url"]
    model = {"name": "m", "context": 99, "price": 0}
    backend = {"name": "b", "api_key_env": "KEY", "models": [model], **settings}
    builder = FleetBuilder(Settings(), {"KEY": "secret"})
    fleet = builder.build(ModelsConfig.model_validate({"backends": [backend]}))
    yield fleet.runtimes["b"]
    await builder.close()
    await runner.cleanup()


def new_raw_request(path: str) -> RawRequest:
    deadline = asyncio.get_running_loop().time() + 30
    return RawRequest(path=path, body=b'{"model": "m"}', headers={}, deadline=deadline)


async def forward_request(runtime: BackendRuntime, path: str = "/chat/completions") -> bytes:
    assert runtime.pass_through is not None
    return await runtime.pass_through.forward(new_raw_request(path))


async def send_chat(runtime: BackendRuntime) -> None:
    message = Message(role=Role.USER, parts=(Text(text="Hi"),))
    request = ChatRequest(model="m", messages=(message,), max_tokens=5)
    await runtime.backend.chat(request, asyncio.get_running_loop().time() + 30)


async def test_azure_gets_its_key_in_a_header_of_its_own() -> None:
    provider = FakeProvider()
    async with run_backend(
        provider, type="openai", base_url="/openai/v1", auth_header="api-key"
    ) as b:
        await forward_request(b)
    [(_, path, headers, _)] = provider.requests
    assert path == "/openai/v1/chat/completions"
    assert headers["api-key"] == "secret" and "authorization" not in headers


async def test_azures_older_api_has_the_deployment_and_a_version_in_its_urls() -> None:
    provider = FakeProvider()
    settings = {
        "type": "openai",
        "base_url": "/openai/deployments/gpt",
        "auth_header": "api-key",
        "query": {"api-version": "2024-10-21"},
        "headers": {"x-ms-client": "moyin"},
    }
    async with run_backend(provider, **settings) as backend:
        await forward_request(backend)
        await send_chat(backend)
        provider.status = 404
        # There is no list of models here; that the server answers is enough.
        await backend.backend.probe()
    paths = [path for _, path, _, _ in provider.requests]
    query = "?api-version=2024-10-21"
    base_path = "/openai/deployments/gpt"
    assert paths == [f"{base_path}/chat/completions{query}"] * 2 + [f"{base_path}/models{query}"]
    assert all(headers["x-ms-client"] == "moyin" for _, _, headers, _ in provider.requests)


async def test_no_health_check_is_sent_without_a_health_path() -> None:
    provider = FakeProvider(status=403)
    async with run_backend(provider, type="openai", base_url="/v1", health_path=None) as backend:
        await backend.backend.probe()
    assert not provider.requests


async def test_a_key_does_not_follow_redirects() -> None:
    provider = FakeProvider(status=307, location="/elsewhere")
    async with run_backend(
        provider, type="openai", base_url="/v1", auth_header="api-key"
    ) as backend:
        with pytest.raises(BackendError):
            await backend.backend.probe()
    assert [path for _, path, _, _ in provider.requests] == ["/v1/models"]


async def test_claude_in_another_cloud_gets_a_bearer_token() -> None:
    provider = FakeProvider(body=CLAUDE_ANSWER)
    settings = {"auth_header": "authorization", "headers": {"x-workspace": "w"}}
    async with run_backend(
        provider, type="anthropic", base_url="/anthropic", **settings
    ) as backend:
        await forward_request(backend, "/messages")
        await send_chat(backend)
        provider.status = 404
        await backend.backend.probe()
    for _, path, headers, _ in provider.requests[:2]:
        assert path == "/anthropic/v1/messages"
        assert headers["authorization"] == "Bearer secret"
        assert "x-api-key" not in headers
        assert headers["x-workspace"] == "w"
        assert "anthropic-version" in headers


@pytest.mark.parametrize("header", ["x-api-key", "api-key"])
async def test_claudes_key_is_in_one_header_alone(header: str) -> None:
    provider = FakeProvider(body=CLAUDE_ANSWER)
    async with run_backend(provider, type="anthropic", base_url="", auth_header=header) as backend:
        await send_chat(backend)
    [(_, _, headers, _)] = provider.requests
    assert [name for name, value in headers.items() if "secret" in value] == [header]


GOOGLE_KEY = {
    "code": 400,
    "message": "API key not valid. Please pass a valid API key.",
    "status": "INVALID_ARGUMENT",
    "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}],
}
GOOGLE_QUOTA = {"code": 429, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED"}
GOOGLE_ARGUMENT = {"code": 400, "message": "Function call is missing a thought_signature"}
AZURE_FILTER = {
    "message": "The response was filtered",
    "code": "content_filter",
    "status": 400,
    "innererror": {"code": "ResponsibleAIPolicyViolation"},
}


@pytest.mark.parametrize(
    ("status", "body", "error_class", "message"),
    [
        (400, [{"error": GOOGLE_KEY}], BackendKeyRejected, "configured API key"),
        (429, [{"error": GOOGLE_QUOTA}], Overloaded, "overloaded"),
        (400, [{"error": GOOGLE_ARGUMENT}], BackendRejected, "thought_signature"),
        (400, {"error": AZURE_FILTER}, BackendRejected, "was filtered"),
        (404, {"error": {"code": "DeploymentNotFound", "message": "x"}}, ModelNotFound, "model"),
        (401, {"statusCode": 401, "message": "Access denied"}, BackendKeyRejected, "API key"),
        (400, {"message": "Malformed input request"}, BackendRejected, "Malformed input"),
        (403, {"Message": "Bearer Token has expired"}, BackendKeyRejected, "API key"),
        (429, {"message": "Too many tokens"}, Overloaded, "overloaded"),
        (400, "nothing", BackendRejected, "HTTP status 400"),
        (400, [], BackendRejected, "HTTP status 400"),
        (400, {"error": {"message": {"en": "no"}}}, BackendRejected, "HTTP status 400"),
    ],
)
async def test_provider_errors_are_translated(
    status: int, body: Any, error_class: type[Exception], message: str
) -> None:
    provider = FakeProvider(body=body, status=status)
    async with run_backend(provider, type="openai", base_url="/v1") as backend:
        with pytest.raises(error_class, match=message):
            await forward_request(backend)


@pytest.mark.parametrize(
    "settings",
    [
        {"headers": {"Authorization": "Bearer x"}},
        {"headers": {"api-key": "x"}},
        {"headers": {"Content-Type": "text/plain"}},
        {"headers": {"x a": "b"}},
        {"headers": {"x-a": "b\r\nc: d"}},
        {"headers": {"Cookie": "x"}},
        {"headers": {"Proxy-Authorization": "x"}},
        {"headers": {"Ocp-Apim-Subscription-Key": "x"}},
        {"headers": {"Accept-Encoding": "gzip"}},
        {"headers": {"Connection": "close"}},
        {"auth_header": "x: y"},
        {"auth_header": "Content-Type"},
        {"query": {"key": "x"}},
        {"query": {"API_Key": "x"}},
        {"query": {"api-key": "x"}},
        {"query": {"subscription-key": "x"}},
        {"query": {"access_token": "x"}},
        {"health_path": "models"},
    ],
)
def test_settings_with_secrets_or_invalid_headers_are_rejected(settings: dict[str, Any]) -> None:
    model = {"name": "m", "context": 99, "price": 0}
    backend = {"name": "b", "type": "openai", "base_url": "http://a", "models": [model], **settings}
    with pytest.raises(ValueError, match=r"headers|auth_header|query|health_path"):
        ModelsConfig.model_validate({"backends": [backend]})
