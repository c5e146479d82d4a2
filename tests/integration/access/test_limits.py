"""Tests limits and budgets with four replicas that share one Valkey."""

from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio as redis

from moyin.access.gatekeeper.limits import RequestMeter
from moyin.domain.job import JobStatus
from moyin.domain.limits import Limit
from moyin.domain.render_run import RenderPrice, RenderTariff
from moyin.domain.serialization import encode
from moyin.errors import BudgetExceeded, RateLimited, ServiceUnavailable
from moyin.render.comfyui.pool_client import TARIFF_PATH
from moyin.store.limits import LimitStore
from moyin.store.sql import Database
from tests.integration.gateway.fixtures import Farm
from tests.integration.servers import ValkeyServer
from tests.stack import ROOT, Measured
from tests.waiting import eventually

REPLICAS, CLIENTS, REQUESTS = 4, 64, 10_000


@pytest.fixture(scope="module")
def replicas(valkey_server: ValkeyServer) -> Iterator[list[str]]:
    """Start four processes that share one Valkey, and yield their URLs."""
    command = [sys.executable, "-m", "tests.integration.access.limited_app", valkey_server.url]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)
        for _ in range(REPLICAS)
    ]
    urls = []
    for process in processes:
        assert process.stdout is not None
        urls.append(f"http://127.0.0.1:{process.stdout.readline().strip()}/admit")
    yield urls
    for process in processes:
        process.communicate(timeout=20)


async def storm(urls: list[str], body: dict[str, Any], requests: int) -> Counter[str]:
    """Send ``requests`` from 64 clients to the replicas in turn; return the counts of statuses."""
    turns = itertools.islice(itertools.cycle(urls), requests)
    seen: Counter[str] = Counter()

    async def client(session: aiohttp.ClientSession) -> None:
        for url in turns:
            async with session.post(url, json=body) as response:
                seen[(await response.json()).get("code", "passed")] += 1

    connector = aiohttp.TCPConnector(limit=CLIENTS)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(client(session) for _ in range(CLIENTS)))
    return seen


async def test_exactly_the_limit_of_ten_thousand_requests_passes(
    replicas: list[str], valkey_server: ValkeyServer, measured: Measured
) -> None:
    limit = 1_234
    body = {"subject": "key:storm", "requests_per_minute": limit}
    async with redis.Redis.from_url(valkey_server.url) as valkey:
        # A minute that outlasts the storm, however slow the machine.
        await valkey.set("moyin:limit:{studio}:key:storm:requests", 0, ex=3600)
    began = time.perf_counter()
    seen = await storm(replicas, body, REQUESTS)
    seconds = time.perf_counter() - began
    assert seen == {"passed": limit, "rate_limit_exceeded": REQUESTS - limit}
    measured(
        f"{REPLICAS} replicas, {CLIENTS} clients, {REQUESTS} requests against {limit} a minute: "
        f"{seen['passed']} passed, {REQUESTS / seconds:.0f} requests/s"
    )


async def test_a_budget_is_never_exceeded_and_settles_to_the_cost(
    replicas: list[str], valkey_server: ValkeyServer, measured: Measured
) -> None:
    budget, reserve, spend = Decimal("1"), Decimal("0.01"), Decimal("0.003")
    body = {
        "subject": "owner:studio",
        "usd_per_day": str(budget),
        "usd_per_month": "1000",
        "reserve": str(reserve),
        "spend": str(spend),
    }
    seen = await storm(replicas, body, 1_000)
    assert seen["passed"] + seen["budget_exceeded"] == 1_000
    spent = spend * seen["passed"]
    async with redis.Redis.from_url(valkey_server.url, decode_responses=True) as valkey:

        async def settled() -> bool:
            stored: Any = await valkey.hgetall("moyin:limit:{studio}:owner:studio:money")
            return Decimal(stored["day_nano"]) == Decimal(stored["month_nano"]) == spent * 10**9

        await eventually(settled)
        # The last of the storm may have come while others' money was still set aside. Nobody is
        # refused without need: what is left is given out as long as it covers a reservation.
        while budget - spent >= reserve:
            assert await storm(replicas, body, 1) == {"passed": 1}
            spent += spend
            await eventually(settled)
        assert await storm(replicas, body, 1) == {"budget_exceeded": 1}
    assert spent <= budget
    measured(f"budget of {budget} USD: {seen['passed']} requests spent {spent}, 0 overshoot")


@pytest.fixture
async def meter(valkey_server: ValkeyServer) -> Any:
    meter = RequestMeter(valkey_server.url)
    yield meter
    await meter.close()


async def test_leases_bound_concurrent_calls(meter: RequestMeter) -> None:
    limit = Limit(subject="user:lease", concurrent_requests=2)
    first, _ = [await meter.admit([limit], owner="a") for _ in range(2)]
    with pytest.raises(RateLimited, match="concurrent requests") as refused:
        await meter.admit([limit], owner="a")
    assert refused.value.details == {"limit": "concurrent_requests", "of": "user"}
    first.release()
    first.release()

    async def one_is_free() -> bool:
        try:
            await meter.admit([limit], owner="a")
        except RateLimited:
            return False
        return True

    await eventually(one_is_free)
    with pytest.raises(RateLimited):
        await meter.admit([limit], owner="a")


async def test_a_refusal_by_one_limit_takes_nothing_from_the_others(meter: RequestMeter) -> None:
    wide = Limit(subject="owner:wide", requests_per_minute=100)
    narrow = Limit(subject="key:narrow", requests_per_minute=1)
    admission = await meter.admit([narrow, wide], owner="b")
    assert dict(admission.headers) == {
        b"ratelimit-limit": b"1",
        b"ratelimit-remaining": b"0",
        b"ratelimit-reset": b"60",
        b"ratelimit-policy": b"1;w=60",
    }
    for _ in range(3):
        with pytest.raises(RateLimited) as refused:
            await meter.admit([narrow, wide], owner="b")
    assert refused.value.headers["ratelimit-remaining"] == "0"
    assert refused.value.retry_after is not None and 0 < refused.value.retry_after <= 60
    left = dict((await meter.admit([wide], owner="b")).headers)
    assert left[b"ratelimit-remaining"] == b"98"


async def test_tokens_are_reserved_by_estimate_and_settled_by_actual_usage(
    meter: RequestMeter,
) -> None:
    limit = Limit(subject="key:tokens", tokens_per_minute=1_000)
    first = await meter.admit([limit], owner="c", tokens=900)
    with pytest.raises(RateLimited):
        await meter.admit([limit], owner="c", tokens=200)
    first.record(Decimal(0), 100)
    first.release()

    async def fits() -> bool:
        try:
            await meter.admit([limit], owner="c", tokens=900)
        except RateLimited:
            return False
        return True

    await eventually(fits)


async def test_free_models_answer_after_the_budget_is_spent(meter: RequestMeter) -> None:
    limit = Limit(subject="key:broke", usd_per_month=Decimal(0))
    with pytest.raises(BudgetExceeded) as refused:
        await meter.admit([limit], owner="d", usd=Decimal("0.000000001"))
    resets_at = datetime.fromisoformat(refused.value.details["resets_at"])
    assert (resets_at.day, resets_at.hour, resets_at > datetime.now(UTC)) == (1, 0, True)
    assert refused.value.details["limit"] == "usd_per_month"
    await meter.admit([limit], owner="d")


async def test_budgets_show_spent_reserved_and_remaining_amounts(meter: RequestMeter) -> None:
    key = Limit(subject="key:shown", usd_per_day=Decimal(1), usd_per_month=Decimal(5))
    limits = [key, Limit(subject="owner:i", usd_per_month=Decimal(2)), Limit(subject="user:i")]

    async def list_amounts() -> list[tuple[str, str, Decimal, Decimal, Decimal]]:
        states = await meter.budgets.list_states(limits, "i")
        return [(s.subject, s.period, s.spent, s.reserved, s.left) for s in states]

    def amounts(spent: str, reserved: str) -> list[tuple[str, str, Decimal, Decimal, Decimal]]:
        used = Decimal(spent), Decimal(reserved)
        return [
            (subject, period, *used, Decimal(limit) - sum(used))
            for subject, period, limit in (
                ("key:shown", "day", 1), ("key:shown", "month", 5), ("owner:i", "month", 2),
            )
        ]  # fmt: skip

    assert await list_amounts() == amounts("0", "0")
    first = await meter.admit(limits, owner="i", usd=Decimal("0.5"))
    second = await meter.admit(limits, owner="i", usd=Decimal("0.3"))
    assert await list_amounts() == amounts("0", "0.8")
    second.record(Decimal("0.000000001"), 0)
    second.release()

    async def is_settled() -> bool:
        return await list_amounts() == amounts("0.000000001", "0.5")

    await eventually(is_settled)
    with pytest.raises(BudgetExceeded) as refused:
        await meter.admit(limits, owner="i", usd=Decimal("0.6"))
    details = dict(refused.value.details)
    assert datetime.fromisoformat(details.pop("resets_at")) > datetime.now(UTC)
    assert details == {
        "limit": "usd_per_day", "of": "key", "limit_usd": "1", "spent_usd": "0.000000001",
        "reserved_usd": "0.5", "left_usd": "0.499999999",
    }  # fmt: skip
    first.release()


async def test_reservations_of_an_earlier_version_are_settled(
    meter: RequestMeter, valkey_server: ValkeyServer
) -> None:
    """A reservation of an earlier version is settled at its cost, and nothing stays reserved.

    The earlier version did not store reserved amounts, which must not become negative.
    """
    limit = Limit(subject="key:old", usd_per_day=Decimal(1))
    admission = await meter.admit([limit], owner="j", usd=Decimal("0.8"))
    async with redis.Redis.from_url(valkey_server.url) as valkey:
        money = "moyin:limit:{j}:key:old:money"
        await valkey.hdel(money, "day_reserved", "month_reserved")
        admission.record(Decimal("0.5"), 0)
        admission.release()

        async def is_settled() -> bool:
            [state] = await meter.budgets.list_states([limit], "j")
            return (state.spent, state.reserved) == (Decimal("0.5"), 0)

        await eventually(is_settled)


async def test_a_settlement_that_comes_twice_gives_nothing_back_twice(
    meter: RequestMeter, valkey_server: ValkeyServer
) -> None:
    limit = Limit(subject="key:twice", usd_per_day=Decimal(1), usd_per_month=Decimal(1))
    admission = await meter.admit([limit], owner="h", usd=Decimal("0.8"))
    admission.record(Decimal("0.5"), 0)
    settling: list[str | int] = [
        admission.lease,
        5 * 10**8,
        0,
        f"{datetime.now(UTC):%Y-%m-%d}",
        "2000-01",
    ]
    for _ in range(2):
        await meter._settle(keys=admission._keys, args=settling)
    async with redis.Redis.from_url(valkey_server.url, decode_responses=True) as valkey:
        stored: Any = await valkey.hgetall("moyin:limit:{h}:key:twice:money")
    assert stored["day_nano"] == str(5 * 10**8)
    # Reserved in a month that is over: it stays there.
    assert stored["month_nano"] == str(8 * 10**8)
    assert not [name for name in stored if name.startswith("lease:")]


async def test_a_client_that_leaves_while_it_is_counted_leaves_nothing_behind(
    meter: RequestMeter, valkey_server: ValkeyServer
) -> None:
    limit = Limit(subject="key:left", usd_per_day=Decimal(1), concurrent_requests=1)
    asking = asyncio.create_task(meter.admit([limit], owner="e", usd=Decimal(1)))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    async def all_is_back() -> bool:
        try:
            (await meter.admit([limit], owner="e", usd=Decimal(1))).release()
        except (BudgetExceeded, RateLimited):
            return False
        return True

    await eventually(all_is_back)


async def test_late_reservations_of_a_hanging_valkey_are_released(tmp_path: Path) -> None:
    limit = Limit(subject="key:hung", usd_per_month=Decimal(1), concurrent_requests=9)
    server = ValkeyServer(tmp_path)
    process = server._process
    assert process is not None
    meter = RequestMeter(server.url)
    try:
        (await meter.admit([limit], owner="i", usd=Decimal(1))).release()
        await asyncio.gather(*meter._settlement_tasks)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(ServiceUnavailable):
            await meter.admit([limit], owner="i", usd=Decimal(1))
        cancelled_call = asyncio.create_task(meter.admit([limit], owner="i", usd=Decimal(1)))
        await asyncio.sleep(0)
        cancelled_call.cancel()
        await asyncio.gather(cancelled_call, return_exceptions=True)
        await eventually(lambda: len(meter._settlement_tasks) == 2)
        process.send_signal(signal.SIGCONT)
        await asyncio.gather(*meter._settlement_tasks)
        async with redis.Redis.from_url(server.url, decode_responses=True) as valkey:
            stored: Any = await valkey.hgetall("moyin:limit:{i}:key:hung:money")
            assert not await valkey.zcard("moyin:limit:{i}:key:hung:leases")
        assert (stored["month_nano"], [n for n in stored if n.startswith("lease:")]) == ("0", [])
    finally:
        process.send_signal(signal.SIGCONT)
        await meter.close()
        server.kill()


@pytest.mark.parametrize("fail_open", [True, False])
async def test_without_valkey_the_settings_decide(fail_open: bool) -> None:
    meter = RequestMeter(
        "redis://127.0.0.1:1/0", rates_fail_open=fail_open, budgets_fail_open=fail_open
    )
    for limit, usd in (
        (Limit(subject="key:r", requests_per_minute=1), Decimal(0)),
        (Limit(subject="key:b", usd_per_day=Decimal(1)), Decimal(1)),
    ):
        if fail_open:
            (await meter.admit([limit], owner="f", usd=usd)).release()
        else:
            with pytest.raises(ServiceUnavailable):
                await meter.admit([limit], owner="f", usd=usd)
    await meter.close()


async def test_a_limit_that_many_set_at_once_is_one_of_theirs(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(4)]
    wanted = [Limit(subject="owner:many", open_jobs=n) for n in range(1, 21)]
    try:
        stores = [LimitStore(database) for database in databases]
        for _ in range(2):  # into an empty place, and over what is there
            await asyncio.gather(*(stores[n % 4].set(limit) for n, limit in enumerate(wanted)))
            (result,) = await stores[0].list_for(["owner:many"])
            assert result in wanted
        await stores[0].set(Limit(subject="owner:many", requests_per_minute=3))
        (result,) = await stores[0].list_for(["owner:many"])
        assert (result.requests_per_minute, result.open_jobs) == (3, None), "nothing is left of it"
    finally:
        for database in databases:
            await database.close()


async def test_callers_without_limits_cost_no_round_trip() -> None:
    meter = RequestMeter("redis://127.0.0.1:1/0", rates_fail_open=False)
    jobs_only = Limit(subject="key:j", open_jobs=3)
    admission = await meter.admit([jobs_only], owner="g", usd=Decimal(5))
    admission.release()
    await meter.close()
    assert admission.headers == ()


async def test_no_more_jobs_are_open_than_may_be(farm: Farm) -> None:
    await LimitStore(farm.database).set(Limit(subject="owner:ann", open_jobs=2))
    job = {"kind": "http", "request": {"path": "/svc/x"}}
    opened = [(await farm.submit(job))["id"] for _ in range(2)]
    async with farm.client.post("/jobs", json=job) as response:
        refused = await response.json()
        assert (response.status, refused["code"]) == (429, "too_many_jobs")
        assert (refused["limit"], response.headers["retry-after"]) == ("open_jobs", "5")
    async with farm.other.post("/jobs", json=job) as response:
        assert response.status == 202
    assert await farm.jobs.finish(opened[0], 1, JobStatus.CANCELLED, None)
    await farm.submit(job)


async def test_budgets_bound_the_renders_of_every_api(farm: Farm) -> None:
    # A render costs a dollar.
    price = RenderPrice(usd_per_picture=Decimal(1))
    farm.scripted_pools.responses[TARIFF_PATH] = encode(RenderTariff(price=price))
    graph = {"1": {"class_type": "EmptyImage", "inputs": {}}}
    job = {"kind": "render", "workflow": graph}
    await LimitStore(farm.database).set(Limit(subject="owner:ann", usd_per_day=Decimal(3)))
    first = (await farm.submit(job))["id"]
    async with farm.client.post("/prompt", json={"prompt": graph}) as response:
        assert response.status == 200, await response.text()
    sweep = {"sweep": {"inputs.seed": [1, 2]}}
    batch = {"kind": "render", "template": "swatch", "inputs": {"prompt": "x"}, "batch": sweep}
    pipeline = {"kind": "pipeline", "steps": [job, job]}
    for body in (pipeline, batch):
        async with farm.client.post("/jobs", json=body) as response:
            refused = await response.json()
            assert (response.status, refused["code"]) == (402, "budget_exceeded")
            amounts = (refused["of"], refused["reserved_usd"], refused["left_usd"])
            assert amounts == ("owner", "2", "1")
    await farm.submit(job)
    async with farm.client.post("/prompt", json={"prompt": graph}) as response:
        refused = await response.json()
        assert (response.status, refused["error"]["type"]) == (402, "budget_exceeded")
    async with farm.client.post("/api/v2/jobs", json={"workflow": graph}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (
            402, "insufficient_credits"
        )  # fmt: skip
    # What costs nothing is not bound, and neither are others.
    await farm.submit({"kind": "http", "request": {"path": "/svc/x"}})
    async with farm.other.post("/jobs", json=job) as response:
        assert response.status == 202
    assert (await farm.show(first))["status"] in ("queued", "running")
