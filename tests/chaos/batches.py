"""Runs a batch of text requests while every process that takes part in it is killed once.

``python -m tests.chaos.batches`` starts a farm, measures interactive calls without and with a
batch, kills one process after another while the batch runs, and checks that each line was answered
or failed once and was billed once. ``--lines`` sets the size (20,000). Arguments are the names of
the parts to kill, by default all. The results are the figures in docs/batches.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from aiohttp import web
from anyio.from_thread import start_blocking_portal

from tests.chaos import victims
from tests.chaos.outages import PARTS
from tests.stack import RunningStack, shipped_config

BATCH_PARTS = (
    "models replica", "JobWorker replica", "gateway replica", "accounts replica", "Temporal",
    "Valkey", "HAProxy", "HAProxyManager", "ProxyActor", "ServeController", "gcs_server", "raylet",
)  # fmt: skip
_MODEL = "batch-mock"
# The mock model refuses one line in a hundred.
_REFUSED_EVERY = 100
_USD = {"price": {"input": 1, "output": 1}}
_NANO_USD = 4_000
_ENDED = {"completed", "failed", "expired", "cancelled"}


class MockModel:
    """Answers each chat after ``seconds``, and counts the requests with each prompt."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.calls_by_prompt = Counter[str]()
        self.url = ""

    @contextmanager
    def serving(self) -> Iterator[None]:
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(self._serve_model()),
        ):
            yield

    @asynccontextmanager
    async def _serve_model(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer_chat)
        app.router.add_get("/v1/models", _list_models)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield
        finally:
            await runner.cleanup()

    async def _answer_chat(self, request: web.Request) -> web.Response:
        prompt = (await request.json())["messages"][-1]["content"]
        self.calls_by_prompt[prompt] += 1
        await asyncio.sleep(self.seconds)
        if prompt.endswith("refused"):
            error = {"message": "refused", "type": "invalid_request_error"}
            return web.json_response({"error": error}, status=400)
        message = {"role": "assistant", "content": "yes"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        completion = {"id": "1", "object": "chat.completion", "created": 1, "model": _MODEL}
        return web.json_response({**completion, "choices": [choice], "usage": usage})


async def _list_models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": []})


@contextmanager
def deployed_model(gateway: RunningStack, model: MockModel, parallel: int) -> Iterator[None]:
    """Add the model to the farm's models app during the block.

    Args:
        parallel: the number of calls that the model answers at a time.
    """
    path = Path(gateway.env["MOYIN_SERVE_CONFIG"])
    text_before = path.read_text()
    config = yaml.safe_load(text_before)
    [app] = [app for app in config["applications"] if app["name"] == "models"]
    backend = {
        "name": "batch-mock",
        "type": "openai",
        "base_url": f"{model.url}/v1",
        "parallel": parallel,
        "models": [{"name": _MODEL, "context": 8000, **_USD}],
    }
    app["deployments"][0]["user_config"]["backends"].append(backend)
    path.write_text(yaml.safe_dump(config))
    try:
        gateway.run("deploy")
        yield
    finally:
        path.write_text(text_before)
        gateway.run("deploy")


@dataclass(kw_only=True)
class BatchRun:
    """One batch on a farm, with a client that retries its calls during failures."""

    gateway: RunningStack
    lines: int
    id: str = ""
    repeated: int = 0
    kills: list[str] = field(default_factory=list)

    def submit(self, folder: Path) -> None:
        file = folder / "input.jsonl"
        with file.open("w") as lines_file:
            for number in range(1, self.lines + 1):
                lines_file.write(json.dumps(_build_line(number)) + "\n")
        self.id = self.gateway.run("batches", "submit", str(file)).stdout.strip()

    def fetch_batch(self) -> dict[str, Any]:
        """Return the batch, retrying until the gateway answers."""
        deadline = time.monotonic() + 240
        while True:
            try:
                response = httpx.get(
                    f"{self.gateway.url}/v1/batches/{self.id}",
                    headers={"authorization": f"Bearer {self.gateway.api_key}"},
                    timeout=10,
                )
                if response.status_code == 200:
                    batch: dict[str, Any] = response.json()
                    return batch
                assert response.status_code >= 500, response.text
            except httpx.HTTPError:
                pass
            assert time.monotonic() < deadline, (
                f"the gateway has not returned the batch {self.id} for 240 s"
            )
            time.sleep(0.5)

    def wait(self, condition: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            batch = self.fetch_batch()
            if condition(batch):
                return batch
            assert time.monotonic() < deadline, (
                f"the batch did not meet the condition within {seconds} s: {batch}"
            )
            time.sleep(0.2)

    def cancel(self) -> None:
        self.gateway.run("batches", "cancel", self.id)
        self.wait(lambda batch: batch["status"] == "cancelled", 120)

    def kill_all(self, parts: Sequence[str]) -> None:
        """Kill the parts one after the other, each after the batch has made progress."""
        for number, part in enumerate(parts):
            share = (number + 0.5) / (len(parts) + 1)
            target_count = share * self.lines

            def has_progressed(batch: dict[str, Any], target_count: float = target_count) -> bool:
                return _count_finished_lines(batch) >= target_count

            self.wait(has_progressed, 300)
            count_before = len(victims.list_processes(self.gateway.data, PARTS[part]))
            assert count_before >= 1, f"no process of {part} runs, so none can be killed"
            killed_pid = victims.kill_one(self.gateway.data, PARTS[part])
            batch = self.fetch_batch()
            assert batch["status"] == "in_progress", (
                f"the batch was {batch['status']} before {part} was killed: give it more lines"
            )
            self.kills.append(f"{part} at {_count_finished_lines(batch)}")
            victims.wait_for_another(self.gateway.data, PARTS[part], killed_pid, count_before, 240)

    def check_results(self, model: MockModel) -> None:
        """Assert that each line has one result, and that each answer is billed once."""
        batch = self.wait(lambda state: state["status"] in _ENDED, 600)
        refused_ids = {
            f"line-{call_count}"
            for call_count in range(1, self.lines + 1)
            if call_count % _REFUSED_EVERY == 0
        }
        assert batch["status"] == "completed", batch
        expected_counts = {"total": self.lines, "failed": len(refused_ids)}
        assert batch["request_counts"] == {
            **expected_counts,
            "completed": self.lines - len(refused_ids),
        }
        answered_lines = self._read_file(batch["output_file_id"])
        failed_lines = self._read_file(batch["error_file_id"])
        assert len(answered_lines) == self.lines - len(refused_ids) and len(failed_lines) == len(
            refused_ids
        )
        assert {line["custom_id"] for line in failed_lines} == refused_ids
        assert {line["custom_id"] for line in answered_lines} == {
            f"line-{call_count}" for call_count in range(1, self.lines + 1)
        } - refused_ids
        call_counts = {
            prompt: call_count
            for prompt, call_count in model.calls_by_prompt.items()
            if prompt.startswith("line")
        }
        assert len(call_counts) == self.lines
        self.repeated = sum(call_counts.values()) - self.lines
        request_ids = {line["response"]["request_id"] for line in answered_lines}
        ledger_rows = self._read_ledger()
        complete_rows = [
            (request_id, cost) for request_id, cost, is_complete in ledger_rows if is_complete
        ]
        assert Counter(request_id for request_id, _ in complete_rows) == Counter(request_ids)
        assert {cost for _, cost in complete_rows} == {_NANO_USD}

    def _read_file(self, file_id: str) -> list[dict[str, Any]]:
        response = httpx.get(
            f"{self.gateway.url}/v1/files/{file_id}/content",
            headers={"authorization": f"Bearer {self.gateway.api_key}"},
            timeout=60,
        )
        assert response.status_code == 200, response.text
        return [json.loads(line) for line in response.content.splitlines()]

    def _read_ledger(self) -> list[tuple[str, int, bool]]:
        with closing(sqlite3.connect(self.gateway.data / "moyin.db")) as connection:
            query = "SELECT request_id, cost_nano_usd, complete FROM usage WHERE request_id LIKE ?"
            return connection.execute(query, (f"{self.id}-%",)).fetchall()


def measure_calls(gateway: RunningStack, count: int) -> list[float]:
    """Return the sorted durations in seconds of consecutive interactive calls of the same model."""
    body = {"model": _MODEL, "messages": [{"role": "user", "content": "interactive"}]}
    call_seconds = []
    with httpx.Client(
        base_url=f"{gateway.url}/v1",
        headers={"authorization": f"Bearer {gateway.api_key}"},
        timeout=60,
    ) as client:
        for _ in range(count):
            started_at = time.perf_counter()
            response = client.post("/chat/completions", json=body)
            call_seconds.append(time.perf_counter() - started_at)
            assert response.status_code == 200, response.text
    return sorted(call_seconds)


def describe_durations(sorted_seconds: Sequence[float]) -> str:
    """Return the median and the 99th percentile of sorted durations in seconds."""
    p50, p99 = (
        sorted_seconds[len(sorted_seconds) // 2],
        sorted_seconds[int(len(sorted_seconds) * 0.99)],
    )
    return f"p50 {1000 * p50:.1f} ms, p99 {1000 * p99:.1f} ms"


def _build_line(number: int) -> dict[str, Any]:
    suffix = " refused" if number % _REFUSED_EVERY == 0 else ""
    return {
        "custom_id": f"line-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": _MODEL,
            "messages": [{"role": "user", "content": f"line {number}{suffix}"}],
        },
    }


def _count_finished_lines(batch: dict[str, Any]) -> int:
    counts = batch["request_counts"]
    return int(counts["completed"]) + int(counts["failed"])


def _text_farm_env(folder: Path) -> dict[str, str]:
    """Return the environment variables of a farm without renders."""
    config = shipped_config()
    config["applications"] = [
        app for app in config["applications"] if not app["name"].startswith("render-")
    ]
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config))
    return {"MOYIN_SERVE_CONFIG": str(path)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"one of: {', '.join(BATCH_PARTS)}"
    )
    parser.add_argument("--lines", type=int, default=20_000, help="lines of the batch")
    parser.add_argument("--measure-only", action="store_true", help="stop before the kills")
    parser.add_argument("--calls", type=int, default=500, help="interactive calls to measure")
    parser.add_argument("--seconds", type=float, default=0.05, help="time that the model takes")
    parser.add_argument("--slow", type=float, default=0.3, help="the same during the kills")
    parser.add_argument(
        "--parallel", type=int, default=32, help="calls that the back end takes at a time"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="moyin-batches-") as folder:
        folder_path, model = Path(folder), MockModel(options.seconds)
        gateway = RunningStack(folder_path, _text_farm_env(folder_path))
        with gateway.running(), model.serving(), deployed_model(gateway, model, options.parallel):
            measure_calls(gateway, 50)
            print(
                "without a batch:",
                describe_durations(measure_calls(gateway, options.calls)),
                flush=True,
            )
            batch_run = BatchRun(gateway=gateway, lines=options.lines)
            batch_run.submit(folder_path)
            batch_run.wait(lambda batch: _count_finished_lines(batch) > 0, 60)
            started_at, finished_before = (
                time.monotonic(),
                _count_finished_lines(batch_run.fetch_batch()),
            )
            print(
                "with a batch:",
                describe_durations(measure_calls(gateway, options.calls)),
                flush=True,
            )
            lines_per_second = (
                _count_finished_lines(batch_run.fetch_batch()) - finished_before
            ) / (time.monotonic() - started_at)
            batch_run.cancel()
            print(
                "without a batch:",
                describe_durations(measure_calls(gateway, options.calls)),
                flush=True,
            )
            print(f"{lines_per_second:.0f} lines/s", flush=True)
            if options.measure_only:
                return 0
            model.seconds, started_at = options.slow, time.monotonic()
            model.calls_by_prompt.clear()
            run_with_kills = BatchRun(gateway=gateway, lines=options.lines)
            run_with_kills.submit(folder_path)
            run_with_kills.kill_all(options.parts or BATCH_PARTS)
            run_with_kills.check_results(model)
            print(f"{options.lines} lines in {time.monotonic() - started_at:.0f} s")
            print(f"killed: {', '.join(run_with_kills.kills)}")
            print(
                f"{run_with_kills.repeated} lines were sent to the model again, none was billed twice"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
