from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from moyin.domain.identity import Identity
from moyin.domain.stored_file import BATCH_INPUT, StoredFile
from moyin.domain.text_batch import (
    BatchDialect,
    BatchLine,
    BatchStatus,
    LineResult,
    NewLine,
    TextBatch,
)
from moyin.errors import (
    BackendUnavailable,
    BatchNotFound,
    BudgetExceeded,
    MoyinError,
    Overloaded,
    ServiceUnavailable,
)
from moyin.store.batch_lines import BatchLineStore, FinishedLine
from moyin.store.blobs import BlobStore
from moyin.store.files import FileStore
from moyin.store.schema import usage as usage_table
from moyin.store.sql import Database, now
from moyin.store.text_batches import TextBatchStore
from moyin.store.usage import UsageEntry
from moyin.text.batches import result_writer
from moyin.text.batches import runner as runner_module
from moyin.text.batches.runner import BatchRunner, LineOutcome, WorkState
from tests.waiting import eventually

ADA = Identity(owner="ada", key_id="key_1")


class FakeCaller:
    """Answers lines; ``errors`` maps a line to the errors of its first attempts."""

    def __init__(self) -> None:
        self.errors: dict[int, list[MoyinError]] = {}
        self.errors_cost = False
        self.calls_by_number = Counter[int]()
        self.bodies: dict[int, bytes] = {}
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def call(
        self, endpoint: str, body: bytes, *, number: int, request_id: str, identity: Identity
    ) -> LineOutcome:
        self.calls_by_number[number] += 1
        self.bodies[number] = body
        await self.may_answer.wait()
        entry = UsageEntry(
            request_id=request_id,
            owner=identity.owner,
            backend="b",
            model="m",
            input_tokens=1,
            cached_tokens=0,
            output_tokens=1,
            cost_usd=Decimal("0.1"),
            complete=True,
        )
        if errors := self.errors.get(number):
            error = errors.pop(0)
            usage = [entry] if self.errors_cost else []
            failed_result = LineResult(
                number=number, http_status=500, body=b"{}", error_code=error.code
            )
            return LineOutcome(result=failed_result, error=error, usage=usage)
        line_result = LineResult(number=number, http_status=200, body=b"{}")
        return LineOutcome(result=line_result, usage=[entry])


class Rig:
    """A batch of lines in a database, with runners of two replicas."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.batches = TextBatchStore(database)
        self.lines = BatchLineStore(database)
        self.files = FileStore(database)
        self.blobs = BlobStore(f"file://{folder}")
        self.caller = FakeCaller()
        self.window = 4
        self.runner = self.new_runner()
        self.other = self.new_runner()

    def new_runner(self) -> BatchRunner:
        return BatchRunner(
            batches=self.batches,
            lines=self.lines,
            files=self.files,
            blobs=self.blobs,
            caller=self.caller,
            get_window=lambda: self.window,
        )

    async def begin_batch(self, count: int) -> None:
        content, lines = b"", []
        for number in range(1, count + 1):
            raw_line = json.dumps({"body": {"number": number}}).encode()
            new_line = NewLine(
                number=number, custom_id=str(number), start=len(content), size=len(raw_line)
            )
            lines.append(new_line)
            content += raw_line + b"\n"
        file = StoredFile(
            id="file-1",
            owner="ada",
            purpose=BATCH_INPUT,
            filename="x",
            media_type="application/jsonl",
            size=len(content),
            sha256=await self.blobs.put(content),
            created_at=now(),
        )
        await self.files.add(file)
        # The client may delete it at once.
        await self.files.delete("ada", "file-1")
        batch = TextBatch(
            id="batch_1",
            owner="ada",
            dialect=BatchDialect.OPENAI,
            endpoint="/v1/chat/completions",
            input_file_id="file-1",
            created_at=now(),
            expires_at=now() + timedelta(hours=1),
        )
        await self.batches.create(batch)
        await self.lines.add("batch_1", lines)
        await self.batches.begin("batch_1", count)

    async def get_batch(self) -> TextBatch:
        return await self.batches.get("ada", "batch_1")

    async def count_charges(self) -> dict[str, int]:
        query = sa.select(usage_table.c.request_id)
        return Counter(await self.database.fetch_values(query))


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(runner_module, "_IDLE_SECONDS", 0.01)
    monkeypatch.setattr(runner_module, "_MAX_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(runner_module, "_CLOSE_SECONDS", 0.05)
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    rig = Rig(database, tmp_path / "blobs")
    yield rig
    await rig.runner.close()
    await rig.other.close()
    await database.close()


async def test_two_replicas_run_each_line_once(rig: Rig) -> None:
    await rig.begin_batch(30)
    states = await asyncio.gather(
        rig.runner.run_lines("batch_1", ADA), rig.other.run_lines("batch_1", ADA)
    )
    assert WorkState.DONE in states
    assert rig.caller.calls_by_number == {number: 1 for number in range(1, 31)}
    assert rig.caller.bodies[7] == b'{"number":7}'
    assert (await rig.get_batch()).completed == 30
    assert await rig.count_charges() == {f"batch_1-{n}": 1 for n in range(1, 31)}


async def test_transient_errors_are_retried(rig: Rig) -> None:
    await rig.begin_batch(4)
    rig.caller.errors = {
        1: [Overloaded("x") for _ in range(20)],
        2: [BackendUnavailable("x") for _ in range(4)],
        3: [BackendUnavailable("x") for _ in range(9)],
        4: [BudgetExceeded("x")],
    }
    assert await rig.runner.run_lines("batch_1", ADA) is WorkState.DONE
    batch = await rig.get_batch()
    assert (batch.completed, batch.failed) == (2, 2)
    assert rig.caller.calls_by_number == {1: 21, 2: 5, 3: 5, 4: 1}
    error_codes = {
        line.number: line.result and line.result.error_code
        for line in await rig.lines.list_page("batch_1", 0, 9)
    }
    assert error_codes == {1: None, 2: None, 3: "backend_unavailable", 4: "budget_exceeded"}
    assert len(await rig.count_charges()) == 2


async def test_lines_continue_after_their_submitter_is_gone(rig: Rig) -> None:
    await rig.begin_batch(10)
    rig.caller.may_answer.clear()
    working_task = asyncio.create_task(rig.runner.run_lines("batch_1", ADA))
    await eventually(lambda: rig.caller.calls_by_number.total() == 4)
    working_task.cancel()
    await asyncio.gather(working_task, return_exceptions=True)
    # They count as running for all replicas, and the window of this one is full.
    assert await rig.runner.run_lines("batch_1", ADA, 0.1) is WorkState.MORE
    assert rig.caller.calls_by_number.total() == 4
    rig.caller.may_answer.set()
    assert await rig.other.run_lines("batch_1", ADA) is WorkState.DONE
    assert rig.caller.calls_by_number.total() == 10
    assert (await rig.get_batch()).completed == 10


async def test_other_replicas_run_lines_that_a_stopped_replica_released(rig: Rig) -> None:
    await rig.begin_batch(4)
    rig.caller.may_answer.clear()
    assert await rig.runner.run_lines("batch_1", ADA, 0.1) is WorkState.MORE
    await rig.runner.close()
    with pytest.raises(ServiceUnavailable):
        await rig.runner.run_lines("batch_1", ADA)
    rig.caller.may_answer.set()
    assert await rig.other.run_lines("batch_1", ADA) is WorkState.DONE
    assert rig.caller.calls_by_number == {number: 2 for number in range(1, 5)}
    assert await rig.count_charges() == {f"batch_1-{n}": 1 for n in range(1, 5)}


async def test_cancelled_lines_stop_waiting_for_another_try(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "_MAX_PAUSE_SECONDS", 60.0)
    await rig.begin_batch(10)
    rig.caller.errors = {n: [Overloaded("x", retry_after=60)] for n in range(1, 11)}
    assert await rig.runner.run_lines("batch_1", ADA, 0.1) is WorkState.MORE
    await rig.batches.cancel("ada", "batch_1")
    assert await rig.runner.run_lines("batch_1", ADA) is WorkState.DONE
    assert rig.caller.calls_by_number.total() == 4
    assert await rig.batches.seal("batch_1")
    batch = await rig.get_batch()
    assert batch.status is BatchStatus.CANCELLING and batch.completed == 0


async def test_batch_runs_only_for_its_tenant(rig: Rig) -> None:
    await rig.begin_batch(1)
    with pytest.raises(BatchNotFound):
        await rig.runner.run_lines("batch_1", Identity(owner="bob", key_id="k"))


async def test_results_wait_while_the_database_is_away(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.begin_batch(2)
    original_finish, outages = rig.lines.finish, [1, 2]

    async def fail_then_finish(finished_lines: list[FinishedLine]) -> list[FinishedLine]:
        if outages:
            outages.pop()
            raise OperationalError("away", None, Exception())
        return await original_finish(finished_lines)

    monkeypatch.setattr(rig.lines, "finish", fail_then_finish)
    assert await rig.runner.run_lines("batch_1", ADA) is WorkState.DONE
    assert rig.caller.calls_by_number.total() == 2 and (await rig.get_batch()).completed == 2


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_lines_of_a_claim_that_was_cancelled_are_not_lost(
    rig: Rig, is_cancelled: bool
) -> None:
    await rig.begin_batch(4)
    await rig.lines.renew_runner(rig.runner.id, 60)
    # The claim is committed, but its caller is gone.
    assert len(await rig.lines.claim("batch_1", rig.runner.id, 2)) == 2
    if is_cancelled:
        await rig.batches.cancel("ada", "batch_1")
    assert await rig.runner.run_lines("batch_1", ADA) is WorkState.DONE
    assert await rig.batches.seal("batch_1")
    assert (await rig.get_batch()).completed == (0 if is_cancelled else 4)


async def test_lines_whose_release_failed_run_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.begin_batch(2)
    original_call = rig.caller.call

    async def fail_second_line_once(*args: Any, **options: Any) -> LineOutcome:
        outcome = await original_call(*args, **options)
        if rig.caller.calls_by_number[2] == 1 and options["number"] == 2:
            raise RuntimeError("a bug")
        return outcome

    async def fail_release(batch_id: str, numbers: list[int], runner: str) -> None:
        raise OperationalError("away", None, Exception())

    monkeypatch.setattr(rig.caller, "call", fail_second_line_once)
    monkeypatch.setattr(rig.lines, "release", fail_release)
    assert await rig.runner.run_lines("batch_1", ADA) is WorkState.DONE
    assert rig.caller.calls_by_number == {1: 1, 2: 2} and (await rig.get_batch()).completed == 2


async def test_a_line_is_not_paid_for_twice_when_an_error_follows_its_answer(rig: Rig) -> None:
    await rig.begin_batch(1)
    rig.caller.errors, rig.caller.errors_cost = {1: [ServiceUnavailable("x")]}, True
    assert await rig.runner.run_lines("batch_1", ADA) is WorkState.DONE
    assert rig.caller.calls_by_number == {1: 1} and (await rig.get_batch()).failed == 1
    assert await rig.count_charges() == {"batch_1-1": 1}


async def test_a_failed_renewal_of_the_lease_is_tried_again_soon(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "_RENEW_SECONDS", 3600.0)
    monkeypatch.setattr(runner_module, "_RETRY_SECONDS", 0.0)
    await rig.begin_batch(1)
    original_renew, has_renewed, outages = rig.lines.renew_runner, asyncio.Event(), [1, 2]

    async def fail_twice_then_renew(runner: str, seconds: float) -> None:
        if outages:
            outages.pop()
            raise OperationalError("away", None, Exception())
        await original_renew(runner, seconds)
        has_renewed.set()

    monkeypatch.setattr(rig.lines, "renew_runner", fail_twice_then_renew)
    assert await rig.runner.run_lines("batch_1", ADA) is WorkState.DONE
    async with asyncio.timeout(30):
        await has_renewed.wait()


async def test_a_replica_does_not_claim_its_running_lines_when_its_lease_has_ended(
    rig: Rig,
) -> None:
    await rig.begin_batch(4)
    rig.caller.may_answer.clear()
    assert await rig.runner.run_lines("batch_1", ADA, 0.1) is WorkState.MORE
    await rig.lines.renew_runner(rig.runner.id, -1)
    rig.window = 8
    assert await rig.runner.run_lines("batch_1", ADA, 0.1) is WorkState.MORE
    assert rig.caller.calls_by_number.total() == 4
    # Nor does another, since whoever claims is alive.
    assert (await rig.lines.count("batch_1")).running == 4


async def test_large_results_are_written_one_by_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_writer, "_GROUP_BYTES", 3)
    await rig.begin_batch(4)
    original_finish, group_sizes = rig.lines.finish, list[int]()

    async def finish_and_count(finished_lines: list[FinishedLine]) -> list[FinishedLine]:
        group_sizes.append(len(finished_lines))
        return await original_finish(finished_lines)

    monkeypatch.setattr(rig.lines, "finish", finish_and_count)
    assert await rig.runner.run_lines("batch_1", ADA) is WorkState.DONE
    assert group_sizes == [1, 1, 1, 1]


async def test_overloaded_line_is_retried_more_than_a_thousand_times(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner_module, "_MAX_PAUSE_SECONDS", 0.0)
    await rig.begin_batch(1)
    rig.caller.errors = {1: [Overloaded("x") for _ in range(1100)]}
    assert await rig.runner.run_lines("batch_1", ADA) is WorkState.DONE
    assert (await rig.get_batch()).completed == 1
    assert "not run to its end" not in caplog.text


async def test_no_line_begins_while_the_replica_stops(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.begin_batch(4)
    original_claim, has_claimed, may_proceed = rig.lines.claim, asyncio.Event(), asyncio.Event()

    async def claim_slowly(*args: Any, **options: Any) -> list[BatchLine]:
        claimed_lines = await original_claim(*args, **options)
        has_claimed.set()
        await may_proceed.wait()
        return claimed_lines

    monkeypatch.setattr(rig.lines, "claim", claim_slowly)
    monkeypatch.setattr(runner_module, "_CLOSE_SECONDS", 30.0)
    working_task = asyncio.create_task(rig.runner.run_lines("batch_1", ADA))
    await has_claimed.wait()
    closing_task = asyncio.create_task(rig.runner.close())
    await asyncio.sleep(0)
    may_proceed.set()
    await closing_task
    with pytest.raises(ServiceUnavailable, match="stopping"):
        await working_task
    assert not rig.caller.calls_by_number
    assert (await rig.lines.count("batch_1")).running == 0
