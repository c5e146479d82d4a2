"""Defines the state of render pools, renderers and graphics cards, as operators see it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class RendererState(StrEnum):
    """The state of a renderer's actor.

    An actor that is ``placing`` waits for a node with enough free resources. One that is
    ``draining`` has an earlier configuration and finishes its renders. ``failed`` means that its
    ComfyUI did not start or has died.
    """

    PLACING = "placing"
    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuReading:
    """The measurements of one graphics card; a value is None if its driver does not report it.

    Attributes:
        index: the card's number on its node, as Ray counts.
        memory_used, memory_total: the used and the whole memory of the card in bytes.
        temperature: the temperature in degrees Celsius.
    """

    index: int
    name: str
    memory_used: int | None = None
    memory_total: int | None = None
    temperature: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryKill:
    """The end of a process because a node's memory was used up.

    Attributes:
        subject: what ended, such as the name of an actor.
        by: ``moyin``, or ``kernel`` if the kernel was first.
        at: the time, in seconds since the epoch.
        process_bytes: the memory that the process used; 0 if it is unknown.
        available_bytes, total_bytes: the memory of the node, or of its container, at that time.
    """

    subject: str
    by: Literal["moyin", "kernel"]
    at: float
    process_bytes: int
    available_bytes: int
    total_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RendererSummary:
    """The state of one renderer's actor.

    Attributes:
        node_id: the Ray node; None until the actor is placed.
        gpu_indexes: the numbers of those GPUs of the node that the actor uses, fully or in part.
        gpus, cpus: the numbers of GPUs and CPUs that Ray reserves for the actor.
        models: the model files in memory, the largest first.
        error: the reason why ComfyUI is not ready.
        started: the time of the actor's start, in seconds since the epoch.
        losses: how often the actor or its ComfyUI died or failed to start in the last ten minutes.
        cards: the measurements of the actor's cards; empty without a card.
        memory_kills: how its ComfyUI ended for want of memory in the last hour.
    """

    name: str
    state: RendererState
    node_id: str | None = None
    gpu_indexes: tuple[int, ...] = ()
    gpus: float = 0.0
    cpus: float = 0.0
    models: tuple[str, ...] = ()
    error: str | None = None
    started: float | None = None
    losses: int = 0
    cards: tuple[GpuReading, ...] = ()
    memory_kills: tuple[MemoryKill, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelServerSummary:
    """The state of one llama.cpp server's actor.

    Attributes:
        name: the name of the actor.
        model: the name of the model that the server runs.
        node_id: the Ray node of the actor.
        gpu_indexes: the numbers of those GPUs of the node that the actor uses, fully or in part.
        gpus: the number of GPUs that Ray reserves for the actor.
        memory_kills: how the server ended for want of memory in the last hour.
    """

    name: str
    model: str
    node_id: str
    gpu_indexes: tuple[int, ...] = ()
    gpus: float = 0.0
    memory_kills: tuple[MemoryKill, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolSummary:
    """The state of a render pool; all durations are in seconds.

    Attributes:
        waiting: the number of renders that wait within the pool; more may wait in Temporal.
        running: the number of renders that have a renderer.
        oldest_wait: how long the step of the oldest waiting render has waited; None if none waits.
        wait_p50, wait_p90: quantiles of the waits of recent renders; None if there were none.
        minimum, maximum: limits of the number of renderers.
        unready_since: the time, in seconds since the epoch, since which no renderer is ready; None
            if one is ready.
        comfyui_version: the version of ComfyUI on the pool's node; None if it is unknown.
    """

    name: str
    waiting: int
    running: int
    oldest_wait: float | None
    wait_p50: float | None
    wait_p90: float | None
    minimum: int
    maximum: int
    unready_since: float | None = None
    comfyui_version: str | None = None
    renderers: tuple[RendererSummary, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class IntakeSourceSummary:
    """The state of a message queue with jobs, as one replica of the intake sees it.

    Times are in seconds since the epoch, and counts begin at the time ``started``.

    Attributes:
        name: the name of the source, unique for its owner.
        owner: the tenant of its jobs.
        kind: the kind of the broker: ``rabbitmq``, or ``redis`` for a stream.
        address: host and port of the broker; None if they cannot be read from its URL.
        queue: the name of the queue or stream.
        is_connected: True while the replica has a connection to the broker.
        started: when the replica began to count.
        last_message: when the last message arrived; None before the first.
        accepted: the number of messages that became jobs.
        refused: the number of messages that became dead letters.
        open: the number of messages that are being processed.
    """

    name: str
    owner: str
    kind: str
    address: str | None
    queue: str
    is_connected: bool
    started: float
    last_message: float | None
    accepted: int
    refused: int
    open: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendSummary:
    """The availability of a back end for text, as one replica of the models app sees it.

    Attributes:
        is_up: the result of the last health check; None before the first.
        breaker: the state of its circuit breaker.
    """

    name: str
    is_up: bool | None
    breaker: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelsSummary:
    """The state of a replica of the models app.

    Attributes:
        is_config_rejected: True if the replica rejected its newest configuration.
    """

    backends: tuple[BackendSummary, ...] = ()
    is_config_rejected: bool = False
