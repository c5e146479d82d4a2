"""Tests several real Ollama hosts behind a gateway: loaded models, full queues, a killed host."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from tests.acceptance.ollama_gateway import SOON, OllamaGateway, gateway_before
from tests.acceptance.openai_models import check_error
from tests.ollama_server import CHAT, OllamaServer
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(900)
# Long enough that no answer ends by itself while a test looks at it.
_LONG = {"temperature": 0, "num_predict": 1900, "num_ctx": 2048, "stop": ["never"]}
_PROMPT = "Tell me the history of Europe in great detail."
_HELLO: Any = {"role": "user", "content": "Say hello."}
# What the debug log says of a call that waits until the model can be loaded anew.
_SCHEDULER_WAITS = "waiting for pending requests to complete and unload to occur"


async def test_calls_go_to_the_host_that_has_the_model_in_memory(
    ollama_server: OllamaServer, small_ollama_server: OllamaServer, tmp_path: Path
) -> None:
    hosts = [ollama_server, small_ollama_server]
    with gateway_before(tmp_path / "gateway", [host.url for host in hosts]) as gateway:
        async with _open_session(gateway) as http:
            for chosen_index in (1, 0, 1):
                for number, host in enumerate(hosts):
                    await _set_loaded(host, is_loaded=number == chosen_index)
                await eventually(partial(_is_chosen, http, f"gpu-{chosen_index}"), SOON)
                for _ in range(3):
                    async with http.post(
                        "/v1/ollama/api/generate", json=_build_generate_body(num_predict=1)
                    ) as response:
                        assert (response.status, _get_host(response)) == (
                            200,
                            f"gpu-{chosen_index}",
                        )
                assert not await _list_loaded_models(hosts[1 - chosen_index])


async def test_call_that_a_full_host_refuses_is_answered_by_another(
    ollama_server: OllamaServer, small_ollama_server: OllamaServer, tmp_path: Path
) -> None:
    await _set_loaded(ollama_server, is_loaded=False)
    async with _full_queue(small_ollama_server):
        hosts = [small_ollama_server.url, ollama_server.url]
        with gateway_before(tmp_path / "gateway", hosts) as gateway:
            async with _open_session(gateway) as http:
                await eventually(lambda: _is_chosen(http, "gpu-0"), SOON)
                async with http.post(
                    "/v1/ollama/api/generate", json=_build_generate_body(num_predict=1)
                ) as response:
                    assert (response.status, _get_host(response)) == (200, "gpu-1")
                    assert response.headers["x-moyin-route"] == "fallback after overloaded"


async def test_refusal_of_the_only_host_has_retry_after(
    small_ollama_server: OllamaServer, tmp_path: Path
) -> None:
    host = small_ollama_server
    with gateway_before(tmp_path / "gateway", [host.url], retries=0) as gateway:
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(_open_session(gateway))
            async with _full_queue(host):
                async with openai.AsyncOpenAI(
                    base_url=f"{gateway.url}/v1", api_key=gateway.api_key, max_retries=0
                ) as openai_client:
                    with pytest.raises(openai.RateLimitError) as openai_error:
                        await openai_client.chat.completions.create(model=CHAT, messages=[_HELLO])
                assert (openai_error.value.code, openai_error.value.type) == (
                    "overloaded",
                    "rate_limit_error",
                )
                check_error(openai_error.value.response.content)
                assert openai_error.value.response.headers["retry-after"] == "1"
                async with anthropic.AsyncAnthropic(
                    base_url=gateway.url, api_key=gateway.api_key, max_retries=0
                ) as anthropic_client:
                    with pytest.raises(anthropic.RateLimitError) as anthropic_error:
                        await anthropic_client.messages.create(
                            model=CHAT, messages=[_HELLO], max_tokens=1
                        )
                assert isinstance(anthropic_error.value.body, dict)
                assert anthropic_error.value.body["error"]["type"] == "rate_limit_error"
                assert anthropic_error.value.response.headers["retry-after"] == "1"
                response = await http.post(
                    "/v1/ollama/api/generate", json=_build_generate_body(stream=True)
                )
                assert (response.status, response.headers["retry-after"]) == (429, "1")
                assert set(await response.json()) == {"error", "code", "request_id"}
                # After three refusals the host gets a rest.
                response = await http.post("/v1/responses", json={"model": CHAT, "input": "Hi"})
                assert response.status == 503 and int(response.headers["retry-after"]) >= 1
                check_error(await response.text())

            async def is_answered() -> bool:
                async with http.post(
                    "/v1/ollama/api/generate", json=_build_generate_body(num_predict=1)
                ) as response:
                    return response.status == 200

            await eventually(is_answered, SOON)


async def test_a_killed_host_ends_only_its_own_streams(
    ollama_server: OllamaServer, small_ollama_server: OllamaServer, tmp_path: Path
) -> None:
    hosts = [ollama_server.url, small_ollama_server.url]
    with gateway_before(tmp_path / "gateway", hosts, parallel=1) as gateway:
        async with _open_session(gateway) as http:
            first_stream, second_stream = await _open_two_streams(http)
            streams = {_get_host(response): response for response in (first_stream, second_stream)}
            assert set(streams) == {"gpu-0", "gpu-1"}
            small_ollama_server.kill()
            async with asyncio.timeout(10):
                *_, last_line = [json.loads(line) async for line in streams["gpu-1"].content]
            assert set(last_line) >= {"error"}, last_line
            stream_lines = [json.loads(await streams["gpu-0"].content.readline()) for _ in range(3)]
            assert not any("error" in stream_line for stream_line in stream_lines)
            streams["gpu-0"].close()
            # The dead host is left out.
            for _ in range(3):
                async with http.post(
                    "/v1/ollama/api/generate", json=_build_generate_body(num_predict=1)
                ) as call_response:
                    assert (call_response.status, _get_host(call_response)) == (200, "gpu-0")
            small_ollama_server.start()

            async def are_both_used() -> bool:
                with suppress(aiohttp.ClientResponseError):
                    responses = await _open_two_streams(http, num_predict=32)
                    for response in responses:
                        response.close()
                    return {_get_host(response) for response in responses} == {"gpu-0", "gpu-1"}
                return False

            await eventually(are_both_used, 240)


def _build_generate_body(*, stream: bool = False, **options: Any) -> dict[str, Any]:
    return {"model": CHAT, "prompt": _PROMPT, "stream": stream, "options": _LONG | options}


@asynccontextmanager
async def _full_queue(host: OllamaServer) -> AsyncIterator[None]:
    """Fill the host's queue, so that it refuses calls with another context length during the block.

    An Ollama host queues a call only if a model must be loaded for it; calls to a loaded model wait
    at the model. Another context length makes the host load the model again, after the running
    call.
    """
    async with (
        aiohttp.ClientSession(host.url) as http,
        AsyncExitStack() as exit_stack,
        asyncio.TaskGroup() as tasks,
    ):

        async def call(**kwargs: Any) -> aiohttp.ClientResponse:
            response = await http.post("/api/generate", json=_build_generate_body(**kwargs))
            exit_stack.callback(response.close)
            await response.content.readline()
            return response

        async def occupy_host() -> bool:
            return (await call(num_ctx=1024, stream=True)).status == 200

        # Calls that an earlier test has cancelled may be in the queue for a moment.
        await eventually(occupy_host)
        waits_before = host.read_log().count(_SCHEDULER_WAITS)
        with host.suspended_runners():
            call_tasks = [tasks.create_task(call())]
            # The scheduler has taken this one, so that the queue is empty.
            await eventually(lambda: host.read_log().count(_SCHEDULER_WAITS) > waits_before)
            call_tasks += [tasks.create_task(call()) for _ in range(2)]
            [refused_task], _ = await asyncio.wait(call_tasks, return_when=asyncio.FIRST_COMPLETED)
            assert (await refused_task).status == 503
            yield
            for task in call_tasks:
                task.cancel()


async def _set_loaded(host: OllamaServer, *, is_loaded: bool) -> None:
    """Load the model, or unload it and wait until its process has ended."""
    body = {"model": CHAT, "keep_alive": "30m" if is_loaded else 0, "stream": False}
    await asyncio.to_thread(host.call, "POST", "/api/generate", body)

    async def has_changed() -> bool:
        return bool(await _list_loaded_models(host)) == is_loaded

    await eventually(has_changed)


async def _list_loaded_models(host: OllamaServer) -> list[Any]:
    models: list[Any] = (await asyncio.to_thread(host.call, "GET", "/api/ps"))["models"]
    return models


async def _is_chosen(http: aiohttp.ClientSession, host: str) -> bool:
    """Return True if a call would be routed to the host; a dry run loads no model."""
    body = {"model": CHAT, "messages": [_HELLO], "max_tokens": 1}
    async with http.post("/v1/route", json=body) as response:
        is_chosen: bool = (await response.json())["chosen"]["backend"] == host
        return is_chosen


def _get_host(response: aiohttp.ClientResponse) -> str:
    return response.headers["x-moyin-backend"]


@asynccontextmanager
async def _open_session(gateway: OllamaGateway) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        gateway.url, headers=gateway.headers, timeout=aiohttp.ClientTimeout(120)
    ) as http:
        yield http


async def _open_two_streams(
    http: aiohttp.ClientSession, **options: Any
) -> tuple[aiohttp.ClientResponse, aiohttp.ClientResponse]:
    """Open two streams concurrently, and return both responses once both streams have begun."""

    async def open_stream() -> aiohttp.ClientResponse:
        response = await http.post(
            "/v1/ollama/api/generate", json=_build_generate_body(stream=True, **options)
        )
        response.raise_for_status()
        try:
            await response.content.readline()
        except BaseException:
            response.close()
            raise
        return response

    results = await asyncio.gather(open_stream(), open_stream(), return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    streams = [result for result in results if not isinstance(result, BaseException)]
    if errors:
        for stream in streams:
            stream.close()
        raise errors[0]
    first_stream, second_stream = streams
    return first_stream, second_stream
