"""Tests that viewers of the overview share queries, and see only their own tenant's sums."""

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


class Clock:
    """A clock that only the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Viewer:
    """Reads the events of one open overview."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def read(self) -> tuple[str, Any]:
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

    async def read_all(self, *names: str) -> dict[str, Any]:
        """Read events until there is one of each of these names; return their data by name."""
        parts_by_name: dict[str, Any] = {}
        while not parts_by_name.keys() >= set(names):
            name, data = await self.read()
            parts_by_name[name] = data
        return parts_by_name


@asynccontextmanager
async def open_viewer(farm: Farm, key: str) -> AsyncIterator[Viewer]:
    async with farm.session(key) as session, session.get(STREAM) as response:
        assert response.status == 200, await response.text()
        yield Viewer(response)


async def new_key(farm: Farm, owner: str, *scopes: str) -> str:
    return (await KeyStore(farm.database).create(owner, "m", scopes=frozenset(scopes)))[1]


async def record_call(farm: Farm, owner: str, usd: int) -> None:
    row = {
        "id": secrets.token_hex(8), "request_id": secrets.token_hex(8), "owner": owner,
        "backend": "b", "model": "m", "input_tokens": 1, "cached_tokens": 0, "output_tokens": 1,
        "cost_nano_usd": usd * 10**9, "complete": True, "created_at": now(),
    }  # fmt: skip
    await farm.database.execute(usage.insert().values(row))


@contextmanager
def count_statements() -> Iterator[Counter[str]]:
    """Count the statements of all databases of this process, by their text."""
    statements = Counter[str]()

    def count(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements[statement] += 1

    sa.event.listen(sa.Engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", count)


async def test_viewers_make_no_query_of_their_own(farm: Farm) -> None:
    clock = farm.clock = Clock()

    async def count_queries(viewers: int) -> Counter[str]:
        """Count the queries for sums of calls while ``viewers`` clients are connected.

        In that time, three calls are recorded. After each of them, each client gets the new sums.
        """
        keys = [await new_key(farm, "ann", JOBS_READ, TEXT, ORG_ADMIN) for _ in range(viewers)]
        async with AsyncExitStack() as stack:
            open_viewers = [await stack.enter_async_context(open_viewer(farm, key)) for key in keys]
            await asyncio.gather(*(viewer.read_all(*FOR_ADMINS) for viewer in open_viewers))
            with count_statements() as statements:
                for cost_usd in (1, 2, 3):
                    await record_call(farm, "ann", cost_usd)
                    clock.now += LONGER
                    await asyncio.gather(*(viewer.read_all("usage") for viewer in open_viewers))
        # Credentials of open streams are verified by a timer: see the next test.
        return Counter(
            {text: count for text, count in statements.items() if "FROM usage" in text}
        ) + Counter(writes=sum(n for text, n in statements.items() if "INTO usage" in text))

    queries_of_one = await count_queries(1)
    assert queries_of_one.total() == 6, "three sums, and the three calls of this test"
    assert await count_queries(20) == queries_of_one


async def test_credentials_of_all_viewers_are_verified_by_the_same_queries(farm: Farm) -> None:
    authenticator = create_authenticator(farm.database, SIGNING_KEY)
    keys = [await new_key(farm, "ann", JOBS_READ, TEXT) for _ in range(20)]
    identities: dict[str, Identity] = {key: await authenticator.authenticate(key) for key in keys}
    counts = []
    for number in (1, 20):
        with count_statements() as statements:
            valid_identities = await authenticator.recheck(dict(list(identities.items())[:number]))
        assert len(valid_identities) == number
        counts.append(statements.total())
    assert counts[0] == counts[1] > 0


async def test_each_sees_the_sums_of_its_own_tenant(farm: Farm) -> None:
    await record_call(farm, "ann", 3)
    await record_call(farm, "bob", 4)
    ann = await new_key(farm, "ann", JOBS_READ, TEXT)
    bob = await new_key(farm, "bob", JOBS_READ, TEXT, ORG_ADMIN)
    operator = await new_key(farm, "studio", JOBS_READ, TEXT, OPERATOR)
    for key, costs, names in (
        (ann, 3, FOR_MEMBERS),
        (bob, 4, FOR_ADMINS),
        (operator, 7, ALL),
    ):
        async with open_viewer(farm, key) as viewer:
            shown_parts = await viewer.read_all(*names)
        assert shown_parts.keys() == set(names)
        assert float(shown_parts["usage"]["total"]["cost_usd"]) == costs
        assert "budgets" not in shown_parts["usage"]
        assert [group["day"] for group in shown_parts["usage"]["groups"]] == [f"{now():%Y-%m-%d}"]
        assert (shown_parts["cluster"]["nodes"] is None) == (key is not operator)


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
    async with open_viewer(farm, await new_key(farm, "ann", *scopes)) as viewer:
        while not seen_names >= names:
            seen_names.add((await viewer.read())[0])
        # Seen only after another reading, before which everything else has come.
        farm.scripted_pools.summaries = {"fast": POOL}
        name, data = await viewer.read()
        while name != "cluster" or not any(pool["is_responding"] for pool in data["pools"]):
            seen_names.add(name)
            name, data = await viewer.read()
    assert seen_names == names


async def test_the_stream_of_a_former_operator_ends(farm: Farm) -> None:
    key = await new_key(farm, "studio", JOBS_READ, TEXT, OPERATOR)
    async with open_viewer(farm, key) as viewer:
        await viewer.read_all(*ALL)
        revoke_statement = api_keys.update().where(api_keys.c.owner == "studio")
        await farm.database.execute(revoke_statement.values(scopes=f"{JOBS_READ} {TEXT}"))
        name, data = await viewer.read()
        while name != "error":
            name, data = await viewer.read()
        assert data["code"] == "insufficient_scope"


async def test_unknown_parts_are_refused(farm: Farm) -> None:
    async with farm.client.get("/cluster/events?include=secrets") as response:
        body = await response.json()
    assert (response.status, body["code"], body["field"]) == (400, "invalid_request", "include.0")


async def submit(farm: Farm, key: str) -> str:
    async with farm.session(key) as session, session.post("/jobs", json=CHAT) as response:
        assert response.status == 202, await response.text()
        return str((await response.json())["id"])


async def test_viewers_of_a_tenant_share_each_reading_of_its_jobs(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = farm.clock = Clock()
    readings = Counter[str]()
    list_page = farm.jobs.list_page

    async def count_and_list(owner: str, **options: Any) -> Any:
        readings[owner] += 1
        return await list_page(owner, **options)

    monkeypatch.setattr(farm.jobs, "list_page", count_and_list)

    async def count_queries(viewers: int) -> int:
        """Return the readings that three new jobs cause for ``viewers`` connected clients."""
        keys = [await new_key(farm, "ann", JOBS_READ, JOBS_WRITE, TEXT) for _ in range(viewers)]
        async with AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(open_viewer(farm, key)) for key in keys]
            await asyncio.gather(*(viewer.read_all("jobs") for viewer in opened))
            before = readings["ann"]
            for _ in range(3):
                job = await submit(farm, keys[0])
                clock.now += LONGER
                for seen in await asyncio.gather(*(viewer.read_all("jobs") for viewer in opened)):
                    assert seen["jobs"]["jobs"][0]["id"] == job
            return readings["ann"] - before

    assert await count_queries(1) == await count_queries(20) == 3


async def test_each_sees_the_jobs_of_its_own_tenant(farm: Farm) -> None:
    ann = await new_key(farm, "ann", JOBS_READ, JOBS_WRITE, TEXT)
    operator = await new_key(farm, "studio", JOBS_READ, OPERATOR)
    job = await submit(farm, ann)
    async with open_viewer(farm, ann) as viewer:
        seen = (await viewer.read_all("jobs"))["jobs"]
    async with farm.session(ann) as session, session.get("/jobs") as response:
        listed = await response.json()
    assert [one["id"] for one in seen["jobs"]] == [one["id"] for one in listed["jobs"]] == [job]
    assert seen["jobs"][0].keys() == listed["jobs"][0].keys()
    assert (seen["queued"] + seen["running"], seen["next_cursor"]) == (1, None)
    async with open_viewer(farm, operator) as viewer:
        other = (await viewer.read_all("jobs"))["jobs"]
    assert (other["jobs"], other["queued"], other["running"]) == ([], 0, 0)


async def test_operators_follow_the_routes(farm: Farm) -> None:
    key = await new_key(farm, "studio", JOBS_READ, OPERATOR)
    async with open_viewer(farm, key) as viewer:
        seen = (await viewer.read_all("routes"))["routes"]
    async with farm.session(key) as session, session.get("/cluster/routes") as response:
        shown = await response.json()
    assert seen.keys() == shown.keys()
    assert (seen["routes"], seen["config"]) == (shown["routes"], shown["config"])
