"""Tests budgets of text calls on a real model: reserved before, settled after, never exceeded."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import redis.asyncio as redis
import sqlalchemy as sa

from moyin.domain.limits import Limit
from moyin.settings import Settings
from moyin.store.keys import KeyStore
from moyin.store.limits import LimitStore
from moyin.store.schema import usage
from moyin.store.sql import Database
from tests.integration.servers import ValkeyServer
from tests.integration.text.fixtures import LLAMA_KEY, ModelsApp, serving
from tests.stack import RecordMeasurement
from tests.waiting import eventually

# USD per million tokens: a short call reserves about a cent, for more than it can use.
PRICE = 10
NANO = 10**9


class BudgetedApp:
    """A models app with a priced model, its database and its Valkey."""

    def __init__(self, models_app: ModelsApp, database: Database, valkey: Any) -> None:
        self.models_app = models_app
        self.database = database
        self._valkey = valkey

    async def create_client(self, **limits: Any) -> tuple[str, openai.AsyncOpenAI]:
        """Create a key with its own limits; return its id and a client that uses it."""
        key_id, key = await KeyStore(self.database).create("studio", "k")
        await LimitStore(self.database).set(Limit(subject=f"key:{key_id}", **limits))
        client = openai.AsyncOpenAI(
            base_url=f"{self.models_app.url}/v1", api_key=key, max_retries=0
        )
        return key_id, client

    async def read_booked_nano_usd(self, key_id: str) -> int:
        """Return the amount in Valkey for the key's current day, in billionths of a dollar."""
        budget_key = f"moyin:limit:{{studio}}:key:{key_id}:money"
        return int(await self._valkey.hget(budget_key, "day_nano") or 0)

    async def sum_ledger(self) -> tuple[int, int]:
        """Return the number of calls in the ledger, and their cost in billionths of a dollar."""
        query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(usage.c.cost_nano_usd), 0))
        async with self.database.reading() as connection:
            call_count, cost_nano_usd = tuple((await connection.execute(query)).one())
        return call_count, cost_nano_usd


@pytest.fixture
async def budgeted_app(
    llama: str, tmp_path: Path, valkey_server: ValkeyServer
) -> AsyncIterator[BudgetedApp]:
    backend = {
        "name": "priced",
        "type": "openai",
        "base_url": f"{llama}/v1",
        "api_key_env": "LLAMA_KEY",
        "models": [
            {"name": "smollm2", "context": 2048, "price": {"input": PRICE, "output": PRICE}}
        ],
    }
    assert LLAMA_KEY
    database = Database(Settings(data=tmp_path).sql_url)
    async with (
        serving(tmp_path, backend, redis_url=valkey_server.url) as models_app,
        redis.Redis.from_url(valkey_server.url) as valkey,
    ):
        yield BudgetedApp(models_app, database, valkey)
    await database.close()


def build_body(**kwargs: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Tell me a long story."}]
    return {"model": "smollm2", "messages": messages, "max_tokens": 8, **kwargs}


async def test_calls_at_the_same_time_never_overshoot_a_budget(
    budgeted_app: BudgetedApp, record_measurement: RecordMeasurement
) -> None:
    budget_usd = Decimal("0.03")
    key_id, client = await budgeted_app.create_client(usd_per_day=budget_usd)

    async def call() -> str:
        try:
            await client.chat.completions.create(**build_body())
        except openai.APIStatusError as error:
            return f"{error.status_code} {error.code}"
        return "answered"

    outcome_counts = Counter(await asyncio.gather(*(call() for _ in range(12))))
    assert outcome_counts.keys() == {"answered", "402 budget_exceeded"}

    async def is_settled_cost() -> bool:
        count, cost = await budgeted_app.sum_ledger()
        return (
            count == outcome_counts["answered"]
            and await budgeted_app.read_booked_nano_usd(key_id) == cost
        )

    await eventually(is_settled_cost)
    _, cost = await budgeted_app.sum_ledger()
    assert 0 < cost <= budget_usd * NANO
    # What was set aside and not used is there again.
    assert await call() == "answered"
    await client.close()
    record_measurement(
        f"budget of {budget_usd} USD, 12 calls at once: "
        f"{outcome_counts['answered']} answered, 0 overshoot"
    )


async def test_budgets_are_shown_in_usage_and_in_refusals(budgeted_app: BudgetedApp) -> None:
    # Less than the maximum cost of a call without max_tokens, which reserves a whole context.
    key_id, client = await budgeted_app.create_client(usd_per_day=Decimal("0.015"))
    await client.chat.completions.create(**build_body())

    async def is_settled() -> bool:
        _, cost = await budgeted_app.sum_ledger()
        return 0 < cost == await budgeted_app.read_booked_nano_usd(key_id)

    await eventually(is_settled)
    _, cost = await budgeted_app.sum_ledger()
    with pytest.raises(openai.APIStatusError) as exc_info:
        await client.chat.completions.create(**build_body(max_tokens=openai.omit))
    error: Any = exc_info.value.body
    assert (exc_info.value.status_code, error["code"]) == (402, "budget_exceeded")
    usage_response = await client.get("/usage", cast_to=httpx.Response)
    [budget] = usage_response.json()["budgets"]
    assert Decimal(budget["spent_usd"]) == Decimal(cost) / NANO
    assert budget["resets_at"].replace("Z", "+00:00") == error["details"].pop("resets_at")
    assert {**error["details"], "resets_at": budget["resets_at"]} == budget
    left_usd = Decimal("0.015") - Decimal(cost) / NANO
    assert budget == {
        "limit": "usd_per_day", "of": "key", "limit_usd": "0.015", "reserved_usd": "0",
        "spent_usd": budget["spent_usd"], "left_usd": f"{left_usd.normalize():f}",
        "resets_at": budget["resets_at"],
    }  # fmt: skip
    await client.close()


async def test_an_interrupted_stream_settles_to_the_ledgers_cost(budgeted_app: BudgetedApp) -> None:
    key_id, client = await budgeted_app.create_client(
        usd_per_month=Decimal(5), concurrent_requests=1
    )
    stream = await client.chat.completions.create(**build_body(stream=True, max_tokens=1500))
    await anext(aiter(stream))
    reserved_nano_usd = await budgeted_app.read_booked_nano_usd(key_id)
    await stream.close()

    async def is_settled_cost() -> bool:
        count, cost = await budgeted_app.sum_ledger()
        return (
            count == 1
            and 0 < await budgeted_app.read_booked_nano_usd(key_id) == cost < reserved_nano_usd
        )

    await eventually(is_settled_cost)
    # The place of the cut stream is free again as well.
    completion = await client.chat.completions.create(**build_body())
    assert completion.choices
    await client.close()


async def test_a_refused_call_and_a_failed_one_cost_nothing(budgeted_app: BudgetedApp) -> None:
    key_id, client = await budgeted_app.create_client(usd_per_day=Decimal(1), requests_per_minute=2)
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(**build_body(model="nobody"))
    raw_response = await client.chat.completions.with_raw_response.create(**build_body())
    assert raw_response.headers["ratelimit-limit"] == "2"
    with suppress(openai.RateLimitError):
        await client.chat.completions.create(**build_body())
    with pytest.raises(openai.RateLimitError) as exc_info:
        await client.chat.completions.create(**build_body())
    assert exc_info.value.code == "rate_limit_exceeded"
    assert 0 < int(exc_info.value.response.headers["retry-after"]) <= 60

    async def is_settled_cost() -> bool:
        _, cost = await budgeted_app.sum_ledger()
        return await budgeted_app.read_booked_nano_usd(key_id) == cost

    await eventually(is_settled_cost)
    await client.close()
