"""Tests the judge on real Temporal, Valkey and SQLite, with scripted back ends."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio as redis
from aiohttp import web
from temporalio.client import Client as TemporalClient
from temporalio.worker import Replayer

from moyin.access.gatekeeper.limits import RequestMeter
from moyin.errors import BudgetExceeded
from moyin.jobs.workflows.client import DATA_CONVERTER
from moyin.jobs.workflows.judge import JudgeWorkflow
from moyin.settings import Settings
from moyin.text.judging.budget import JudgeBudget
from moyin.text.judging.comparison import derive_comparison_id
from moyin.text.judging.rules import JUDGE_OWNER, JudgeRules
from moyin.text.judging.verdict import Outcome
from tests.integration.jobs.test_histories import write_history
from tests.integration.servers import TemporalServer, ValkeyServer
from tests.integration.text.fixtures import ModelsApp, serving
from tests.integration.text.test_feedback import FeedbackClient as Caller
from tests.integration.text.test_feedback import create_key
from tests.waiting import eventually

NAMESPACE = "moyin-judge"
ROOT = Path(__file__).parents[3]
SECRET = "Write merge sort in Go, codename Bluebird"
CHAT = {"model": "work", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 200}
ANSWERED, SECOND, JUDGE = "qwen3-8b", "smollm2-135m", "claude-opus-5-5"
APP = """
import asyncio, json, sys
from pathlib import Path
from tests.integration.text.fixtures import serving

async def main():
    options = json.loads(sys.argv[1])
    folder, backends = Path(options.pop("folder")), options.pop("backends")
    options["temporal"] = tuple(options["temporal"])
    async with serving(folder, *backends, **options) as models_app:
        print(json.dumps([models_app.url, models_app.api_key]), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


class JudgedModels:
    """An OpenAI-compatible server with the model that answers, a second model, and the judge.

    Attributes:
        worse: the model whose answer the judge grades 0; the judge grades the other answer 4.
        hold: an event for which the judge waits before it answers.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.worse = ANSWERED
        self.verdict: str | None = None
        self.hold: asyncio.Event | None = None
        self.url = ""

    def count_requests(self, model: str) -> int:
        return sum(request["model"] == model for request in self.requests)

    async def answer_chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append(body)
        answer_text = f"by {body['model']}"
        if body.get("stream"):
            return _stream_answer(body["model"], answer_text)
        if body["model"] == JUDGE:
            if self.hold is not None:
                await self.hold.wait()
            answer_text = self.verdict or self._choose_grades(body["messages"][1]["content"])
        message = {"role": "assistant", "content": answer_text}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return web.json_response(
            {"id": "1", "object": "chat.completion", "model": body["model"],
             "choices": [choice], "usage": usage}
        )  # fmt: skip

    def _choose_grades(self, comparison_prompt: str) -> str:
        first_answer = comparison_prompt.partition("first answer>>")[2].partition("end>>")[0]
        grades = (0, 4) if f"by {self.worse}" in first_answer else (4, 0)
        return json.dumps({"reason": "x", "first": grades[0], "second": grades[1]})

    async def list_models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[JudgedModels]:
        app = web.Application()
        app.router.add_get("/v1/models", self.list_models)
        app.router.add_post("/v1/chat/completions", self.answer_chat)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield self
        await runner.cleanup()


@pytest.fixture
async def models() -> AsyncIterator[JudgedModels]:
    async with JudgedModels().running() as models:
        yield models


def _stream_answer(model: str, text: str) -> web.Response:
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    events: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": usage},
    ]
    lines = [f"data: {json.dumps({'id': '1', 'model': model, **event})}\n\n" for event in events]
    return web.Response(
        text="".join([*lines, "data: [DONE]\n\n"]), content_type="text/event-stream"
    )


def build_backends(url: str) -> list[dict[str, Any]]:
    price_by_model = {ANSWERED: 1, SECOND: 0, JUDGE: 10}
    return [
        {
            "name": model.partition("-")[0],
            "type": "openai",
            "base_url": f"{url}/v1",
            "retries": 0,
            "models": [
                {"name": model, "context": 8_000, "schema": True,
                 "price": {"input": price, "output": price}}
            ],
        }
        for model, price in price_by_model.items()
    ]  # fmt: skip


def build_judge_rules(**changes: Any) -> dict[str, Any]:
    judge_config = {"share": 1, "model": JUDGE, "usd_per_month": 1_000, **changes}
    return {"routing": {"judge": judge_config}}


class JudgeServers:
    """The folder, Valkey and Temporal that hold the app's state."""

    def __init__(self, folder: Path, valkey: ValkeyServer, temporal: TemporalServer) -> None:
        self.folder = folder
        self.redis_url = valkey.url
        self.temporal = (temporal.address, NAMESPACE)

    def serve_app(self, models: JudgedModels, **rules: Any) -> Any:
        return serving(self.folder, *build_backends(models.url), **self.build_options(**rules))

    def build_options(self, **rules: Any) -> dict[str, Any]:
        return {
            "rules": build_judge_rules(**rules),
            "redis_url": self.redis_url,
            "temporal": self.temporal,
            "work": [ANSWERED, SECOND],
        }

    def query_database(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(Settings(data=self.folder).data / "moyin.db")) as connection:
            return connection.execute(statement, values).fetchall()

    def list_signals(self) -> list[tuple[Any, ...]]:
        return self.query_database(
            "SELECT request_id, model, score, owner, key_id FROM quality_signals"
            " WHERE source = 'judge' ORDER BY number"
        )

    async def list_comparison_keys(self) -> list[bytes | str]:
        async with redis.Redis.from_url(self.redis_url) as valkey:
            return list(await valkey.keys("moyin:judge:judge-*"))


@pytest.fixture
async def judge_servers(
    tmp_path: Path, valkey_server: ValkeyServer, temporal_server: TemporalServer
) -> JudgeServers:
    async with redis.Redis.from_url(valkey_server.url) as valkey:
        # Months are longer than tests.
        await valkey.flushdb()
    return JudgeServers(tmp_path, valkey_server, temporal_server)


async def read_p_good(client: Caller, model: str) -> float:
    _, body, _ = await client.call("POST", "route", CHAT)
    (candidate,) = (c for c in body["candidates"] if c["model"] == model)
    return float(candidate["quality"]["p_good"])


async def send_chat(client: Caller, **changes: Any) -> str:
    status, body, headers = await client.call("POST", "chat/completions", {**CHAT, **changes})
    assert status == 200, body
    assert headers["x-moyin-model"] == ANSWERED
    return headers["x-request-id"]


async def wait_for_outcome(models_app: ModelsApp, outcome: Outcome) -> None:
    await eventually(lambda: outcome in models_app.judged, seconds=40)


async def test_a_sampled_answer_is_judged_and_moves_the_estimate(
    judge_servers: JudgeServers, models: JudgedModels
) -> None:
    async with judge_servers.serve_app(models) as models_app:
        ada, bob = (
            Caller(models_app, models_app.api_key),
            Caller(models_app, await create_key(judge_servers.folder, "bob")),
        )
        estimates_before = await read_p_good(ada, ANSWERED), await read_p_good(ada, SECOND)
        request_id = await send_chat(ada)
        await wait_for_outcome(models_app, Outcome.DISAGREED)
        comparison_id = derive_comparison_id("ada", request_id)
        assert judge_servers.list_signals() == [
            (request_id, ANSWERED, 0.0, "ada", ""),
            (comparison_id, SECOND, 1.0, "ada", ""),
        ]

        async def have_estimates_moved() -> bool:
            estimates_now = await read_p_good(ada, ANSWERED), await read_p_good(ada, SECOND)
            return estimates_now[0] < estimates_before[0] and estimates_now[1] > estimates_before[1]

        await eventually(have_estimates_moved)
        assert (
            await read_p_good(bob, ANSWERED),
            await read_p_good(bob, SECOND),
        ) == estimates_before

        # The operator pays, to the nano dollar of what the budget counts.
        await eventually(lambda: len(judge_servers.query_database("SELECT owner FROM usage")) == 3)
        nano_usd_by_owner = Counter[str]()
        for owner, cost_nano_usd in judge_servers.query_database(
            "SELECT owner, cost_nano_usd FROM usage"
        ):
            nano_usd_by_owner[owner] += cost_nano_usd
        assert nano_usd_by_owner == {"ada": 110_000, JUDGE_OWNER: 1_100_000}
        assert models_app.judge is not None

        async def is_spending_settled() -> bool:
            assert models_app.judge is not None
            return bool(await models_app.judge.get_spending() == Decimal("0.0011"))

        await eventually(is_spending_settled)
        _, quality_page, _ = await ada.call("GET", "quality")
        assert quality_page["judge"] == {
            "share": 1.0, "judged": 1, "agreed": 0, "spent_usd": 0.0011, "usd_per_month": 1000.0,
        }  # fmt: skip
        _, quality_page, _ = await bob.call("GET", "quality")
        assert quality_page["judge"]["judged"] == 0

        # Nothing of the conversation is left anywhere.
        assert await judge_servers.list_comparison_keys() == []
        temporal_client = await TemporalClient.connect(
            judge_servers.temporal[0], namespace=NAMESPACE
        )
        history = await temporal_client.get_workflow_handle(comparison_id).fetch_history()
        await Replayer(workflows=[JudgeWorkflow], data_converter=DATA_CONVERTER).replay_workflow(
            history
        )
        write_history("judge", history)
        history_bytes = b"".join(event.SerializeToString() for event in history.events)
        assert comparison_id.encode() in history_bytes
        assert b"Bluebird" not in history_bytes
        stored_rows = [str(row) for table in ("quality_signals", "quality_decisions", "usage", "jobs")
                for row in judge_servers.query_database(f"SELECT * FROM {table}")]  # fmt: skip
        assert not any("Bluebird" in row for row in stored_rows)
        assert judge_servers.query_database("SELECT id FROM jobs") == []


async def test_stream_is_judged_once_per_request_id(
    judge_servers: JudgeServers, models: JudgedModels
) -> None:
    models.worse = SECOND
    async with judge_servers.serve_app(models) as models_app:
        headers = {"authorization": f"Bearer {models_app.api_key}", "x-request-id": "mine"}
        async with aiohttp.ClientSession(headers=headers) as http:
            for expected_outcome in (Outcome.AGREED, Outcome.REPEATED):
                async with http.post(
                    f"{models_app.url}/v1/chat/completions", json={**CHAT, "stream": True}
                ) as response:
                    assert f"by {ANSWERED}" in await response.text()
                await wait_for_outcome(models_app, expected_outcome)
        _, quality_page, _ = await Caller(models_app, models_app.api_key).call("GET", "quality")
        assert (quality_page["judge"]["judged"], quality_page["judge"]["agreed"]) == (1, 1)
        assert (models.count_requests(SECOND), models.count_requests(JUDGE)) == (1, 1)
        assert await judge_servers.list_comparison_keys() == []


async def test_unparsable_verdict_is_counted_without_a_signal(
    judge_servers: JudgeServers, models: JudgedModels
) -> None:
    models.verdict = "Both are fine."
    async with judge_servers.serve_app(models) as models_app:
        await send_chat(Caller(models_app, models_app.api_key))
        await wait_for_outcome(models_app, Outcome.UNPARSABLE)
        assert judge_servers.list_signals() == []
        assert await judge_servers.list_comparison_keys() == []


async def test_verdict_of_a_killed_replica_is_recorded_once(
    judge_servers: JudgeServers, models: JudgedModels
) -> None:
    """After kill -9 of a replica during the judge's call, one other replica repeats the call."""
    models.hold = asyncio.Event()
    process_options = {
        "folder": str(judge_servers.folder),
        "backends": build_backends(models.url),
        **judge_servers.build_options(),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        APP,
        json.dumps(process_options),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    url, key = json.loads(await process.stdout.readline())
    killed_app: Any = type("Killed", (), {"url": url})
    request_id = await send_chat(Caller(killed_app, key))
    await eventually(lambda: models.count_requests(JUDGE) == 1, seconds=40)
    process.kill()
    await process.wait()
    models.hold.set()
    async with judge_servers.serve_app(models) as models_app:
        await wait_for_outcome(models_app, Outcome.DISAGREED)
        assert [row[0] for row in judge_servers.list_signals()] == [
            request_id,
            derive_comparison_id("ada", request_id),
        ]
        assert (models.count_requests(SECOND), models.count_requests(JUDGE)) == (1, 2)
        assert await judge_servers.list_comparison_keys() == []


async def test_the_judge_continues_after_it_was_turned_off_and_on(
    judge_servers: JudgeServers, models: JudgedModels
) -> None:
    async with judge_servers.serve_app(models) as models_app:
        assert models_app.judge is not None
        rules, ada = models_app.judge.rules, Caller(models_app, models_app.api_key)
        models_app.judge.set_rules(None)
        await send_chat(ada)
        assert models_app.text_router.sampler is None
        models_app.judge.set_rules(rules)
        await send_chat(ada)
        await wait_for_outcome(models_app, Outcome.DISAGREED)
        assert len(judge_servers.list_signals()) == 2


async def test_turning_the_judge_off_deletes_its_comparisons(
    judge_servers: JudgeServers, models: JudgedModels
) -> None:
    """The job of a deleted comparison ends once the judge is turned on again."""
    models.hold = asyncio.Event()
    async with judge_servers.serve_app(models) as models_app:
        assert models_app.judge is not None
        rules = models_app.judge.rules
        await send_chat(Caller(models_app, models_app.api_key))
        await eventually(lambda: models.count_requests(JUDGE) == 1, seconds=40)
        assert len(await judge_servers.list_comparison_keys()) == 1
        models_app.judge.set_rules(None)

        async def is_nothing_left() -> bool:
            return await judge_servers.list_comparison_keys() == []

        await eventually(is_nothing_left, seconds=20)
        models.hold.set()
        models_app.judge.set_rules(rules)
        await wait_for_outcome(models_app, Outcome.EXPIRED)
        assert judge_servers.list_signals() == []


async def test_no_call_is_made_above_the_budget(
    judge_servers: JudgeServers, models: JudgedModels
) -> None:
    async with judge_servers.serve_app(models, usd_per_month=0.001) as models_app:
        await send_chat(Caller(models_app, models_app.api_key))
        await wait_for_outcome(models_app, Outcome.BUDGET)
        assert models.count_requests(SECOND) == models.count_requests(JUDGE) == 0


async def test_two_replicas_together_never_pass_the_budget(valkey_server: ValkeyServer) -> None:
    rules = JudgeRules(share=1.0, model=JUDGE, usd_per_month=Decimal(1))
    async with redis.Redis.from_url(valkey_server.url) as valkey:
        await valkey.flushdb()
    meters = [RequestMeter(valkey_server.url) for _ in range(2)]
    budgets = [JudgeBudget(meter) for meter in meters]

    async def make_call(budget: JudgeBudget) -> Decimal:
        reservation = budget.create_admission(rules)
        try:
            await reservation.reserve(Decimal("0.3"), 0)
            assert await budget.read_spent_usd() <= rules.usd_per_month
            cost = Decimal("0.04")
            reservation.record(cost, 0)
        except BudgetExceeded:
            return Decimal(0)
        finally:
            reservation.release()
        return cost

    costs_usd = await asyncio.gather(*(make_call(budgets[number % 2]) for number in range(20)))
    assert 0 < sum(costs_usd) <= 1

    async def is_spending_settled() -> bool:
        return (
            await budgets[0].read_spent_usd() == await budgets[1].read_spent_usd() == sum(costs_usd)
        )

    await eventually(is_spending_settled)
    for _ in range(30):
        await make_call(budgets[0])
    await eventually(lambda: _is_spent(budgets[1]))
    for meter in meters:
        await meter.close()


async def _is_spent(budget: JudgeBudget) -> bool:
    """Return True if the budget is not exceeded, but too little is left for another call."""
    return Decimal("0.7") < await budget.read_spent_usd() <= 1
