"""Tests outages of the judge's servers: clients notice nothing, and replicas stop quickly."""

from __future__ import annotations

import asyncio
from pathlib import Path

from moyin.text.judging.comparison import derive_comparison_id
from moyin.text.judging.verdict import Outcome
from tests.integration.servers import TemporalServer, ValkeyServer
from tests.integration.text.test_feedback import FeedbackClient as Caller
from tests.integration.text.test_judge import (
    JUDGE,
    SECOND,
    JudgedModels,
    JudgeServers,
    models,
    send_chat,
    wait_for_outcome,
)
from tests.waiting import eventually

__all__ = ["models"]


async def test_comparison_continues_after_an_outage_of_temporal(
    tmp_path: Path, valkey_server: ValkeyServer, own_temporal: TemporalServer, models: JudgedModels
) -> None:
    """The replica keeps answering and stops normally; its successor completes the comparison."""
    judge_servers = JudgeServers(tmp_path, valkey_server, own_temporal)
    models.hold = asyncio.Event()
    async with judge_servers.serve_app(models) as models_app:
        ada = Caller(models_app, models_app.api_key)
        request_id = await send_chat(ada)
        await eventually(lambda: models.count_requests(JUDGE) == 1, seconds=40)
        own_temporal.kill()
        await send_chat(ada)
        await wait_for_outcome(models_app, Outcome.UNAVAILABLE)
        models.hold.set()
    own_temporal.start()
    async with judge_servers.serve_app(models) as models_app:
        await wait_for_outcome(models_app, Outcome.DISAGREED)
        assert [row[0] for row in judge_servers.list_signals()] == [
            request_id,
            derive_comparison_id("ada", request_id),
        ]
        assert models.count_requests(SECOND) == 1
        assert await judge_servers.list_comparison_keys() == []
