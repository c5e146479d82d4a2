"""Tests of the body of ``GET /cluster``."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.gateway.cluster.snapshot import build_cluster, restrict_cluster
from deployments.gateway.cluster.sources import ClusterReading
from moyin.domain.cluster import (
    GpuReading,
    IntakeSourceSummary,
    ModelServerSummary,
    PoolSummary,
    RendererState,
    RendererSummary,
)
from moyin.domain.queue_place import Backlog


def make_node(name: str, *, gpus: float = 0, is_alive: bool = True) -> dict[str, Any]:
    return {
        "NodeID": name,
        "Alive": is_alive,
        "NodeManagerHostname": f"host-{name}",
        "Resources": {"CPU": 4.0, "memory": 1024.0, **({"GPU": gpus} if gpus else {})},
        "Labels": {"moyin-use": "render"},
    }


def make_renderer(name: str, gpu: int, share: float, **values: Any) -> RendererSummary:
    return RendererSummary(
        name=name, state=RendererState.READY, node_id="a", gpu_indexes=(gpu,), gpus=share, cpus=0.5,
        **values,
    )  # fmt: skip


def make_pool(name: str, *renderers: RendererSummary, **values: Any) -> PoolSummary:
    defaults: dict[str, Any] = {
        "waiting": 0, "running": 0, "oldest_wait": None, "wait_p50": None, "wait_p90": None,
        "minimum": 1, "maximum": 2,
    }  # fmt: skip
    return PoolSummary(name=name, renderers=renderers, **(defaults | values))


def test_actors_of_pools_and_model_servers_share_a_gpu() -> None:
    card = GpuReading(index=0, name="H100", memory_used=7, memory_total=80, temperature=41)
    reading = ClusterReading(
        nodes=[make_node("a", gpus=2), make_node("b"), make_node("dead", gpus=1, is_alive=False)],
        pools={
            "slow": make_pool(
                "slow", make_renderer("r-slow", 0, 0.5, models=("flux",), cards=(card,))
            ),
            "fast": make_pool("fast", make_renderer("r-fast", 0, 0.25)),
        },
        servers=[
            ModelServerSummary(name="llama-x", model="x", node_id="a", gpu_indexes=(0,), gpus=0.25)
        ],
    )
    cluster = build_cluster(["slow", "fast"], reading)
    assert cluster.nodes is not None
    assert [cluster_node.id for cluster_node in cluster.nodes] == ["a", "b"]
    first_gpu, second_gpu = cluster.nodes[0].gpus
    assert [(s.actor, s.pool, s.fraction, s.models) for s in first_gpu.shares] == [
        ("r-slow", "slow", 0.5, ["flux"]),
        ("r-fast", "fast", 0.25, []),
        ("llama-x", None, 0.25, ["x"]),
    ]
    assert (first_gpu.free, first_gpu.name, first_gpu.memory_used_bytes) == (0, "H100", 7)
    assert (first_gpu.memory_total_bytes, first_gpu.temperature_celsius) == (80, 41)
    assert (second_gpu.free, second_gpu.shares, second_gpu.temperature_celsius) == (1, [], None)
    assert cluster.nodes[1].gpus == []


def test_only_operators_see_the_sources_of_the_intake() -> None:
    source = IntakeSourceSummary(
        name="redis-jobs", owner="studio", kind="redis", address="broker:6379", queue="jobs",
        is_connected=True, started=10.2, last_message=None, accepted=3, refused=1, open=2,
    )  # fmt: skip
    cluster = build_cluster([], ClusterReading(intake=[source]))
    assert cluster.intake is not None
    [shown_source] = cluster.intake
    assert shown_source.model_dump(mode="json") == {
        "name": "redis-jobs", "owner": "studio", "kind": "redis", "address": "broker:6379",
        "queue": "jobs", "is_connected": True, "counted_since": "1970-01-01T00:00:10Z",
        "last_message_at": None, "accepted": 3, "refused": 1, "open": 2,
    }  # fmt: skip
    assert restrict_cluster(cluster, []).intake is None
    assert build_cluster([], ClusterReading()).intake is None


def test_queue_includes_renders_that_wait_in_temporal() -> None:
    reading = ClusterReading(
        pools={"p": make_pool("p", waiting=2, running=1, oldest_wait=5.0)},
        backlogs={"p": Backlog(count=7, oldest_wait=60.0)},
    )
    [pool_body] = build_cluster(["p"], reading).pools
    assert (pool_body.queued, pool_body.running, pool_body.ready) == (9, 1, 0)
    [pool_without_backlog] = build_cluster(["p"], ClusterReading(pools=reading.pools)).pools
    assert pool_body.oldest_waiting_since is not None
    assert pool_without_backlog.oldest_waiting_since is not None
    waited_seconds = pool_without_backlog.oldest_waiting_since - pool_body.oldest_waiting_since
    assert waited_seconds.total_seconds() == pytest.approx(55, abs=2)


def test_tenants_see_only_the_load_of_their_pools() -> None:
    reading = ClusterReading(
        nodes=[make_node("a", gpus=1)],
        pools={
            "mine": make_pool("mine", make_renderer("r", 0, 1.0), waiting=3),
            "theirs": make_pool("theirs"),
        },
    )
    visible_cluster = restrict_cluster(build_cluster(["mine", "theirs", "down"], reading), ["mine"])
    assert [pool_body.name for pool_body in visible_cluster.pools] == ["mine"]
    assert (
        visible_cluster.pools[0].queued,
        visible_cluster.pools[0].ready,
        visible_cluster.pools[0].renderers,
    ) == (3, 1, None)
    assert visible_cluster.nodes is None


def test_pool_that_does_not_respond_has_no_numbers() -> None:
    [pool_body] = build_cluster(["p"], ClusterReading()).pools
    assert not pool_body.is_responding
    assert pool_body.queued is None
