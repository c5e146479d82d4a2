"""Runs the models app in its own thread, so that blocking clients can be used."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from anyio.from_thread import start_blocking_portal

from tests.acceptance.scripted import new_scripted_app
from tests.acceptance.scripted_operations import build_operations_backend
from tests.integration.text.fixtures import build_claude_backend, build_local_backend, serving

# llama.cpp with SmolLM2-135M through its OpenAI side and through its Anthropic side; the model
# that obeys, under several names: some suites ask only models so called for their thoughts.
LLAMA = "smollm2"
CLAUDE = "claude-haiku-5-5"
SCRIPTED = "scripted"
OTHER = "scripted-other"
SCRIPTED_GPT = "gpt-5-scripted"
SCRIPTED_CLAUDE = "claude-opus-scripted"
VECTORS = "scripted-vectors"
# Some clients know the context of the vendors' own models only.
ALIASES: dict[str, Any] = {"gpt-4o": [SCRIPTED], "claude-sonnet-4-5": [SCRIPTED]}
ALL = [LLAMA, CLAUDE, SCRIPTED]
# One transparent pixel.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


@dataclass(frozen=True, kw_only=True)
class TextGateway:
    """A running models app; ``url`` is its URL without ``/v1``."""

    url: str
    api_key: str

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def ollama_url(self) -> str:
        return f"{self.url}/v1/ollama"


@contextmanager
def running_text_gateway(llama: str, folder: Path) -> Iterator[TextGateway]:
    """Run the app with llama.cpp and the scripted model as back ends during the block."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(_serve_models_app(llama, folder)) as text_gateway,
    ):
        yield text_gateway


@asynccontextmanager
async def _serve_models_app(llama: str, folder: Path) -> AsyncIterator[TextGateway]:
    async with (
        _serve_scripted_model() as url,
        serving(
            folder,
            _build_small_backend(llama),
            build_claude_backend(llama),
            _build_capable_backend(url),
            build_operations_backend(url),
            **ALIASES,
        ) as models_app,
    ):
        yield TextGateway(url=models_app.url, api_key=models_app.api_key)


@asynccontextmanager
async def _serve_scripted_model() -> AsyncIterator[str]:
    runner = web.AppRunner(new_scripted_app())
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _build_small_backend(llama: str) -> dict[str, Any]:
    """Return the back end of llama.cpp with a model that supports JSON schemas but no tools."""
    backend = build_local_backend(llama)
    [model] = backend["models"]
    model |= {"schema": True}
    return backend


def _build_capable_backend(url: str) -> dict[str, Any]:
    abilities = dict.fromkeys(("tools", "vision", "schema", "thinking"), True)
    model = {"context": 128_000, **abilities}
    names = (SCRIPTED, OTHER, SCRIPTED_GPT, SCRIPTED_CLAUDE)
    free_price = {"price": {"input": 0, "output": 0}}
    embedding_model = {"name": VECTORS, "context": 8192, "embeddings": True, **free_price}
    return {
        "name": "scripted",
        "type": "openai",
        "base_url": f"{url}/v1",
        "models": [embedding_model, *({"name": name, **model, **free_price} for name in names)],
    }
