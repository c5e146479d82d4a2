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
from tests.stack import ROOT, RecordMeasurement
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


async def send_storm(urls: list[str], body: dict[str, Any], request_count: int) -> Counter[str]:
    """Send requests from 64 clients to the replicas in turn, and count their outcomes.

    An outcome is the error code of a response, or ``passed``.
    """
    request_urls = itertools.islice(itertools.cycle(urls), request_count)
    outcome_counts: Counter[str] = Counter()

    async def send_requests(session: aiohttp.ClientSession) -> None:
        for url in request_urls:
            async with session.post(url, json=body) as response:
                outcome_counts[(await response.json()).get("code", "passed")] += 1

    connector = aiohttp.TCPConnector(limit=CLIENTS)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(send_requests(session) for _ in range(CLIENTS)))
    return outcome_counts


async def test_exactly_the_limit_of_ten_thousand_requests_passes(
    replicas: list[str], valkey_server: ValkeyServer, record_measurement: RecordMeasurement
) -> None:
    limit = 1_234
    body = {"subject": "key:storm", "requests_per_minute": limit}
    async with redis.Redis.from_url(valkey_server.url) as valkey:
        # A minute that outlasts the storm, however slow the machine.
        await valkey.set("moyin:limit:{studio}:key:storm:requests", 0, ex=3600)
    started_at = time.perf_counter()
    outcome_counts = await send_storm(replicas, body, REQUESTS)
    seconds = time.perf_counter() - started_at
    assert outcome_counts == {"passed": limit, "rate_limit_exceeded": REQUESTS - limit}
    record_measurement(
        f"{REPLICAS} replicas, {CLIENTS} clients, {REQUESTS} requests against {limit} a minute: "
        f"{outcome_counts['passed']} passed, {REQUESTS / seconds:.0f} requests/s"
    )


async def test_a_budget_is_never_exceeded_and_settles_to_the_cost(
    replicas: list[str], valkey_server: ValkeyServer, record_measurement: RecordMeasurement
) -> None:
    budget_usd, reserve_usd, spend_usd = Decimal("1"), Decimal("0.01"), Decimal("0.003")
    body = {
        "subject": "owner:studio",
        "usd_per_day": str(budget_usd),
        "usd_per_month": "1000",
        "reserve": str(reserve_usd),
        "spend": str(spend_usd),
    }
    outcome_counts = await send_storm(replicas, body, 1_000)
    assert outcome_counts["passed"] + outcome_counts["budget_exceeded"] == 1_000
    spent_usd = spend_usd * outcome_counts["passed"]
    async with redis.Redis.from_url(valkey_server.url, decode_responses=True) as valkey:

        async def is_spent_settled() -> bool:
            stored_budget: Any = await valkey.hgetall("moyin:limit:{studio}:owner:studio:money")
            return (
                Decimal(stored_budget["day_nano"])
                == Decimal(stored_budget["month_nano"])
                == spent_usd * 10**9
            )

        await eventually(is_spent_settled)
        # The last of the storm may have come while others' money was still set aside. Nobody is
        # refused without need: what is left is given out as long as it covers a reservation.
        while budget_usd - spent_usd >= reserve_usd:
            assert await send_storm(replicas, body, 1) == {"passed": 1}
            spent_usd += spend_usd
            await eventually(is_spent_settled)
        assert await send_storm(replicas, body, 1) == {"budget_exceeded": 1}
    assert spent_usd <= budget_usd
    record_measurement(
        f"budget of {budget_usd} USD: {outcome_counts['passed']} "
        f"requests spent {spent_usd}, 0 overshoot"
    )


@pytest.fixture
async def meter(valkey_server: ValkeyServer) -> Any:
    meter = RequestMeter(valkey_server.url)
    yield meter
    await meter.close()


async def test_leases_bound_concurrent_calls(meter: RequestMeter) -> None:
    limit = Limit(subject="user:lease", concurrent_requests=2)
    first_admission, _ = [await meter.admit([limit], owner="a") for _ in range(2)]
    with pytest.raises(RateLimited, match="concurrent requests") as exc_info:
        await meter.admit([limit], owner="a")
    assert exc_info.value.details == {"limit": "concurrent_requests", "of": "user"}
    first_admission.release()
    first_admission.release()

    async def has_free_slot() -> bool:
        try:
            await meter.admit([limit], owner="a")
        except RateLimited:
            return False
        return True

    await eventually(has_free_slot)
    with pytest.raises(RateLimited):
        await meter.admit([limit], owner="a")


async def test_a_refusal_by_one_limit_takes_nothing_from_the_others(meter: RequestMeter) -> None:
    wide_limit = Limit(subject="owner:wide", requests_per_minute=100)
    narrow_limit = Limit(subject="key:narrow", requests_per_minute=1)
    admission = await meter.admit([narrow_limit, wide_limit], owner="b")
    assert dict(admission.headers) == {
        b"ratelimit-limit": b"1",
        b"ratelimit-remaining": b"0",
        b"ratelimit-reset": b"60",
        b"ratelimit-policy": b"1;w=60",
    }
    for _ in range(3):
        with pytest.raises(RateLimited) as exc_info:
            await meter.admit([narrow_limit, wide_limit], owner="b")
    assert exc_info.value.headers["ratelimit-remaining"] == "0"
    assert exc_info.value.retry_after is not None and 0 < exc_info.value.retry_after <= 60
    headers_after = dict((await meter.admit([wide_limit], owner="b")).headers)
    assert headers_after[b"ratelimit-remaining"] == b"98"


async def test_tokens_are_reserved_by_estimate_and_settled_by_actual_usage(
    meter: RequestMeter,
) -> None:
    limit = Limit(subject="key:tokens", tokens_per_minute=1_000)
    first_admission = await meter.admit([limit], owner="c", tokens=900)
    with pytest.raises(RateLimited):
        await meter.admit([limit], owner="c", tokens=200)
    first_admission.record(Decimal(0), 100)
    first_admission.release()

    async def fits_into_limit() -> bool:
        try:
            await meter.admit([limit], owner="c", tokens=900)
        except RateLimited:
            return False
        return True

    await eventually(fits_into_limit)


async def test_free_models_answer_after_the_budget_is_spent(meter: RequestMeter) -> None:
    limit = Limit(subject="key:broke", usd_per_month=Decimal(0))
    with pytest.raises(BudgetExceeded) as exc_info:
        await meter.admit([limit], owner="d", usd=Decimal("0.000000001"))
    resets_at = datetime.fromisoformat(exc_info.value.details["resets_at"])
    assert (resets_at.day, resets_at.hour, resets_at > datetime.now(UTC)) == (1, 0, True)
    assert exc_info.value.details["limit"] == "usd_per_month"
    await meter.admit([limit], owner="d")


async def test_budgets_show_spent_reserved_and_remaining_amounts(meter: RequestMeter) -> None:
    key = Limit(subject="key:shown", usd_per_day=Decimal(1), usd_per_month=Decimal(5))
    limits = [key, Limit(subject="owner:i", usd_per_month=Decimal(2)), Limit(subject="user:i")]

    async def list_amounts() -> list[tuple[str, str, Decimal, Decimal, Decimal]]:
        states = await meter.budgets.list_states(limits, "i")
        return [(s.subject, s.period, s.spent, s.reserved, s.remaining) for s in states]

    def build_expected_amounts(
        spent: str, reserved: str
    ) -> list[tuple[str, str, Decimal, Decimal, Decimal]]:
        used_amounts = Decimal(spent), Decimal(reserved)
        return [
            (subject, period, *used_amounts, Decimal(limit) - sum(used_amounts))
            for subject, period, limit in (
                ("key:shown", "day", 1), ("key:shown", "month", 5), ("owner:i", "month", 2),
            )
        ]  # fmt: skip

    assert await list_amounts() == build_expected_amounts("0", "0")
    first_admission = await meter.admit(limits, owner="i", usd=Decimal("0.5"))
    second_admission = await meter.admit(limits, owner="i", usd=Decimal("0.3"))
    assert await list_amounts() == build_expected_amounts("0", "0.8")
    second_admission.record(Decimal("0.000000001"), 0)
    second_admission.release()

    async def is_settled() -> bool:
        return await list_amounts() == build_expected_amounts("0.000000001", "0.5")

    await eventually(is_settled)
    with pytest.raises(BudgetExceeded) as exc_info:
        await meter.admit(limits, owner="i", usd=Decimal("0.6"))
    details = dict(exc_info.value.details)
    assert datetime.fromisoformat(details.pop("resets_at")) > datetime.now(UTC)
    assert details == {
        "limit": "usd_per_day", "of": "key", "limit_usd": "1", "spent_usd": "0.000000001",
        "reserved_usd": "0.5", "left_usd": "0.499999999",
    }  # fmt: skip
    first_admission.release()


async def test_reservations_of_an_earlier_version_are_settled(
    meter: RequestMeter, valkey_server: ValkeyServer
) -> None:
    """A reservation made by an earlier version of Moyin is settled, and nothing stays reserved.

    Earlier versions did not store how much each reservation set aside. Settling one of theirs must
    not make the reserved amount negative.
    """
    limit = Limit(subject="key:old", usd_per_day=Decimal(1))
    admission = await meter.admit([limit], owner="j", usd=Decimal("0.8"))
    async with redis.Redis.from_url(valkey_server.url) as valkey:
        money_key = "moyin:limit:{j}:key:old:money"
        await valkey.hdel(money_key, "day_reserved", "month_reserved")
        admission.record(Decimal("0.5"), 0)
        admission.release()

        async def is_settled() -> bool:
            [state] = await meter.budgets.list_states([limit], "j")
            return (state.spent, state.reserved) == (Decimal("0.5"), 0)

        await eventually(is_settled)


async def test_repeated_settlement_releases_a_reservation_once(
    meter: RequestMeter, valkey_server: ValkeyServer
) -> None:
    limit = Limit(subject="key:twice", usd_per_day=Decimal(1), usd_per_month=Decimal(1))
    admission = await meter.admit([limit], owner="h", usd=Decimal("0.8"))
    admission.record(Decimal("0.5"), 0)
    settle_arguments: list[str | int] = [
        admission.lease,
        5 * 10**8,
        0,
        f"{datetime.now(UTC):%Y-%m-%d}",
        "2000-01",
    ]
    for _ in range(2):
        await meter._settle(keys=admission._keys, args=settle_arguments)
    async with redis.Redis.from_url(valkey_server.url, decode_responses=True) as valkey:
        stored_budget: Any = await valkey.hgetall("moyin:limit:{h}:key:twice:money")
    assert stored_budget["day_nano"] == str(5 * 10**8)
    # Reserved in a month that is over: it stays there.
    assert stored_budget["month_nano"] == str(8 * 10**8)
    assert not [name for name in stored_budget if name.startswith("lease:")]


async def test_cancelled_admission_leaves_no_reservation(
    meter: RequestMeter, valkey_server: ValkeyServer
) -> None:
    limit = Limit(subject="key:left", usd_per_day=Decimal(1), concurrent_requests=1)
    admit_task = asyncio.create_task(meter.admit([limit], owner="e", usd=Decimal(1)))
    await asyncio.sleep(0)
    admit_task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await admit_task

    async def is_released() -> bool:
        try:
            (await meter.admit([limit], owner="e", usd=Decimal(1))).release()
        except (BudgetExceeded, RateLimited):
            return False
        return True

    await eventually(is_released)


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
            stored_budget: Any = await valkey.hgetall("moyin:limit:{i}:key:hung:money")
            assert not await valkey.zcard("moyin:limit:{i}:key:hung:leases")
        assert (
            stored_budget["month_nano"],
            [n for n in stored_budget if n.startswith("lease:")],
        ) == ("0", [])
    finally:
        process.send_signal(signal.SIGCONT)
        await meter.close()
        server.kill()


@pytest.mark.parametrize("fail_open", [True, False])
async def test_fail_open_settings_decide_what_happens_without_valkey(fail_open: bool) -> None:
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


async def test_concurrent_writes_of_a_limit_leave_one_of_them(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(4)]
    candidate_limits = [Limit(subject="owner:many", open_jobs=n) for n in range(1, 21)]
    try:
        stores = [LimitStore(database) for database in databases]
        for _ in range(2):  # into an empty place, and over what is there
            await asyncio.gather(
                *(stores[n % 4].set(limit) for n, limit in enumerate(candidate_limits))
            )
            (stored_limit,) = await stores[0].list_for(["owner:many"])
            assert stored_limit in candidate_limits
        await stores[0].set(Limit(subject="owner:many", requests_per_minute=3))
        (stored_limit,) = await stores[0].list_for(["owner:many"])
        assert (stored_limit.requests_per_minute, stored_limit.open_jobs) == (3, None), (
            "nothing is left of it"
        )
    finally:
        for database in databases:
            await database.close()


async def test_callers_without_limits_cost_no_round_trip() -> None:
    meter = RequestMeter("redis://127.0.0.1:1/0", rates_fail_open=False)
    open_jobs_limit = Limit(subject="key:j", open_jobs=3)
    admission = await meter.admit([open_jobs_limit], owner="g", usd=Decimal(5))
    admission.release()
    await meter.close()
    assert admission.headers == ()


async def test_open_jobs_are_limited(farm: Farm) -> None:
    await LimitStore(farm.database).set(Limit(subject="owner:ann", open_jobs=2))
    job = {"kind": "http", "request": {"path": "/svc/x"}}
    open_job_ids = [(await farm.submit_job(job))["id"] for _ in range(2)]
    async with farm.client.post("/jobs", json=job) as response:
        refusal = await response.json()
        assert (response.status, refusal["code"]) == (429, "too_many_jobs")
        assert (refusal["limit"], response.headers["retry-after"]) == ("open_jobs", "5")
    async with farm.other.post("/jobs", json=job) as response:
        assert response.status == 202
    assert await farm.jobs.finish(open_job_ids[0], 1, JobStatus.CANCELLED, None)
    await farm.submit_job(job)


async def test_budgets_bound_the_renders_of_every_api(farm: Farm) -> None:
    # A render costs a dollar.
    price = RenderPrice(usd_per_picture=Decimal(1))
    farm.scripted_pools.responses[TARIFF_PATH] = encode(RenderTariff(price=price))
    graph = {"1": {"class_type": "EmptyImage", "inputs": {}}}
    job = {"kind": "render", "workflow": graph}
    await LimitStore(farm.database).set(Limit(subject="owner:ann", usd_per_day=Decimal(3)))
    first_job_id = (await farm.submit_job(job))["id"]
    async with farm.client.post("/prompt", json={"prompt": graph}) as response:
        assert response.status == 200, await response.text()
    sweep = {"sweep": {"inputs.seed": [1, 2]}}
    batch = {"kind": "render", "template": "swatch", "inputs": {"prompt": "x"}, "batch": sweep}
    pipeline = {"kind": "pipeline", "steps": [job, job]}
    for body in (pipeline, batch):
        async with farm.client.post("/jobs", json=body) as response:
            refusal = await response.json()
            assert (response.status, refusal["code"]) == (402, "budget_exceeded")
            amounts = (refusal["of"], refusal["reserved_usd"], refusal["left_usd"])
            assert amounts == ("owner", "2", "1")
    await farm.submit_job(job)
    async with farm.client.post("/prompt", json={"prompt": graph}) as response:
        refusal = await response.json()
        assert (response.status, refusal["error"]["type"]) == (402, "budget_exceeded")
    async with farm.client.post("/api/v2/jobs", json={"workflow": graph}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (
            402, "insufficient_credits"
        )  # fmt: skip
    # What costs nothing is not bound, and neither are others.
    await farm.submit_job({"kind": "http", "request": {"path": "/svc/x"}})
    async with farm.other.post("/jobs", json=job) as response:
        assert response.status == 202
    assert (await farm.fetch_job(first_job_id))["status"] in ("queued", "running")
