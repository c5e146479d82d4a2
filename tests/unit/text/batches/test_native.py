from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import sqlalchemy as sa

from moyin.domain.native_batch import NativeBatch, NativeStatus, new_native_id
from moyin.domain.stored_file import BATCH_INPUT, StoredFile
from moyin.domain.text_batch import (
    BatchDialect,
    LineResult,
    LineStatus,
    NewLine,
    TextBatch,
)
from moyin.errors import BackendRejected, BackendTimeout, MoyinError, Overloaded
from moyin.store.batch_lines import BatchLineStore
from moyin.store.blobs import BlobStore
from moyin.store.files import FileStore
from moyin.store.native_batches import NativeBatchStore
from moyin.store.schema import native_batches, text_batch_lines, usage
from moyin.store.sql import Database, now
from moyin.store.text_batches import TextBatchStore
from moyin.store.usage import UsageEntry
from moyin.text.backends.batches import (
    Payload,
    RemoteBatch,
    RemoteOutcome,
    RemoteResult,
    RemoteState,
)
from moyin.text.batches import native_sender
from moyin.text.batches.native import NativeBatches
from moyin.text.batches.native_lines import NativeLine
from tests.waiting import eventually


class FakeBatchApi:
    """A batch API in memory."""

    chat_path = "/chat/completions"
    identifies_by_key = True
    max_requests = 4
    max_bytes = 10_000

    def __init__(self) -> None:
        self.sent: dict[str, list[str]] = {}
        self.keys: dict[str, str] = {}
        self.error: MoyinError | None = None
        self.loses_response = False
        self.state = RemoteState.RUNNING
        self.outcomes: dict[str, RemoteOutcome] = {}
        self.cancelled: list[str] = []
        self.discarded_ids: list[str] = []

    def encode_request(self, custom_id: str, path: str, body: Mapping[str, Any]) -> bytes:
        return json.dumps({"custom_id": custom_id, **body}).encode() + b"\n"

    async def submit(self, payload: Payload, deadline: float) -> RemoteBatch:
        if self.error is not None:
            raise self.error
        lines = payload.file.read_bytes().splitlines()
        assert len(lines) == payload.count and payload.file.stat().st_size == payload.size
        remote_id = f"remote-{len(self.sent)}"
        self.sent[remote_id] = [json.loads(line)["custom_id"] for line in lines]
        self.keys[remote_id] = payload.key
        if self.loses_response:
            raise BackendTimeout("no answer")
        return RemoteBatch(id=remote_id, state=self.state)

    async def find_submitted(
        self, key: str, count: int, since: datetime, deadline: float
    ) -> AsyncGenerator[RemoteBatch, None]:
        for remote_id, custom_ids in self.sent.items():
            if (
                (self.keys[remote_id] == key)
                if self.identifies_by_key
                else len(custom_ids) == count
            ):
                yield RemoteBatch(id=remote_id, state=self.state)

    async def poll(self, batch_id: str, deadline: float) -> RemoteBatch:
        state = RemoteState.ENDED if batch_id in self.cancelled else self.state
        return RemoteBatch(id=batch_id, state=state, reason="no such model")

    async def cancel(self, batch_id: str, deadline: float) -> None:
        self.cancelled.append(batch_id)

    async def read_results(
        self, batch: RemoteBatch, deadline: float
    ) -> AsyncGenerator[RemoteResult, None]:
        for custom_id in reversed(self.sent[batch.id]):
            number = custom_id.rpartition("-")[2]
            yield RemoteResult(
                custom_id=custom_id,
                outcome=self.outcomes.get(number, RemoteOutcome.ANSWERED),
            )

    async def discard(self, batch: RemoteBatch, deadline: float) -> None:
        self.discarded_ids.append(batch.id)


class FakeNativeLines:
    """Selects for the batch API only the lines whose model is ``native``."""

    has_batch_api = True

    def __init__(self, api: FakeBatchApi) -> None:
        self.api: FakeBatchApi | None = api

    def get_api(self, backend: str) -> Any:
        return self.api

    def find_deployment(self, backend: str, model: str) -> Any:
        return model

    def choose_backend(self, batch: TextBatch, body: bytes) -> Any:
        if json.loads(body)["model"] != "native":
            return None
        target = SimpleNamespace(
            runtime=SimpleNamespace(name="cloud", batch_api=self.api),
            model=SimpleNamespace(name="native"),
        )
        return target, NativeLine(path="/chat/completions", body=json.loads(body))

    def encode_line(self, batch: TextBatch, body: bytes, backend: str, model: str) -> NativeLine:
        return NativeLine(path="/chat/completions", body=json.loads(body))

    def decode_result(
        self,
        batch: TextBatch,
        line_number: int,
        body: bytes,
        remote_result: RemoteResult,
        deployment: Any,
        api: Any,
    ) -> Any:
        if remote_result.outcome is RemoteOutcome.FAILED:
            return None
        usage_entry = UsageEntry(
            request_id="r", owner="ada", backend="cloud", model="native", input_tokens=1,
            cached_tokens=0, output_tokens=1, cost_usd=Decimal("0.5"), complete=True,
        )  # fmt: skip
        return LineResult(number=line_number, http_status=200, body=b"{}"), (usage_entry,)


class Rig:
    """A batch of lines in a database, with two replicas that process its native batches."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.batches = TextBatchStore(database)
        self.lines = BatchLineStore(database)
        self.blobs = BlobStore(f"file://{folder}")
        self.store = NativeBatchStore(database)
        self.api = FakeBatchApi()
        self.translator = FakeNativeLines(self.api)
        self.replica, self.other = self.new_replica(), self.new_replica()
        self.written: list[LineResult] = []

    def new_replica(self) -> NativeBatches:
        return NativeBatches(
            self.store,
            self.lines,
            self.blobs,
            cast(Any, self.translator),
            get_poll_seconds=lambda: 0.01,
            on_result=lambda result: self.written.append(result),
            appearance_seconds=0.05,
        )

    async def begin_batch(self, *models: str) -> None:
        content, lines = b"", []
        for number, model in enumerate(models, 1):
            raw_line = json.dumps({"custom_id": str(number), "body": {"model": model}}).encode()
            new_line = NewLine(
                number=number, custom_id=str(number), start=len(content), size=len(raw_line)
            )
            lines.append(new_line)
            content += raw_line + b"\n"
        self.file = StoredFile(
            id="file-1", owner="ada", purpose=BATCH_INPUT, filename="x", media_type="x/y",
            size=len(content), sha256=await self.blobs.put(content), created_at=now(),
        )  # fmt: skip
        await FileStore(self.database).add(self.file)
        created_at = now()
        batch = TextBatch(
            id="batch_1", owner="ada", dialect=BatchDialect.OPENAI,
            endpoint="/v1/chat/completions", input_file_id="file-1", created_at=created_at,
            expires_at=created_at + timedelta(hours=24),
        )  # fmt: skip
        await self.batches.create(batch)
        await self.lines.add(batch.id, lines)
        await self.batches.begin(batch.id, len(lines))

    async def advance(
        self, replica: NativeBatches | None = None, *, has_limits: bool = False
    ) -> bool:
        batch = await self.batches.find("batch_1")
        assert batch is not None
        return await (replica or self.replica).advance(batch, self.file, has_limits=has_limits)

    async def advance_until(self, **statuses: int) -> None:
        """Advance until each of these statuses has exactly so many native batches, and no other has any."""

        async def has_statuses() -> bool:
            await self.advance()
            row_statuses = [row["status"] for row in await self.fetch_native_rows()]
            return len(row_statuses) == sum(statuses.values()) and all(
                row_statuses.count(name) == count for name, count in statuses.items()
            )

        await eventually(has_statuses, 30)

    async def fetch_native_rows(self) -> list[Any]:
        query = sa.select(native_batches).where(native_batches.c.model != "")
        return list(await self.database.fetch_all(query.order_by(native_batches.c.created_at)))

    async def list_pending_numbers(self) -> list[int]:
        query = sa.select(text_batch_lines.c.number).where(
            text_batch_lines.c.status == LineStatus.PENDING.value
        )
        return sorted(await self.database.fetch_values(query))

    async def list_claimable(self) -> list[int]:
        """Return the numbers of the lines that another runner could claim now; claim none."""
        claimed_numbers = [line.number for line in await self.lines.claim("batch_1", "r", 100)]
        await self.lines.release("batch_1", claimed_numbers, "r")
        return claimed_numbers

    async def count_charges(self) -> int:
        return int(await self.database.fetch_value(sa.select(sa.func.count()).select_from(usage)))


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    rig = Rig(database, tmp_path / "blobs")
    yield rig
    await rig.replica.close()
    await rig.other.close()
    await database.close()


async def test_lines_are_divided_sent_and_answered_once(rig: Rig) -> None:
    await rig.begin_batch(*["native"] * 6, "other", *["native"] * 3)
    assert not await rig.advance(), "others may not claim lines before they are divided"
    await rig.advance_until(running=3)
    assert await rig.advance()
    assert sorted(map(len, rig.api.sent.values())) == [1, 4, 4]
    assert await rig.list_claimable() == [7]
    rig.api.state = RemoteState.ENDED
    await rig.advance_until(done=3)
    assert await rig.list_pending_numbers() == [7] and await rig.count_charges() == 9
    assert sorted(result.number for result in rig.written) == [1, 2, 3, 4, 5, 6, 8, 9, 10]
    assert sorted(rig.api.discarded_ids) == sorted(rig.api.sent)


async def test_two_replicas_send_a_batch_once(rig: Rig) -> None:
    await rig.begin_batch(*["native"] * 3)
    for _ in range(5):
        await asyncio.gather(rig.advance(), rig.advance(rig.other))
    await rig.advance_until(running=1)
    assert len(rig.api.sent) == 1


@pytest.mark.parametrize("identifies_by_key", [True, False])
async def test_a_lost_batch_is_found_again(rig: Rig, identifies_by_key: bool) -> None:
    rig.api.loses_response = True
    rig.api.identifies_by_key = identifies_by_key
    if not identifies_by_key:
        # Somebody else's, of the same size.
        rig.api.sent["remote-0"], rig.api.keys["remote-0"] = ["x-1", "x-2"], "x"
    await rig.begin_batch("native", "native")
    await rig.advance_until(sending=1)
    if not identifies_by_key:
        sent_count = len(rig.api.sent)
        for _ in range(5):
            await rig.advance()
        assert len(rig.api.sent) == sent_count, "whose it is shows only when it has ended"
        rig.api.state = RemoteState.ENDED
    await rig.advance_until(**({"running": 1} if identifies_by_key else {"done": 1}))
    rig.api.state = RemoteState.ENDED
    await rig.advance_until(done=1)
    [row] = await rig.fetch_native_rows()
    assert row["remote_id"] == ("remote-0" if identifies_by_key else "remote-1")
    assert await rig.list_pending_numbers() == [] and await rig.count_charges() == 2
    assert len(rig.api.sent) == (1 if identifies_by_key else 2)


async def test_a_batch_that_never_arrived_is_sent_again(rig: Rig) -> None:
    rig.api.error = BackendTimeout("no answer")
    await rig.begin_batch("native")
    await rig.advance_until(sending=1)
    rig.api.error = None
    await rig.advance_until(running=1)
    assert list(rig.api.sent) == ["remote-0"]


async def test_a_lost_batch_is_waited_for_while_it_may_run(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_count, original_find = 0, rig.api.find_submitted

    def count_search(*args: Any) -> Any:
        nonlocal search_count
        search_count += 1
        return original_find(*args)

    async def has_searched() -> bool:
        await rig.advance()
        return search_count >= 3

    monkeypatch.setattr(rig.api, "find_submitted", count_search)
    monkeypatch.setattr(native_sender, "_SEARCH_PERIOD", timedelta())
    rig.api.loses_response, rig.api.identifies_by_key = True, False
    await rig.begin_batch("native", "native")
    await rig.advance_until(sending=1)
    await eventually(has_searched)
    assert [row["status"] for row in await rig.fetch_native_rows()] == ["sending"]
    assert await rig.list_claimable() == []
    rig.api.state = RemoteState.ENDED
    await rig.advance_until(done=1)
    assert await rig.count_charges() == 2 and len(rig.api.sent) == 1


async def test_a_cancelled_batch_does_not_wait_long_for_a_lost_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.api.loses_response, rig.api.identifies_by_key = True, False
    await rig.begin_batch("native")
    await rig.advance_until(sending=1)
    await rig.batches.cancel("ada", "batch_1")
    monkeypatch.setattr(native_sender, "_SEARCH_PERIOD", timedelta())
    await rig.advance_until(done=1)
    assert await rig.batches.seal("batch_1") and len(rig.api.sent) == 1


async def test_the_search_for_a_lost_batch_ends(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_search(*_: Any) -> Any:
        raise BackendTimeout("the API does not list its batches")

    monkeypatch.setattr(rig.api, "find_submitted", fail_search)
    rig.api.error = BackendTimeout("no answer")
    await rig.begin_batch("native")
    await rig.advance_until(sending=1)
    monkeypatch.setattr(native_sender, "_SEARCH_PERIOD", timedelta())
    await rig.advance_until(done=1)
    assert await rig.list_claimable() == [1]


@pytest.mark.parametrize("is_refused_later", [True, False])
async def test_the_lines_of_a_refused_batch_are_given_back(
    rig: Rig, is_refused_later: bool
) -> None:
    if is_refused_later:
        rig.api.state = RemoteState.REJECTED
    else:
        rig.api.error = BackendRejected("no")
    await rig.begin_batch("native", "native")
    await rig.advance_until(done=1)
    assert await rig.list_claimable() == [1, 2] and await rig.advance()
    assert len(await rig.fetch_native_rows()) == 1, "they are not sent natively once more"


async def test_an_overloaded_back_end_is_tried_later(rig: Rig) -> None:
    rig.api.error = Overloaded("later", retry_after=0.01)
    await rig.begin_batch("native")
    await rig.advance_until(sending=1)
    rig.api.error = None
    await rig.advance_until(running=1)
    assert len(rig.api.sent) == 1


async def test_unanswered_and_failed_lines_are_given_back(rig: Rig) -> None:
    rig.api.outcomes = {"1": RemoteOutcome.UNANSWERED, "2": RemoteOutcome.FAILED}
    rig.api.state = RemoteState.ENDED
    await rig.begin_batch(*["native"] * 4)
    await rig.advance_until(done=1)
    assert await rig.list_claimable() == await rig.list_pending_numbers() == [1, 2]
    assert await rig.count_charges() == 2


async def test_a_cancelled_batch_is_cancelled_at_the_back_end_and_ends(rig: Rig) -> None:
    await rig.begin_batch("native", "native")
    await rig.advance_until(running=1)
    await rig.batches.cancel("ada", "batch_1")
    assert not await rig.batches.seal("batch_1")
    rig.api.outcomes = {"1": RemoteOutcome.UNANSWERED}
    await rig.advance_until(done=1)
    assert rig.api.cancelled == ["remote-0"]
    assert await rig.list_pending_numbers() == [1], "what was answered before is kept"
    assert await rig.batches.seal("batch_1")


async def test_a_batch_cancelled_before_it_is_sent_is_not_sent(rig: Rig) -> None:
    rig.api.error = Overloaded("later", retry_after=0.01)
    await rig.begin_batch("native")
    await rig.advance_until(sending=1)
    await rig.batches.cancel("ada", "batch_1")
    await rig.advance_until(done=1)
    assert not rig.api.sent and await rig.batches.seal("batch_1")


async def test_a_batch_waits_for_its_back_end_to_be_configured_again(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.begin_batch("native")
    await rig.advance_until(running=1)
    rig.translator.api = None

    async def has_waited() -> bool:
        await rig.advance()
        return "is not configured" in caplog.text

    await eventually(has_waited)
    assert [row["status"] for row in await rig.fetch_native_rows()] == ["running"]
    rig.translator.api = rig.api
    rig.api.state = RemoteState.ENDED
    await rig.advance_until(done=1)
    assert await rig.count_charges() == 1


async def test_lines_of_callers_with_limits_are_never_native(rig: Rig) -> None:
    await rig.begin_batch("native")
    assert await rig.advance(has_limits=True)
    assert await rig.fetch_native_rows() == [] and await rig.list_claimable() == [1]


async def test_plan_continues_after_its_replica_died(rig: Rig) -> None:
    await rig.begin_batch(*["native"] * 6)
    created_at = now()
    # A replica died after it had assigned two lines.
    native_batch = NativeBatch(
        id=new_native_id(), batch_id="batch_1", backend="cloud", model="native",
        status=NativeStatus.ASSIGNED, created_at=created_at, due_at=created_at + timedelta(seconds=0.2),
    )  # fmt: skip
    await rig.store.add(native_batch)
    assert await rig.store.assign_lines(native_batch, [1, 2]) == 2
    rig.api.state = RemoteState.ENDED
    await rig.advance_until(done=2)
    assert sorted(map(len, rig.api.sent.values())) == [2, 4]
    assert await rig.list_pending_numbers() == [] and await rig.count_charges() == 6


async def test_a_defect_in_the_plan_leaves_the_lines_to_single_calls(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_choice(*_: Any) -> Any:
        raise KeyError("a defect")

    monkeypatch.setattr(rig.translator, "choose_backend", fail_choice)
    await rig.begin_batch("native", "native")
    await eventually(rig.advance)
    assert len(await rig.list_claimable()) == 2


async def test_no_line_joins_a_batch_that_is_being_sent(rig: Rig) -> None:
    await rig.begin_batch(*["native"] * 2)
    created_at = now()
    native_batch = NativeBatch(
        id=new_native_id(), batch_id="batch_1", backend="cloud", model="native",
        status=NativeStatus.ASSIGNED, created_at=created_at, due_at=created_at,
    )  # fmt: skip
    await rig.store.add(native_batch)
    assert await rig.store.reserve_step(native_batch, 60)
    assert not await rig.store.reserve_step(native_batch, 60)
    assert await rig.store.assign_lines(native_batch, [1]) == 0
    await rig.store.make_first_step_due(native_batch)
    assert not await rig.store.reserve_step(replace(native_batch, due_at=now()), 60)


async def test_a_step_that_fails_is_tried_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.begin_batch("native")
    await rig.advance_until(running=1)
    rig.api.state = RemoteState.ENDED
    failures = iter([RuntimeError("a mistake"), sa.exc.SQLAlchemyError("away")])
    original_finish = rig.lines.finish

    async def fail_twice(finished_lines: Any) -> Any:
        for error in failures:
            raise error
        return await original_finish(finished_lines)

    monkeypatch.setattr(rig.lines, "finish", fail_twice)
    await rig.advance_until(done=1)
    assert "a mistake" in caplog.text and "SQLAlchemyError" in caplog.text
    assert await rig.count_charges() == 1
