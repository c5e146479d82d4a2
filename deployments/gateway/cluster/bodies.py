"""Defines the JSON bodies of the routes below ``/cluster``."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from moyin.domain.cluster import RendererState
from moyin.http.breaker import BreakerState
from moyin.stack.doctor.result import CheckVerdict


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True)


class ShareBody(_Body):
    """The share of a GPU that is assigned to one actor."""

    actor: str = Field(description="The Ray actor: a renderer, or a llama.cpp server.")
    pool: str | None = Field(description="The render pool; null for a llama.cpp server.")
    fraction: float = Field(description="The part of the GPU that Ray reserves, above 0 to 1.")
    state: RendererState
    models: list[str] = Field(description="The model files in memory, the largest first.")


class GpuBody(_Body):
    """A GPU of a node as Ray counts it; the measurements are null if no physical GPU backs it."""

    index: int = Field(description="The GPU's number on its node.")
    name: str | None = None
    free: float = Field(description="The part of the GPU that no actor has reserved.")
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_celsius: int | None = None
    shares: list[ShareBody]


class NodeBody(_Body):
    """A node of the Ray cluster."""

    id: str
    host: str
    is_alive: bool
    cpus: float = Field(description="The CPUs that Ray may reserve.")
    memory_bytes: int = Field(description="The memory that Ray may reserve.")
    labels: dict[str, str]
    gpus: list[GpuBody]
    metrics_address: str | None = Field(
        None, description="Host and port where the node serves Prometheus metrics under `/metrics`."
    )


class RendererBody(_Body):
    """An actor of a render pool, which runs one ComfyUI process."""

    name: str
    state: RendererState
    node: str | None = Field(description="The id of its node; null until Ray has placed the actor.")
    gpu_indexes: list[int]
    gpus: float
    cpus: float
    models: list[str]
    error: str | None = Field(description="Why ComfyUI is not ready.")
    started_at: datetime | None
    losses: int = Field(
        description="How often the actor or its ComfyUI died or failed to start in ten minutes."
    )


class PoolBody(_Body):
    """The state and the load of a render pool."""

    name: str
    is_responding: bool = Field(description="If false, all other members but `name` are unknown.")
    queued: int | None = Field(None, description="Renders that have no renderer yet.")
    running: int | None = None
    oldest_waiting_since: datetime | None = None
    wait_p50_seconds: float | None = Field(
        None, description="Half of the last hour's renders waited less; null without any."
    )
    wait_p90_seconds: float | None = None
    ready: int | None = Field(None, description="Renderers that are ready or busy.")
    minimum: int | None = None
    maximum: int | None = None
    comfyui_version: str | None = Field(None, description="For operators only.")
    renderers: list[RendererBody] | None = Field(None, description="For operators only.")


class ProblemBody(_Body):
    """A present problem of the cluster, with advice."""

    code: str = Field(description="A stable name of the kind of problem; docs/operations.md.")
    subject: str = Field(description="What has the problem, such as a pool or a back end.")
    parameters: dict[str, str | int | bool | None] = Field(
        description="The further values in `message`, from which clients make texts of their own."
    )
    since: datetime = Field(description="When it began, or was first noticed by this replica.")
    message: str
    advice: str = Field(description="What an operator can do.")


class ProblemsBody(_Body):
    """The present problems of the cluster, oldest first."""

    problems: list[ProblemBody]


class IntakeSourceBody(_Body):
    """A message queue whose messages become jobs, as one replica of the app `intake` sees it."""

    name: str
    owner: str = Field(description="The tenant of its jobs.")
    kind: str = Field(description="`rabbitmq`, or `redis` for a stream of Redis or Valkey.")
    address: str | None = Field(
        description="Host and port of the broker; null if its URL is not valid."
    )
    queue: str = Field(description="The name of the queue or stream.")
    is_connected: bool
    counted_since: datetime = Field(description="When the replica began to count.")
    last_message_at: datetime | None = Field(description="When the last message arrived.")
    accepted: int = Field(description="Messages that became jobs.")
    refused: int = Field(description="Messages that became dead letters.")
    open: int = Field(description="Messages that are being processed.")


class ClusterBody(_Body):
    """The body of ``GET /cluster``: render pools, nodes, apps and intake sources."""

    pools: list[PoolBody]
    nodes: list[NodeBody] | None = Field(
        None, description="For operators only; null while Ray does not respond."
    )
    problems: list[ProblemBody] | None = Field(None, description="For operators only.")
    applications: dict[str, str] | None = Field(
        None, description="The status of each app of Ray Serve. For operators only."
    )
    intake: list[IntakeSourceBody] | None = Field(
        None,
        description="The message queues with jobs. For operators only; null without the app "
        "`intake`, or while it does not respond.",
    )


class UpstreamBody(_Body):
    """The state of an upstream server of a route, as seen by the responding gateway replica."""

    url: str
    weight: int
    is_up: bool = Field(description="The result of the health checks; true without any.")
    breaker: BreakerState
    open_requests: int


class RouteBody(_Body):
    """A route of the proxy, with its upstream servers."""

    name: str
    hosts: list[str]
    paths: list[str]
    prefix: str | None
    open_requests: int
    max_open_requests: int | None
    upstreams: list[UpstreamBody]


class ConfigBody(_Body):
    """The gateway's reloadable configuration that is in force."""

    values: dict[str, Any]
    applied_at: datetime | None = Field(description="When this replica applied it.")
    is_newest_rejected: bool = Field(description="Whether a newer one is invalid and ignored.")


class CheckBody(_Body):
    """The result of one check of the machine."""

    name: str
    verdict: CheckVerdict = Field(description="With `fail`, Moyin will not work.")
    found: str = Field(description="The result in words.")
    advice: str = Field(description="What to do; empty if the verdict is `ok`.")
    fix: str = Field(description="What `moyin doctor --fix` does about it; empty for nothing.")


class DoctorBody(_Body):
    """The results of `moyin doctor` on the machine of the responding gateway replica."""

    checked_at: datetime
    checks: list[CheckBody]


class RoutesBody(_Body):
    """The proxy's routes, the apps' status, package versions, and the gateway's configuration."""

    routes: list[RouteBody]
    applications: dict[str, str] = Field(
        description="The status of each app of Ray Serve, such as that of `intake`."
    )
    versions: dict[str, str] = Field(description="The versions of packages in this replica.")
    config: ConfigBody


class TargetsBody(_Body):
    """Addresses to read metrics from, as Prometheus's service discovery over HTTP expects them."""

    targets: list[str] = Field(description="Hosts with ports.")
    labels: dict[str, str] = Field(description="Labels that all metrics of the targets get.")


class LinksBody(_Body):
    """Addresses of the web interfaces of Temporal and Ray; null where none is configured."""

    temporal: str | None = Field(
        description="The workflows in Temporal's web interface; a slash and a job's id follow it."
    )
    ray: str | None = Field(description="Ray's dashboard.")


class DifferenceBody(_Body):
    """A value that differs between two configurations; a missing value is null."""

    path: str = Field(description="Where the value stands, such as `routes.shop.retries`.")
    before: Any = None
    after: Any = None


class ConfigChangeBody(_Body):
    """A configuration that the gateway began to use, compared with the one before."""

    applied_at: datetime
    differences: list[DifferenceBody] = Field(description="At most 100, sorted by path.")
    more: int = Field(description="How many further values differ.")


class ConfigChangesBody(_Body):
    """The changes of the gateway's latest configurations, newest first.

    The first configuration has no entry, because there is none before it.
    """

    changes: list[ConfigChangeBody]
