"""Runs LangChain's standard tests of chat models with its three clients."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import httpx
import httpx2
import pytest
import pytest_asyncio
from langchain_anthropic import ChatAnthropic
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.acceptance.text_gateway import LLAMA, OTHER, PNG, SCRIPTED, TextGateway

pytestmark = pytest.mark.filterwarnings(
    # LangChain drops clients with open connections.
    "ignore:unclosed:ResourceWarning",
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning",
    # What its tests and its own use of pydantic warn of.
    "ignore:Received a Pydantic BaseModel V1 schema:UserWarning",
    "ignore:Pydantic serializer warnings:UserWarning",
    "ignore:Benchmark fixture was not used:pytest_benchmark.logger.PytestBenchmarkWarning",
)
# Enough to see that a model speaks; enough for a small JSON object.
_WORDS, _OBJECT = 16, 64


@pytest_asyncio.fixture(autouse=True, scope="module", loop_scope="session")
async def _close_clients() -> AsyncIterator[None]:
    """Close LangChain's cached HTTP clients, which LangChain itself never closes."""
    yield
    # By `type`: `isinstance` asks the object for its class, and a proxy that Temporal's workflow
    # sandbox left behind raises then.
    for http_client in gc.get_objects():
        if issubclass(type(http_client), httpx.AsyncClient | httpx2.AsyncClient):
            await http_client.aclose()
        elif issubclass(type(http_client), httpx.Client | httpx2.Client):
            http_client.close()
    gc.collect()


class _StandardTests(ChatModelIntegrationTests):
    """LangChain's unchanged tests; the properties below declare the abilities of the model."""

    MODEL: ClassVar[str] = SCRIPTED
    text_gateway: TextGateway
    max_tokens: int

    @pytest.fixture(autouse=True)
    def _attach_gateway(
        self,
        text_gateway: TextGateway,
        request: pytest.FixtureRequest,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.text_gateway = text_gateway
        test_name = request.node.name
        self.max_tokens = _OBJECT if "structured" in test_name or "json" in test_name else _WORDS
        # The tests fetch their picture from the internet.
        monkeypatch.setattr(httpx, "get", lambda *_, **__: httpx.Response(200, content=PNG))

    @property
    def model_override_value(self) -> str:
        return OTHER

    @property
    def supports_image_inputs(self) -> bool:
        return self.MODEL == SCRIPTED


class _ThroughOpenAI(_StandardTests):
    SUITE = "langchain-tests, ChatOpenAI"

    @property
    def chat_model_class(self) -> Any:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": self.MODEL,
            "base_url": self.text_gateway.openai_url,
            "api_key": self.text_gateway.api_key,
            "max_tokens": self.max_tokens,
            "stream_usage": True,
            "max_retries": 0,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True


class _ThroughAnthropic(_StandardTests):
    SUITE = "langchain-tests, ChatAnthropic"

    @property
    def chat_model_class(self) -> Any:
        return ChatAnthropic

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": self.MODEL,
            "base_url": self.text_gateway.url,
            "api_key": self.text_gateway.api_key,
            "max_tokens": self.max_tokens,
            "max_retries": 0,
        }

    @property
    def supports_image_tool_message(self) -> bool:
        return self.supports_image_inputs

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True


class _ThroughOllama(_StandardTests):
    SUITE = "langchain-tests, ChatOllama"

    @property
    def chat_model_class(self) -> Any:
        return ChatOllama

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": self.MODEL,
            "base_url": self.text_gateway.ollama_url,
            "client_kwargs": {"headers": {"authorization": f"Bearer {self.text_gateway.api_key}"}},
            "num_predict": self.max_tokens,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True


class TestOpenAI(_ThroughOpenAI):
    """Runs the tests with the OpenAI client on the scripted model."""


class TestOpenAIOnLlama(_ThroughOpenAI):
    MODEL = LLAMA


class TestAnthropic(_ThroughAnthropic):
    """Runs the tests with the Anthropic client on the scripted model."""


class TestAnthropicOnLlama(_ThroughAnthropic):
    MODEL = LLAMA


class TestOllama(_ThroughOllama):
    """Runs the tests with the Ollama client on the scripted model."""


class TestOllamaOnLlama(_ThroughOllama):
    MODEL = LLAMA
