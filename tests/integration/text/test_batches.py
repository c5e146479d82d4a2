"""Tests OpenAI's batches with the official client, a real Temporal and a model that can fail."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web
from openai.types import Batch
from temporalio.client import Client
from temporalio.worker import Worker

from moyin.access.gatekeeper.identity import create_service_token_factory
from moyin.client.gateway import GatewayClient
from moyin.domain.limits import Limit
from moyin.domain.stored_file import BATCH_INPUT, StoredFile, new_file_id
from moyin.jobs.workflows.client import TemporalConnection
from moyin.jobs.workflows.text_batches import (
    TextBatchActivities,
    TextBatchSweeper,
    new_text_batch_worker,
)
from moyin.jobs.workflows.worker import WorkerRunner
from moyin.store.batch_lines import BatchLineStore
from moyin.store.files import FileStore
from moyin.store.limits import LimitStore
from moyin.store.schema import text_batches
from moyin.store.sql import now
from moyin.store.text_batches import TextBatchStore
from tests.acceptance.openai_models import check_response_async
from tests.integration.servers import TemporalServer, ValkeyServer
from tests.integration.text.fixtures import SIGNING_KEY, ModelsApp, serving
from tests.waiting import eventually

NAMESPACE = "text-batches"
ENDED = {"completed", "failed", "expired", "cancelled"}


class ScriptedModel:
    """Answers each call with its prompt, after failing ``failures[prompt]`` times."""

    def __init__(self) -> None:
        self.calls_by_text = Counter[str]()
        self.failures = Counter[str]()
        self.refused: set[str] = set()
        self.free = asyncio.Event()
        self.free.set()
        self.running = self.most = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer_chat)
        app.router.add_post("/v1/embeddings", self._answer_embedding)
        app.router.add_get("/v1/models", self._list_models)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _list_models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    async def _answer_chat(self, request: web.Request) -> web.Response:
        prompt = (await request.json())["messages"][-1]["content"]
        self.calls_by_text[prompt] += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.free.wait()
        finally:
            self.running -= 1
        if prompt in self.refused:
            error = {"message": "no such thing", "type": "invalid_request_error"}
            return web.json_response({"error": error}, status=400)
        if self.failures[prompt] > 0:
            self.failures[prompt] -= 1
            return web.json_response({"error": {"message": "busy"}}, status=503)
        message = {"role": "assistant", "content": prompt}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        completion = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        # Indented, as some servers answer.
        content = json.dumps({**completion, "choices": [choice], "usage": usage}, indent=1)
        return web.Response(text=content, content_type="application/json")

    async def _answer_embedding(self, request: web.Request) -> web.Response:
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, 1.0]}]
        usage = {"prompt_tokens": 2, "total_tokens": 2}
        return web.json_response({"object": "list", "data": data, "model": "v", "usage": usage})


class TextBatchFarm:
    """A models app, a worker for batches, and a client of OpenAI."""

    def __init__(self, app: ModelsApp, model: ScriptedModel, temporal: TemporalConnection) -> None:
        self.app = app
        self.model = model
        self.files = FileStore(app.database)
        self.batches = TextBatchStore(app.database)
        self._temporal = temporal
        self.client = openai.AsyncOpenAI(
            base_url=f"{app.url}/v1",
            api_key=app.api_key,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(
                event_hooks={"response": [check_response_async]}
            ),
            _strict_response_validation=True,
        )

    async def upload_lines(self, *lines: Any) -> str:
        content = b"\n".join(
            line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines
        )
        file = StoredFile(
            id=new_file_id(),
            owner="ada",
            purpose=BATCH_INPUT,
            filename="input.jsonl",
            media_type="application/jsonl",
            size=len(content),
            sha256=await self.app.blobs.put(content),
            created_at=now(),
        )
        await self.files.add(file)
        return file.id

    async def create_batch(self, *lines: Any, endpoint: Any = "/v1/chat/completions") -> Batch:
        return await self.client.batches.create(
            input_file_id=await self.upload_lines(*lines),
            endpoint=endpoint,
            completion_window="24h",
            metadata={"run": "7"},
        )

    async def wait_for_status(
        self, batch: Batch, condition: Callable[[Batch], bool] = lambda state: state.status in ENDED
    ) -> Batch:
        async def find_batch() -> Batch | None:
            state = await self.client.batches.retrieve(batch.id)
            return state if condition(state) else None

        state: Batch = await eventually(find_batch, 180)
        return state

    async def read_lines(self, file_id: str | None) -> list[dict[str, Any]]:
        assert file_id is not None
        file = await self.files.get("ada", file_id)
        return [json.loads(line) for line in (await self.app.blobs.get(file.sha256)).splitlines()]

    @asynccontextmanager
    async def run_worker(self) -> AsyncIterator[None]:
        token_for = create_service_token_factory(SIGNING_KEY, "jobs")
        async with GatewayClient(self.app.url, token_for=token_for) as gateway:
            activities = TextBatchActivities(
                batches=self.batches,
                lines=BatchLineStore(self.app.database),
                files=self.files,
                blobs=self.app.blobs,
                gateway=gateway,
                max_line_bytes=1_000,
            )

            async def create_workers(client: Client) -> list[Worker]:
                return [new_text_batch_worker(client, activities)]

            runner = WorkerRunner(self._temporal, create_workers)
            sweeper = TextBatchSweeper(self.batches, self._temporal)
            tasks = [asyncio.create_task(runner.run()), asyncio.create_task(sweeper.run())]
            try:
                yield
            finally:
                await runner.stop()
                tasks[1].cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def build_line(number: int, text: str | None = None, **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text or f"text {number}"}]
    return {
        "custom_id": f"line-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": messages},
        **changes,
    }


@pytest.fixture
async def farm(
    tmp_path: Path, temporal_server: TemporalServer, valkey_server: ValkeyServer
) -> AsyncIterator[TextBatchFarm]:
    async with AsyncExitStack() as stack:
        model = ScriptedModel()
        url = await stack.enter_async_context(model.serving())
        price = {"price": {"input": 1, "output": 1}}
        backend = {
            "name": "mock",
            "type": "openai",
            "base_url": f"{url}/v1",
            "retries": 0,
            "parallel": 8,
            "models": [
                {"name": "m", "context": 8000, **price},
                {"name": "v", "context": 8000, "embeddings": True, **price},
            ],
        }
        app = await stack.enter_async_context(
            serving(tmp_path, backend, redis_url=valkey_server.url)
        )
        temporal = TemporalConnection(
            temporal_server.address, NAMESPACE, retention=timedelta(days=1)
        )
        farm = TextBatchFarm(app, model, temporal)
        await stack.enter_async_context(farm.run_worker())
        stack.push_async_callback(farm.client.close)
        yield farm


async def test_lines_are_answered_or_fail_and_both_are_files(farm: TextBatchFarm) -> None:
    farm.model.refused = {"text 3"}
    farm.model.failures["text 4"] = 2
    lines: list[Any] = [build_line(number) for number in range(1, 41)]
    lines[1]["body"]["model"] = "nobody"
    created_batch = await farm.create_batch(*lines[:20], b"", *lines[20:], b"  ")
    assert (created_batch.status, created_batch.endpoint) == ("validating", "/v1/chat/completions")
    assert created_batch.metadata == {"run": "7"}
    ended_batch = await farm.wait_for_status(created_batch)
    assert ended_batch.status == "completed" and ended_batch.request_counts is not None
    counts = ended_batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (40, 38, 2)
    outputs_by_id = {
        output_line["custom_id"]: output_line
        for output_line in await farm.read_lines(ended_batch.output_file_id)
    }
    line_response = outputs_by_id["line-4"]["response"]
    assert line_response["status_code"] == 200 and outputs_by_id["line-4"]["error"] is None
    assert line_response["body"]["choices"][0]["message"]["content"] == "text 4"
    errors_by_id = {
        output_line["custom_id"]: output_line["response"]
        for output_line in await farm.read_lines(ended_batch.error_file_id)
    }
    assert (
        errors_by_id.keys() == {"line-2", "line-3"}
        and outputs_by_id.keys() & errors_by_id.keys() == set()
    )
    assert errors_by_id["line-2"]["status_code"] == 404
    assert errors_by_id["line-2"]["body"]["error"]["code"] == "model_not_found"
    assert errors_by_id["line-3"]["body"]["error"]["code"] == "backend_rejected"
    assert farm.model.calls_by_text["text 1"] == 1 and farm.model.calls_by_text["text 4"] == 3
    # Half of the back end's places.
    assert 1 <= farm.model.most <= 4
    entry = await farm.app.ledger.get("ada", line_response["request_id"])
    assert entry is not None and entry.complete and entry.cost_usd > 0


@pytest.mark.parametrize(
    ("lines", "code", "number", "param"),
    [
        ([b""], "empty_file", None, None),
        ([build_line(1), b"{"], "invalid_json_line", 2, None),
        ([build_line(1), build_line(1)], "duplicate_custom_id", 2, "custom_id"),
        ([build_line(1, method="GET")], "invalid_method", 1, "method"),
        ([build_line(1, url="/v1/embeddings")], "mismatched_url", 1, "url"),
        ([build_line(1, body=[])], "missing_required_parameter", 1, "body"),
        (
            [build_line(1, body={"model": "m", "stream": True})],
            "unsupported_parameter",
            1,
            "body.stream",
        ),
        ([build_line(1, "x" * 1_000)], "line_too_large", 1, None),
    ],
)
async def test_invalid_files_fail_before_any_line_runs(
    farm: TextBatchFarm, lines: list[Any], code: str, number: int | None, param: str | None
) -> None:
    ended_batch = await farm.wait_for_status(await farm.create_batch(*lines))
    assert (
        ended_batch.status == "failed"
        and ended_batch.errors is not None
        and ended_batch.errors.data is not None
    )
    [error] = ended_batch.errors.data
    assert (error.code, error.line, error.param) == (code, number, param)
    assert ended_batch.failed_at is not None and farm.model.calls_by_text.total() == 0


async def test_a_cancelled_batch_keeps_its_answers(farm: TextBatchFarm) -> None:
    farm.model.free.clear()
    batch = await farm.create_batch(*(build_line(number) for number in range(1, 101)))
    await farm.wait_for_status(batch, lambda state: state.status == "in_progress")
    await eventually(lambda: farm.model.running == 4)
    assert (await farm.client.batches.cancel(batch.id)).status == "cancelling"
    farm.model.free.set()
    ended_batch = await farm.wait_for_status(batch)
    assert ended_batch.status == "cancelled" and ended_batch.cancelled_at is not None
    output = await farm.read_lines(ended_batch.output_file_id)
    errors = await farm.read_lines(ended_batch.error_file_id)
    assert 4 <= len(output) <= 32 and len(output) + len(errors) == 100
    assert {state["error"]["code"] for state in errors} == {"batch_cancelled"}
    assert farm.model.calls_by_text.total() == len(output)
    with pytest.raises(openai.ConflictError) as exc_info:
        completed_batch = await farm.wait_for_status(await farm.create_batch(build_line(1)))
        await farm.client.batches.cancel(completed_batch.id)
    assert exc_info.value.code == "batch_finished"


async def test_an_expired_batch_lists_the_lines_that_were_not_run(farm: TextBatchFarm) -> None:
    farm.model.free.clear()
    batch = await farm.create_batch(*(build_line(number) for number in range(1, 51)))
    await eventually(lambda: farm.model.running == 4)
    expire_statement = (
        text_batches.update().where(text_batches.c.id == batch.id).values(expires_at=now())
    )
    await farm.app.database.execute(expire_statement)
    farm.model.free.set()
    ended_batch = await farm.wait_for_status(batch)
    assert ended_batch.status == "expired" and ended_batch.expired_at is not None
    output = await farm.read_lines(ended_batch.output_file_id)
    errors = await farm.read_lines(ended_batch.error_file_id)
    assert 4 <= len(output) <= 32 and len(output) + len(errors) == 50
    assert {error["error"]["code"] for error in errors} == {"batch_expired"}


async def test_lines_fail_when_the_budget_is_spent(farm: TextBatchFarm) -> None:
    limit = Limit(subject="owner:ada", usd_per_day=Decimal("0.0000001"))
    await LimitStore(farm.app.database).set(limit)
    ended_batch = await farm.wait_for_status(await farm.create_batch(build_line(1), build_line(2)))
    assert ended_batch.status == "completed" and ended_batch.output_file_id is None
    errors = [item["response"] for item in await farm.read_lines(ended_batch.error_file_id)]
    assert {(e["status_code"], e["body"]["error"]["code"]) for e in errors} == {
        (402, "budget_exceeded")
    }
    assert farm.model.calls_by_text.total() == 0


async def test_embedding_batches_and_batch_lists_work(farm: TextBatchFarm) -> None:
    body = {"model": "v", "input": "x"}
    lines = [build_line(number, url="/v1/embeddings", body=body) for number in (1, 2)]
    first_batch = await farm.wait_for_status(
        await farm.create_batch(*lines, endpoint="/v1/embeddings")
    )
    [output_line, _] = await farm.read_lines(first_batch.output_file_id)
    assert output_line["response"]["body"]["data"][0]["embedding"] == [0.5, 1.0]
    second_batch = await farm.create_batch(build_line(1))
    page = await farm.client.batches.list(limit=1)
    assert [item.id for item in page.data] == [second_batch.id] and page.has_more
    assert [item.id async for item in farm.client.batches.list(limit=1)] == [
        second_batch.id,
        first_batch.id,
    ]
    for wrong_members, field in (
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"endpoint": "/v1/models"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
    ):
        batch_input = {
            "input_file_id": first_batch.input_file_id,
            "endpoint": "/v1/embeddings",
            "completion_window": "24h",
        }
        with pytest.raises(openai.BadRequestError) as exc_info:
            await farm.client.post(
                "/batches", body={**batch_input, **wrong_members}, cast_to=object
            )
        assert exc_info.value.param == field
    with pytest.raises(openai.NotFoundError):
        await farm.client.batches.retrieve("batch_none")
    with pytest.raises(openai.NotFoundError):
        await farm.client.post(f"/batches/{first_batch.id}/work", cast_to=object)
