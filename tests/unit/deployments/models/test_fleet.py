from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from deployments.models.config import ModelsConfig
from deployments.models.fleet import FleetBuilder
from moyin.domain.backend import ApiFormat
from moyin.http.breaker import BreakerState
from moyin.settings import Settings
from moyin.testing.fakes import RecordingTelemetry
from moyin.text.backends.openai import OPENAI_URL

CLOUD = {
    "name": "claude",
    "type": "anthropic",
    "models": [{"name": "claude-haiku-5-5", "context": 200_000}],
}
OLLAMA = {
    "name": "gpu",
    "type": "ollama",
    "hosts": ["http://a:11434", "http://b:11434/"],
    "models": [{"name": "qwen3", "context": 32_768, "tools": True}],
}


def make_config(*backends: dict[str, Any]) -> ModelsConfig:
    return ModelsConfig.model_validate({"backends": backends})


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("MOYIN_ANTHROPIC_API_KEY", raising=False)
    return Settings(data=tmp_path)


async def test_claude_without_a_key_is_listed_but_not_usable(settings: Settings) -> None:
    fleet = FleetBuilder(settings, {}).build(make_config(CLOUD))
    (deployment,) = fleet.catalog.deployments
    assert (deployment.configured, deployment.key_env) == (False, "ANTHROPIC_API_KEY")
    assert not fleet.runtimes
    assert not fleet.is_usable


@pytest.mark.parametrize(
    ("changes", "environment"),
    [
        ({}, {"ANTHROPIC_API_KEY": "k"}),
        ({"api_key_env": "OTHER"}, {"OTHER": "k"}),
    ],
)
async def test_claude_with_a_key_is_usable(
    settings: Settings, changes: dict[str, str], environment: dict[str, str]
) -> None:
    builder = FleetBuilder(settings, environment)
    fleet = builder.build(make_config({**CLOUD, **changes}))
    assert fleet.is_usable
    assert fleet.catalog.deployments[0].api_format is ApiFormat.ANTHROPIC
    await builder.close()


async def test_empty_key_variable_does_not_fall_back_to_the_default_one(
    settings: Settings,
) -> None:
    builder = FleetBuilder(settings, {"ANTHROPIC_API_KEY": "k", "OTHER": ""})
    fleet = builder.build(make_config({**CLOUD, "api_key_env": "OTHER"}))
    assert not fleet.runtimes
    assert fleet.catalog.deployments[0].key_env == "OTHER"


async def test_every_ollama_host_is_a_separate_back_end(settings: Settings) -> None:
    fleet = FleetBuilder(settings, {}).build(make_config(OLLAMA))
    assert list(fleet.runtimes) == ["gpu-0", "gpu-1"]
    assert [deployment.backend for deployment in fleet.catalog.find_deployments("qwen3")] == [
        "gpu-0",
        "gpu-1",
    ]
    assert fleet.catalog.deployments[0].api_format is ApiFormat.OLLAMA


async def test_new_configuration_keeps_unchanged_back_ends(settings: Settings) -> None:
    builder = FleetBuilder(settings, {"ANTHROPIC_API_KEY": "k"})
    first_fleet = builder.build(make_config(CLOUD, OLLAMA))
    second_fleet = builder.build(make_config(CLOUD, {**OLLAMA, "hosts": ["http://c:1"]}))
    assert second_fleet.runtimes["claude"] is first_fleet.runtimes["claude"]
    assert list(second_fleet.runtimes) == ["claude", "gpu"]
    await builder.close()


async def test_removed_back_end_closes_after_its_last_request(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.models.fleet._IDLE_CHECK_SECONDS", 0.01)
    builder = FleetBuilder(settings, {"ANTHROPIC_API_KEY": "k"})
    runtime = builder.build(make_config(CLOUD)).runtimes["claude"]
    was_closed = asyncio.Event()

    async def close() -> None:
        was_closed.set()

    monkeypatch.setattr(runtime.backend, "close", close)
    lease = await runtime.acquire("ada", 1, 1)
    assert lease is not None
    builder.build(make_config())
    await asyncio.sleep(0.05)
    assert not was_closed.is_set()
    lease.release()
    await asyncio.wait_for(was_closed.wait(), 1)
    await builder.close()


async def test_every_embedded_server_is_a_separate_back_end(
    settings: Settings,
) -> None:
    llama_backend = {"name": "local", "type": "llamacpp", "server": {"replicas": 2}}
    models = [{"name": "small", "context": 2048}]
    fleet = FleetBuilder(settings, {}).build(make_config({**llama_backend, "models": models}))
    assert list(fleet.runtimes) == ["local-0", "local-1"]
    assert [deployment.backend for deployment in fleet.catalog.find_deployments("local/small")] == [
        "local-0",
        "local-1",
    ]
    actors = {runtime.backend._endpoints._name for runtime in fleet.runtimes.values()}  # type: ignore[attr-defined]
    assert len(actors) == 2


async def test_telemetry_records_breakers_from_their_first_state(settings: Settings) -> None:
    telemetry = RecordingTelemetry()
    builder = FleetBuilder(settings, {}, telemetry=telemetry)
    fleet = builder.build(make_config(OLLAMA))
    fleet.runtimes["gpu-0"].breaker.fail(opens_at_once=True)
    assert telemetry.states == {
        "gpu-0": [BreakerState.CLOSED, BreakerState.OPEN],
        "gpu-1": [BreakerState.CLOSED],
    }
    builder.build(make_config(OLLAMA))
    assert set(telemetry.states) == {"gpu-0", "gpu-1"}
    builder.build(make_config())
    assert telemetry.states == {}
    await builder.close()


async def test_schema_size_is_limited_except_for_the_vendors_own_apis(
    settings: Settings,
) -> None:
    model = {"name": "m", "context": 10, "price": {"input": 0, "output": 0}}
    backends = [
        {"name": "a", "type": "openai", "base_url": OPENAI_URL, "models": [model]},
        {"name": "b", "type": "openai", "base_url": "http://x/v1", "models": [model]},
        {"name": "c", "type": "ollama", "hosts": ["http://x"], "models": [model]},
        {"name": "d", "type": "anthropic", "models": [model]},
        {"name": "e", "type": "anthropic", "base_url": "http://x", "models": [model]},
    ]
    builder = FleetBuilder(settings, {"ANTHROPIC_API_KEY": "x"})
    runtimes = builder.build(make_config(*backends)).runtimes
    assert [name for name, runtime in runtimes.items() if not runtime.checks_schemas] == ["a", "d"]
    await builder.close()


async def test_aliases_and_policies_may_name_models_with_ollamas_default_tag(
    settings: Settings,
) -> None:
    models_config = ModelsConfig.model_validate(
        {
            "backends": [{**OLLAMA, "discover": True}],
            "aliases": {"house": ["qwen3:latest"]},
            "tenants": {"eve": {"models": ["qwen3:latest"]}},
        }
    )
    fleet = FleetBuilder(settings, {}).build(models_config)
    assert len(fleet.find_allowed_deployments("house", "ada")) == 2
    assert fleet.list_names("eve") == ("qwen3",)
