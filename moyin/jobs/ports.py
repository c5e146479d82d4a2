"""Defines the interfaces through which the job service uses Temporal and the render pools."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from moyin.domain.artifact import Artifact
from moyin.domain.identity import Identity
from moyin.domain.job import JobSpec
from moyin.domain.limits import JobReservation
from moyin.store.job_rows import Launch


class Launcher(Protocol):
    """The interface that starts and cancels the workflows of jobs."""

    async def start(self, job_id: str, launch: Launch | None = None) -> None:
        """Start the workflow of the job's current attempt, unless the workflow is already running.

        Args:
            launch: the data of a first attempt; if None, the data is read from the job's row.

        Raises:
            ServiceUnavailable: Temporal is unavailable, or an earlier attempt's workflow is still
                running. A background task, the sweeper, will try again.
        """

    async def cancel(self, job_id: str, attempt: int) -> bool:
        """Request the cancellation of an attempt's workflow; return False if it is not running."""
        ...

    async def start_webhook(self, job_id: str, attempt: int) -> None:
        """Start the delivery of the job's webhook, if any, after an attempt without a workflow."""

    async def ping(self) -> None:
        """Raise ServiceUnavailable if Temporal does not respond."""


class GraphValidator(Protocol):
    """The interface that validates graphs with a renderer of a pool."""

    async def validate(
        self,
        pool: str,
        graph: Mapping[str, Any],
        targets: Sequence[str] | None = None,
        *,
        owner: str,
    ) -> Mapping[str, Any]:
        """Validate a graph and return ComfyUI's response; empty if no renderer is available.

        Args:
            targets: the output nodes to execute; None means all.
            owner: the tenant that submits the graph.

        Raises:
            InvalidGraph: the graph is invalid; ``details`` has ComfyUI's response.
        """
        ...


class JobPools(Protocol):
    """The interface of the pools that run the jobs of one caller."""

    def assign(self, pool: str) -> str:
        """Return the pool of a render whose step has the pool ``pool``.

        If the default pool is not one of them, the first of them replaces it.

        Raises the errors of `require`.
        """
        ...

    def require(self, pool: str) -> None:
        """Raise an error unless the pool runs the caller's jobs.

        Raises:
            InvalidRequest: there is no such pool, or it does not run the caller's jobs.
            ServiceUnavailable: it is not known yet whether there is such a pool for the caller.
        """


class GraphGuard(Protocol):
    """The interface that decides which pools, nodes and files a caller's graphs may use."""

    async def find_pools(self, caller: Identity) -> JobPools:
        """Return the pools that run the caller's jobs."""
        ...

    async def choose_pool(self, caller: Identity, graph: Mapping[str, Any]) -> str:
        """Return the best pool for the graph; raise InvalidRequest if the caller may use none."""
        ...

    async def check_size(
        self,
        caller: Identity,
        graphs: Sequence[tuple[str, Mapping[str, Any]]],
        patches: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Check that the graphs of one job are within the caller's bounds together.

        Args:
            graphs: the graphs, each with its path in the request.
            patches: for a batch, the changed inputs of each child.

        Raises:
            GraphTooLarge: a bound is exceeded; the error names the bound.
            InvalidGraph: the links of a graph form a circle; the error names its nodes.
        """
        ...

    async def check_graph(
        self, caller: Identity, pool: str, graph: Mapping[str, Any], own_names: Collection[str]
    ) -> bool:
        """Check the nodes and file names of a graph.

        The errors below have the node's place in the graph as ``field``, and ``details`` in the
        form of ComfyUI's validation errors.

        Args:
            own_names: the names of the caller's files in the graph.

        Returns:
            True, or False if inputs can't be checked because the pool's node classes are unknown.

        Raises:
            NodeNotAllowed: the graph has a node that is not allowed.
            InputNotFound: an input names a file that the caller does not have.
            InvalidGraph: an input that is not prose has control characters.
        """
        ...


class NamedFiles(Protocol):
    """The interface that finds files by the names that ComfyUI's clients use."""

    async def find_in_texts(self, owner: str, texts: Collection[str]) -> Mapping[str, Artifact]:
        """Return the owner's files named in ``texts``, by text; other texts are left out."""
        ...


class HeldReservation(Protocol):
    """The interface of a reservation in budgets for a job that is not accepted yet."""

    @property
    def reservation(self) -> JobReservation | None:
        """The data to store in the job's row; None if nothing is reserved in budgets."""
        ...

    def release(self) -> None:
        """Release the reservation, because the job was not accepted."""


class JobBudgets(Protocol):
    """The interface that reserves money for the renders of jobs."""

    async def reserve(
        self, caller: Identity, spec: JobSpec, done_indexes: Collection[int] = ()
    ) -> HeldReservation:
        """Reserve the estimated cost of the job's renders, and return the reservation.

        Args:
            done_indexes: the indexes of steps that do not run again.

        Raises:
            BudgetExceeded: a budget of the caller does not cover the estimate.
            ServiceUnavailable: the cost can't be estimated, or the budgets are unavailable.
        """
        ...
