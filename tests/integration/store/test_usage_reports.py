"""Tests lists and sums of recorded calls, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from moyin.domain.account import Role, UserKind
from moyin.errors import InvalidRequest
from moyin.store import usage, usage_reports
from moyin.store.keys import KeyStore
from moyin.store.schema import jobs
from moyin.store.sessions import SessionStore
from moyin.store.sql import Database
from moyin.store.usage import CANCELLED, CallStatus, UsageEntry, UsageLedger
from moyin.store.usage_reports import CallFilter, GroupBy, PriceClasses, UsageReports
from moyin.store.users import UserStore

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
ENTRY = UsageEntry(
    request_id="r0",
    owner="ada",
    backend="claude",
    model="haiku",
    input_tokens=100,
    cached_tokens=40,
    output_tokens=7,
    cost_usd=Decimal("0.000000001"),
    complete=True,
    key_id="k1",
    requested_model="auto",
)


class RecordedCalls:
    """A ledger that writes each entry immediately, with a time given by the test."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reports = UsageReports(database)
        self._database = database
        self._monkeypatch = monkeypatch

    async def add(self, called_at: datetime, *entries: UsageEntry) -> None:
        self._monkeypatch.setattr(usage, "now", lambda: called_at)
        ledger = UsageLedger(self._database)
        for entry in entries:
            ledger.record(entry)
        await ledger.start()
        await ledger.close()

    async def list_ids(self, **conditions: Any) -> list[str]:
        page, cursor = await self.reports.list_calls(
            CallFilter(**{"owner": "ada", **conditions}), limit=200
        )
        assert cursor is None
        return [entry.request_id for entry in page]


@pytest.fixture
async def recorded_calls(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RecordedCalls]:
    database = Database(database_url)
    await database.ensure_schema()
    yield RecordedCalls(database, monkeypatch)
    await database.close()


async def test_pages_are_stable_while_calls_are_added(recorded_calls: RecordedCalls) -> None:
    # A batch shares one time, so that the id decides the order.
    batch = [replace(ENTRY, request_id=f"r{number}") for number in range(25)]
    await recorded_calls.add(NOON, *batch)
    seen_ids, cursor, page_count = list[str](), None, 0
    while page_count == 0 or cursor is not None:
        page, cursor = await recorded_calls.reports.list_calls(
            CallFilter(owner="ada"), limit=10, cursor=cursor
        )
        seen_ids += [entry.request_id for entry in page]
        page_count += 1
        later_time = NOON + timedelta(seconds=page_count)
        await recorded_calls.add(later_time, replace(ENTRY, request_id=f"later {page_count}"))
    assert page_count == 3
    assert sorted(seen_ids) == sorted(entry.request_id for entry in batch)
    [newest_call, *_], _ = await recorded_calls.reports.list_calls(CallFilter(owner="ada"), limit=5)
    assert (newest_call.request_id, newest_call.created_at) == (
        "later 3",
        NOON + timedelta(seconds=3),
    )
    with pytest.raises(InvalidRequest) as exc_info:
        await recorded_calls.reports.list_calls(CallFilter(owner="ada"), limit=5, cursor="x")
    assert exc_info.value.field == "cursor"


async def test_filters_select_calls(recorded_calls: RecordedCalls) -> None:
    changes_by_id: dict[str, dict[str, Any]] = {
        "key": {"key_id": "k2"},
        "backend": {"backend": "local"},
        "model": {"model": "opus"},
        "alias": {"requested_model": "fast"},
        "tenant": {"owner": "bob"},
        "cancelled": {"complete": False, "error": CANCELLED},
        "failed": {"complete": False, "error": "backend_timeout"},
        "old": {"complete": False, "key_id": None, "requested_model": None},
    }
    for number, (request_id, changes) in enumerate(changes_by_id.items()):
        called_at = NOON + timedelta(minutes=number)
        await recorded_calls.add(called_at, replace(ENTRY, request_id=request_id, **changes))
    list_ids = recorded_calls.list_ids
    assert await list_ids(key_id="k2") == ["key"]
    assert await list_ids(backend="local") == ["backend"]
    assert await list_ids(model="opus") == ["model"]
    assert await list_ids(requested_model="fast") == ["alias"]
    assert await list_ids(owner="bob") == ["tenant"]
    assert await list_ids(status=CallStatus.CANCELLED) == ["cancelled"]
    assert await list_ids(status=CallStatus.FAILED) == ["failed"]
    assert await list_ids(status=CallStatus.INCOMPLETE) == ["old"]
    assert await list_ids(status=CallStatus.COMPLETE) == ["alias", "model", "backend", "key"]
    assert await list_ids(owner=None, since=NOON + timedelta(minutes=3)) == [
        "old", "failed", "cancelled", "tenant", "alias",
    ]  # fmt: skip
    assert await list_ids(until=NOON + timedelta(minutes=2)) == ["backend", "key"]


async def test_calls_are_summed_by_groups_and_price_classes(
    recorded_calls: RecordedCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_call = replace(ENTRY, input_tokens=1_000)
    embedding_call = replace(ENTRY, model="vectors", output_tokens=0)
    failed_call = replace(ENTRY, complete=False, error="backend_timeout")
    await recorded_calls.add(NOON, ENTRY, ENTRY, long_call, embedding_call)
    # The day is that of UTC, whatever the time zone of the server.
    await recorded_calls.add(datetime(2026, 11, 20, 23, 59, tzinfo=UTC), failed_call)
    await recorded_calls.add(datetime(2026, 11, 21, 0, 1, tzinfo=UTC), ENTRY)
    classes = PriceClasses(prompt_bounds=(100,), embeddings=frozenset({"vectors"}))
    usage_sums = await recorded_calls.reports.sum_calls(
        CallFilter(owner="ada"), [GroupBy.DAY, GroupBy.KEY], classes
    )
    sums_by_class = {(s.group[0], s.band, s.is_embedding, s.is_complete): s for s in usage_sums}
    assert {key: usage_sum.calls for key, usage_sum in sums_by_class.items()} == {
        ("2026-11-20", 0, False, True): 2,
        ("2026-11-20", 1, False, True): 1,
        ("2026-11-20", 0, True, True): 1,
        ("2026-11-20", 0, False, False): 1,
        ("2026-11-21", 0, False, True): 1,
    }
    merged_group = sums_by_class["2026-11-20", 0, False, True]
    assert (merged_group.input_tokens, merged_group.cached_tokens, merged_group.output_tokens) == (
        200,
        80,
        14,
    )
    assert merged_group.cost_usd == Decimal("0.000000002")
    assert {usage_sum.group[1] for usage_sum in usage_sums} == {"k1"}
    by_model, by_day_and_key = await recorded_calls.reports.sum_by_groupings(
        CallFilter(owner="ada"), [[GroupBy.MODEL], [GroupBy.DAY, GroupBy.KEY]], classes
    )
    assert sorted(by_day_and_key, key=repr) == sorted(usage_sums, key=repr)
    assert sorted(by_model, key=repr) == sorted(
        await recorded_calls.reports.sum_calls(CallFilter(owner="ada"), [GroupBy.MODEL], classes),
        key=repr,
    )
    assert {(usage_sum.group, usage_sum.is_embedding) for usage_sum in by_model} == {
        (("haiku",), False),
        (("vectors",), True),
    }
    [total_sum] = await recorded_calls.reports.sum_calls(
        CallFilter(owner="ada", until=NOON + timedelta(hours=1), model="haiku"), [], PriceClasses()
    )
    assert (total_sum.group, total_sum.calls, total_sum.input_tokens) == ((), 3, 1_200)
    assert await recorded_calls.reports.sum_calls(CallFilter(owner="eve"), [], classes) == []
    monkeypatch.setattr(usage_reports, "_MAX_SUMS", 1)
    with pytest.raises(InvalidRequest) as exc_info:
        await recorded_calls.reports.sum_calls(CallFilter(owner="ada"), [GroupBy.DAY], classes)
    assert exc_info.value.field == "group_by"


async def test_calls_are_summed_by_user_and_renders_by_template(
    recorded_calls: RecordedCalls, database_url: str
) -> None:
    database = Database(database_url)
    users, keys = UserStore(database), KeyStore(database)
    organisation_id = (await users.create_organisation("studio")).id
    user = await users.create(
        UserKind.SERVICE, email=None, name="bot", organisation=organisation_id, role=Role.MEMBER
    )
    user_key, _ = await keys.create(organisation_id, "bot's", user=user.id)
    session, _ = await SessionStore(database, idle_timeout=timedelta(days=1)).open(user.id)
    tenant_key, _ = await keys.create(organisation_id, "tenant's")
    row = {
        "owner": organisation_id, "kind": "render", "status": "succeeded", "spec": "", "heads": [],
        "results": [], "progress": {}, "attempts": 1, "priority": 3, "metadata": {},
        "dispatched": True, "created_at": NOON,
    }  # fmt: skip
    await database.execute(
        jobs.insert().values([
            {**row, "id": "job_1", "templates": ["poster", "card"]},
            {**row, "id": "job_2", "templates": None},
            {**row, "id": "job_3", "owner": "bob", "templates": ["secret"]},
        ])
    )  # fmt: skip
    call = replace(ENTRY, owner=organisation_id)
    render_call = replace(
        call, operation="render", unit="gpu_milliseconds", quantity=5, key_id=tenant_key
    )
    await recorded_calls.add(
        NOON,
        replace(call, key_id=user_key),
        replace(call, key_id=session.id),
        replace(call, key_id="ses_deleted"),
        # A client may choose the id of a request.
        replace(call, request_id="job_1", key_id=tenant_key),
        replace(render_call, request_id="job_1"),
        replace(render_call, request_id="job_2"),
        replace(render_call, request_id="job_3"),
    )

    async def count_calls(group: GroupBy) -> dict[tuple[str | None, ...], int]:
        call_counts = Counter[tuple[str | None, ...]]()
        for usage_sum in await recorded_calls.reports.sum_calls(
            CallFilter(owner=organisation_id), [group], PriceClasses()
        ):
            call_counts[usage_sum.group] += usage_sum.calls
        return dict(call_counts)

    assert await count_calls(GroupBy.USER) == {(user.id,): 2, (None,): 5}
    assert await count_calls(GroupBy.TEMPLATE) == {("poster",): 1, (None,): 6}
    await database.close()
