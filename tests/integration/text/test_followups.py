"""Tests on a real Valkey that a replica detects a follow-up to another replica's answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis.asyncio as redis

from moyin.store.followups import FollowUpStore
from tests.integration.servers import ValkeyServer
from tests.integration.text.fixtures import serving
from tests.integration.text.test_feedback import CHAT, Client, house
from tests.integration.text.upstreams import FINE, Upstream

ASK = [{"role": "user", "content": "Write a function that merges two sorted lists in Go"}]


async def test_two_replicas_notice_each_others_follow_ups(
    tmp_path: Path, valkey_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("shared_answers", "followups"):
        monkeypatch.setattr(f"moyin.text.routing.{module}.MIN_SECONDS", 0.0)
    async with Upstream(FINE).running() as upstream:
        houses = (house(upstream.url, "qwen3-8b", 1), house(upstream.url, "smollm2-135m", 0))
        async with (
            serving(tmp_path, *houses, follow_ups_url=valkey_server.url) as item,
            serving(tmp_path, *houses, follow_ups_url=valkey_server.url) as second_app,
        ):
            # The same key at both, as behind one address.
            first_client, second_client = (
                Client(item, item.api_key),
                Client(second_app, item.api_key),
            )

            async def settle() -> None:
                for replica in (item, second_app):
                    assert replica.shared_answers is not None
                    await replica.learning.flush()
                    await replica.shared_answers.process_batch()
                    await replica.learning.flush()

            async def ask(client: Client, *more: str) -> str:
                messages = [
                    {"role": role, "content": text}
                    for role, text in zip(("assistant", "user"), more, strict=False)
                ]
                body = {**CHAT, "messages": ASK + messages}
                status, _, headers = await client.call("POST", "chat/completions", body)
                assert status == 200
                await settle()
                return headers["x-request-id"]

            first_request = await ask(first_client)
            second_request = await ask(second_client)
            await ask(first_client, "func", "That is wrong")
            _, exported_signals, _ = await first_client.call("GET", "quality/export")
            signals = {(item["request_id"], item["source"]) for item in exported_signals["signals"]}
            assert signals == {(first_request, "regenerated"), (second_request, "corrected")}
            assert all(item["kind"] == "code" for item in exported_signals["signals"])


@pytest.fixture
async def store(valkey_server: ValkeyServer) -> FollowUpStore:
    return FollowUpStore(valkey_server.url)


async def test_stored_value_is_popped_once_and_expires(
    store: FollowUpStore, valkey_server: ValkeyServer
) -> None:
    try:
        await store.put({b"x1": b"one", b"x2": b"two"}, 300)
        assert await store.get([b"x1", b"missing", b"x2"]) == [b"one", None, b"two"]
        assert await store.pop([b"x1", b"missing"]) == [b"one", None]
        assert await store.pop([b"x1"]) == [None]
        async with redis.Redis.from_url(valkey_server.url) as client:
            assert 290 < await client.ttl("moyin:followups:x2") <= 300
    finally:
        await store.close()


async def test_cache_outage_is_no_error_and_is_not_retried() -> None:
    store = FollowUpStore("redis://127.0.0.1:9/0")
    try:
        assert not store.is_unavailable
        assert await store.get([b"x"]) is None
        assert store.is_unavailable
        assert await store.pop([b"x"]) is None
        await store.put({b"x": b"y"}, 1)
    finally:
        await store.close()
