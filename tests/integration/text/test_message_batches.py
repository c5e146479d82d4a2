"""Tests Anthropic's batches with its SDK, on back ends with and without a batch API."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import sqlalchemy as sa
from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse
from pydantic import TypeAdapter

from moyin.domain.limits import Limit
from moyin.jobs.workflows.client import TemporalConnection
from moyin.store.keys import KeyStore
from moyin.store.limits import LimitStore
from moyin.store.schema import native_batches, text_batches, usage
from moyin.store.sql import now
from tests.integration.servers import TemporalServer
from tests.integration.text.batch_providers import ANSWER, BAD, MockAnthropic, MockOpenAI
from tests.integration.text.fixtures import serving
from tests.integration.text.test_batches import NAMESPACE, ScriptedModel, TextBatchFarm
from tests.waiting import eventually

RESULT: TypeAdapter[Any] = TypeAdapter(MessageBatchIndividualResponse)


class BatchFarm(TextBatchFarm):
    """A farm with three back ends: Anthropic and OpenAI with batch APIs, and Anthropic without one.

    A call costs 0.012 USD: 1,000 input tokens at 10 USD per million, and 100 output tokens at 20.
    """

    claude: MockAnthropic
    gpt: MockOpenAI
    plain: MockAnthropic

    def open_anthropic(self, key: str | None = None) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(
            base_url=self.app.url,
            api_key=key or self.app.api_key,
            max_retries=0,
            timeout=60,
            _strict_response_validation=True,
        )

    async def wait_until_ended(self, batch_id: str) -> MessageBatch:
        async with self.open_anthropic() as client:

            async def find_ended_batch() -> MessageBatch | None:
                batch_state = await client.messages.batches.retrieve(batch_id)
                return batch_state if batch_state.processing_status == "ended" else None

            batch_state: MessageBatch = await eventually(find_ended_batch, 180)
            return batch_state

    async def read_results(self, batch_id: str) -> dict[str, Any]:
        """Return the results by custom id; check each against the types of Anthropic's package."""
        async with httpx.AsyncClient(timeout=60, headers={"x-api-key": self.app.api_key}) as http:
            url = f"{self.app.url}/v1/messages/batches/{batch_id}/results"
            lines = (await http.get(url)).text.splitlines()
        results = [RESULT.validate_json(line, strict=True) for line in lines]
        results_by_id = {result.custom_id: result.result for result in results}
        assert len(results_by_id) == len(results)
        return results_by_id

    async def list_costs(self) -> list[Decimal]:
        """Return the costs of the calls in the ledger."""
        query = sa.select(usage.c.cost_nano_usd)
        return [Decimal(n) / 10**9 for n in await self.app.database.fetch_values(query)]

    async def is_running_natively(self) -> bool:
        return any(row["status"] == "running" for row in await self.list_native_batches())

    async def list_native_batches(self) -> Any:
        """Return the rows of native batches, without the batch's plan, which is a row without a model."""
        query = sa.select(native_batches).where(native_batches.c.model != "")
        return await self.app.database.fetch_all(query)


@pytest.fixture
async def batch_farm(tmp_path: Path, temporal_server: TemporalServer) -> AsyncIterator[BatchFarm]:
    claude_provider, openai_provider, plain_provider = (
        MockAnthropic(),
        MockOpenAI(),
        MockAnthropic(),
    )
    price = {"input": 10, "output": 20}
    async with AsyncExitStack() as stack:
        for provider in (claude_provider, openai_provider, plain_provider):
            await stack.enter_async_context(provider.running())

        def build_backend(name: str, backend_type: str, url: str, **kwargs: Any) -> dict[str, Any]:
            model = {"name": name, "upstream": f"{name}-up", "context": 100_000, "price": price}
            return {
                "name": f"at-{name}", "type": backend_type, "base_url": url, "retries": 0,
                "api_key_env": "LLAMA_KEY", "models": [model], **kwargs,
            }  # fmt: skip

        app = await stack.enter_async_context(
            serving(
                tmp_path,
                build_backend("claude", "anthropic", claude_provider.url, batch=True),
                build_backend("gpt", "openai", f"{openai_provider.url}/v1", batch=True),
                build_backend("plain", "anthropic", plain_provider.url),
                rules={"batches": {"poll_s": 0.2}},
            )
        )
        temporal = TemporalConnection(
            temporal_server.address, NAMESPACE, retention=timedelta(days=1)
        )
        farm = BatchFarm(app, ScriptedModel(), temporal)
        farm.claude, farm.gpt, farm.plain = claude_provider, openai_provider, plain_provider
        await stack.enter_async_context(farm.run_worker())
        stack.push_async_callback(farm.client.close)
        yield farm


def build_request(number: int, text: str = "hello", model: str = "plain", **kwargs: Any) -> Any:
    messages = [{"role": "user", "content": f"{text} {number}"}]
    params = {"model": model, "max_tokens": 9, "messages": messages, **kwargs}
    return {"custom_id": f"request-{number}", "params": params}


def build_line(
    number: int, text: str = "hello", model: str = "gpt", **kwargs: Any
) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"{text} {number}"}]
    return {
        "custom_id": f"request-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": model, "messages": messages, **kwargs},
    }


async def test_requests_are_answered_and_results_are_read(batch_farm: BatchFarm) -> None:
    async with batch_farm.open_anthropic() as client:
        requests = [build_request(number) for number in range(1, 40)]
        requests += [build_request(40, BAD), build_request(41, model="nobody")]
        created_batch = await client.messages.batches.create(requests=requests)
        assert (
            created_batch.processing_status == "in_progress" and created_batch.results_url is None
        )
        assert created_batch.request_counts.processing == 41
        assert created_batch.expires_at - created_batch.created_at == timedelta(days=1)
        ended_batch = await batch_farm.wait_until_ended(created_batch.id)
        counts = ended_batch.request_counts
        assert (counts.processing, counts.succeeded, counts.errored) == (0, 39, 2)
        assert ended_batch.ended_at is not None and ended_batch.archived_at is None
        results = [
            result async for result in await client.messages.batches.results(created_batch.id)
        ]
        assert len(results) == 41
    results_by_id = await batch_farm.read_results(created_batch.id)
    message = results_by_id["request-7"].message
    assert message.content[0].text == ANSWER and message.model == "plain-up"
    assert results_by_id["request-40"].error.error.type == "invalid_request_error"
    assert results_by_id["request-41"].error.error.type == "not_found_error"
    assert sum(await batch_farm.list_costs()) == 39 * Decimal("0.012")
    async with httpx.AsyncClient(timeout=60, headers={"x-api-key": batch_farm.app.api_key}) as http:
        assert ended_batch.results_url is not None
        assert len((await http.get(ended_batch.results_url)).text.splitlines()) == 41
    assert [file async for file in batch_farm.client.files.list()] == []


async def test_batches_are_listed_deleted_and_belong_to_one_tenant(batch_farm: BatchFarm) -> None:
    _, key = await KeyStore(batch_farm.app.database).create("another", "k")
    async with (
        batch_farm.open_anthropic() as client,
        batch_farm.open_anthropic(key) as other_client,
    ):
        batches_api = client.messages.batches
        ids = [(await batches_api.create(requests=[build_request(n)])).id for n in range(3)]
        page = await batches_api.list(limit=2)
        assert [batch.id for batch in page.data] == [ids[2], ids[1]] and page.has_more
        assert [batch.id async for batch in batches_api.list(limit=1)] == ids[::-1]
        earlier_page = await batches_api.list(before_id=ids[0], limit=1)
        assert [batch.id for batch in earlier_page.data] == [ids[1]]
        assert (await other_client.messages.batches.list()).data == []
        for method_name in ("retrieve", "cancel", "delete"):
            with pytest.raises(anthropic.NotFoundError):
                await getattr(other_client.messages.batches, method_name)(ids[0])
        await batch_farm.wait_until_ended(ids[0])
        deletion = await batches_api.delete(ids[0])
        assert (deletion.id, deletion.type) == (ids[0], "message_batch_deleted")
        with pytest.raises(anthropic.NotFoundError):
            await batches_api.retrieve(ids[0])
        assert not [batch async for batch in batches_api.list() if batch.id == ids[0]]
        with pytest.raises(anthropic.BadRequestError, match="after_id"):
            await batches_api.list(after_id=ids[0])


async def test_a_wrong_body_is_refused_at_once(batch_farm: BatchFarm) -> None:
    headers = {"x-api-key": batch_farm.app.api_key, "content-type": "application/json"}
    bodies = {
        b"": "requests",
        b'{"requests": [{"custom_id": "a"}]}': "requests.0.params",
        b'{"requests": [{"custom_id": "a", "params": {}}': None,
    }
    async with httpx.AsyncClient(timeout=60, headers=headers) as http:
        for body, field in bodies.items():
            response = await http.post(f"{batch_farm.app.url}/v1/messages/batches", content=body)
            assert response.status_code == 400
            error = response.json()
            assert error["type"] == "error"
            assert error["error"]["type"] == "invalid_request_error"
            assert error["error"].get("field") == field
    assert not await batch_farm.app.database.fetch_all(sa.select(text_batches))


async def test_native_batches_cost_half_and_other_lines_are_called(batch_farm: BatchFarm) -> None:
    async with batch_farm.open_anthropic() as client:
        requests = [build_request(n, model="claude") for n in range(1, 30)]
        requests += [
            build_request(30, BAD, model="claude"),
            build_request(31),
            build_request(32, model="gpt"),
        ]
        created_batch = await client.messages.batches.create(requests=requests)
    ended_batch = await batch_farm.wait_until_ended(created_batch.id)
    counts = ended_batch.request_counts
    assert (counts.succeeded, counts.errored) == (31, 1)
    results = await batch_farm.read_results(created_batch.id)
    assert all(
        results[f"request-{n}"].message.content[0].text == ANSWER
        for n in range(1, 33) if n != 30
    )  # fmt: skip
    assert results["request-30"].error.error.type == "invalid_request_error"
    # Claude's and, in its own format, GPT's lines went through batch APIs.
    [claude_requests], [gpt_requests] = (
        batch_farm.claude.batches.values(),
        batch_farm.gpt.batches.values(),
    )
    assert len(claude_requests) == 30 and len(gpt_requests) == 1
    assert {params["model"] for params in claude_requests.values()} == {"claude-up"}
    [body] = gpt_requests.values()
    assert (body["model"], body["max_tokens"]) == ("gpt-up", 9)
    assert (
        not batch_farm.claude.calls
        and not batch_farm.gpt.calls
        and len(batch_farm.plain.calls) == 1
    )
    costs = Counter(await batch_farm.list_costs())
    assert costs == {Decimal("0.006"): 30, Decimal("0.012"): 1}
    assert batch_farm.claude.deleted == ["msgbatch_0"] and len(batch_farm.gpt.deleted) == 2


async def test_a_chat_runs_natively_in_its_own_and_in_another_format(batch_farm: BatchFarm) -> None:
    lines: list[Any] = [build_line(n, model="gpt" if n % 2 else "claude") for n in range(1, 9)]
    lines += [
        build_line(9, BAD),
        build_line(10, model="claude", n=2),
        build_line(11, model="claude", seed=1),
    ]
    ended_batch = await batch_farm.wait_for_status(await batch_farm.create_batch(*lines))
    assert ended_batch.request_counts is not None
    assert (ended_batch.request_counts.completed, ended_batch.request_counts.failed) == (8, 3)
    output = await batch_farm.read_lines(ended_batch.output_file_id)
    assert {line["response"]["body"]["choices"][0]["message"]["content"] for line in output} == {
        ANSWER
    }
    errors = {
        line["custom_id"]: line for line in await batch_farm.read_lines(ended_batch.error_file_id)
    }
    codes = {name: line["response"]["body"]["error"]["code"] for name, line in errors.items()}
    # What Claude lacks is refused as for a single call.
    assert codes == {
        "request-9": "backend_rejected",
        "request-10": "unsupported_feature",
        "request-11": "unsupported_feature",
    }
    assert len(batch_farm.gpt.prompts) == 5 and len(batch_farm.claude.prompts) == 4
    assert Counter(await batch_farm.list_costs()) == {Decimal("0.006"): 8}


async def test_a_batch_is_not_sent_again_after_the_response_was_lost(batch_farm: BatchFarm) -> None:
    for provider_name in ("claude", "gpt"):
        provider: Any = getattr(batch_farm, provider_name)
        provider.loses_answer = True
        created_batch = await batch_farm.create_batch(
            *(build_line(n, model=provider_name) for n in range(4))
        )
        ended_batch = await batch_farm.wait_for_status(created_batch)
        assert ended_batch.request_counts is not None and ended_batch.request_counts.completed == 4
        assert len(provider.batches) == 1 and not provider.calls
    assert Counter(await batch_farm.list_costs()) == {Decimal("0.006"): 8}


async def test_foreign_batches_at_the_back_end_are_ignored(batch_farm: BatchFarm) -> None:
    foreign_client = anthropic.AsyncAnthropic(
        base_url=batch_farm.claude.url, api_key="only-for-this-test"
    )
    await foreign_client.messages.batches.create(
        requests=[build_request(1, model="m"), build_request(2, model="m")]
    )
    batch_farm.claude.loses_answer = True
    created_batch = await batch_farm.create_batch(
        build_line(1, model="claude"), build_line(2, model="claude")
    )
    await batch_farm.wait_for_status(created_batch)
    assert list(batch_farm.claude.batches) == ["msgbatch_0", "msgbatch_1"]
    assert batch_farm.claude.deleted == ["msgbatch_1"]
    await foreign_client.close()


async def test_lines_that_a_batch_api_refuses_are_called_singly(batch_farm: BatchFarm) -> None:
    for provider_name in ("claude", "gpt"):
        provider: Any = getattr(batch_farm, provider_name)
        provider.refuses = 400
        ended_batch = await batch_farm.wait_for_status(
            await batch_farm.create_batch(*(build_line(n, model=provider_name) for n in range(3)))
        )
        assert ended_batch.request_counts is not None and ended_batch.request_counts.completed == 3
        assert len(provider.calls) == 3 and not provider.batches
        assert provider.deleted == (["file-0"] if provider_name == "gpt" else [])
        provider.refuses, provider.unanswered = None, 2
        partial_batch = await batch_farm.wait_for_status(
            await batch_farm.create_batch(*(build_line(n, model=provider_name) for n in range(3)))
        )
        assert (
            partial_batch.request_counts is not None and partial_batch.request_counts.completed == 3
        )
        assert len(provider.calls) == 5
    costs = Counter(await batch_farm.list_costs())
    assert costs == {Decimal("0.012"): 10, Decimal("0.006"): 2}


async def test_a_cancellation_reaches_the_back_end(batch_farm: BatchFarm) -> None:
    for provider_name in ("claude", "gpt"):
        provider: Any = getattr(batch_farm, provider_name)
        provider.holds = True
        created_batch = await batch_farm.create_batch(
            *(build_line(n, model=provider_name) for n in range(3))
        )

        await eventually(batch_farm.is_running_natively)
        await batch_farm.client.batches.cancel(created_batch.id)
        ended_batch = await batch_farm.wait_for_status(created_batch)
        assert ended_batch.status == "cancelled" and len(provider.cancelled) == 1
        errors = await batch_farm.read_lines(ended_batch.error_file_id)
        assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
        assert not provider.calls and await batch_farm.list_costs() == []


async def test_an_expired_batch_is_cancelled_at_its_back_end(batch_farm: BatchFarm) -> None:
    batch_farm.claude.holds = True
    async with batch_farm.open_anthropic() as client:
        created_batch = await client.messages.batches.create(
            requests=[build_request(1, model="claude")]
        )
        await eventually(lambda: bool(batch_farm.claude.batches))
        expire_statement: sa.Update = text_batches.update().values(expires_at=now())
        await batch_farm.app.database.execute(expire_statement)
        ended_batch = await batch_farm.wait_until_ended(created_batch.id)
    assert ended_batch.request_counts.expired == 1 and batch_farm.claude.cancelled
    [result] = (await batch_farm.read_results(created_batch.id)).values()
    assert result.type == "expired"


async def test_a_caller_with_a_budget_is_answered_by_single_calls(batch_farm: BatchFarm) -> None:
    key_id, key = await KeyStore(batch_farm.app.database).create("ada", "limited")
    await LimitStore(batch_farm.app.database).set(
        Limit(subject=f"key:{key_id}", requests_per_minute=1000)
    )
    async with batch_farm.open_anthropic(key) as client:
        created_batch = await client.messages.batches.create(
            requests=[build_request(1, model="claude")]
        )
    await batch_farm.wait_until_ended(created_batch.id)
    assert len(batch_farm.claude.calls) == 1 and not batch_farm.claude.batches


async def test_a_replica_that_stops_leaves_its_native_batches_to_others(
    batch_farm: BatchFarm,
) -> None:
    batch_farm.claude.holds = True
    created_batch = await batch_farm.create_batch(build_line(1, model="claude"))
    await eventually(lambda: bool(batch_farm.claude.batches))
    rows = await batch_farm.list_native_batches()
    # As if the replica had died in a step: the next is due when its lease ends.
    lapse_statement: sa.Update = native_batches.update().values(due_at=now() + timedelta(seconds=1))
    await batch_farm.app.database.execute(lapse_statement)
    batch_farm.claude.holds = False
    ended_batch = await batch_farm.wait_for_status(created_batch)
    assert ended_batch.request_counts is not None and ended_batch.request_counts.completed == 1
    assert len(batch_farm.claude.batches) == len(rows) == 1
    assert json.loads(batch_farm.claude.prompts[0])
    await asyncio.sleep(0)
    with pytest.raises(openai.NotFoundError):
        await batch_farm.client.batches.retrieve("msgbatch_0")
