"""Defines the protocols through which the job service uses Temporal and the render pools."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from moyin.domain.identity import Identity
from moyin.store.job_rows import Launch

__all__ = ["GraphGuard", "GraphValidator", "Launcher"]


class Launcher(Protocol):
    """Starts and stops the workflows of jobs."""

    async def start(self, job_id: str, launch: Launch | None = None) -> None:
        """Start the job's current attempt, unless it is running already.

        Args:
            launch: the data of a first attempt, from a caller that has just written the row.

        Raises:
            ServiceUnavailable: Temporal is unavailable, or an earlier attempt is still closing; the
                sweeper will try again.
        """

    async def cancel(self, job_id: str, attempt: int) -> bool:
        """Request the cancellation of the attempt's workflow; return False if it is not running.

        Raises:
            ServiceUnavailable: Temporal is unavailable.
        """
        ...

    async def notify(self, job_id: str, attempt: int) -> None:
        """Send the job's webhook, if it has one, for an attempt that ended without a workflow.

        Raises:
            ServiceUnavailable: Temporal is unavailable.
        """

    async def ping(self) -> None:
        """Raise ServiceUnavailable if Temporal does not respond."""


class GraphValidator(Protocol):
    """Validates graphs with a render pool."""

    async def validate(
        self, pool: str, graph: Mapping[str, Any], targets: Sequence[str] | None = None
    ) -> Mapping[str, Any]:
        """Return ComfyUI's response to a valid graph; empty if no renderer is available to validate.

        Args:
            targets: the output nodes to execute; None: all.

        Raises:
            InvalidGraph: the graph is invalid; ``details`` has ComfyUI's response.
        """
        ...


class GraphGuard(Protocol):
    """Decides which pools, nodes and files a caller's graphs may use."""

    async def pools(self, caller: Identity) -> Sequence[str]:
        """Return the pools that run the caller's jobs, in the configured order."""
        ...

    async def pool_for(self, caller: Identity, graph: Mapping[str, Any]) -> str:
        """Return the pool that suits the graph best.

        Raises:
            InvalidRequest: no pool runs the caller's jobs.
        """
        ...

    async def check(
        self, caller: Identity, pool: str, graph: Mapping[str, Any], own: Collection[str]
    ) -> bool:
        """Check a graph; return False if the pool's node classes, and so their inputs, are unknown.

        Args:
            own: the names of the caller's files in the graph.

        Raises:
            NodeNotAllowed: the graph has a node that is not allowed. ``field`` is the node's place
                in the graph, and ``details`` has an error body of ComfyUI's.
            InputNotFound: an input names a file that the caller does not have; ``field`` and
                ``details`` as above.
        """
        ...
