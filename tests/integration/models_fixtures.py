"""A real llama.cpp in a process of its own, and the models app under a real HTTP server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from deployments.models.app import ModelsParts, new_app
from deployments.models.config import ModelsConfig
from deployments.models.fleet import Garage
from moyin.gatekeeper import KeyAuthenticator
from moyin.gatekeeper.observation import NoObserver
from moyin.routing.dispatch import Dispatcher
from moyin.settings import Settings
from moyin.store.keys import KeyStore
from moyin.store.sql import Database
from moyin.store.usage import UsageLedger

LLAMA_KEY = "only-for-this-test"
_SERVER = f"""
import sys, xllamacpp
from actors.llama import shipped_gguf
params = xllamacpp.CommonParams()
params.model.path = str(shipped_gguf())
params.model_alias = {{"smollm2"}}
params.port, params.n_parallel, params.n_ctx = 0, 4, 4 * 2048
params.cpuparams.n_threads = 1
params.api_keys = [{LLAMA_KEY!r}]
params.use_jinja = True
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def llama() -> Iterator[str]:
    """URL, without ``/v1``, of a llama.cpp server with SmolLM2-135M."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        url = process.stdout.readline().strip()
        assert url.startswith("http"), "llama.cpp did not start"
        yield url
        process.stdin.close()
        process.wait(10)


@dataclass(kw_only=True)
class ModelsDoor:
    """The app as clients see it. ``url`` without ``/v1``."""

    url: str
    api_key: str
    dispatcher: Dispatcher
    ledger: UsageLedger


@asynccontextmanager
async def serving(
    folder: Path, *backends: dict[str, Any], **aliases: Any
) -> AsyncIterator[ModelsDoor]:
    """The models app on a free port, over these back ends."""
    settings = Settings(data=folder)
    database = Database(settings.sql_url)
    await database.ready()
    _, key = await KeyStore(database).create("ada", "test")
    ledger = UsageLedger(database)
    garage = Garage(settings, {"LLAMA_KEY": LLAMA_KEY})
    config = ModelsConfig.model_validate({"backends": backends, "aliases": aliases})
    dispatcher = Dispatcher(garage.build(config), ledger)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await ledger.start()
        yield
        await garage.close()
        await ledger.close()
        await database.close()

    parts = ModelsParts(
        dispatcher=dispatcher,
        ledger=ledger,
        authenticator=KeyAuthenticator(KeyStore(database), b"0" * 32),
        observer=NoObserver(),
        max_body_bytes=1_000_000,
        lifespan=lifespan,
    )
    server = uvicorn.Server(uvicorn.Config(new_app(parts), port=0, log_level="warning"))
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield ModelsDoor(
            url=f"http://127.0.0.1:{port}", api_key=key, dispatcher=dispatcher, ledger=ledger
        )
    finally:
        server.should_exit = True
        await running


def local(llama: str) -> dict[str, Any]:
    """llama.cpp through its OpenAI side, free."""
    return {
        "name": "local",
        "type": "openai",
        "base_url": f"{llama}/v1",
        "api_key_env": "LLAMA_KEY",
        "models": [{"name": "smollm2", "context": 2048, "price": {"input": 0, "output": 0}}],
    }


def claude(llama: str) -> dict[str, Any]:
    """llama.cpp through its Anthropic side, at Haiku's price."""
    return {
        "name": "claude",
        "type": "anthropic",
        "base_url": llama,
        "api_key_env": "LLAMA_KEY",
        "models": [{"name": "claude-haiku-5-5", "context": 200_000, "tools": True}],
    }
