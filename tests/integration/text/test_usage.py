"""Tests `GET /v1/requests` and `GET /v1/usage` with stored calls; no model is called."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moyin.domain.identity import TEXT
from moyin.store.keys import KeyStore
from moyin.store.sql import Database, now
from moyin.store.usage import UsageEntry
from tests.integration.text.fixtures import ModelsApp, serving
from tests.waiting import eventually

NOWHERE = "http://127.0.0.1:9/v1"
CALL = UsageEntry(
    request_id="first", owner="eve", backend="at-cheap", model="cheap", input_tokens=1_000,
    cached_tokens=400, output_tokens=100, cost_usd=Decimal("0.000000001"), complete=True,
    key_id="k1", requested_model="auto",
)  # fmt: skip
CALLS = (
    CALL,
    replace(CALL, request_id="second", key_id="k2", backend="at-dear", model="dear"),
    replace(CALL, request_id="second", complete=False, error="backend_timeout"),
    replace(CALL, request_id="vector", model="vectors", output_tokens=0),
    replace(CALL, request_id="other", owner="bob"),
)
# The complete chats of eve: 2 calls, for each 600 tokens at 3, 400 at 0.3 and 100 at 15 dollars per
# million; and one embedding call of 1,000 tokens at 1 dollar.
DEAREST_CHAT = 2 * (600 * 3 + 400 * Decimal("0.3") + 100 * 15) / 1_000_000
DEAREST = DEAREST_CHAT + Decimal(1_000) / 1_000_000


def build_backend(name: str, **model: Any) -> dict[str, Any]:
    model = {"name": name, "context": 4096, **model}
    return {"name": f"at-{name}", "type": "openai", "base_url": NOWHERE, "models": [model]}


@pytest.fixture
async def models_app(tmp_path: Path) -> AsyncIterator[ModelsApp]:
    backends = [
        build_backend("cheap", price={"input": 0, "output": 0}),
        build_backend("dear", price={"input": 3, "output": 15, "cache_read": 0.3}),
        build_backend("forbidden", price={"input": 99, "output": 99}),
        build_backend("vectors", embeddings=True, price={"input": 1, "output": 0}),
    ]
    tenants = {"eve": {"models": ["cheap", "dear", "vectors"]}}
    async with serving(tmp_path, *backends, rules={"tenants": tenants}) as models_app:
        for call in CALLS:
            models_app.ledger.record(call)
        await eventually(lambda: models_app.ledger.get("bob", "other"))
        yield models_app


@pytest.fixture
async def eve_key(models_app: ModelsApp, tmp_path: Path) -> AsyncIterator[str]:
    database = Database(f"sqlite:///{tmp_path}/moyin.db")
    _, key = await KeyStore(database).create("eve", "test", scopes=frozenset({TEXT}))
    yield key
    await database.close()


async def get_json(models_app: ModelsApp, path: str, key: str) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as http,
        http.get(f"{models_app.url}/v1/{path}") as response,
    ):
        return response.status, await response.json()


async def test_requests_are_listed_by_pages_and_filters(
    models_app: ModelsApp, eve_key: str
) -> None:
    status, page = await get_json(models_app, "requests?limit=3", eve_key)
    assert (status, len(page["requests"])) == (200, 3)
    _, last_page = await get_json(
        models_app, f"requests?limit=3&cursor={page['next_cursor']}", eve_key
    )
    assert last_page["next_cursor"] is None
    listed_calls = [
        (call["request_id"], call["status"]) for call in page["requests"] + last_page["requests"]
    ]
    assert sorted(listed_calls) == [
        ("first", "complete"), ("second", "complete"), ("second", "failed"), ("vector", "complete"),
    ]  # fmt: skip
    _, failed_page = await get_json(
        models_app, "requests?status=failed&requested_model=auto", eve_key
    )
    [call] = failed_page["requests"]
    assert call.pop("created_at").endswith("Z")
    assert call == {
        "request_id": "second", "owner": "eve", "key": "k1", "requested_model": "auto",
        "backend": "at-cheap", "model": "cheap", "status": "failed", "complete": False,
        "error": "backend_timeout", "input_tokens": 1_000, "cached_tokens": 400,
        "output_tokens": 100, "cost_usd": "0.000000001", "operation": None, "unit": None,
        "quantity": None, "load_milliseconds": None,
    }  # fmt: skip
    _, second_key_page = await get_json(models_app, "requests?key=k2&backend=at-dear", eve_key)
    [second_call] = second_key_page["requests"]
    assert second_call["request_id"] == "second"
    _, empty_page = await get_json(models_app, "requests?before=2020-01-01", eve_key)
    assert empty_page == {"requests": [], "next_cursor": None}


async def test_usage_is_summed_and_compared_with_the_dearest_model(
    models_app: ModelsApp, eve_key: str
) -> None:
    status, usage_report = await get_json(models_app, "usage?group_by=day&group_by=model", eve_key)
    assert status == 200
    total_usage = usage_report["total"]
    assert (total_usage["calls"], total_usage["incomplete_calls"], total_usage["input_tokens"]) == (
        4,
        1,
        4_000,
    )
    assert (total_usage["cached_tokens"], total_usage["output_tokens"]) == (1_600, 300)
    assert total_usage["cost_usd"] == "0.000000004"
    assert Decimal(total_usage["dearest_cost_usd"]) == DEAREST
    # The tenant may not use the model `forbidden`, so its price is not shown.
    assert usage_report["dearest"] == {
        "chat": {"model": "dear", "backend": "at-dear"},
        "embeddings": {"model": "vectors", "backend": "at-vectors"},
    }
    groups_by_model = {group["model"]: group for group in usage_report["groups"]}
    assert groups_by_model.keys() == {"cheap", "dear", "vectors"}
    assert groups_by_model["cheap"]["calls"] == 2
    assert groups_by_model["dear"]["day"] == f"{now():%Y-%m-%d}"
    assert "owner" not in groups_by_model["dear"]
    dearest_cost_usd = sum(Decimal(group["dearest_cost_usd"]) for group in groups_by_model.values())
    assert dearest_cost_usd == DEAREST
    assert "days" not in usage_report
    _, daily_report = await get_json(models_app, "usage?group_by=model&daily=true", eve_key)
    assert daily_report["total"] == total_usage
    assert {group["model"] for group in daily_report["groups"]} == groups_by_model.keys()
    [daily_usage] = daily_report["days"]
    assert daily_usage == {"day": groups_by_model["dear"]["day"], **total_usage}
    _, past_usage = await get_json(models_app, "usage?from=2026-01-01&to=2026-02-01", eve_key)
    assert (past_usage["total"]["calls"], past_usage["groups"]) == (0, [])
    assert (past_usage["from"], past_usage["to"]) == (
        "2026-01-01T00:00:00Z",
        "2026-02-01T00:00:00Z",
    )


async def test_usage_groups_are_paginated(models_app: ModelsApp, eve_key: str) -> None:
    path = "usage?group_by=model&group_by=key"
    _, whole_report = await get_json(models_app, path, eve_key)
    assert whole_report["next_cursor"] is None
    groups, cursor = [], ""
    while cursor is not None:
        _, page = await get_json(
            models_app, f"{path}&limit=1{cursor and f'&cursor={cursor}'}", eve_key
        )
        assert page["total"] == whole_report["total"]
        groups += page["groups"]
        cursor = page["next_cursor"]
    assert groups == whole_report["groups"]
    assert len(groups) == 3


async def test_only_operators_see_other_tenants(models_app: ModelsApp, eve_key: str) -> None:
    for path in ("requests?owner=bob", "requests?owner=*", "usage?owner=bob", "usage?owner=*"):
        status, error = await get_json(models_app, path, eve_key)
        assert (status, error["code"], error["scope"]) == (403, "insufficient_scope", "operator")
    operator_key = models_app.api_key
    _, page = await get_json(models_app, "requests?owner=bob", operator_key)
    assert [call["request_id"] for call in page["requests"]] == ["other"]
    _, page = await get_json(models_app, "requests?owner=*", operator_key)
    assert len(page["requests"]) == len(CALLS)
    _, usage_report = await get_json(models_app, "usage?owner=*&group_by=owner", operator_key)
    assert {group["owner"]: group["calls"] for group in usage_report["groups"]} == {
        "eve": 4,
        "bob": 1,
    }
    assert usage_report["dearest"]["chat"]["model"] == "forbidden"


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("requests?modle=x", "modle"),
        ("requests?limit=201", "limit"),
        ("requests?status=done", "status"),
        ("requests?after=yesterday", "after"),
        ("requests?cursor=x", "cursor"),
        ("usage?days=3", "days"),
        ("usage?limit=501", "limit"),
        ("usage?cursor=x", "cursor"),
        ("usage?cursor=W10", "cursor"),
        ("usage?daily=always", "daily"),
        ("usage?group_by=hour", "group_by.0"),
        ("usage?group_by=day&group_by=day", "group_by"),
        ("usage?group_by=day&group_by=key&group_by=model", "group_by"),
        ("usage?from=2024-01-01&to=2026-01-01", "from"),
        ("usage?to=0001-01-02", "to"),
        ("usage?from=2026-02-01&to=2026-01-01", "from"),
    ],
)
async def test_invalid_query_parameter_is_named_in_the_error(
    models_app: ModelsApp, eve_key: str, path: str, field: str
) -> None:
    status, error = await get_json(models_app, path, eve_key)
    assert (status, error["code"], error["field"]) == (400, "invalid_request", field), error
