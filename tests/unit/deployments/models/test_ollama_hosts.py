"""Tests the models app with fake Ollama hosts: discovery, and calls that change hosts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import ollama
import pytest

from moyin.domain.identity import TEXT
from moyin.store.keys import KeyStore
from moyin.store.sql import Database
from moyin.testing.ollama_host import FakeOllamaHost
from tests.integration.text.fixtures import ModelsApp, serving
from tests.waiting import eventually

DIGEST = f"sha256:{0:064x}"
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(autouse=True)
def _check_frequently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.models.backend_checks._INTERVAL_SECONDS", 0.1)


@pytest.fixture
async def host() -> AsyncIterator[FakeOllamaHost]:
    async with FakeOllamaHost().running() as host:
        yield host


@pytest.fixture
async def second_host() -> AsyncIterator[FakeOllamaHost]:
    async with FakeOllamaHost({"qwen3:8b": ["completion", "thinking"]}).running() as host:
        yield host


def make_backend(*hosts: FakeOllamaHost, **members: Any) -> dict[str, Any]:
    return {"name": "gpu", "type": "ollama", "hosts": [host.url for host in hosts], **members}


@pytest.fixture
async def models_app(host: FakeOllamaHost, tmp_path: Path) -> AsyncIterator[ModelsApp]:
    cloud_backend = {
        "name": "claude",
        "type": "anthropic",
        "api_key_env": "NO_SUCH_KEY",
        "models": [
            {"name": "claude-haiku-5-5", "context": 200_000, "thinking": True, "vision": True}
        ],
    }
    async with serving(tmp_path, make_backend(host), cloud_backend, any=[]) as models_app:
        await wait_until_discovered(models_app, "smollm2")
        yield models_app


@pytest.fixture
async def app_with_two_hosts(
    host: FakeOllamaHost, second_host: FakeOllamaHost, tmp_path: Path
) -> AsyncIterator[ModelsApp]:
    async with serving(tmp_path, make_backend(host, second_host)) as models_app:
        await wait_until_discovered(models_app, "smollm2", "qwen3:8b")
        yield models_app


async def wait_until_discovered(models_app: ModelsApp, *names: str) -> None:
    await eventually(lambda: set(names) <= set(models_app.text_router.fleet.catalog.names))


async def call_ollama(
    models_app: ModelsApp,
    method: str,
    path: str,
    body: Any = None,
    *,
    key: str = "",
    **headers: str,
) -> tuple[int, list[Any]]:
    """Send a request below ``/v1/ollama/``; return the response's status and its JSON lines."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers["authorization"] = f"Bearer {key or models_app.api_key}"
    data = BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
    async with aiohttp.ClientSession(headers=headers) as http:
        url = f"{models_app.url}/v1/ollama/{path}"
        async with http.request(method, url, data=data) as response:
            response_text = await response.text()
            return response.status, [json.loads(line) for line in response_text.splitlines()]


async def create_tenant_key(tmp_path: Path) -> str:
    database = Database(f"sqlite:///{tmp_path}/moyin.db")
    _, key = await KeyStore(database).create("eve", "test", scopes=frozenset({TEXT}))
    await database.close()
    return key


async def test_hosts_serve_the_models_that_they_have_pulled(
    models_app: ModelsApp, host: FakeOllamaHost
) -> None:
    host.models["qwen3:8b"] = ["completion", "tools", "thinking"]
    host.models["nomic:latest"] = ["embedding"]
    await wait_until_discovered(models_app, "qwen3:8b", "nomic")
    fleet = models_app.text_router.fleet
    (chat_deployment,) = fleet.catalog.find_deployments("qwen3:8b")
    assert (
        chat_deployment.model.tools,
        chat_deployment.model.thinking,
        chat_deployment.model.vision,
    ) == (True, True, False)
    assert (chat_deployment.model.context, chat_deployment.model.schema) == (8192, True)
    (embedding_deployment,) = fleet.catalog.find_deployments("nomic:latest")
    assert (embedding_deployment.model.embeddings, embedding_deployment.model.chat) == (True, False)
    for name in ("smollm2", "smollm2:latest", "gpu/smollm2"):
        status, lines = await call_ollama(
            models_app, "POST", "api/chat", {"model": name, "messages": HELLO}
        )
        assert status == 200
        assert {line["model"] for line in lines} == {name}, "the requested name"
    assert {body["model"] for _, _, body in host.received} == {"smollm2:latest"}
    del host.models["qwen3:8b"]
    await eventually(lambda: "qwen3:8b" not in models_app.text_router.fleet.catalog.names)


async def test_listed_settings_override_discovered_ones(
    host: FakeOllamaHost, tmp_path: Path
) -> None:
    host.models["qwen3:8b"] = ["completion", "tools", "thinking"]
    listed_models = [
        {"name": "small", "upstream": "smollm2", "context": 2048, "tools": True, "schema": False},
        {"name": "qwen3:8b", "thinking": False},
        {"name": "missing"},
    ]
    async with serving(tmp_path, make_backend(host, models=listed_models)) as models_app:
        await wait_until_discovered(models_app, "qwen3:8b")
        catalog = models_app.text_router.fleet.catalog
        assert catalog.names == ("auto", "small", "qwen3:8b"), "and no other model is served"
        small_model, qwen_model = (deployment.model for deployment in catalog.deployments)
        assert (small_model.context, small_model.tools, small_model.schema, small_model.chat) == (
            2048,
            True,
            False,
            True,
        )
        assert (qwen_model.context, qwen_model.tools, qwen_model.thinking) == (8192, True, False)
    async with serving(
        tmp_path, make_backend(host, models=listed_models[:1], discover=True)
    ) as models_app:
        await wait_until_discovered(models_app, "qwen3:8b")
        assert models_app.text_router.fleet.catalog.names == ("auto", "small", "qwen3:8b")


async def test_discovered_model_does_not_take_the_name_of_a_configured_one(
    host: FakeOllamaHost, tmp_path: Path
) -> None:
    host.models = {name: ["completion"] for name in ("qwen:latest", "qwen3:32b", "qwen:7b")}
    listed_models = [{"name": "qwen", "upstream": "qwen3:32b"}]
    async with serving(
        tmp_path, make_backend(host, models=listed_models, discover=True)
    ) as models_app:
        await wait_until_discovered(models_app, "qwen:7b")
        catalog = models_app.text_router.fleet.catalog
        assert [deployment.model.upstream for deployment in catalog.deployments] == [
            "qwen3:32b",
            "qwen:7b",
        ]


async def test_lists_have_tags_sizes_and_details(
    models_app: ModelsApp, host: FakeOllamaHost
) -> None:
    client = ollama.AsyncClient(
        host=f"{models_app.url}/v1/ollama",
        headers={"authorization": f"Bearer {models_app.api_key}"},
    )
    models_by_name = {model.model: model for model in (await client.list()).models}
    assert set(models_by_name) == {
        "auto:latest",
        "any:latest",
        "smollm2:latest",
        "claude-haiku-5-5:latest",
    }
    small_model = models_by_name["smollm2:latest"]
    assert small_model.size == 98_000_000 and small_model.details is not None
    assert (small_model.details.parameter_size, small_model.details.quantization_level) == (
        "134.52M",
        "Q4_1",
    )
    shown_model = await client.show("smollm2")
    assert shown_model.capabilities == ["completion"] and shown_model.details is not None
    assert shown_model.details.format == "gguf" and shown_model.template == "{{ .Prompt }}"
    assert (
        shown_model.modelinfo is not None and shown_model.modelinfo["llama.context_length"] == 8192
    )
    host.resident = {"smollm2:latest"}
    (running_model,) = (await client.ps()).models
    assert (running_model.model, running_model.size, running_model.context_length) == (
        "smollm2:latest",
        250,
        4096,
    )
    await client._client.aclose()


async def test_alias_shows_only_abilities_of_available_models(models_app: ModelsApp) -> None:
    for name in ("auto", "any"):
        _, (shown_model,) = await call_ollama(models_app, "POST", "api/show", {"model": name})
        assert shown_model["capabilities"] == ["completion"]
    _, (claude_model,) = await call_ollama(
        models_app, "POST", "api/show", {"model": "claude-haiku-5-5"}
    )
    assert "thinking" in claude_model["capabilities"], (
        "an unavailable model is described with all its abilities"
    )


async def test_groups_compute_no_vectors_with_chat_models(models_app: ModelsApp) -> None:
    body = {"model": "auto", "input": "text"}
    status, (error,) = await call_ollama(models_app, "POST", "api/embed", body)
    assert (status, error["code"]) == (400, "unsupported_feature")


async def test_model_is_unloaded_on_every_host_that_has_it(
    app_with_two_hosts: ModelsApp, host: FakeOllamaHost, second_host: FakeOllamaHost
) -> None:
    second_host.models["smollm2:latest"] = ["completion"]
    await load_on_all_hosts(app_with_two_hosts, host, second_host)
    body = {"model": "smollm2", "keep_alive": 0}
    status, lines = await call_ollama(app_with_two_hosts, "POST", "api/generate", body)
    assert (status, lines[-1]["done_reason"], lines[-1]["model"]) == (200, "unload", "smollm2")
    assert host.resident == second_host.resident == set()


async def test_host_that_fails_does_not_keep_others_from_unloading(
    app_with_two_hosts: ModelsApp, host: FakeOllamaHost, second_host: FakeOllamaHost
) -> None:
    second_host.models["smollm2:latest"] = ["completion"]
    await load_on_all_hosts(app_with_two_hosts, host, second_host)
    host.failing = True
    body = {"model": "smollm2", "keep_alive": 0}
    status, (error,) = await call_ollama(app_with_two_hosts, "POST", "api/generate", body)
    assert status >= 500 and error["code"], "the model is still in the memory of one host"
    assert (host.resident, second_host.resident) == ({"smollm2:latest"}, set())


@pytest.mark.parametrize("name", ["auto", "auto:latest", "any"])
async def test_only_operators_unload_all_models_of_a_group(
    name: str, host: FakeOllamaHost, second_host: FakeOllamaHost, tmp_path: Path
) -> None:
    second_host.models = {"smollm2:latest": ["completion"]}
    body = {"model": name, "keep_alive": 0}
    async with serving(tmp_path, make_backend(host, second_host), any=[]) as models_app:
        await load_on_all_hosts(models_app, host, second_host)
        key = await create_tenant_key(tmp_path)
        status, (last_line,) = await call_ollama(models_app, "POST", "api/generate", body, key=key)
        assert (status, last_line["done_reason"], last_line["model"]) == (200, "unload", name)
        assert host.received == second_host.received == []
        await call_ollama(models_app, "POST", "api/generate", body)
    assert host.resident == second_host.resident == set()


async def load_on_all_hosts(models_app: ModelsApp, *hosts: FakeOllamaHost) -> None:
    """Load ``smollm2`` on all hosts, and wait until the app has noticed."""
    await wait_until_discovered(models_app, "smollm2")
    for number, host in enumerate(hosts):
        host.resident = {"smollm2:latest"}
        runtime = models_app.text_router.fleet.runtimes[f"gpu-{number}"]
        await eventually(partial(runtime.has_loaded, "smollm2:latest"))


async def test_request_without_prompt_loads_the_model(
    models_app: ModelsApp, host: FakeOllamaHost
) -> None:
    for stream in (True, False):
        body = {"model": "smollm2", "stream": stream}
        status, (load_line,) = await call_ollama(models_app, "POST", "api/generate", body)
        assert (status, load_line["done_reason"], load_line["done"]) == (200, "load", True)
    assert host.resident == {"smollm2:latest"}
    # Some models of a group need no loading.
    status, (load_line,) = await call_ollama(models_app, "POST", "api/generate", {"model": "auto"})
    assert (status, load_line["done_reason"]) == (200, "load")


async def test_operators_change_the_models_of_the_only_host(
    models_app: ModelsApp, host: FakeOllamaHost
) -> None:
    status, lines = await call_ollama(models_app, "POST", "api/pull", {"model": "qwen3:8b"})
    assert (status, lines[-1]) == (200, {"status": "success"})
    assert "qwen3:8b" in models_app.text_router.fleet.catalog.names, "known at once"
    copy_body = {"source": "qwen3:8b", "destination": "mine:latest"}
    assert await call_ollama(models_app, "POST", "api/copy", copy_body) == (200, [])
    assert "mine" in models_app.text_router.fleet.catalog.names
    # The program ollama sends both members.
    body_with_both_names = {"model": "", "name": "mine:latest"}
    assert await call_ollama(models_app, "DELETE", "api/delete", body_with_both_names) == (200, [])
    assert "mine" not in models_app.text_router.fleet.catalog.names
    status, (error,) = await call_ollama(models_app, "DELETE", "api/delete", {"model": "none"})
    assert (status, error) == (404, {"error": "model 'none' not found"}), "the host's own error"
    blob = b"x" * (2 * 2**20)
    assert await call_ollama(models_app, "POST", f"api/blobs/{DIGEST}", blob) == (201, [])
    assert (await call_ollama(models_app, "POST", "api/blobs/sha256:..%2F..", blob))[0] in (
        400,
        404,
    )
    assert (await call_ollama(models_app, "POST", "api/blobs/sha256:x%3Fy", blob))[0] == 400
    assert host.received[-1] == ("POST", f"/api/blobs/{DIGEST}", len(blob))


async def test_one_of_several_hosts_must_be_named(
    app_with_two_hosts: ModelsApp, host: FakeOllamaHost, second_host: FakeOllamaHost
) -> None:
    status, (error,) = await call_ollama(app_with_two_hosts, "POST", "api/pull", {"model": "new"})
    assert (status, error["field"]) == (400, "x-moyin-backend")
    assert "gpu-0, gpu-1" in error["error"]
    await call_ollama(
        app_with_two_hosts, "POST", "api/pull", {"model": "new"}, x_moyin_backend="gpu-1"
    )
    await call_ollama(app_with_two_hosts, "POST", "api/pull", {"model": "gpu-0/other"})
    assert [body["model"] for _, _, body in second_host.received] == ["new"]
    assert [body["model"] for _, _, body in host.received] == ["other"]
    status, (error,) = await call_ollama(
        app_with_two_hosts, "POST", "api/pull", {"model": "new"}, x_moyin_backend="gpu-7"
    )
    assert (status, error["field"]) == (400, "x-moyin-backend")


async def test_tenants_cannot_change_hosts_but_may_pull_existing_models(
    models_app: ModelsApp, host: FakeOllamaHost, tmp_path: Path
) -> None:
    key = await create_tenant_key(tmp_path)
    for method, path in (
        ("POST", "push"), ("POST", "create"), ("POST", "copy"), ("DELETE", "delete"),
        ("POST", f"blobs/{DIGEST}"), ("POST", "pull"),
    ):  # fmt: skip
        body = {"model": "new", "source": "smollm2", "destination": "x"}
        status, (error,) = await call_ollama(models_app, method, f"api/{path}", body, key=key)
        assert (status, error["code"]) == (403, "insufficient_scope")
        assert f"/api/{path.partition('/')[0]}" in error["error"]
    large_blob = b"x" * (2 * 2**20)
    status, _ = await call_ollama(models_app, "POST", f"api/blobs/{DIGEST}", large_blob, key=key)
    assert status in (403, 413)
    for name in ("smollm2", "auto:latest"):
        unstreamed_pull: dict[str, Any] = {"model": name, "stream": False}
        assert await call_ollama(models_app, "POST", "api/pull", unstreamed_pull, key=key) == (
            200,
            [{"status": "success"}],
        )
    assert host.received == []


async def test_host_that_is_down_is_an_error_in_ollamas_format(
    host: FakeOllamaHost, tmp_path: Path
) -> None:
    down_backend = {"name": "off", "type": "ollama", "hosts": ["http://127.0.0.1:9"]}
    async with serving(tmp_path, down_backend) as models_app:
        status, (error,) = await call_ollama(models_app, "POST", "api/pull", {"model": "new"})
    assert (status, error["code"]) == (502, "backend_unavailable")
