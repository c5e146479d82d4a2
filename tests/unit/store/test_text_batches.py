from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from moyin.domain.stored_file import BATCH_OUTPUT, StoredFile
from moyin.domain.text_batch import (
    BatchDialect,
    BatchError,
    BatchStatus,
    LineResult,
    NewLine,
    TextBatch,
)
from moyin.errors import BatchFinished, BatchNotFinished, BatchNotFound, TooManyBatches
from moyin.store import batch_lines
from moyin.store.batch_lines import BatchLineStore, FinishedLine, LineCounts
from moyin.store.files import FileStore
from moyin.store.schema import text_batch_lines, usage
from moyin.store.sql import Database, now
from moyin.store.text_batches import TextBatchStore
from moyin.store.usage import UsageEntry


def make_batch(number: int = 1, **changes: Any) -> TextBatch:
    created_at = now() - timedelta(minutes=10 - number)
    return replace(
        TextBatch(
            id=f"batch_{number}",
            owner="ada",
            dialect=BatchDialect.OPENAI,
            endpoint="/v1/chat/completions",
            input_file_id="file-1",
            created_at=created_at,
            expires_at=created_at + timedelta(hours=24),
            key_id="key_1",
            scopes=frozenset({"text"}),
            metadata={"run": "7"},
        ),
        **changes,
    )


def make_line(number: int) -> NewLine:
    return NewLine(number=number, custom_id=f"line-{number}", start=number * 10, size=9)


def make_finished_line(number: int, error: str | None = None) -> FinishedLine:
    usage_entry = UsageEntry(
        request_id=f"batch_1-{number}",
        owner="ada",
        backend="mock",
        model="m",
        input_tokens=3,
        cached_tokens=0,
        output_tokens=2,
        cost_usd=Decimal("0.001"),
        complete=error is None,
    )
    line_result = LineResult(
        number=number,
        http_status=200 if error is None else 400,
        body=b'{"n": %d}' % number,
        error_code=error,
    )
    return FinishedLine(
        batch_id="batch_1", result=line_result, usage=(usage_entry,) if error is None else ()
    )


def make_output_file(name: str) -> StoredFile:
    return StoredFile(
        id=name,
        owner="ada",
        purpose=BATCH_OUTPUT,
        filename="output.jsonl",
        media_type="application/jsonl",
        size=1,
        sha256="b" * 64,
        created_at=now(),
    )


@pytest.fixture
def batches(database: Database) -> TextBatchStore:
    return TextBatchStore(database, max_open=3)


@pytest.fixture
def lines(database: Database) -> BatchLineStore:
    return BatchLineStore(database)


async def start_batch(
    batches: TextBatchStore, lines: BatchLineStore, count: int, **changes: Any
) -> None:
    await batches.create(make_batch(**changes))
    await lines.add("batch_1", [make_line(number) for number in range(1, count + 1)])
    await lines.add("batch_1", [make_line(1)])
    await batches.begin("batch_1", count)
    await lines.renew_runner("one", 60)
    await lines.renew_runner("two", 60)


async def test_a_batch_is_returned_to_its_tenant_only(batches: TextBatchStore) -> None:
    stored_batch = make_batch(user="user-1", output_expires_after=3600)
    await batches.create(stored_batch)
    assert await batches.get("ada", "batch_1") == stored_batch
    submitter = stored_batch.submitter
    assert (submitter.owner, submitter.key_id, submitter.user) == ("ada", "key_1", "user-1")
    assert submitter.scopes == {"text"}
    for owner, dialect in (("bob", None), ("ada", BatchDialect.ANTHROPIC)):
        with pytest.raises(BatchNotFound):
            await batches.get(owner, "batch_1", dialect=dialect)


async def test_open_batches_are_bounded_per_tenant(batches: TextBatchStore) -> None:
    for number in (1, 2, 3):
        await batches.create(make_batch(number))
    with pytest.raises(TooManyBatches, match="at most 3"):
        await batches.create(make_batch(4))
    await batches.create(make_batch(5, owner="bob"))
    await batches.fail("batch_1", [BatchError(code="invalid_json", message="x", line=2)])
    await batches.create(make_batch(4))
    failed_batch = await batches.get("ada", "batch_1")
    assert failed_batch.status is BatchStatus.FAILED and failed_batch.ended_at is not None
    assert failed_batch.errors == (BatchError(code="invalid_json", message="x", line=2),)


async def test_pages_go_forwards_and_backwards(database: Database) -> None:
    batches = TextBatchStore(database)
    for number in range(1, 6):
        await batches.create(make_batch(number))

    async def list_numbers(**options: Any) -> tuple[list[str], bool]:
        page, has_more = await batches.list_page("ada", BatchDialect.OPENAI, **options)
        return [batch.id.removeprefix("batch_") for batch in page], has_more

    assert await list_numbers(limit=2) == (["5", "4"], True)
    assert await list_numbers(limit=3, after_id="batch_4") == (["3", "2", "1"], False)
    assert await list_numbers(limit=2, before_id="batch_2") == (["4", "3"], True)
    assert await batches.list_page("ada", BatchDialect.ANTHROPIC) == ([], False)
    with pytest.raises(BatchNotFound):
        await list_numbers(after_id="batch_9")


async def test_a_claimed_line_is_run_by_no_other_runner(
    batches: TextBatchStore, lines: BatchLineStore
) -> None:
    await start_batch(batches, lines, 5)
    assert [x.number for x in await lines.claim("batch_1", "one", 2)] == [1, 2]
    assert [x.number for x in await lines.claim("batch_1", "two", 9)] == [3, 4, 5]
    assert await lines.claim("batch_1", "one", 9, running_numbers=[1, 2]) == []
    await lines.release("batch_1", [1, 3], "one")
    assert [
        x.number for x in await lines.claim("batch_1", "two", 9, running_numbers=[3, 4, 5])
    ] == [1]
    # The second runner dies.
    await lines.renew_runner("two", -1)
    assert await lines.count("batch_1") == LineCounts(pending=5, running=1)
    reclaimed_lines = await lines.claim("batch_1", "one", 9, running_numbers=[2])
    assert [x.number for x in reclaimed_lines] == [1, 3, 4, 5]
    await lines.remove_runner("one")
    assert len(await lines.claim("batch_1", "three", 9)) == 5


async def test_a_line_has_one_result_and_is_charged_once(
    database: Database, batches: TextBatchStore, lines: BatchLineStore
) -> None:
    await start_batch(batches, lines, 3)
    assert (
        await lines.finish([make_finished_line(1), make_finished_line(2, "model_not_found")]) == []
    )
    assert await lines.finish([make_finished_line(1), make_finished_line(3)]) == [
        make_finished_line(1)
    ]
    stored_batch = await batches.get("ada", "batch_1")
    assert (stored_batch.total, stored_batch.completed, stored_batch.failed) == (3, 2, 1)
    rows = await database.fetch_values(sa.select(usage.c.request_id).order_by(usage.c.request_id))
    assert rows == ["batch_1-1", "batch_1-3"]
    results = [batch_line.result for batch_line in await lines.list_page("batch_1", 0, 10)]
    assert [r and r.error_code for r in results] == [None, "model_not_found", None]
    assert [x.number for x in await lines.list_page("batch_1", 1, 1)] == [2]


async def test_answer_of_a_second_run_is_charged_as_incomplete(
    database: Database, batches: TextBatchStore, lines: BatchLineStore
) -> None:
    await start_batch(batches, lines, 1)
    first_run, second_run = (
        replace(make_finished_line(1), run="first"),
        replace(make_finished_line(1), run="second"),
    )
    assert await lines.finish([first_run]) == []
    # The answer to the first commit may be lost, which is no other run.
    assert await lines.finish([first_run]) == [first_run]
    for _ in range(2):
        assert await lines.finish([second_run]) == [second_run]
    query = sa.select(usage.c.complete).order_by(usage.c.complete)
    assert await database.fetch_values(query) == [False, True]


async def test_pages_of_large_results_are_short(
    batches: TextBatchStore, lines: BatchLineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_lines, "_PAGE_BYTES", 20)
    await start_batch(batches, lines, 6)
    large_line = make_finished_line(3)
    large_line = replace(large_line, result=replace(large_line.result, body=b"x" * 50))
    await lines.finish(
        [
            make_finished_line(1),
            make_finished_line(2),
            large_line,
            make_finished_line(4),
            make_finished_line(5),
        ]
    )
    line_numbers_by_page, last_number = [], 0
    while page := await lines.list_page("batch_1", last_number, 2):
        line_numbers_by_page.append([batch_line.number for batch_line in page])
        last_number = line_numbers_by_page[-1][-1]
    assert line_numbers_by_page == [[1, 2], [3], [4, 5], [6]]


async def test_batch_results_become_files_and_lines_are_deleted(
    database: Database, batches: TextBatchStore, lines: BatchLineStore
) -> None:
    await start_batch(batches, lines, 2)
    await lines.finish([make_finished_line(1)])
    assert not await batches.seal("batch_1")
    await lines.finish([make_finished_line(2)])
    assert await batches.seal("batch_1")
    assert (await batches.get("ada", "batch_1")).status is BatchStatus.FINALIZING
    for _ in range(2):
        ended_batch = await batches.finish(
            "batch_1", output_file=make_output_file("file-o"), error_file=None
        )
        assert (
            ended_batch.status is BatchStatus.COMPLETED and ended_batch.output_file_id == "file-o"
        )
    assert (await FileStore(database).get("ada", "file-o")).purpose == BATCH_OUTPUT
    assert await database.fetch_values(sa.select(text_batch_lines.c.number)) == []


async def test_a_cancelled_batch_waits_for_its_running_lines(
    batches: TextBatchStore, lines: BatchLineStore
) -> None:
    await start_batch(batches, lines, 3)
    await lines.claim("batch_1", "one", 1)
    assert (await batches.cancel("ada", "batch_1")).status is BatchStatus.CANCELLING
    assert (await batches.cancel("ada", "batch_1")).status is BatchStatus.CANCELLING
    assert await lines.claim("batch_1", "two", 1) == []
    assert not await batches.seal("batch_1")
    await lines.finish([make_finished_line(1)])
    assert await batches.seal("batch_1")
    # A line whose runner was thought dead comes too late.
    assert await lines.finish([make_finished_line(2)]) == [make_finished_line(2)]
    ended_batch = await batches.finish(
        "batch_1", output_file=make_output_file("file-o"), error_file=make_output_file("file-e")
    )
    assert (ended_batch.status, ended_batch.completed) == (BatchStatus.CANCELLED, 1)
    assert ended_batch.error_file_id == "file-e"


async def test_an_expired_batch_begins_no_line(
    batches: TextBatchStore, lines: BatchLineStore
) -> None:
    await start_batch(batches, lines, 2, expires_at=now() - timedelta(seconds=1))
    assert await lines.claim("batch_1", "one", 1) == []
    assert await batches.seal("batch_1")
    ended_batch = await batches.finish(
        "batch_1", output_file=None, error_file=make_output_file("file-e")
    )
    assert ended_batch.status is BatchStatus.EXPIRED
    with pytest.raises(BatchFinished, match="expired"):
        await batches.cancel("ada", "batch_1")
    with pytest.raises(BatchNotFound):
        await batches.cancel("bob", "batch_1")


async def test_only_ended_batches_are_deleted(batches: TextBatchStore) -> None:
    await batches.create(make_batch())
    with pytest.raises(BatchNotFinished):
        await batches.delete("ada", "batch_1")
    await batches.fail("batch_1", [])
    await batches.delete("ada", "batch_1")
    assert await batches.find("batch_1") is None


async def test_the_sweeper_finds_batches_without_a_workflow(batches: TextBatchStore) -> None:
    await batches.create(make_batch(1))
    await batches.create(make_batch(2, owner="bob"))
    assert await batches.list_undispatched() == [("batch_1", "ada"), ("batch_2", "bob")]
    await batches.mark_dispatched("batch_1")
    await batches.fail("batch_2", [])
    assert await batches.list_undispatched() == []


async def test_a_batch_is_locked_while_its_lines_are_claimed_or_written(
    batches: TextBatchStore, lines: BatchLineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start_batch(batches, lines, 1)
    statements: list[str] = []

    def record_statement(self: sa.Connection, statement: Any, *args: Any, **options: Any) -> Any:
        if isinstance(statement, sa.Select):
            compiled_statement = statement.compile(dialect=postgresql.dialect())
            statements.append(str(compiled_statement))
        return original_execute(self, statement, *args, **options)

    original_execute = sa.Connection.execute
    monkeypatch.setattr(sa.Connection, "execute", record_statement)
    await lines.claim("batch_1", "one", 1)
    assert statements[0].endswith("FOR SHARE")
    statements.clear()
    await lines.finish([make_finished_line(1)])
    assert statements[0].endswith("FOR UPDATE")
