"""Tests the routes that show back ends to operators and administrators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp

from moyin.domain.identity import ORG_ADMIN, TEXT
from moyin.errors import BackendUnavailable
from moyin.store.keys import KeyStore
from tests.integration.text.fixtures import serving


def build_backend(name: str) -> dict[str, Any]:
    model = {"name": name, "context": 4096, "price": {"input": 3, "output": 7}}
    endpoint = {"base_url": "http://127.0.0.1:9/v1", "residency": "on-premises"}
    return {"name": f"at-{name}", "type": "openai", **endpoint, "models": [model]}


async def test_administrators_see_their_back_ends_without_load_and_prices(tmp_path: Path) -> None:
    tenants = {"eve": {"models": ["house"]}}
    async with serving(
        tmp_path, build_backend("house"), build_backend("cloud"), rules={"tenants": tenants}
    ) as models_app:
        scopes = frozenset({TEXT, ORG_ADMIN})
        _, eve_key = await KeyStore(models_app.database).create("eve", "test", scopes=scopes)
        runtime = models_app.text_router.fleet.runtimes["at-house"]
        for _ in range(3):
            lease = await runtime.acquire("ada", 1, 1)
            assert lease is not None
            lease.release(BackendUnavailable("no"))
        lease = await models_app.text_router.fleet.runtimes["at-cloud"].acquire("ada", 1, 1)
        assert lease is not None

        async def list_backends(key: str) -> list[dict[str, Any]]:
            headers = {"authorization": f"Bearer {key}"}
            async with (
                aiohttp.ClientSession(headers=headers) as http,
                http.get(f"{models_app.url}/v1/backends") as response,
            ):
                assert response.status == 200
                backends: list[dict[str, Any]] = (await response.json())["backends"]
                return backends

        house_backend, cloud_backend = await list_backends(models_app.api_key)
        assert (house_backend["name"], house_backend["kind"], house_backend["status"]) == (
            "at-house",
            "openai",
            "down",
        )
        assert (house_backend["breaker"], house_backend["residency"]) == ("open", "on-premises")
        assert 0 < house_backend["retry_after_seconds"] <= 2
        assert (cloud_backend["breaker"], cloud_backend["load"]["in_flight"]) == ("closed", 1)
        assert cloud_backend["recent"] == {
            "seconds": 300, "calls": 0, "errors": 0, "p50_seconds": None, "p90_seconds": None,
            "output_tokens_per_second": None,
        }  # fmt: skip
        [model] = cloud_backend["models"]
        assert (model["name"], model["state"]) == ("cloud", "unknown")
        assert model["usd_per_million_tokens"] == {"input": "3", "output": "7"}
        assert model["output_tokens_per_second"] > 0
        lease.release()

        [shown_backend] = await list_backends(eve_key)
        assert (shown_backend["name"], shown_backend["load"], shown_backend["recent"]) == (
            "at-house",
            None,
            None,
        )
        assert shown_backend["models"][0]["usd_per_million_tokens"] is None
