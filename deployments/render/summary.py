"""Builds the summary of a render pool that operators see at ``/cluster``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from ray.exceptions import RayError

from actors.comfyui import ActorStatus
from deployments.render.actor_supervisor import ActorSupervisor
from deployments.render.pool import Pool
from moyin.domain.cluster import GpuReading, PoolSummary, RendererState, RendererSummary
from moyin.errors import MoyinError
from moyin.render.scheduling.rules import ScalingPolicy
from moyin.system.gpus import parse_devices

_READING_SECONDS = 2.0


async def build_summary(
    pool: Pool,
    supervisor: ActorSupervisor,
    scaling_policy: ScalingPolicy,
    comfyui_version: str | None,
) -> PoolSummary:
    """Return the state of the pool and its actors, with measurements of their graphics cards.

    Args:
        scaling_policy: the minimum and maximum number of actors.
        comfyui_version: the version of the pool's ComfyUI; None if it is unknown.
    """
    cards = await _read_cards(supervisor)
    return PoolSummary(
        name=pool.name,
        waiting=pool.waiting_renders,
        running=pool.running_renders,
        oldest_wait=pool.oldest_wait,
        wait_p50=pool.compute_wait_quantile(0.5),
        wait_p90=pool.compute_wait_quantile(0.9),
        minimum=scaling_policy.minimum,
        maximum=scaling_policy.maximum,
        unready_since=supervisor.unready_since,
        comfyui_version=comfyui_version,
        renderers=tuple(_iterate_renderers(pool, supervisor, cards)),
    )


async def _read_cards(supervisor: ActorSupervisor) -> Mapping[str, tuple[GpuReading, ...]]:
    """Return the measurements of graphics cards, by the name of the actor.

    Actors that do not respond within two seconds have no measurements.
    """

    async def read_actor_cards(name: str) -> tuple[GpuReading, ...]:
        try:
            async with asyncio.timeout(_READING_SECONDS):
                return await supervisor.read_gpus(name)
        except (MoyinError, RayError, TimeoutError):
            return ()  # The card may be too busy to measure, or the actor has just died.

    names = [name for name, status in supervisor.statuses.items() if status.spec.gpus]
    return dict(zip(names, await asyncio.gather(*map(read_actor_cards, names)), strict=True))


def _iterate_renderers(
    pool: Pool, supervisor: ActorSupervisor, cards: Mapping[str, tuple[GpuReading, ...]]
) -> Iterator[RendererSummary]:
    for name in supervisor.names:
        status = supervisor.statuses.get(name)
        losses = supervisor.losses.count(name)
        if status is None:
            state = (
                RendererState.PLACING
                if name in supervisor.placing_seconds
                else RendererState.STARTING
            )
            yield RendererSummary(name=name, state=state, losses=losses)
            continue
        yield RendererSummary(
            name=name,
            state=_find_state(pool, name, status),
            node_id=status.node_id,
            gpu_indexes=parse_devices(status.devices) if status.spec.gpus else (),
            gpus=status.spec.gpus,
            cpus=status.spec.cpus,
            models=status.renderer.models,
            error=status.renderer.error,
            started=status.started,
            losses=losses,
            cards=cards.get(name, ()),
            memory_kills=status.memory_kills,
        )


def _find_state(pool: Pool, name: str, status: ActorStatus) -> RendererState:
    if pool.is_draining(name):
        return RendererState.DRAINING
    if status.renderer.ready and pool.has_renderer(name):
        return RendererState.BUSY if pool.is_busy(name) else RendererState.READY
    return RendererState.STARTING if status.renderer.error is None else RendererState.FAILED
