"""Formats the cluster's state as metrics for Prometheus, and lists where nodes serve theirs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from deployments.gateway.cluster.bodies import (
    ClusterBody,
    IntakeSourceBody,
    NodeBody,
    PoolBody,
    ProblemBody,
    TargetsBody,
)
from moyin.domain.cluster import RendererState
from moyin.errors import ServiceUnavailable

# The media type of version 0.0.4 of the format, which every version of Prometheus reads.
MEDIA_TYPE = "text/plain; version=0.0.4"


class _ClusterCollector(Collector):
    """Yields the metrics of one snapshot of the cluster, but no metrics of this process."""

    def __init__(self, cluster: ClusterBody, now: datetime) -> None:
        self._cluster = cluster
        self._now = now

    def collect(self) -> Iterator[GaugeMetricFamily]:
        cluster = self._cluster
        yield _describe_problems(cluster.problems or [])
        yield _describe_apps(cluster.applications or {})
        yield from _describe_pools(cluster.pools, self._now)
        yield from _describe_gpus(cluster.nodes or [])
        yield from _describe_intake(cluster.intake or [])


def format_metrics(cluster: ClusterBody) -> bytes:
    """Return the cluster's state as metrics in Prometheus's text format.

    Args:
        cluster: the body of ``GET /cluster`` for operators.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_ClusterCollector(cluster, datetime.now(UTC)))
    return generate_latest(registry)


def list_targets(cluster: ClusterBody) -> list[TargetsBody]:
    """Return the addresses where the nodes serve Ray's and our apps' metrics.

    The format is that of Prometheus's service discovery over HTTP.

    Raises:
        ServiceUnavailable: Ray does not respond. Prometheus keeps its previous list after an error,
            but would forget all nodes after an empty list.
    """
    if cluster.nodes is None:
        raise ServiceUnavailable("Ray does not say which nodes it has; try again")
    return [
        TargetsBody(targets=[node.metrics_address], labels={"host": node.host})
        for node in cluster.nodes
        if node.metrics_address is not None
    ]


def _describe_problems(problems: list[ProblemBody]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "moyin_problem",
        "1 for each present problem; GET /cluster/problems says more.",
        labels=("code", "subject"),
    )
    for problem in problems:
        family.add_metric([problem.code, problem.subject], 1)
    return family


def _describe_apps(applications: dict[str, str]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "moyin_app_running", "1 if Ray Serve reports the app as RUNNING, else 0.", labels=("app",)
    )
    for name, status in applications.items():
        family.add_metric([name], status == "RUNNING")
    return family


def _describe_pools(pools: list[PoolBody], now: datetime) -> Iterator[GaugeMetricFamily]:
    responding = GaugeMetricFamily(
        "moyin_pool_responding", "1 if the render pool responds, else 0.", labels=("pool",)
    )
    renders = GaugeMetricFamily(
        "moyin_pool_renders", "Renders that wait or run.", labels=("pool", "state")
    )
    oldest_wait = GaugeMetricFamily(
        "moyin_pool_oldest_wait_seconds",
        "How long the oldest waiting render has waited; 0 if none waits.",
        labels=("pool",),
    )
    waits = GaugeMetricFamily(
        "moyin_pool_wait_seconds",
        "Quantiles of the waits of the last hour's renders.",
        labels=("pool", "quantile"),
    )
    renderers = GaugeMetricFamily(
        "moyin_pool_renderers", "Renderers by state.", labels=("pool", "state")
    )
    for pool in pools:
        responding.add_metric([pool.name], pool.is_responding)
        if not pool.is_responding:
            continue
        for render_state, count in (("queued", pool.queued), ("running", pool.running)):
            renders.add_metric([pool.name, render_state], count or 0)
        since = pool.oldest_waiting_since or now
        oldest_wait.add_metric([pool.name], max(0.0, (now - since).total_seconds()))
        for quantile, wait in (("0.5", pool.wait_p50_seconds), ("0.9", pool.wait_p90_seconds)):
            if wait is not None:
                waits.add_metric([pool.name, quantile], wait)
        states = [renderer.state for renderer in pool.renderers or []]
        for state in RendererState:
            renderers.add_metric([pool.name, state.value], states.count(state))
    yield from (responding, renders, oldest_wait, waits, renderers)


def _describe_gpus(nodes: list[NodeBody]) -> Iterator[GaugeMetricFamily]:
    labels = ("host", "node", "gpu")
    reserved = GaugeMetricFamily(
        "moyin_gpu_reserved_ratio", "The part of the GPU that actors have reserved.", labels=labels
    )
    memory_used = GaugeMetricFamily(
        "moyin_gpu_memory_used_bytes", "Used memory of the card.", labels=labels
    )
    memory_total = GaugeMetricFamily(
        "moyin_gpu_memory_total_bytes", "Memory of the card.", labels=labels
    )
    temperature = GaugeMetricFamily(
        "moyin_gpu_temperature_celsius", "Temperature of the card.", labels=labels
    )
    for node in nodes:
        for gpu in node.gpus:
            values = [node.host, node.id, str(gpu.index)]
            reserved.add_metric(values, round(1 - gpu.free, 4))
            for family, measurement in (
                (memory_used, gpu.memory_used_bytes),
                (memory_total, gpu.memory_total_bytes),
                (temperature, gpu.temperature_celsius),
            ):
                if measurement is not None:
                    family.add_metric(values, measurement)
    yield from (reserved, memory_used, memory_total, temperature)


def _describe_intake(sources: list[IntakeSourceBody]) -> Iterator[GaugeMetricFamily]:
    connected = GaugeMetricFamily(
        "moyin_intake_connected",
        "1 if the intake is connected to the source's broker, else 0.",
        labels=("tenant", "source"),
    )
    messages = GaugeMetricFamily(
        "moyin_intake_messages",
        "Messages of a source since the replica of the intake started, by result.",
        labels=("tenant", "source", "result"),
    )
    for source in sources:
        connected.add_metric([source.owner, source.name], source.is_connected)
        for result in ("accepted", "refused", "open"):
            messages.add_metric([source.owner, source.name, result], getattr(source, result))
    yield from (connected, messages)
