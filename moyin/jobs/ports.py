"""What the job service needs from Temporal and from the render pools."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from moyin.domain.identity import Identity
from moyin.store.job_rows import Launch

__all__ = ["GraphGuard", "GraphValidator", "Launcher"]


class Launcher(Protocol):
    """Starts and stops the workflows of jobs."""

    async def start(self, job_id: str, launch: Launch | None = None) -> None:
        """Start the job's present attempt, unless it runs already.

        Args:
            launch: of a first attempt, for who has just written the row.

        Raises:
            ServiceUnavailable: Temporal is away; the sweeper will try again.
        """

    async def cancel(self, job_id: str, attempt: int) -> bool:
        """Ask the attempt's workflow to end as cancelled; False when it is not running.

        Raises:
            ServiceUnavailable: Temporal is away.
        """
        ...

    async def notify(self, job_id: str, attempt: int) -> None:
        """Send the job's webhook, if it has one, for an attempt that ended without a workflow.

        Raises:
            ServiceUnavailable: Temporal is away.
        """

    async def ping(self) -> None:
        """Raise ServiceUnavailable when Temporal does not answer."""


class GraphValidator(Protocol):
    """Asks a render pool whether it could run a graph."""

    async def validate(
        self, pool: str, graph: Mapping[str, Any], targets: Sequence[str] | None = None
    ) -> Mapping[str, Any]:
        """Return ComfyUI's own body when the graph is fine; nothing when nobody is there to say.

        Args:
            targets: output nodes that shall be executed; None: all.

        Raises:
            InvalidGraph: with ComfyUI's own body in ``details``.
        """
        ...


class GraphGuard(Protocol):
    """Knows which pools, nodes and files a caller's graphs may have."""

    async def pools(self, caller: Identity) -> Sequence[str]:
        """Return the pools that run the caller's jobs, in their order."""
        ...

    async def pool_for(self, caller: Identity, graph: Mapping[str, Any]) -> str:
        """Return which of them suits the graph best.

        Raises:
            InvalidRequest: no pool runs the caller's jobs.
        """
        ...

    async def check(
        self, caller: Identity, pool: str, graph: Mapping[str, Any], own: Collection[str]
    ) -> bool:
        """Return whether the pool's nodes are known; what they do with their inputs is not, if not.

        Args:
            own: the names that were given to the caller's files in the graph.

        Raises:
            NodeNotAllowed: the graph has a node that it may not have. ``field`` is the node's place
                in the graph, and ``details`` ComfyUI's body.
            InputNotFound: an input names a file that is not the caller's; likewise.
        """
        ...
