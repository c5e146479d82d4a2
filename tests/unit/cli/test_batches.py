from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp import web

from moyin.cli import batches
from moyin.cli.main import run
from moyin.client.gateway import GatewayClient
from tests.unit.cli.conftest import Handler

T = TypeVar("T")


def make_batch(status: str, completed_count: int = 0, **changes: Any) -> dict[str, Any]:
    counts = {"total": 3, "completed": completed_count, "failed": 0}
    batch_body = {"id": "batch_1", "status": status, "request_counts": counts, "created_at": 0}
    files = {"output_file_id": None, "error_file_id": None, "errors": None}
    return {**batch_body, **files, **changes}


@pytest.fixture
async def batch_states(
    stub_gateway: tuple[GatewayClient, dict[str, Handler]], monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """Return an empty list for a batch's states; each request gets the next, then always the last."""
    states: list[dict[str, Any]] = []
    gateway, handlers = stub_gateway
    loop = asyncio.get_running_loop()

    def run_with_gateway(work: Callable[[GatewayClient], Awaitable[T]]) -> T:
        # The command runs in a thread, and the gateway in the loop of the test.
        return asyncio.run_coroutine_threadsafe(run_work(work), loop).result(20)

    async def run_work(work: Callable[[GatewayClient], Awaitable[T]]) -> T:
        return await work(gateway)

    async def show_batch(_: web.Request) -> web.Response:
        return web.json_response(states.pop(0) if len(states) > 1 else states[0])

    monkeypatch.setattr(batches, "run_with_gateway", run_with_gateway)
    monkeypatch.setattr(batches, "_POLL_SECONDS", 0)
    handlers["/v1/batches/batch_1"] = show_batch
    return states


async def test_a_batch_file_is_submitted_and_followed(
    stub_gateway: tuple[GatewayClient, dict[str, Handler]],
    batch_states: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"url": "/v1/embeddings"}\n{}')
    received_fields: dict[str, Any] = {}

    async def upload_file(request: web.Request) -> web.Response:
        form = await request.post()
        file_field = form["file"]
        assert isinstance(file_field, web.FileField)
        received_fields.update(
            purpose=form["purpose"], file=file_field.file.read(), name=file_field.filename
        )
        return web.json_response({"id": "file-1"})

    async def create_batch(request: web.Request) -> web.Response:
        received_fields["body"] = await request.json()
        return web.json_response(make_batch("validating"))

    stub_gateway[1].update({"/v1/files": upload_file, "/v1/batches": create_batch})
    batch_states += [
        make_batch("in_progress", 1),
        make_batch("in_progress", 1),
        make_batch("completed", 3),
    ]
    command = ["batches", "submit", str(file), "--label", "a=b", "--wait"]
    assert await asyncio.to_thread(run, command) == 0
    assert received_fields == {
        "purpose": "batch",
        "name": "in.jsonl",
        "file": file.read_bytes(),
        "body": {
            "input_file_id": "file-1",
            "endpoint": "/v1/embeddings",
            "completion_window": "24h",
            "metadata": {"a": "b"},
        },
    }
    output = capsys.readouterr()
    assert output.out == "batch_1\n"
    assert output.err.splitlines() == ["in_progress 1/3, 0 failed", "completed 3/3, 0 failed"]


async def test_problems_of_an_invalid_file_are_printed(
    batch_states: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    problems = [
        {"code": "a", "message": "b", "line": 2},
        {"code": "empty_file", "message": "c", "line": None},
    ]
    batch_states.append(make_batch("failed", errors={"data": problems}))
    assert await asyncio.to_thread(run, ["batches", "watch", "batch_1"]) == 3
    error_lines = capsys.readouterr().err.splitlines()
    assert error_lines[1:] == ["line 2: a: b", "empty_file: c"]


async def test_results_are_printed_or_written_to_a_file(
    stub_gateway: tuple[GatewayClient, dict[str, Handler]],
    batch_states: list[dict[str, Any]],
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    async def send_path(request: web.Request) -> web.Response:
        return web.Response(body=request.path.encode())

    for name in ("o", "e"):
        stub_gateway[1][f"/v1/files/{name}/content"] = send_path
    batch_states.append(make_batch("in_progress"))
    command = ["batches", "results", "batch_1"]
    assert await asyncio.to_thread(run, command) == 1
    assert b"the batch is in_progress" in capfdbinary.readouterr().err
    batch_states[0] = make_batch("completed", output_file_id="o")
    assert await asyncio.to_thread(run, command) == 0
    assert capfdbinary.readouterr().out == b"/v1/files/o/content"
    assert await asyncio.to_thread(run, [*command, "--errors"]) == 0
    assert capfdbinary.readouterr().out == b""
    batch_states[0] = make_batch("completed", output_file_id="o", error_file_id="e")
    target = tmp_path / "errors.jsonl"
    assert await asyncio.to_thread(run, [*command, "--errors", "--to", str(target)]) == 0
    assert target.read_bytes() == b"/v1/files/e/content"


async def test_batches_are_listed_shown_and_cancelled(
    stub_gateway: tuple[GatewayClient, dict[str, Handler]],
    batch_states: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def list_batches(request: web.Request) -> web.Response:
        assert request.query["limit"] == "20"
        return web.json_response({"data": [make_batch("completed", 3)]})

    async def cancel_batch(_: web.Request) -> web.Response:
        return web.json_response(make_batch("cancelling"))

    stub_gateway[1].update(
        {"/v1/batches": list_batches, "/v1/batches/batch_1/cancel": cancel_batch}
    )
    batch_states.append(make_batch("completed"))
    assert await asyncio.to_thread(run, ["batches", "list"]) == 0
    assert capsys.readouterr().out == "batch_1\tcompleted\t3\t3\t0\t1970-01-01 00:00:00\n"
    assert await asyncio.to_thread(run, ["batches", "show", "batch_1"]) == 0
    assert json.loads(capsys.readouterr().out) == make_batch("completed")
    assert await asyncio.to_thread(run, ["batches", "cancel", "batch_1"]) == 0
    assert capsys.readouterr().out == "batch_1 cancelling\n"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [("{}", [], "--endpoint"), ("x", [], "--endpoint"), ('{"url":"u"}', ["--label", "a"], "NAME")],
)
def test_wrong_usage_is_explained(
    content: str,
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(content)
    assert run(["batches", "submit", str(file), *options]) == 2
    assert message in capsys.readouterr().err
