"""Runs a replica of the models app without Ray Serve and reports its processor time.

    python -P benchmarks/quality/replica.py BACKEND_URL USD_PER_BAD_ANSWER

Settings come from the environment. The program prints its address and a key. Then it prints its
processor time so far in seconds for every line on standard input.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time

import uvicorn
import uvloop

from deployments.models.deployment import Models
from deployments.server import ReplicaServer
from moyin.settings import Settings
from moyin.store.keys import KeyStore
from moyin.store.sql import Database

# Models with their prices.
_MODELS = {"qwen3-8b": 1.0, "smollm2-135m": 0.5}


async def serve(backend: str, usd_per_bad_answer: float) -> None:
    """Serve the models app until standard input ends.

    Args:
        backend: the URL of the back end without ``/v1``.
        usd_per_bad_answer: the cost of a bad answer; 0 turns quality estimates off.
    """
    database = Database(Settings().sql_url)
    await database.ensure_schema()
    _, key = await KeyStore(database).create("ada", "benchmark")
    await database.close()
    models = Models()
    backends = [
        {
            "name": name.partition("-")[0],
            "type": "openai",
            "base_url": f"{backend}/v1",
            "models": [
                {"name": name, "context": 8_000, "price": {"input": price, "output": price}}
            ],
        }
        for name, price in _MODELS.items()
    ]
    auto_alias = {"models": list(_MODELS), "usd_per_bad_answer": usd_per_bad_answer}
    # Applies to requests that name a model: their answers can then be followed up, too.
    routing_settings = {"usd_per_bad_answer": usd_per_bad_answer}
    await models.reconfigure(
        {"backends": backends, "aliases": {"auto": auto_alias}, "routing": routing_settings}
    )
    server = ReplicaServer(uvicorn.Config(models.__serve_build_asgi_app__(), log_level="warning"))
    listener = socket.create_server(("127.0.0.1", 0))
    server_task = asyncio.create_task(server.serve([listener]))
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", key, flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(time.process_time(), flush=True)
    server.should_exit = True
    await server_task


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], float(sys.argv[2])))
