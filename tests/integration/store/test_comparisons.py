"""Tests the judge's comparisons in a real Valkey: bounded, expiring, and deleted after use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio as redis

from moyin.errors import ServiceUnavailable
from moyin.store.comparisons import ComparisonStore
from tests.integration.servers import ValkeyServer, free_port

DAY = 24 * 3_600
SECRET = b"s" * 32


@pytest.fixture
async def valkey(valkey_server: ValkeyServer) -> AsyncIterator[Any]:
    async with redis.Redis.from_url(valkey_server.url) as valkey:
        await valkey.flushdb()
        yield valkey


@pytest.fixture
async def store(valkey: Any, valkey_server: ValkeyServer) -> AsyncIterator[ComparisonStore]:
    store = ComparisonStore(valkey_server.url, secret=SECRET, capacity=2)
    yield store
    await store.close()


async def test_comparison_is_stored_once_for_at_most_a_day(
    store: ComparisonStore, valkey: Any
) -> None:
    assert await store.add("a", "ada", b"first")
    assert not await store.add("a", "ada", b"second")
    await store.add_second_answer("a", "answer")
    stored_comparison = await store.get("a")
    assert stored_comparison is not None
    assert (stored_comparison.comparison, stored_comparison.second) == (b"first", "answer")
    assert 0 < await valkey.ttl("moyin:judge:a") <= DAY
    await store.remove("a")
    await store.remove("a")
    assert await store.get("a") is None
    assert await valkey.keys("moyin:judge:*") == []


async def test_no_text_is_stored_in_valkey_unencrypted(
    store: ComparisonStore, valkey: Any, valkey_server: ValkeyServer
) -> None:
    """Valkey holds the texts of a comparison only encrypted.

    They can be read only for the same comparison and with the same secret.
    """
    await store.add("a", "ada", b"codename Bluebird")
    await store.add_second_answer("a", "Bluebird flies")
    stored_fields = await valkey.hgetall("moyin:judge:a")
    assert stored_fields.keys() == {b"owner", b"comparison", b"second"}
    assert not any(b"Bluebird" in value for value in stored_fields.values())
    # What was written for another comparison, or under another secret, is none of this one.
    await valkey.copy("moyin:judge:a", "moyin:judge:b")
    assert await store.get("b") is None
    other_store = ComparisonStore(valkey_server.url, secret=b"t" * 32)
    assert await other_store.get("a") is None
    await other_store.close()


async def test_an_answer_that_comes_too_late_expires_as_well(
    store: ComparisonStore, valkey: Any
) -> None:
    await store.add_second_answer("gone", "answer")
    assert await store.get("gone") is None
    assert 0 < await valkey.ttl("moyin:judge:gone") <= DAY


async def test_the_capacity_per_tenant_is_enforced(store: ComparisonStore, valkey: Any) -> None:
    for name in ("a", "b"):
        assert await store.has_capacity("ada")
        await store.add(name, "ada", b"x")
    assert not await store.has_capacity("ada")
    await store.remove("a")
    assert await store.has_capacity("ada")
    await store.add("a", "ada", b"x")
    # What has expired takes no room.
    await valkey.zadd("moyin:judge:open", {"b": 1})
    await valkey.zadd("moyin:judge:open:ada", {"b": 1})
    assert await store.has_capacity("ada")


async def test_stored_comparisons_are_limited_per_tenant(
    valkey: Any, valkey_server: ValkeyServer
) -> None:
    store = ComparisonStore(valkey_server.url, secret=SECRET, capacity=10, capacity_per_tenant=2)
    for name in ("a", "b"):
        await store.add(name, "ada", b"x")
    assert not await store.has_capacity("ada")
    assert await store.has_capacity("bob")
    await store.remove("a")
    assert await store.has_capacity("ada")
    await store.clear()
    assert await valkey.keys("moyin:judge:*") == []
    await store.close()


async def test_an_outage_is_reported() -> None:
    store = ComparisonStore(f"redis://127.0.0.1:{free_port()}/0", secret=SECRET)
    for call in (
        store.has_capacity("ada"),
        store.get("a"),
        store.add("a", "ada", b"x"),
        store.remove("a"),
    ):
        with pytest.raises(ServiceUnavailable):
            await call
    await store.close()
