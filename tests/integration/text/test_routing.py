"""Tests over HTTP: explained routes, residency of data, cached answers, and loaded models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from moyin.domain.money import Usage
from moyin.store.response_cache import CachedResponse, ResponseCache
from moyin.store.usage import UsageEntry
from tests.integration.servers import ValkeyServer
from tests.integration.text.fixtures import ModelsApp, serving
from tests.integration.text.upstreams import FINE, Upstream, build_backend_config
from tests.waiting import eventually

HELLO = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "openai": {"model": "auto", "max_tokens": 5, "messages": HELLO},
    "anthropic": {"model": "auto", "max_tokens": 5, "messages": HELLO},
    "ollama": {"model": "auto", "messages": HELLO, "options": {"num_predict": 5}},
}


async def post_json(
    models_app: ModelsApp, path: str, body: dict[str, Any], **headers: str
) -> tuple[aiohttp.ClientResponse, Any]:
    headers = {"authorization": f"Bearer {models_app.api_key}", **headers}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{models_app.url}/v1/{path}", json=body) as response,
    ):
        text = await response.text()
        is_json = response.content_type.endswith("json")
        return response, await response.json(content_type=None) if is_json else text


def build_house_backend(url: str) -> dict[str, Any]:
    return build_backend_config("openai", url) | {"name": "house", "residency": "on-premises"}


def build_cloud_backend(url: str) -> dict[str, Any]:
    models = [{"name": "claude-haiku-5-5", "context": 200_000, "tools": True, "vision": True}]
    return build_backend_config("anthropic", url) | {"name": "claude", "models": models}


@pytest.mark.parametrize("protocol", sorted(BODIES))
async def test_route_explanation_calls_no_back_end(tmp_path: Path, protocol: str) -> None:
    rules = {"routing": {"usd_per_second": 0.001}}
    async with (
        Upstream(FINE).running() as upstream,
        serving(
            tmp_path,
            build_house_backend(upstream.url),
            build_cloud_backend(upstream.url),
            rules=rules,
        ) as models_app,
    ):
        response, explanation = await post_json(
            models_app, f"route?protocol={protocol}", BODIES[protocol]
        )
        assert response.status == 200
        assert explanation["needs"]["max_tokens"] == 5
        assert explanation["chosen"] == {"backend": "claude", "model": "claude-haiku-5-5"}
        best_candidate, second_candidate = explanation["candidates"]
        assert (best_candidate["loses_by_usd"], second_candidate["backend"]) == (0, "house")
        assert best_candidate["reasons"] == [{"code": best_candidate["reason"]}]
        assert second_candidate["reasons"][0]["code"] in (
            "answers_worse",
            "costs_more",
            "takes_longer",
        )
        for candidate in explanation["candidates"]:
            expected_figures = candidate["expected"]
            assert candidate["score_usd"] == pytest.approx(
                float(expected_figures["cost_usd"])
                + 0.001 * expected_figures["seconds"]
                + candidate["quality"]["risk_usd"]
            )
        _, explanation = await post_json(
            models_app,
            "route",
            BODIES[protocol],
            **{"x-moyin-protocol": protocol, "x-moyin-residency": "on-premises"},
        )
        assert explanation["chosen"] == {"backend": "house", "model": "m-openai"}
        (refused_backend,) = explanation["refused"]
        assert (refused_backend["backend"], refused_backend["reason"]) == (
            "claude",
            "not allowed: data would go to cloud",
        )
        assert refused_backend["reasons"] == [
            {"code": "residency_not_allowed", "residency": "cloud"}
        ]
        assert upstream.request_count == 0


async def test_an_invalid_query_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, build_house_backend("http://127.0.0.1:9")) as models_app:
        response, body = await post_json(models_app, "route?protocol=gopher", BODIES["openai"])
        assert (response.status, body["field"]) == (400, "protocol")
        response, body = await post_json(models_app, "route", {"model": "auto"})
        assert (response.status, body["field"]) == (400, "messages")
        response, body = await post_json(
            models_app, "route", {**BODIES["openai"], "model": "gpt-2"}
        )
        assert (response.status, body["code"]) == (404, "model_not_found")
        _, body = await post_json(models_app, "route", {**BODIES["openai"], "max_tokens": 10**6})
        assert body["chosen"] is None
        assert body["error"]["code"] == "context_too_long"


async def test_data_goes_only_where_the_tenant_allows(tmp_path: Path) -> None:
    rules = {"tenants": {"ada": {"residency": ["on-premises"]}}}
    async with (
        Upstream(FINE).running() as upstream,
        serving(
            tmp_path,
            build_house_backend(upstream.url),
            build_cloud_backend(upstream.url),
            rules=rules,
        ) as models_app,
    ):
        response, _ = await post_json(models_app, "chat/completions", BODIES["openai"])
        assert response.headers["x-moyin-backend"] == "house"
        body = {**BODIES["openai"], "model": "claude-haiku-5-5"}
        response, response_body = await post_json(models_app, "chat/completions", body)
        assert (response.status, response_body["error"]["code"]) == (403, "model_not_allowed")
        residency_header = {"x-moyin-residency": "mars"}
        response, response_body = await post_json(
            models_app, "messages", BODIES["anthropic"], **residency_header
        )
        assert response.status == 400
        assert (
            response_body["error"]["message"]
            == "x-moyin-residency: no back end processes data in 'mars'; use one or more of: "
            "cloud, on-premises"
        )
        assert upstream.request_count == 1


async def test_counting_tokens_respects_the_residency_header(tmp_path: Path) -> None:
    body = {"model": "auto", "messages": HELLO}
    async with (
        Upstream(
            'HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\n{"input_tokens":9}'
        ).running() as upstream,
        serving(
            tmp_path, build_house_backend(upstream.url), build_cloud_backend(upstream.url)
        ) as models_app,
    ):
        residency_header = {"x-moyin-residency": "on-premises"}
        response, response_body = await post_json(
            models_app, "messages/count_tokens", body, **residency_header
        )
        assert (response.headers["x-moyin-estimated"], upstream.request_count) == ("true", 0)
        response, response_body = await post_json(models_app, "messages/count_tokens", body)
        assert (response_body, upstream.request_count) == ({"input_tokens": 9}, 1)


@pytest.mark.parametrize("block_type", ["image", "document"])
async def test_counting_tokens_makes_no_back_end_fetch_a_url(
    tmp_path: Path, block_type: str
) -> None:
    source = {"type": "url", "url": "http://169.254.169.254/latest/meta-data/"}
    message = {"role": "user", "content": [{"type": block_type, "source": source}]}
    async with (
        Upstream(
            'HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\n{"input_tokens":9}'
        ).running() as upstream,
        serving(tmp_path, build_cloud_backend(upstream.url)) as models_app,
    ):
        body = {"model": "auto", "messages": [message]}
        response, response_body = await post_json(models_app, "messages/count_tokens", body)
        assert (response.headers["x-moyin-estimated"], upstream.request_count) == ("true", 0)
        assert response_body["input_tokens"] > 0


async def test_document_url_is_refused(tmp_path: Path) -> None:
    source = {"type": "url", "url": "http://169.254.169.254/latest/meta-data/"}
    message = {"role": "user", "content": [{"type": "document", "source": source}]}
    async with (
        Upstream(FINE).running() as upstream,
        serving(tmp_path, build_cloud_backend(upstream.url)) as models_app,
    ):
        body = {"model": "auto", "max_tokens": 5, "messages": [message]}
        response, response_body = await post_json(models_app, "messages", body)
        assert (response.status, response_body["error"]["type"], upstream.request_count) == (
            400,
            "invalid_request_error",
            0,
        )
        assert "documents by URL" in response_body["error"]["message"]


async def wait_for_ledger_entry(models_app: ModelsApp, request_id: str) -> UsageEntry:
    ledger_entry: UsageEntry = await eventually(lambda: models_app.ledger.get("ada", request_id))
    return ledger_entry


@pytest.fixture
async def store(valkey_server: ValkeyServer) -> AsyncIterator[ResponseCache]:
    cache = ResponseCache(valkey_server.url)
    yield cache
    await cache.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_alias_with_a_cache_answers_from_it(
    tmp_path: Path, store: ResponseCache, stream: bool
) -> None:
    faq = {"models": ["m-openai"], "cache": {"ttl_s": 60}}
    body = {
        "model": "faq",
        "max_tokens": 5,
        "stream": stream,
        "messages": HELLO,
        "seed": int(stream),
    }
    async with (
        Upstream(_build_streamed_response() if stream else FINE).running() as upstream,
        serving(tmp_path, build_house_backend(upstream.url), cache=store, faq=faq) as models_app,
    ):
        first_response, first_text = await post_json(models_app, "chat/completions", body)
        answer_cache = models_app.text_router._answer_cache
        assert answer_cache is not None
        while answer_cache._writes:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        second_response, second_text = await post_json(models_app, "chat/completions", body)
        assert (
            first_response.headers["x-moyin-cache"],
            second_response.headers["x-moyin-cache"],
        ) == (
            "miss",
            "hit",
        )
        assert first_response.content_type == second_response.content_type
        if stream:
            stream_body, _, cost_comment = second_text.rpartition(": x-moyin-cost-usd=")
            assert (cost_comment, first_text.startswith(stream_body)) == ("0\n\n", True)
        else:
            assert first_text == second_text
            assert second_response.headers["x-moyin-cost-usd"] == "0"
        assert upstream.request_count == 1
        ledger_entry = await wait_for_ledger_entry(
            models_app, second_response.headers["x-request-id"]
        )
        assert (ledger_entry.backend, ledger_entry.cost_usd, ledger_entry.output_tokens) == (
            "cache",
            0,
            1,
        )


def _build_streamed_response() -> str:
    return (
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        'data: {"id":"1","model":"m","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
        'data: {"id":"1","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
        'data: {"id":"1","model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}'
        "\n\ndata: [DONE]\n\n"
    )


def build_cached_response(text: str) -> CachedResponse:
    return CachedResponse(
        backend="b",
        model="m",
        content_type="text/plain",
        body=f"{text}\n\x00 as it was".encode(),
        usage=Usage(input_tokens=3, output_tokens=1),
    )


async def test_stored_answers_are_limited_and_private_per_tenant(store: ResponseCache) -> None:
    for number in range(5):
        await store.put(
            "ada", f"d{number}", build_cached_response(str(number)), ttl_seconds=60, max_entries=3
        )
    cached_responses = [await store.get("ada", f"d{number}") for number in range(5)]
    assert cached_responses == [
        None,
        None,
        *(build_cached_response(str(number)) for number in (2, 3, 4)),
    ]
    assert await store.get("eve", "d4") is None


async def test_answers_expire(store: ResponseCache) -> None:
    await store.put("ada", "short", build_cached_response("x"), ttl_seconds=1, max_entries=3)
    assert await store.get("ada", "short") == build_cached_response("x")
    await asyncio.sleep(1.2)
    assert await store.get("ada", "short") is None


async def test_a_cache_outage_is_a_miss_and_pauses_lookups() -> None:
    store = ResponseCache("redis://127.0.0.1:9/0")
    assert await store.get("ada", "x") is None
    await store.close()
    store._cache._redis = None  # any use of it now would fail
    assert await store.get("ada", "x") is None
    await store.put("ada", "x", build_cached_response("x"), ttl_seconds=1, max_entries=1)


class FakeOllamaHost:
    """An Ollama host that reports which models it has in memory."""

    def __init__(self, *resident_models: str) -> None:
        self.resident_models = resident_models
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeOllamaHost]:
        app = web.Application()
        app.router.add_get("/api/version", self._list_resident_models)
        app.router.add_get("/api/ps", self._list_resident_models)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield self
        await runner.cleanup()

    async def _list_resident_models(self, _: web.Request) -> web.Response:
        models = [{"name": name, "size_vram": 1} for name in self.resident_models]
        return web.json_response({"models": models})


async def test_a_host_that_has_the_model_in_memory_is_preferred(tmp_path: Path) -> None:
    async with (
        FakeOllamaHost("other:1b").running() as cold_host,
        FakeOllamaHost("m:latest").running() as warm_host,
    ):
        ollama_backend = build_backend_config("ollama", "") | {
            "hosts": [cold_host.url, warm_host.url],
            "load_s": 20,
        }
        async with serving(tmp_path, ollama_backend) as models_app:
            runtimes = models_app.text_router.fleet.runtimes
            async with asyncio.timeout(5):
                while None in (runtime.is_up for runtime in runtimes.values()):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            _, explanation = await post_json(models_app, "route?protocol=ollama", BODIES["ollama"])
            first_candidate, second_candidate = explanation["candidates"]
            assert (first_candidate["backend"], first_candidate["state"]) == (
                "ollama-1",
                "resident",
            )
            assert (second_candidate["backend"], second_candidate["state"]) == (
                "ollama-0",
                "absent",
            )
            assert second_candidate["expected"]["loading_seconds"] == 20
            # Ollama does one call at a time unless told otherwise: the next one would wait.
            assert runtimes["ollama-1"].slots.try_acquire("ada")
            _, explanation = await post_json(models_app, "route?protocol=ollama", BODIES["ollama"])
            candidates = {item["backend"]: item for item in explanation["candidates"]}
            assert candidates["ollama-1"]["state"] == "busy"
            assert candidates["ollama-1"]["expected"]["waiting_seconds"] > 0
            runtimes["ollama-1"].slots.release("ada")
