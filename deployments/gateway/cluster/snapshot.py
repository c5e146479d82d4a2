"""Builds the body of ``GET /cluster`` from a reading of Ray, the pools and Temporal."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from deployments.gateway.cluster.bodies import (
    ClusterBody,
    GpuBody,
    IntakeSourceBody,
    NodeBody,
    PoolBody,
    RendererBody,
    ShareBody,
)
from deployments.gateway.cluster.sources import ClusterReading
from moyin.domain.cluster import (
    GpuReading,
    IntakeSourceSummary,
    PoolSummary,
    RendererState,
    RendererSummary,
)
from moyin.domain.queue_place import Backlog

_READY = (RendererState.READY, RendererState.BUSY)
_GpuKey = tuple[str, int]


def build_cluster(pool_names: Sequence[str], reading: ClusterReading) -> ClusterBody:
    """Return the body of ``GET /cluster`` for operators, with the named pools in this order."""
    now = time.time()
    pools = [
        _build_pool(name, reading.pools.get(name), reading.backlogs.get(name), now)
        for name in pool_names
    ]
    return ClusterBody(
        pools=pools,
        nodes=_build_nodes(reading),
        applications=dict(reading.applications),
        intake=None
        if reading.intake is None
        else [_build_intake_source(source) for source in reading.intake],
    )


def restrict_cluster(cluster: ClusterBody, pools: Collection[str]) -> ClusterBody:
    """Return a copy of ``cluster`` with only what a tenant may see: the load of the tenant's pools.

    Args:
        cluster: the body of ``GET /cluster`` for operators.
        pools: the names of the pools that the tenant may use.
    """
    return ClusterBody(
        pools=[
            pool.model_copy(update={"renderers": None, "comfyui_version": None})
            for pool in cluster.pools
            if pool.name in pools
        ]
    )


def _build_pool(
    name: str, summary: PoolSummary | None, backlog: Backlog | None, now: float
) -> PoolBody:
    if summary is None:
        return PoolBody(name=name, is_responding=False)
    backlog = backlog or Backlog()
    wait_seconds = [wait for wait in (summary.oldest_wait, backlog.oldest_wait) if wait is not None]
    return PoolBody(
        name=name,
        is_responding=True,
        queued=summary.waiting + backlog.count,
        running=summary.running,
        # Rounded to seconds, so that snapshots are equal if nothing has happened.
        oldest_waiting_since=_to_time(now - max(wait_seconds)) if wait_seconds else None,
        wait_p50_seconds=summary.wait_p50,
        wait_p90_seconds=summary.wait_p90,
        ready=sum(renderer.state in _READY for renderer in summary.renderers),
        minimum=summary.minimum,
        maximum=summary.maximum,
        comfyui_version=summary.comfyui_version or None,
        renderers=[_build_renderer(renderer) for renderer in summary.renderers],
    )


def _build_renderer(renderer: RendererSummary) -> RendererBody:
    return RendererBody(
        name=renderer.name,
        state=renderer.state,
        node=renderer.node_id,
        gpu_indexes=list(renderer.gpu_indexes),
        gpus=renderer.gpus,
        cpus=renderer.cpus,
        models=list(renderer.models),
        error=renderer.error,
        started_at=None if renderer.started is None else _to_time(renderer.started),
        losses=renderer.losses,
    )


def _build_intake_source(source: IntakeSourceSummary) -> IntakeSourceBody:
    return IntakeSourceBody(
        name=source.name,
        owner=source.owner,
        kind=source.kind,
        address=source.address,
        queue=source.queue,
        is_connected=source.is_connected,
        counted_since=_to_time(source.started),
        last_message_at=None if source.last_message is None else _to_time(source.last_message),
        accepted=source.accepted,
        refused=source.refused,
        open=source.open,
    )


def _build_nodes(reading: ClusterReading) -> list[NodeBody] | None:
    if reading.nodes is None:
        return None
    shares, cards = _collect_shares(reading), _collect_cards(reading)
    return [_build_node(node, shares, cards) for node in reading.nodes if node["Alive"]]


def _collect_shares(reading: ClusterReading) -> Mapping[_GpuKey, list[ShareBody]]:
    shares = defaultdict[_GpuKey, list[ShareBody]](list)
    for pool in reading.pools.values():
        for renderer in pool.renderers:
            for index in renderer.gpu_indexes:
                share = ShareBody(
                    actor=renderer.name,
                    pool=pool.name,
                    fraction=_to_fraction(renderer.gpus, len(renderer.gpu_indexes)),
                    state=renderer.state,
                    models=list(renderer.models),
                )
                shares[renderer.node_id or "", index].append(share)
    for server in reading.servers:
        for index in server.gpu_indexes:
            share = ShareBody(
                actor=server.name,
                pool=None,
                fraction=_to_fraction(server.gpus, len(server.gpu_indexes)),
                state=RendererState.READY,
                models=[server.model],
            )
            shares[server.node_id, index].append(share)
    return shares


def _to_fraction(gpus: float, gpu_count: int) -> float:
    """Return the fraction (0 to 1) of each of its GPUs that an actor reserves.

    Args:
        gpus: how much GPU Ray reserves for the actor in total, such as 0.5 or 2.
        gpu_count: the number of GPUs on which the actor runs.
    """
    return min(1.0, gpus / gpu_count)


def _collect_cards(reading: ClusterReading) -> Mapping[_GpuKey, GpuReading]:
    return {
        (renderer.node_id or "", card.index): card
        for pool in reading.pools.values()
        for renderer in pool.renderers
        for card in renderer.cards
    }


def _build_node(
    node: Mapping[str, Any],
    shares: Mapping[_GpuKey, list[ShareBody]],
    cards: Mapping[_GpuKey, GpuReading],
) -> NodeBody:
    resources, node_id = node["Resources"], node["NodeID"]
    gpus = []
    for index in range(int(resources.get("GPU", 0))):
        gpu_shares, card = shares.get((node_id, index), []), cards.get((node_id, index))
        gpus.append(
            GpuBody(
                index=index,
                name=None if card is None else card.name,
                free=round(max(0.0, 1.0 - sum(share.fraction for share in gpu_shares)), 4),
                memory_used_bytes=None if card is None else card.memory_used,
                memory_total_bytes=None if card is None else card.memory_total,
                temperature_celsius=None if card is None else card.temperature,
                shares=gpu_shares,
            )
        )
    return NodeBody(
        id=node_id,
        host=node["NodeManagerHostname"],
        is_alive=node["Alive"],
        cpus=resources.get("CPU", 0.0),
        memory_bytes=int(resources.get("memory", 0)),
        labels=node.get("Labels") or {},
        gpus=gpus,
        metrics_address=_build_address(
            node.get("NodeManagerAddress"), node.get("MetricsExportPort")
        ),
    )


def _build_address(host: str | None, port: int | None) -> str | None:
    """Return host and port as in a URL, or None if one of them is unknown."""
    if not host or not port or port < 0:
        return None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _to_time(seconds: float) -> datetime:
    return datetime.fromtimestamp(round(seconds), UTC)
