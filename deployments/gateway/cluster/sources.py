"""Contains `ClusterSources`, which reads the state of Ray, the render pools and Temporal."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any, TypeVar

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.util import list_named_actors

from actors.llama import NAME_PREFIX
from actors.placement import NAMESPACE
from deployments.gateway.cluster.shared_reading import SharedReading
from deployments.health import ServiceCheck, run_checks
from moyin.domain.cluster import (
    BackendSummary,
    IntakeSourceSummary,
    ModelServerSummary,
    ModelsSummary,
    PoolSummary,
)
from moyin.domain.queue_place import Backlog
from moyin.errors import ServiceUnavailable

_log = logging.getLogger(__name__)
_ResultT = TypeVar("_ResultT")
# A separate thread pool, so that hanging calls to Ray do not occupy the threads that requests need.
_MAX_CALLS = 8
_THREADS = ThreadPoolExecutor(_MAX_CALLS, thread_name_prefix="cluster")
_FREE = BoundedSemaphore(_MAX_CALLS)
_CALL_SECONDS = 3.0
# Sums over a million calls take seconds.
_USAGE_SECONDS = 30.0
# Serve raises KeyError for an app that is not deployed.
_SOURCE_ERRORS = (
    RayError, RayServeException, KeyError, RuntimeError, ServiceUnavailable, TimeoutError, OSError
)  # fmt: skip
# The app that takes jobs from message queues; it need not be deployed.
_INTAKE = "intake"
# Maximum number of model servers that a reading includes, because each one is called.
_MAX_SERVERS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterReading:
    """The results of one reading; sources that did not respond in time are missing.

    Attributes:
        nodes: the nodes as ``ray.nodes`` describes them; None if Ray does not respond.
        pools: the pools that responded, by name.
        backlogs: the renders that wait in Temporal, by pool.
        servers: the llama.cpp servers.
        backends: the back ends for text; None if the models app does not respond.
        checks: whether each service that jobs need responds, by the service's name.
        applications: the status of each app of Ray Serve.
        disk_free: the free bytes of the disk of the data folder.
        rejected_configs: the apps that rejected their newest configuration.
        intake: the message queues with jobs; None without the app ``intake``, or if it does not
            respond.
        template_problems: problems in the files of templates, each as a line ``<file>: <problem>``.
    """

    nodes: Sequence[Mapping[str, Any]] | None = None
    pools: Mapping[str, PoolSummary] = field(default_factory=dict)
    backlogs: Mapping[str, Backlog] = field(default_factory=dict)
    servers: Sequence[ModelServerSummary] = ()
    backends: Sequence[BackendSummary] | None = None
    checks: Mapping[str, bool] = field(default_factory=dict)
    applications: Mapping[str, str] = field(default_factory=dict)
    disk_free: int | None = None
    rejected_configs: Sequence[str] = ()
    intake: Sequence[IntakeSourceSummary] | None = None
    template_problems: Sequence[str] = ()


class ClusterSources:
    """Reads the state of everything that runs on the cluster.

    Args:
        pools: the names of the render pools.
        read_pool: returns the summary of one pool; raises ServiceUnavailable.
        read_backlog: returns the waiting renders of one pool in Temporal; raises
            ServiceUnavailable.
        checks: health checks of the services that jobs need, by name.
        data_folder: the data folder, whose disk's free space is read.
        is_config_rejected: returns True if the gateway rejected its newest configuration.
    """

    def __init__(
        self,
        pools: Sequence[str],
        read_pool: Callable[[str], Awaitable[PoolSummary]],
        read_backlog: Callable[[str], Awaitable[Backlog]],
        *,
        checks: Mapping[str, ServiceCheck],
        data_folder: Path,
        is_config_rejected: Callable[[], bool],
    ) -> None:
        self._pools = tuple(pools)
        self._read_pool = read_pool
        self._read_backlog = read_backlog
        self._checks = checks
        self._data_folder = data_folder
        self._is_config_rejected = is_config_rejected

    async def read(self) -> ClusterReading:
        """Read all sources concurrently, each for at most three seconds."""
        (
            nodes,
            servers,
            pools,
            backlogs,
            checks,
            app_states,
            models,
            disk_usage,
        ) = await asyncio.gather(
            self._read_nodes(),
            self._read_servers(),
            asyncio.gather(*(_read_or_none(self._read_pool(name)) for name in self._pools)),
            asyncio.gather(*(_read_or_none(self._read_backlog(name)) for name in self._pools)),
            run_checks(self._checks),
            self._read_apps(),
            _read_or_none(_read_models()),
            _read_or_none(_run_in_thread(partial(shutil.disk_usage, self._data_folder))),
        )
        applications, intake = app_states
        rejected_apps = ["gateway"] if self._is_config_rejected() else []
        if models is not None and models.is_config_rejected:
            rejected_apps.append("models")
        return ClusterReading(
            nodes=nodes,
            servers=servers,
            backends=None if models is None else models.backends,
            checks=checks,
            applications=applications,
            intake=intake,
            disk_free=None if disk_usage is None else disk_usage.free,
            rejected_configs=rejected_apps,
            pools={summary.name: summary for summary in pools if summary is not None},
            backlogs={
                name: backlog
                for name, backlog in zip(self._pools, backlogs, strict=True)
                if backlog is not None
            },
        )

    async def _read_nodes(self) -> Sequence[Mapping[str, Any]] | None:
        nodes: Sequence[Mapping[str, Any]] | None = await _read_or_none(_run_in_thread(ray.nodes))
        return nodes

    async def _read_apps(
        self,
    ) -> tuple[Mapping[str, str], Sequence[IntakeSourceSummary] | None]:
        """Return the status of each app, and the sources of the intake if this app is deployed."""
        applications: Mapping[str, str] = (
            await _read_or_none(_run_in_thread(_read_applications)) or {}
        )
        if _INTAKE not in applications:
            return applications, None
        return applications, await _read_or_none(_read_intake())

    async def _read_servers(self) -> Sequence[ModelServerSummary]:
        handles = await _read_or_none(_run_in_thread(_find_model_servers)) or ()
        summaries = await asyncio.gather(
            *(_read_or_none(handle.describe.remote()) for handle in handles)
        )
        return [summary for summary in summaries if summary is not None]


async def _run_in_thread(call: Callable[[], _ResultT]) -> _ResultT:
    """Run a blocking call in a thread; raise TimeoutError if earlier calls occupy all threads.

    If calls could wait for a thread, more and more of them would wait while Ray hangs.
    """
    if not _FREE.acquire(blocking=False):
        raise TimeoutError(
            "cannot read the cluster's state, because earlier calls occupy all threads; check that "
            "Ray responds"
        )
    future = _THREADS.submit(call)
    future.add_done_callback(lambda _: _FREE.release())
    return await asyncio.wrap_future(future)


def _read_applications() -> Mapping[str, str]:
    applications = serve.status().applications
    return {name: application.status.value for name, application in applications.items()}


async def read_backends(tenant: str | None) -> str | None:
    """Return the body of ``GET /v1/backends`` for a tenant's administrators.

    If ``tenant`` is None, this is the body for operators. The result is None if the models app does
    not respond.
    """
    backends: str | None = await _read_or_none(_call_models("read_backends", tenant))
    return backends


async def read_models(owner: str, prices: bool) -> str | None:
    """Return the body of ``GET /v1/models`` for a tenant; None if the models app does not respond.

    Args:
        prices: True to include the back ends' prices, which only operators see.
    """
    models: str | None = await _read_or_none(_call_models("read_models", owner, prices))
    return models


async def read_usage(tenant: str | None) -> str | None:
    """Return this month's usage by day, as the body of ``GET /v1/usage``.

    If ``tenant`` is None, this is the usage of all tenants. The result is None if the models app
    does not respond.
    """
    usage: str | None = await _read_or_none(_call_models("read_usage", tenant), _USAGE_SECONDS)
    return usage


async def _read_models() -> ModelsSummary:
    summary: ModelsSummary = await _call_models("read_summary")
    return summary


# One lookup serves the readings of all tenants, which would otherwise occupy all threads.
_MODELS = SharedReading[Any](
    lambda: _run_in_thread(partial(serve.get_deployment_handle, "Models", app_name="models")),
    interval_seconds=60.0,
)

_INTAKE_HANDLE = SharedReading[Any](
    lambda: _run_in_thread(partial(serve.get_deployment_handle, "Intake", app_name=_INTAKE)),
    interval_seconds=60.0,
)


async def _call_models(method: str, *arguments: Any) -> Any:
    handle = await _MODELS.get()
    return await getattr(handle, method).remote(*arguments)


async def _read_intake() -> Sequence[IntakeSourceSummary]:
    handle = await _INTAKE_HANDLE.get()
    sources: Sequence[IntakeSourceSummary] = await handle.read_sources.remote()
    return sources


def _find_model_servers() -> list[Any]:
    names = sorted(
        actor["name"]
        for actor in list_named_actors(all_namespaces=True)
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(NAME_PREFIX)
    )
    handles = []
    for name in names[:_MAX_SERVERS]:
        try:
            handles.append(ray.get_actor(name, NAMESPACE))
        except ValueError:
            continue  # The actor has ended after it was listed.
    return handles


async def _read_or_none(response: Awaitable[Any], seconds: float = _CALL_SECONDS) -> Any:
    """Await the response of a source; return None if the source fails or exceeds ``seconds``."""
    try:
        async with asyncio.timeout(seconds):
            return await response
    except _SOURCE_ERRORS as error:
        _log.info("a part of the cluster did not report its state: %r", error)
        return None
