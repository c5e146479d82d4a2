"""Tests of the cluster's metrics, read as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.gateway.cluster.bodies import (
    ClusterBody,
    GpuBody,
    IntakeSourceBody,
    NodeBody,
    PoolBody,
    ProblemBody,
    RendererBody,
)
from deployments.gateway.cluster.metrics import format_metrics, list_targets
from moyin.domain.cluster import RendererState
from moyin.errors import ServiceUnavailable


def new_renderer(name: str, state: RendererState) -> RendererBody:
    return RendererBody(
        name=name, state=state, node=None, gpu_indexes=[], gpus=1, cpus=1, models=[], error=None,
        started_at=None, losses=0,
    )  # fmt: skip


def new_node(*gpus: GpuBody, metrics_address: str | None = "10.0.0.5:8090") -> NodeBody:
    return NodeBody(
        id="a1", host="gpu-1", is_alive=True, cpus=8, memory_bytes=1, labels={}, gpus=list(gpus),
        metrics_address=metrics_address,
    )  # fmt: skip


def read_metrics(cluster: ClusterBody) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the value of each metric, by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(format_metrics(cluster).decode())
        for sample in family.samples
    }


def select(
    values: Mapping[tuple[str, frozenset[tuple[str, str]]], float], name: str, *labels: str
) -> dict[tuple[str, ...], float]:
    """Return a metric's value for each combination of values of the given labels."""
    return {
        tuple(dict(sample_labels)[label] for label in labels): value
        for (sample_name, sample_labels), value in values.items()
        if sample_name == name
    }


def test_problems_and_apps_are_metrics() -> None:
    problem = ProblemBody(
        code="template_invalid", subject='a "b"\\\n.toml', parameters={}, since=datetime.now(UTC),
        message="m", advice="a",
    )  # fmt: skip
    values = read_metrics(
        ClusterBody(
            pools=[], problems=[problem], applications={"gateway": "RUNNING", "models": "UNHEALTHY"}
        )
    )
    assert select(values, "moyin_problem", "code", "subject") == {
        ("template_invalid", 'a "b"\\\n.toml'): 1
    }
    assert select(values, "moyin_app_running", "app") == {("gateway",): 1, ("models",): 0}


def test_load_and_renderers_of_a_pool_are_metrics() -> None:
    pool = PoolBody(
        name="fast",
        is_responding=True,
        queued=3,
        running=2,
        oldest_waiting_since=datetime.now(UTC) - timedelta(minutes=5),
        wait_p50_seconds=1.5,
        ready=2,
        renderers=[
            new_renderer("r0", RendererState.BUSY),
            new_renderer("r1", RendererState.BUSY),
            new_renderer("r2", RendererState.FAILED),
        ],
    )
    values = read_metrics(ClusterBody(pools=[pool, PoolBody(name="away", is_responding=False)]))
    assert select(values, "moyin_pool_responding", "pool") == {("fast",): 1, ("away",): 0}
    assert select(values, "moyin_pool_renders", "pool", "state") == {
        ("fast", "queued"): 3,
        ("fast", "running"): 2,
    }
    [oldest_wait] = select(values, "moyin_pool_oldest_wait_seconds", "pool").values()
    assert 300 <= oldest_wait < 360
    assert select(values, "moyin_pool_wait_seconds", "quantile") == {("0.5",): 1.5}
    states = select(values, "moyin_pool_renderers", "state")
    assert {state: count for (state,), count in states.items() if count} == {"busy": 2, "failed": 1}
    assert len(states) == len(RendererState), "a state without renderers is 0, not missing"


def test_a_pool_without_waiting_renders_has_no_wait() -> None:
    values = read_metrics(ClusterBody(pools=[PoolBody(name="fast", is_responding=True)]))
    assert select(values, "moyin_pool_oldest_wait_seconds", "pool") == {("fast",): 0}
    assert select(values, "moyin_pool_wait_seconds", "pool") == {}


def test_gpus_are_metrics_and_unknown_measurements_are_missing() -> None:
    cards = (
        GpuBody(
            index=0, name="H100", free=0.25, memory_used_bytes=7, memory_total_bytes=80,
            temperature_celsius=41, shares=[],
        ),
        GpuBody(index=1, free=1, shares=[]),
    )  # fmt: skip
    values = read_metrics(ClusterBody(pools=[], nodes=[new_node(*cards)]))
    assert select(values, "moyin_gpu_reserved_ratio", "host", "gpu") == {
        ("gpu-1", "0"): 0.75,
        ("gpu-1", "1"): 0,
    }
    assert select(values, "moyin_gpu_memory_used_bytes", "gpu") == {("0",): 7}
    assert select(values, "moyin_gpu_memory_total_bytes", "gpu") == {("0",): 80}
    assert select(values, "moyin_gpu_temperature_celsius", "gpu") == {("0",): 41}


def test_sources_of_the_intake_are_metrics() -> None:
    source = IntakeSourceBody(
        name="jobs", owner="studio", kind="redis", address=None, queue="jobs", is_connected=True,
        counted_since=datetime.now(UTC), last_message_at=None, accepted=5, refused=1, open=2,
    )  # fmt: skip
    values = read_metrics(ClusterBody(pools=[], intake=[source]))
    assert select(values, "moyin_intake_connected", "tenant", "source") == {("studio", "jobs"): 1}
    assert select(values, "moyin_intake_messages", "result") == {
        ("accepted",): 5,
        ("refused",): 1,
        ("open",): 2,
    }


def test_targets_are_the_nodes_that_serve_metrics() -> None:
    nodes = [new_node(), new_node(metrics_address=None)]
    [target] = list_targets(ClusterBody(pools=[], nodes=nodes))
    assert target.model_dump() == {"targets": ["10.0.0.5:8090"], "labels": {"host": "gpu-1"}}
    with pytest.raises(ServiceUnavailable):
        list_targets(ClusterBody(pools=[]))
