"""Tests the list of models in each protocol; it calls no model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import ollama
import openai
import pytest

from moyin.domain.identity import TEXT
from moyin.store.keys import KeyStore
from moyin.store.sql import Database
from tests.integration.text.fixtures import ModelsApp, serving

NOWHERE = "http://127.0.0.1:9/v1"
ALL = ["auto", "work", "house", "cloud", "gpu"]


def build_backend(name: str, **members: Any) -> dict[str, Any]:
    model = {"name": name, "context": 4096, "tools": name == "cloud", **members}
    model = {"price": {"input": 3, "output": 7}, **model}
    residency = "cloud" if name == "cloud" else "on-premises"
    endpoint = {"base_url": NOWHERE, "residency": residency}
    return {"name": f"at-{name}", "type": "openai", **endpoint, "models": [model]}


@pytest.fixture
async def models_app(tmp_path: Path) -> AsyncIterator[ModelsApp]:
    backends = [
        build_backend("house"),
        build_backend("cloud", context=9000),
        build_backend("gpu", price={"usd_per_gpu_hour": 9}),
    ]
    tenants = {"eve": {"models": ["auto", "house", "cloud"], "residency": ["on-premises"]}}
    aliases: dict[str, Any] = {"work": {"models": ["house", "cloud"]}}
    async with serving(tmp_path, *backends, rules={"tenants": tenants}, **aliases) as models_app:
        yield models_app


@pytest.fixture
async def eve_key(models_app: ModelsApp, tmp_path: Path) -> AsyncIterator[str]:
    """Yield the key of a tenant whose only scope is ``text``."""
    database = Database(f"sqlite:///{tmp_path}/moyin.db")
    _, key = await KeyStore(database).create("eve", "test", scopes=frozenset({TEXT}))
    yield key
    await database.close()


async def get_json(models_app: ModelsApp, path: str, key: str, **headers: str) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key}", **headers}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.get(f"{models_app.url}/v1/{path}") as response,
    ):
        return response.status, await response.json()


async def test_anthropic_clients_read_pages(models_app: ModelsApp) -> None:
    async with anthropic.AsyncAnthropic(
        base_url=models_app.url, api_key=models_app.api_key
    ) as client:
        first_page = await client.models.list(limit=2)
        assert [model.id for model in first_page.data] == ALL[:2]
        assert first_page.has_more and first_page.last_id == "work"
        assert [model.id async for model in first_page] == ALL
        earlier_page = await client.models.list(limit=2, before_id="gpu")
        assert [model.id for model in earlier_page.data] == ["house", "cloud"]
        assert earlier_page.has_more
        first_model_page = await client.models.list(before_id="work")
        assert ([model.id for model in first_model_page.data], first_model_page.has_more) == (
            ["auto"],
            False,
        )
        model = await client.models.retrieve("cloud")
        assert (model.lifecycle, model.max_input_tokens) == ("active", 9000)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=1001", "after_id=no", "after_id=auto&before_id=gpu"]
)
async def test_errors_of_a_page_have_anthropics_shape(models_app: ModelsApp, query: str) -> None:
    version_headers = {"anthropic-version": "2023-06-01"}
    status, body = await get_json(
        models_app, f"models?{query}", models_app.api_key, **version_headers
    )
    assert (status, body["type"], body["error"]["type"]) == (400, "error", "invalid_request_error")
    assert body["error"]["field"] in query
    status, body = await get_json(models_app, f"models?{query}", models_app.api_key)
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    assert body["error"]["param"] in query


async def test_model_list_is_complete_unless_a_page_is_requested(models_app: ModelsApp) -> None:
    for query, expected_names, has_more in (
        ("", ALL, False),
        ("?limit=2", ALL[:2], True),
        (f"?limit=2&after_id={ALL[1]}", ALL[2:4], True),
        ("?search=%20LOU&limit=9", ["cloud"], False),
        ("?search=none", [], False),
    ):
        status, body = await get_json(models_app, f"models{query}", models_app.api_key)
        assert (status, [model["id"] for model in body["data"]]) == (200, expected_names), query
        assert body["has_more"] is has_more, query
    status, _ = await get_json(models_app, f"models?search={'x' * 201}", models_app.api_key)
    assert status == 400


async def test_errors_have_the_format_of_each_protocol(models_app: ModelsApp) -> None:
    async with anthropic.AsyncAnthropic(
        base_url=models_app.url, api_key=models_app.api_key
    ) as client:
        with pytest.raises(anthropic.NotFoundError) as not_found:
            await client.models.retrieve("no-such")
        assert not_found.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    async with anthropic.AsyncAnthropic(base_url=models_app.url, api_key="wrong") as client:
        with pytest.raises(anthropic.AuthenticationError) as authentication_error:
            await client.models.list()
        assert authentication_error.value.body["type"] == "error"  # type: ignore[index]
    async with openai.AsyncOpenAI(
        base_url=f"{models_app.url}/v1", api_key=models_app.api_key
    ) as client:
        with pytest.raises(openai.NotFoundError) as openai_error:
            await client.models.retrieve("no-such")
        assert openai_error.value.code == "model_not_found"


async def test_a_tenant_sees_its_permitted_models_without_prices(
    models_app: ModelsApp, eve_key: str
) -> None:
    _, body = await get_json(models_app, "models", eve_key)
    assert [model["id"] for model in body["data"]] == ["auto", "house"]
    assert not any("backends" in model for model in body["data"])
    # What the tenant's data may not reach does not count as an ability either.
    assert {model["tools"] for model in body["data"]} == {False}
    assert [(await get_json(models_app, f"models/{name}", eve_key))[0] for name in ALL] == [
        200, 404, 200, 404, 404,
    ]  # fmt: skip
    client = ollama.AsyncClient(
        host=f"{models_app.url}/v1/ollama", headers={"authorization": f"Bearer {eve_key}"}
    )
    listed_names = [model.model for model in (await client.list()).models]
    assert {str(name).partition(":")[0] for name in listed_names} == {"auto", "house"}
    assert "tools" not in ((await client.show("auto")).capabilities or ())
    with pytest.raises(ollama.ResponseError):
        await client.show("cloud")
    await client.close()


async def test_operators_see_back_ends_and_what_their_tokens_cost(models_app: ModelsApp) -> None:
    _, body = await get_json(models_app, "models", models_app.api_key)
    backends_by_model = {model["id"]: model["backends"] for model in body["data"]}
    assert [item["name"] for item in backends_by_model["work"]] == ["at-house", "at-cloud"]
    assert backends_by_model["house"][0]["usd_per_million_tokens"] == {"input": "3", "output": "7"}
    hourly_price = backends_by_model["gpu"][0]["usd_per_million_tokens"]
    assert float(hourly_price["output"]) > float(hourly_price["input"]) > 0


async def test_health_needs_no_key(models_app: ModelsApp) -> None:
    async with aiohttp.ClientSession() as http, http.get(f"{models_app.url}/v1/health") as response:
        assert (response.status, await response.json()) == (200, {"status": "ok"})


async def test_a_model_that_a_tenant_may_not_use_is_not_loaded_for_it(
    models_app: ModelsApp, eve_key: str
) -> None:
    """A request to load a model is refused like a chat, if the tenant may not use the model."""
    headers = {"authorization": f"Bearer {eve_key}"}
    messages = [{"role": "user", "content": "hi"}]
    async with aiohttp.ClientSession(headers=headers) as http:
        for name in ("gpu", "cloud"):
            refusals = []
            for members in ({}, {"messages": messages}):
                body = {"model": name, **members}
                async with http.post(f"{models_app.url}/v1/ollama/api/chat", json=body) as response:
                    response_body = await response.json()
                    refusals.append((response.status, response_body.get("code")))
            assert refusals[0] == refusals[1]
            assert refusals[0][0] in (400, 403, 404), refusals
        async with http.post(
            f"{models_app.url}/v1/ollama/api/chat", json={"model": "house"}
        ) as response:
            assert (response.status, (await response.json())["done_reason"]) == (200, "load")
