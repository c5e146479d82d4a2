"""Tests how the list of an Ollama host's models is kept up to date."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from moyin.domain import chat
from moyin.errors import BackendUnavailable
from moyin.testing.ollama_host import FakeOllamaHost
from moyin.text.backends.http import Endpoint, FixedEndpoint, HttpClient
from moyin.text.backends.ollama import OllamaBackend
from moyin.text.backends.ollama_models import HostModels, add_default_tag


@pytest.fixture
async def host() -> AsyncIterator[FakeOllamaHost]:
    async with FakeOllamaHost().running() as host:
        yield host


@pytest.fixture
async def http_client(host: FakeOllamaHost) -> AsyncIterator[HttpClient]:
    endpoint = FixedEndpoint(Endpoint(url=host.url))
    client = HttpClient(endpoint, credentials=lambda key: {}, max_connections=4)
    yield client
    await client.close()


async def test_pulled_and_removed_models_are_noticed(
    host: FakeOllamaHost, http_client: HttpClient
) -> None:
    models = HostModels()
    assert await models.refresh(http_client)
    assert not await models.refresh(http_client)
    host.models["qwen3:8b"] = ["completion", "tools", "thinking"]
    assert await models.refresh(http_client)
    assert host.shown == ["smollm2:latest", "qwen3:8b"], "only new models are asked for"
    model_file = models.find("qwen3:8b")
    assert model_file is not None and model_file.capabilities == {"completion", "tools", "thinking"}
    assert (model_file.context, model_file.size) == (8192, 98_000_000)
    assert model_file.details["quantization_level"] == "Q4_1"
    assert "/root" not in f"{model_file}", "paths of the host are nobody's business"
    del host.models["qwen3:8b"]
    assert await models.refresh(http_client)
    assert models.find("qwen3:8b") is None
    assert models.find("smollm2") is models.find("smollm2:latest") is not None


async def test_a_recreated_model_is_described_again(
    host: FakeOllamaHost, http_client: HttpClient
) -> None:
    models = HostModels()
    await models.refresh(http_client)
    host.models["smollm2:latest"] = ["completion", "tools"]
    assert await models.refresh(http_client)
    model_file = models.find("smollm2")
    assert model_file is not None and "tools" in model_file.capabilities


async def test_models_that_run_outside_the_host_are_excluded(
    host: FakeOllamaHost, http_client: HttpClient
) -> None:
    host.models["gpt-oss:120b-cloud"] = ["completion"]
    host.remote.add("gpt-oss:120b-cloud")
    models = HostModels()
    await models.refresh(http_client)
    assert list(models.files or ()) == ["smollm2:latest"]


async def test_a_host_that_fails_keeps_its_models(host: FakeOllamaHost) -> None:
    models = HostModels()
    backend = OllamaBackend(host.url, contexts={}, max_connections=2, models=models)
    await backend.refresh_models()
    await backend.close()
    missing_host_backend = OllamaBackend(
        "http://127.0.0.1:9", contexts={}, max_connections=2, models=models
    )
    with pytest.raises(BackendUnavailable):
        await missing_host_backend.refresh_models()
    await missing_host_backend.close()
    assert models.find("smollm2") is not None


async def test_refresh_does_not_wait_for_a_host_that_hangs(
    host: FakeOllamaHost, http_client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.models["llama3.2:3b"] = ["completion"]
    models = HostModels()
    await models.refresh(http_client)
    host.models["llama3.2:3b"] = ["completion", "tools"]
    host.models |= {f"new:{number}": ["completion"] for number in range(20)}
    host.may_show.clear()
    monkeypatch.setattr("moyin.text.backends.ollama_models._REFRESH_SECONDS", 0.2)
    async with asyncio.timeout(10):
        assert not await models.refresh(http_client)
    assert list(models.files or ()) == ["smollm2:latest", "llama3.2:3b"]
    host.may_show.set()
    monkeypatch.undo()
    assert await models.refresh(http_client)
    assert len(models.files or ()) == 22
    model_file = models.find("llama3.2:3b")
    assert model_file is not None and "tools" in model_file.capabilities, (
        "what was missed is asked for again"
    )


async def test_models_with_the_same_weights_are_resident_together(host: FakeOllamaHost) -> None:
    host.models["tools:latest"] = ["completion", "tools"]
    host.models["other:latest"] = ["completion"]
    host.weights["tools:latest"] = "smollm2:latest"
    host.resident = {"smollm2:latest"}
    backend = OllamaBackend(host.url, contexts={}, max_connections=2)
    await backend.refresh_models()
    resident_models = await backend.list_resident_models()
    await backend.close()
    assert set(resident_models) == {"smollm2:latest", "smollm2", "tools:latest", "tools"}
    assert resident_models["tools"]["context_length"] == 4096


async def test_requests_for_models_without_configured_context_can_be_checked(
    host: FakeOllamaHost,
) -> None:
    backend = OllamaBackend(host.url, contexts={}, max_connections=2)
    message = chat.Message(role=chat.Role.USER, parts=(chat.Text(text="hi"),))
    backend.check_request(chat.ChatRequest(model="smollm2", messages=(message,)))
    await backend.close()


@pytest.mark.parametrize(
    ("parameters", "expected_context"),
    [
        ('num_ctx                        2048\nstop  "x"', 2048),
        ('stop  "num_ctx 5"', 8192),
        ("", 8192),
    ],
)
async def test_context_of_the_modelfile_wins(
    host: FakeOllamaHost, http_client: HttpClient, parameters: str, expected_context: int
) -> None:
    host.parameters = parameters
    models = HostModels()
    await models.refresh(http_client)
    model_file = models.find("smollm2")
    assert model_file is not None and model_file.context == expected_context


@pytest.mark.parametrize(
    ("name", "tagged_name"),
    [
        ("llama3.2", "llama3.2:latest"),
        ("llama3.2:3b", "llama3.2:3b"),
        ("host:5000/library/x", "host:5000/library/x:latest"),
    ],
)
def test_default_tag_is_added_to_names_without_tag(name: str, tagged_name: str) -> None:
    assert add_default_tag(name) == tagged_name
