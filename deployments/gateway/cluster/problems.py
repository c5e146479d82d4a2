"""Finds the present problems of the cluster, and describes them with advice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from deployments.gateway.cluster.bodies import ClusterBody, PoolBody, ProblemBody
from deployments.gateway.cluster.sources import ClusterReading
from moyin.domain.cluster import BackendSummary, MemoryKill, RendererState
from moyin.proxy.pool import UpstreamPool
from moyin.system.memory_kills import describe_kill

_LONG_WAIT = timedelta(minutes=10)
# The usual time in which an autoscaler adds a node and ComfyUI starts.
_START_PATIENCE = timedelta(minutes=3)
_MANY_LOSSES = 3
_MIN_FREE_BYTES = 2 * 1024**3
_GIB = 1024**3
_MAX_TEMPLATES = 20
_MAX_ERROR_CHARACTERS = 500
_HEALTHY_APPS = ("RUNNING", "DEPLOYING", "NOT_STARTED", "DELETING")
_CHECK_ADVICE = {
    "database": "Start the database, or check MOYIN_DATABASE_URL; jobs cannot be accepted meanwhile.",
    "temporal": "Start Temporal, or check MOYIN_TEMPORAL_ADDRESS; accepted jobs wait meanwhile.",
    "valkey": "Start Valkey, or check MOYIN_REDIS_URL; progress and limits are missing meanwhile.",
    "artifacts": "Check MOYIN_ARTIFACTS_URL and that its folder or bucket can be read.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Finding:
    """A problem; ``since`` is None if no source knows the time at which it began."""

    code: str
    subject: str
    message: str
    advice: str
    parameters: Mapping[str, str | int | bool | None] = field(default_factory=dict)
    since: datetime | None = None


class ProblemFinder:
    """Finds problems in readings of the cluster's state, and remembers when each was first seen."""

    def __init__(self) -> None:
        self._first_seen: dict[tuple[str, str], datetime] = {}

    def find(
        self, cluster: ClusterBody, reading: ClusterReading, routes: Sequence[UpstreamPool]
    ) -> list[ProblemBody]:
        """Return the present problems, oldest first.

        Args:
            cluster: the body of ``GET /cluster`` that was built from ``reading``.
            routes: the routes of the proxy, with the state of their upstream servers.
        """
        now = datetime.now(UTC).replace(microsecond=0)
        findings = [
            *_check_services(reading),
            *_check_pools(cluster, reading, now),
            *_check_memory(reading),
            *_check_backends(reading.backends),
            *_check_routes(routes),
            *_check_templates(reading.template_problems),
        ]
        first_seen, self._first_seen = self._first_seen, {}
        problems = []
        for finding in findings:
            key = (finding.code, finding.subject)
            since = self._first_seen[key] = finding.since or first_seen.get(key, now)
            problems.append(
                ProblemBody(
                    code=finding.code,
                    subject=finding.subject,
                    parameters=dict(finding.parameters),
                    since=since,
                    message=finding.message,
                    advice=finding.advice,
                )
            )
        return sorted(problems, key=lambda problem: (problem.since, problem.code, problem.subject))


def _check_services(reading: ClusterReading) -> Iterator[_Finding]:
    for name, is_up in reading.checks.items():
        if not is_up:
            yield _Finding(
                code="service_down",
                subject=name,
                message=f"The service {name} does not respond.",
                advice=_CHECK_ADVICE.get(name, "Start the service again."),
            )
    if reading.nodes is None:
        yield _Finding(
            code="ray_not_responding",
            subject="ray",
            message="Ray does not list its nodes.",
            advice="Look at the logs of Ray's head node.",
        )
    if reading.disk_free is not None and reading.disk_free < _MIN_FREE_BYTES:
        yield _Finding(
            code="disk_nearly_full",
            subject="data",
            message=f"The disk of the gateway's data folder has "
            f"{reading.disk_free / _GIB:.1f} GiB left.",
            advice="Delete old files, with `moyin prune` for instance, or add space.",
            # In steps of a tenth of a GiB, so that a snapshot seldom differs from the one before.
            parameters={"free_bytes": int(round(reading.disk_free / _GIB, 1) * _GIB)},
        )
    for name, status in reading.applications.items():
        if status not in _HEALTHY_APPS:
            yield _Finding(
                code="app_unhealthy",
                subject=name,
                message=f"Ray Serve reports the app {name} as {status}.",
                advice="`serve status` shows the cause; `moyin deploy` deploys a repaired "
                "configuration.",
                parameters={"status": status},
            )
    for name in reading.rejected_configs:
        yield _Finding(
            code="config_rejected",
            subject=name,
            message=f"The app {name} ignored its newest configuration, which is invalid, and runs "
            "with an earlier one.",
            advice="`moyin doctor` names the mistake; correct it and run `moyin deploy`.",
        )


def _check_pools(
    cluster: ClusterBody, reading: ClusterReading, now: datetime
) -> Iterator[_Finding]:
    for pool in cluster.pools:
        if not pool.is_responding:
            yield _Finding(
                code="pool_not_responding",
                subject=pool.name,
                message=f"The render pool {pool.name} does not respond.",
                advice=f"Look at the app render-{pool.name} in `serve status`; its jobs wait "
                "meanwhile.",
            )
            continue
        yield from _check_renderers(pool, reading, now)
        oldest_waiting_since = pool.oldest_waiting_since
        if oldest_waiting_since is not None and now - oldest_waiting_since > _LONG_WAIT:
            yield _Finding(
                code="long_wait",
                subject=pool.name,
                message=f"A render has waited in the pool {pool.name} since {oldest_waiting_since:%H:%M} UTC; "
                f"{pool.queued} wait.",
                advice="Add renderers to the pool, or send renders to another one.",
                parameters={
                    "waiting_since": oldest_waiting_since.isoformat(),
                    "queued": pool.queued,
                },
                since=oldest_waiting_since + _LONG_WAIT,
            )


def _check_renderers(pool: PoolBody, reading: ClusterReading, now: datetime) -> Iterator[_Finding]:
    renderers = pool.renderers or []
    summary = reading.pools[pool.name]
    errors = [renderer.error for renderer in renderers if renderer.error is not None]
    if not pool.ready and _needs_renderer(pool, has_errors=bool(errors), now=now):
        is_placing = any(renderer.state is RendererState.PLACING for renderer in renderers)
        error_suffix = f": {errors[0]}" if errors else ""
        yield _Finding(
            code="pool_without_renderer",
            subject=pool.name,
            message=f"The render pool {pool.name} has no renderer that is ready{error_suffix}",
            advice="Ray has no node with enough free resources for a renderer: add one, or lower "
            "`gpus` or `cpus` of the pool."
            if is_placing
            else "Moyin restarts ComfyUI automatically; if that does not help, read the log of the "
            "actor.",
            parameters={"error": errors[0] if errors else None, "is_placing": is_placing},
            since=_find_start_time(pool, summary.unready_since),
        )
    for renderer in renderers:
        if renderer.losses >= _MANY_LOSSES:
            yield _Finding(
                code="renderer_restarts",
                subject=renderer.name,
                message=f"The renderer {renderer.name} was lost {renderer.losses} times in ten "
                "minutes.",
                advice="Read its log: a custom node, a lack of memory or the graphics card may be "
                "the cause.",
                parameters={"losses": renderer.losses},
            )
        elif renderer.state is RendererState.FAILED and pool.ready:
            yield _Finding(
                code="renderer_failed",
                subject=renderer.name,
                message=f"The renderer {renderer.name} is not ready: {renderer.error}",
                advice="Moyin restarts it automatically; if that does not help, read its log.",
                parameters={"error": renderer.error},
            )


def _check_memory(reading: ClusterReading) -> Iterator[_Finding]:
    """Yield the last memory kill of each renderer and model server in the last hour."""
    kills: dict[str, MemoryKill] = {}
    renderers = [renderer for pool in reading.pools.values() for renderer in pool.renderers]
    groups = [*(r.memory_kills for r in renderers), *(s.memory_kills for s in reading.servers)]
    for kill in (kill for group in groups for kill in group):
        latest = kills.get(kill.subject)
        if latest is None or latest.at < kill.at:
            kills[kill.subject] = kill
    for subject, kill in kills.items():
        yield _Finding(
            code="memory_kill",
            subject=subject,
            message=describe_kill(kill),
            advice="It starts again when there is enough memory, and its renders are repeated. If this "
            "happens often, look for other programs on the node, or run fewer processes there.",
            parameters={
                "by": kill.by,
                "process_bytes": kill.process_bytes,
                "available_bytes": kill.available_bytes,
                "total_bytes": kill.total_bytes,
            },
            since=datetime.fromtimestamp(int(kill.at), UTC),
        )


def _needs_renderer(pool: PoolBody, *, has_errors: bool, now: datetime) -> bool:
    """Return True if the pool should have a ready renderer at the time ``now``.

    A pool with a minimum of 1 or more should always have one. A pool with a minimum of 0 starts
    renderers only when renders wait. It should have one if renders wait and a renderer has failed
    to start, or if a render has waited longer than a start usually takes.

    Args:
        has_errors: True if a renderer of the pool reports an error.
    """
    oldest_waiting_since = pool.oldest_waiting_since
    return bool(
        pool.minimum
        or (
            oldest_waiting_since is not None
            and (has_errors or now - oldest_waiting_since > _START_PATIENCE)
        )
    )


def _find_start_time(pool: PoolBody, unready_since: float | None) -> datetime | None:
    if not pool.minimum:
        return pool.oldest_waiting_since
    return None if unready_since is None else datetime.fromtimestamp(int(unready_since), UTC)


def _check_backends(backends: Sequence[BackendSummary] | None) -> Iterator[_Finding]:
    for backend in backends or ():
        if backend.is_up is False:
            yield _Finding(
                code="backend_down",
                subject=backend.name,
                message=f"The back end {backend.name} does not pass its health check.",
                advice="Start the server, or correct its address or key in the configuration; "
                "other back ends answer meanwhile if they have the model.",
            )
        elif backend.breaker != "closed":
            yield _Finding(
                code="backend_breaker_open",
                subject=backend.name,
                message=f"Calls to the back end {backend.name} failed repeatedly, so it gets only "
                "probes.",
                advice="`GET /v1/requests?status=failed` names the errors; calls resume by "
                "themselves once a probe succeeds.",
            )


def _check_routes(routes: Sequence[UpstreamPool]) -> Iterator[_Finding]:
    for pool in routes:
        if not any(member.is_usable for member in pool.members):
            yield _Finding(
                code="route_without_upstream",
                subject=pool.route.name,
                message=f"The proxy's route {pool.route.name} has no healthy upstream.",
                advice="Start the service, or correct `upstreams` of the route.",
            )


def _check_templates(problems: Sequence[str]) -> Iterator[_Finding]:
    """Yield the first problem of each of the first twenty invalid template files.

    Further invalid files are reported once some of these have been corrected.
    """
    errors: dict[str, str] = {}
    for problem in problems:
        file, _, error = problem.partition(": ")
        errors.setdefault(file, error[:_MAX_ERROR_CHARACTERS])
    for file, error in list(errors.items())[:_MAX_TEMPLATES]:
        yield _Finding(
            code="template_invalid",
            subject=file,
            message=f"The template file {file} is not valid: {error}",
            advice="Correct the file, which is read again within seconds; its last valid version stays in "
            "use meanwhile, if there was one.",
            parameters={"error": error},
        )
