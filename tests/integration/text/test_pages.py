"""Runs the examples for text requests, from several pages, unchanged against the real models app."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web

from moyin.jobs.workflows.client import TemporalConnection
from moyin.stack.layout import Layout
from moyin.stack.profile import Profile, write_profile
from moyin.store.sql import now
from tests.acceptance.scripted import new_scripted_app
from tests.examples import DEFAULT_GATEWAY, find_missing_members, read_example, run_shell_example
from tests.integration.servers import TemporalServer
from tests.integration.text.fixtures import ModelsApp, serving, wait_until_probed
from tests.integration.text.test_batches import NAMESPACE, ScriptedModel, TextBatchFarm, build_line
from tests.waiting import eventually

TEXT = "Hello! It is sunny, and the answer is 3."
BATCHES, USAGE = "docs/batches.md", "docs/usage.md"
# The scripted model reads OpenAI's document with what jsonschema has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning")
QUICKSTARTS = ["docs/quickstart.md", "docs/ja/quickstart.md"]


@pytest.fixture
async def models_app(tmp_path: Path) -> AsyncIterator[ModelsApp]:
    """Run the models app with the scripted model."""
    runner = web.AppRunner(new_scripted_app())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    backend = {
        "name": "scripted",
        "type": "openai",
        "base_url": f"http://127.0.0.1:{runner.addresses[0][1]}/v1",
        "models": [{"name": "m", "context": 8_000, "price": {"input": 1, "output": 1}}],
    }
    async with serving(tmp_path, backend) as models_app:
        await wait_until_probed(models_app)
        yield models_app
    await runner.cleanup()


async def run_example(models_app: ModelsApp, page: str, name: str, **kwargs: Any) -> str:
    return await asyncio.to_thread(
        run_shell_example, page, name, url=models_app.url, **({"KEY": models_app.api_key} | kwargs)
    )


def run_code(code: str, variables: dict[str, Any]) -> str:
    """Run Python code, and return its output."""
    with redirect_stdout(io.StringIO()) as output:
        exec(code, variables)
    return output.getvalue()


def save_profile(folder: Path, models_app: ModelsApp) -> None:
    """Write the profile as `moyin up` does, because the examples read the key there."""
    layout = Layout(folder / ".moyin")
    layout.data.mkdir()
    write_profile(layout.profile, Profile(url=models_app.url, api_key=models_app.api_key))


async def test_the_first_curl_streams_an_answer(models_app: ModelsApp, tmp_path: Path) -> None:
    save_profile(tmp_path, models_app)
    output = await run_example(models_app, "README.md", "chat", folder=tmp_path, KEY="")
    *chunks, last_chunk = [
        text.removeprefix("data: ") for text in output.splitlines() if text.startswith("data: ")
    ]
    assert last_chunk == "[DONE]"
    deltas = [choice["delta"] for chunk in chunks for choice in json.loads(chunk)["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == TEXT


@pytest.mark.parametrize("page", QUICKSTARTS)
async def test_shell_variables_of_the_page_are_set(
    models_app: ModelsApp, tmp_path: Path, page: str
) -> None:
    save_profile(tmp_path, models_app)
    output = await run_example(
        models_app, page, "variables", folder=tmp_path, KEY="", next_command='echo "$GATEWAY $KEY"'
    )
    assert output.split() == [models_app.url, models_app.api_key]


@pytest.mark.parametrize("page", QUICKSTARTS)
async def test_the_sdk_streams_an_answer(models_app: ModelsApp, page: str) -> None:
    example = read_example(page, "chat", "python").replace(DEFAULT_GATEWAY, models_app.url)
    variables: dict[str, Any] = {}
    example = example.replace("moyin_…", models_app.api_key)
    assert await asyncio.to_thread(run_code, example, variables) == TEXT
    variables["client"].close()


async def test_route_example_explains_the_choice(models_app: ModelsApp) -> None:
    explanation = json.loads(await run_example(models_app, "docs/routing.md", "route"))
    assert explanation["chosen"] == {"backend": "scripted", "model": "m"}
    assert [candidate["backend"] for candidate in explanation["candidates"]] == ["scripted"]


async def test_usage_is_summed_and_calls_are_listed(models_app: ModelsApp) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{models_app.url}/v1", api_key=models_app.api_key, max_retries=0
    ) as client:
        messages: Any = [{"role": "user", "content": "Hello"}]
        await client.chat.completions.create(model="m", messages=messages)
    # A report has 400 days at most.
    replacements = {"2026-11-01": f"{now() - timedelta(days=1):%Y-%m-%d}"}

    async def read_report(name: str, replaced: dict[str, str]) -> Any:
        return json.loads(await run_example(models_app, USAGE, name, replaced=replaced))

    [group] = await eventually(lambda: read_groups(read_report("usage", replacements)))
    assert (group["model"], group["calls"]) == ("m", 1)
    assert (await read_report("requests", replacements))["requests"] == []
    [call] = (await read_report("requests", replacements | {"status=failed&": ""}))["requests"]
    assert call["model"] == "m"


async def read_groups(report: Awaitable[Any]) -> Any:
    return (await report)["groups"]


@pytest.fixture
async def farm(
    models_app: ModelsApp, temporal_server: TemporalServer
) -> AsyncIterator[TextBatchFarm]:
    """Run the models app with a worker for batches."""
    temporal = TemporalConnection(temporal_server.address, NAMESPACE, retention=timedelta(days=1))
    async with AsyncExitStack() as stack:
        farm = TextBatchFarm(models_app, ScriptedModel(), temporal)
        stack.push_async_callback(farm.client.close)
        await stack.enter_async_context(farm.run_worker())
        yield farm


async def test_documented_openai_batch_example_works(
    farm: TextBatchFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "requests.jsonl").write_text(json.dumps(build_line(1)))
    monkeypatch.chdir(tmp_path)
    first_part, marker, second_part = read_example(BATCHES, "openai", "python").partition("# later")
    variables: dict[str, Any] = {"gateway": farm.app.url, "key": farm.app.api_key}
    await asyncio.to_thread(run_code, first_part, variables)
    batch = variables["batch"]
    assert (await farm.wait_for_status(batch)).status == "completed"
    output_line = json.loads(await asyncio.to_thread(run_code, marker + second_part, variables))
    assert output_line["custom_id"] == "line-1"
    assert find_missing_members(BATCHES, "result", output_line) == []
    assert output_line["response"]["body"]["choices"][0]["message"]["content"] == TEXT
    variables["client"].close()


async def test_documented_anthropic_batch_example_works(farm: TextBatchFarm) -> None:
    first_part, marker, second_part = read_example(BATCHES, "anthropic", "python").partition(
        "# later"
    )
    variables: dict[str, Any] = {"gateway": farm.app.url, "key": farm.app.api_key}
    await asyncio.to_thread(run_code, first_part, variables)
    client, batch = variables["client"], variables["batch"]

    async def has_ended() -> bool:
        batch_state = await asyncio.to_thread(client.messages.batches.retrieve, batch.id)
        return bool(batch_state.processing_status == "ended")

    await eventually(has_ended, 180)
    assert await asyncio.to_thread(run_code, marker + second_part, variables) == "first succeeded\n"
    client.close()
