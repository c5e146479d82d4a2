"""Tests that viewers of the overview share queries, and see the usage of their own tenant only."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import aiohttp
import pytest
import sqlalchemy as sa

from deployments.gateway.cluster.feeds import Included
from moyin.access.gatekeeper.identity import create_authenticator
from moyin.domain.identity import JOBS_READ, JOBS_WRITE, OPERATOR, ORG_ADMIN, TEXT, Identity
from moyin.store.keys import KeyStore
from moyin.store.schema import api_keys, usage
from moyin.store.sql import now
from tests.integration.gateway.fixtures import SIGNING_KEY, Farm
from tests.integration.gateway.test_cluster import POOL
from tests.integration.gateway.test_jobs import CHAT

STREAM = "/cluster/events?" + "&".join(f"include={part}" for part in Included)
ALL = ("cluster", *Included)
FOR_MEMBERS = ("cluster", "usage", "models", "jobs")
FOR_ADMINS = (*FOR_MEMBERS, "backends")
# More than the time between two readings of the farm.
LONGER = 1.0


class ManualClock:
    """A clock that only the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class OverviewViewer:
    """Reads the events of one open overview."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def read_event(self) -> tuple[str, Any]:
        """Return the name and the data of the next event."""
        name = ""
        async with asyncio.timeout(60):
            while True:
                line = (await self._response.content.readline()).decode()
                assert line, "the stream ended"
                if line.startswith("event: "):
                    name = line[7:].strip()
                if line.startswith("data: "):
                    return name, json.loads(line[6:])

    async def read_events(self, *names: str) -> dict[str, Any]:
        """Read events until there is one of each of these names; return their data by name."""
        data_by_name: dict[str, Any] = {}
        while not data_by_name.keys() >= set(names):
            name, data = await self.read_event()
            data_by_name[name] = data
        return data_by_name


@asynccontextmanager
async def open_viewer(farm: Farm, key: str) -> AsyncIterator[OverviewViewer]:
    async with farm.open_session(key) as session, session.get(STREAM) as response:
        assert response.status == 200, await response.text()
        yield OverviewViewer(response)


async def create_key(farm: Farm, owner: str, *scopes: str) -> str:
    return (await KeyStore(farm.database).create(owner, "m", scopes=frozenset(scopes)))[1]


async def record_call(farm: Farm, owner: str, cost_usd: int) -> None:
    row = {
        "id": secrets.token_hex(8), "request_id": secrets.token_hex(8), "owner": owner,
        "backend": "b", "model": "m", "input_tokens": 1, "cached_tokens": 0, "output_tokens": 1,
        "cost_nano_usd": cost_usd * 10**9, "complete": True, "created_at": now(),
    }  # fmt: skip
    await farm.database.execute(usage.insert().values(row))


@contextmanager
def count_statements() -> Iterator[Counter[str]]:
    """Count the SQL statements that this process executes during the block, by their text."""
    statement_counts = Counter[str]()

    def count_statement(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statement_counts[statement] += 1

    sa.event.listen(sa.Engine, "before_cursor_execute", count_statement)
    try:
        yield statement_counts
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", count_statement)


async def test_viewers_make_no_query_of_their_own(farm: Farm) -> None:
    clock = farm.clock = ManualClock()

    async def count_queries(viewer_count: int) -> Counter[str]:
        """Count the statements on the ledger while ``viewer_count`` clients are connected.

        Meanwhile three calls are recorded; after each of them, each client gets new sums of usage.
        """
        keys = [
            await create_key(farm, "ann", JOBS_READ, TEXT, ORG_ADMIN) for _ in range(viewer_count)
        ]
        async with AsyncExitStack() as stack:
            open_viewers = [await stack.enter_async_context(open_viewer(farm, key)) for key in keys]
            await asyncio.gather(*(viewer.read_events(*FOR_ADMINS) for viewer in open_viewers))
            with count_statements() as statement_counts:
                for cost_usd in (1, 2, 3):
                    await record_call(farm, "ann", cost_usd)
                    clock.now += LONGER
                    await asyncio.gather(*(viewer.read_events("usage") for viewer in open_viewers))
        # Credentials of open streams are verified by a timer: see the next test.
        return Counter(
            {text: count for text, count in statement_counts.items() if "FROM usage" in text}
        ) + Counter(writes=sum(n for text, n in statement_counts.items() if "INTO usage" in text))

    queries_of_one = await count_queries(1)
    assert queries_of_one.total() == 6, "three sums, and the three calls of this test"
    assert await count_queries(20) == queries_of_one


async def test_credentials_of_all_viewers_are_verified_by_the_same_queries(farm: Farm) -> None:
    authenticator = create_authenticator(farm.database, SIGNING_KEY)
    keys = [await create_key(farm, "ann", JOBS_READ, TEXT) for _ in range(20)]
    identities: dict[str, Identity] = {key: await authenticator.authenticate(key) for key in keys}
    query_counts = []
    for viewer_count in (1, 20):
        with count_statements() as statement_counts:
            valid_identities = await authenticator.recheck(
                dict(list(identities.items())[:viewer_count])
            )
        assert len(valid_identities) == viewer_count
        query_counts.append(statement_counts.total())
    assert query_counts[0] == query_counts[1] > 0


async def test_viewers_see_the_sums_of_their_own_tenant(farm: Farm) -> None:
    await record_call(farm, "ann", 3)
    await record_call(farm, "bob", 4)
    ann_key = await create_key(farm, "ann", JOBS_READ, TEXT)
    bob_key = await create_key(farm, "bob", JOBS_READ, TEXT, ORG_ADMIN)
    operator_key = await create_key(farm, "studio", JOBS_READ, TEXT, OPERATOR)
    for key, cost_usd, part_names in (
        (ann_key, 3, FOR_MEMBERS),
        (bob_key, 4, FOR_ADMINS),
        (operator_key, 7, ALL),
    ):
        async with open_viewer(farm, key) as viewer:
            shown_parts = await viewer.read_events(*part_names)
        assert shown_parts.keys() == set(part_names)
        assert float(shown_parts["usage"]["total"]["cost_usd"]) == cost_usd
        assert "budgets" not in shown_parts["usage"]
        assert [group["day"] for group in shown_parts["usage"]["groups"]] == [f"{now():%Y-%m-%d}"]
        assert (shown_parts["cluster"]["nodes"] is None) == (key is not operator_key)


@pytest.mark.parametrize(
    ("scopes", "names"),
    [
        ((JOBS_READ,), {"cluster", "jobs"}),
        ((JOBS_READ, ORG_ADMIN), {"cluster", "jobs"}),
        ((JOBS_READ, TEXT), set(FOR_MEMBERS)),
        ((JOBS_READ, OPERATOR), {"cluster", "jobs", "routes"}),
    ],
)
async def test_data_beyond_the_callers_scopes_is_omitted(
    farm: Farm, scopes: tuple[str, ...], names: set[str]
) -> None:
    seen_names = set[str]()
    async with open_viewer(farm, await create_key(farm, "ann", *scopes)) as viewer:
        while not seen_names >= names:
            seen_names.add((await viewer.read_event())[0])
        # The next reading shows this change; all other events arrive before it.
        farm.scripted_pools.summaries = {"fast": POOL}
        name, data = await viewer.read_event()
        while name != "cluster" or not any(pool["is_responding"] for pool in data["pools"]):
            seen_names.add(name)
            name, data = await viewer.read_event()
    assert seen_names == names


async def test_the_stream_of_a_former_operator_ends(farm: Farm) -> None:
    key = await create_key(farm, "studio", JOBS_READ, TEXT, OPERATOR)
    async with open_viewer(farm, key) as viewer:
        await viewer.read_events(*ALL)
        revoke_statement = api_keys.update().where(api_keys.c.owner == "studio")
        await farm.database.execute(revoke_statement.values(scopes=f"{JOBS_READ} {TEXT}"))
        name, data = await viewer.read_event()
        while name != "error":
            name, data = await viewer.read_event()
        assert data["code"] == "insufficient_scope"


async def test_unknown_parts_are_refused(farm: Farm) -> None:
    async with farm.client.get("/cluster/events?include=secrets") as response:
        body = await response.json()
    assert (response.status, body["code"], body["field"]) == (400, "invalid_request", "include.0")


async def submit_job(farm: Farm, key: str) -> str:
    async with farm.open_session(key) as session, session.post("/jobs", json=CHAT) as response:
        assert response.status == 202, await response.text()
        return str((await response.json())["id"])


async def test_viewers_of_a_tenant_share_each_reading_of_its_jobs(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = farm.clock = ManualClock()
    reading_counts = Counter[str]()
    list_page = farm.jobs.list_page

    async def count_and_list(owner: str, **options: Any) -> Any:
        reading_counts[owner] += 1
        return await list_page(owner, **options)

    monkeypatch.setattr(farm.jobs, "list_page", count_and_list)

    async def count_readings(viewer_count: int) -> int:
        """Return how often the jobs are read for ``viewer_count`` clients when three jobs are added."""
        keys = [
            await create_key(farm, "ann", JOBS_READ, JOBS_WRITE, TEXT) for _ in range(viewer_count)
        ]
        async with AsyncExitStack() as stack:
            open_viewers = [await stack.enter_async_context(open_viewer(farm, key)) for key in keys]
            await asyncio.gather(*(viewer.read_events("jobs") for viewer in open_viewers))
            readings_before = reading_counts["ann"]
            for _ in range(3):
                job_id = await submit_job(farm, keys[0])
                clock.now += LONGER
                for shown_parts in await asyncio.gather(
                    *(viewer.read_events("jobs") for viewer in open_viewers)
                ):
                    assert shown_parts["jobs"]["jobs"][0]["id"] == job_id
            return reading_counts["ann"] - readings_before

    assert await count_readings(1) == await count_readings(20) == 3


async def test_viewers_see_the_jobs_of_their_own_tenant(farm: Farm) -> None:
    ann_key = await create_key(farm, "ann", JOBS_READ, JOBS_WRITE, TEXT)
    operator_key = await create_key(farm, "studio", JOBS_READ, OPERATOR)
    job_id = await submit_job(farm, ann_key)
    async with open_viewer(farm, ann_key) as viewer:
        shown_jobs = (await viewer.read_events("jobs"))["jobs"]
    async with farm.open_session(ann_key) as session, session.get("/jobs") as response:
        listed_page = await response.json()
    assert (
        [listed_job["id"] for listed_job in shown_jobs["jobs"]]
        == [listed_job["id"] for listed_job in listed_page["jobs"]]
        == [job_id]
    )
    assert shown_jobs["jobs"][0].keys() == listed_page["jobs"][0].keys()
    assert (shown_jobs["queued"] + shown_jobs["running"], shown_jobs["next_cursor"]) == (1, None)
    async with open_viewer(farm, operator_key) as viewer:
        operators_jobs = (await viewer.read_events("jobs"))["jobs"]
    assert (operators_jobs["jobs"], operators_jobs["queued"], operators_jobs["running"]) == (
        [],
        0,
        0,
    )


async def test_operators_follow_the_routes(farm: Farm) -> None:
    key = await create_key(farm, "studio", JOBS_READ, OPERATOR)
    async with open_viewer(farm, key) as viewer:
        streamed_routes = (await viewer.read_events("routes"))["routes"]
    async with farm.open_session(key) as session, session.get("/cluster/routes") as response:
        fetched_routes = await response.json()
    assert streamed_routes.keys() == fetched_routes.keys()
    assert (streamed_routes["routes"], streamed_routes["config"]) == (
        fetched_routes["routes"],
        fetched_routes["config"],
    )
