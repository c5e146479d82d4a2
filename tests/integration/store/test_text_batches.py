"""Tests the lines of batches on SQLite and PostgreSQL, because their locks differ."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa

from moyin.domain.native_batch import NativeBatch, NativeStatus, new_native_id
from moyin.domain.text_batch import BatchDialect, LineResult, NewLine, TextBatch
from moyin.store.batch_lines import BatchLineStore, FinishedLine
from moyin.store.native_batches import NativeBatchStore
from moyin.store.schema import text_batches, usage
from moyin.store.sql import Database, now
from moyin.store.text_batches import TextBatchStore
from moyin.store.usage import UsageEntry

LINES = 240
RUNNERS = 4
NEW_RUNNERS = 8
ROUNDS = 60
# A tenant has at most 50 open batches.
NATIVE_ROUNDS = 45


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.ensure_schema()
    yield database
    await database.close()


def build_answered_line(batch_id: str, number: int) -> FinishedLine:
    entry = UsageEntry(
        request_id=f"{batch_id}-{number}", owner="ada", backend="b", model="m", input_tokens=1,
        cached_tokens=0, output_tokens=1, cost_usd=Decimal(0), complete=True,
    )  # fmt: skip
    result = LineResult(number=number, http_status=200, body=b"{}")
    return FinishedLine(batch_id=batch_id, result=result, usage=(entry,))


async def create_batch(database: Database, batch_id: str, count: int) -> None:
    """Create a batch with ``count`` lines, ready to be claimed."""
    batches = TextBatchStore(database)
    await batches.create(
        TextBatch(
            id=batch_id, owner="ada", dialect=BatchDialect.OPENAI,
            endpoint="/v1/chat/completions", input_file_id="f", created_at=now(),
            expires_at=now() + timedelta(hours=24),
        )
    )  # fmt: skip
    added_lines = [
        NewLine(number=number, custom_id=str(number), start=0, size=1)
        for number in range(1, count + 1)
    ]
    await BatchLineStore(database).add(batch_id, added_lines)
    await batches.begin(batch_id, count)


async def test_concurrent_runners_answer_each_line_once(database: Database) -> None:
    lines = BatchLineStore(database)
    batch_ids = ["batch_1", "batch_2"]
    for batch_id in batch_ids:
        await create_batch(database, batch_id, LINES)
    claimed_numbers: dict[str, list[int]] = {batch_id: [] for batch_id in batch_ids}

    async def run_runner(name: str) -> None:
        # Half of the runners begin with the other batch, so that they lock both in turn.
        batch_order = batch_ids if int(name) % 2 else batch_ids[::-1]
        while True:
            lines_by_batch = {}
            for batch_id in batch_order:
                lines_by_batch[batch_id] = await lines.claim(batch_id, name, 10, alive_seconds=60)
                claimed_numbers[batch_id] += [line.number for line in lines_by_batch[batch_id]]
            finished_lines = [
                build_answered_line(b, line.number)
                for b, batch_lines in lines_by_batch.items()
                for line in batch_lines
            ]
            if not finished_lines:
                return
            assert await lines.finish(finished_lines) == []

    await asyncio.gather(*(run_runner(str(number)) for number in range(RUNNERS)))
    for batch_id in batch_ids:
        assert sorted(claimed_numbers[batch_id]) == list(range(1, LINES + 1))
        query = sa.select(text_batches.c.completed).where(text_batches.c.id == batch_id)
        assert await database.fetch_value(query) == LINES
    charged_requests = await database.fetch_values(sa.select(usage.c.request_id))
    assert len(charged_requests) == len(set(charged_requests)) == 2 * LINES


async def test_new_concurrent_runners_claim_each_line_once(database: Database) -> None:
    """Runners that start concurrently must not claim the same line.

    Each round has new runners, because the others do not yet know that a new runner is alive.
    """
    lines = BatchLineStore(database)
    await create_batch(database, "batch_1", ROUNDS * NEW_RUNNERS * 10)
    for round_number in range(ROUNDS):
        line_groups = await asyncio.gather(
            *(
                lines.claim("batch_1", f"{round_number}-{runner}", 10, alive_seconds=60)
                for runner in range(NEW_RUNNERS)
            )
        )
        claimed_numbers = [line.number for group in line_groups for line in group]
        assert len(claimed_numbers) == len(set(claimed_numbers))


async def test_native_batches_take_no_line_from_a_new_runner(database: Database) -> None:
    lines, native_batches = BatchLineStore(database), NativeBatchStore(database)
    line_numbers = range(1, 11)
    for round_number in range(NATIVE_ROUNDS):
        batch_id = f"batch_{round_number}"
        await create_batch(database, batch_id, len(line_numbers))
        native_batch = NativeBatch(
            id=new_native_id(), batch_id=batch_id, backend="cloud", model="m",
            status=NativeStatus.ASSIGNED, created_at=now(), due_at=now(),
        )  # fmt: skip
        await native_batches.add(native_batch)
        runner_names = [f"{batch_id}-{runner}" for runner in range(4)]
        line_groups, assigned_count = await asyncio.gather(
            asyncio.gather(
                *(
                    lines.claim(batch_id, runner_name, 2, alive_seconds=60)
                    for runner_name in runner_names
                )
            ),
            native_batches.assign_lines(native_batch, line_numbers),
        )
        claimed_numbers = [line.number for group in line_groups for line in group]
        native_numbers = [
            line.number for line in await native_batches.list_lines(native_batch, 0, 10)
        ]
        remaining_lines = await lines.claim(batch_id, "last", 10, alive_seconds=60)
        assert len(native_numbers) == assigned_count
        assert sorted(
            claimed_numbers + native_numbers + [line.number for line in remaining_lines]
        ) == list(line_numbers)
