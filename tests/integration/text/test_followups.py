"""Tests on a real Valkey that a replica detects a follow-up to another replica's answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis.asyncio as redis

from moyin.store.followups import FollowUpStore
from tests.integration.servers import ValkeyServer
from tests.integration.text.fixtures import serving
from tests.integration.text.test_feedback import CHAT, FeedbackClient, build_backend
from tests.integration.text.upstreams import FINE, Upstream

ASK = [{"role": "user", "content": "Write a function that merges two sorted lists in Go"}]


async def test_two_replicas_notice_each_others_follow_ups(
    tmp_path: Path, valkey_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("shared_answers", "followups"):
        monkeypatch.setattr(f"moyin.text.routing.{module}.MIN_SECONDS", 0.0)
    async with Upstream(FINE).running() as upstream:
        backends = (
            build_backend(upstream.url, "qwen3-8b", 1),
            build_backend(upstream.url, "smollm2-135m", 0),
        )
        async with (
            serving(tmp_path, *backends, follow_ups_url=valkey_server.url) as first_app,
            serving(tmp_path, *backends, follow_ups_url=valkey_server.url) as second_app,
        ):
            # The same key at both, as behind one address.
            first_client, second_client = (
                FeedbackClient(first_app, first_app.api_key),
                FeedbackClient(second_app, first_app.api_key),
            )

            async def process_signals() -> None:
                for replica in (first_app, second_app):
                    assert replica.shared_answers is not None
                    await replica.learning.flush()
                    await replica.shared_answers.process_batch()
                    await replica.learning.flush()

            async def send_chat(client: FeedbackClient, *further_texts: str) -> str:
                messages = [
                    {"role": role, "content": text}
                    for role, text in zip(("assistant", "user"), further_texts, strict=False)
                ]
                body = {**CHAT, "messages": ASK + messages}
                status, _, headers = await client.call("POST", "chat/completions", body)
                assert status == 200
                await process_signals()
                return headers["x-request-id"]

            first_request = await send_chat(first_client)
            second_request = await send_chat(second_client)
            await send_chat(first_client, "func", "That is wrong")
            _, exported_signals, _ = await first_client.call("GET", "quality/export")
            signals = {
                (first_app["request_id"], first_app["source"])
                for first_app in exported_signals["signals"]
            }
            assert signals == {(first_request, "regenerated"), (second_request, "corrected")}
            assert all(first_app["kind"] == "code" for first_app in exported_signals["signals"])


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
