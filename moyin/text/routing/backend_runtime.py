"""Manages the run-time state of a back end: client, breaker, slots, health and latency."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

from moyin.domain.backend import ModelBackend, OperationBackend, PassThroughBackend
from moyin.errors import (
    BackendError,
    BackendKeyRejected,
    BackendRejected,
    BackendTimeout,
    InvalidToolCall,
    ModelNotFound,
    MoyinError,
    Overloaded,
)
from moyin.http.breaker import Breaker
from moyin.system.slots import Slots
from moyin.text.backends.batches import BatchApi
from moyin.text.routing.averages import Average
from moyin.text.routing.latency import DEFAULT_LATENCY, LatencyEstimator, LatencyPrior
from moyin.text.routing.loaded_models import LoadedModels, ModelState

_SERVICE_TIME_HALF_LIFE = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendHealth:
    """Snapshot of the availability and load of a back end.

    Attributes:
        is_up: True if the health check passes and the breaker accepts requests.
        load: number of this replica's calls that are running at the back end.
        waiting: number of this replica's calls that wait for a slot.
        retry_after: seconds until the breaker accepts requests; 0 while it accepts them.
    """

    is_up: bool = True
    load: int = 0
    waiting: int = 0
    retry_after: float = 0.0


@dataclass(kw_only=True, eq=False)
class BackendRuntime:
    """Client of one back end with its limits, breaker and measurements.

    Each replica has its own. A new configuration creates a new runtime.

    Attributes:
        pass_through: the back end, if it accepts clients' bytes unchanged; else None.
        operations: the back end if it may support calls other than chats and embeddings; else None.
        timeout: maximum seconds of a whole call.
        first_byte_timeout: maximum seconds until a stream begins. None sets no such limit.
        retries: maximum number of retries of a failed call at this back end.
        provider: kind of server, for metrics.
        checks_schemas: True if JSON schemas must be checked before they are sent, because the
            server may compile them into grammars.
        loaded: models in the server's memory; None if the server does not report them.
        refresh_models: reloads the list of the server's models; returns True if they changed; None if
            only the configuration names them.
        peers: the runtimes of all hosts of this back end, including this one; empty if it has one
            host.
        priors: latency to assume for a model without measurements, by model name.
        is_up: result of the last health check; None before the first.
        batch_api: client of the back end's own batch API; None if it is not used.
        missing_calls: optional calls that the server lacks for a model, as pairs of the call's
            path and the model's upstream name.
    """

    name: str
    backend: ModelBackend
    pass_through: PassThroughBackend | None
    timeout: float
    breaker: Breaker
    operations: OperationBackend | None = None
    slots: Slots = field(default_factory=Slots)
    first_byte_timeout: float | None = None
    retries: int = 0
    provider: str = "openai"
    checks_schemas: bool = True
    loaded: LoadedModels | None = None
    refresh_models: Callable[[], Awaitable[bool]] | None = None
    peers: Sequence[BackendRuntime] = field(default=(), repr=False)
    priors: dict[str, LatencyPrior] = field(default_factory=dict)
    batch_api: BatchApi | None = None
    clock: Callable[[], float] = time.monotonic
    is_up: bool | None = None
    missing_calls: dict[tuple[str, str], float] = field(default_factory=dict)
    _latencies: dict[str, LatencyEstimator] = field(default_factory=dict)
    _model_breakers: dict[str, Breaker] = field(default_factory=dict)
    _service_time: Average = field(default_factory=lambda: Average(_SERVICE_TIME_HALF_LIFE))

    @property
    def is_ready(self) -> bool:
        """True if the last health check did not fail and the breaker accepts requests."""
        return self.is_up is not False and self.breaker.ready

    @property
    def load(self) -> int:
        """The number of calls that hold a slot."""
        return self.slots.taken

    @property
    def health(self) -> BackendHealth:
        """A snapshot of the back end's availability and load."""
        return BackendHealth(
            is_up=self.is_ready,
            load=self.slots.taken,
            waiting=self.slots.waiting,
            retry_after=self.breaker.retry_after,
        )

    def get_latency_estimator(self, model: str) -> LatencyEstimator:
        """Return the latency estimator of a model, which is created on first use."""
        estimator = self._latencies.get(model)
        if estimator is None:
            prior = self.priors.get(model, DEFAULT_LATENCY)
            estimator = self._latencies[model] = LatencyEstimator(
                prior, self.clock, lambda: self._iterate_peer_estimators(model)
            )
        return estimator

    def _iterate_peer_estimators(self, model: str) -> Iterator[LatencyEstimator]:
        for peer in self.peers:
            if (estimator := peer._latencies.get(model)) is not None:
                yield estimator

    def get_model_breaker(self, upstream: str) -> Breaker:
        """Return the breaker of the model that the back end calls ``upstream``.

        It is created on first use.

        The breaker is open while the back end reports that it lacks the model. Targets whose
        breaker is open are not excluded; they are tried last.
        """
        model_breaker = self._model_breakers.get(upstream)
        if model_breaker is None:
            model_breaker = self._model_breakers[upstream] = Breaker(self.clock)
        return model_breaker

    def estimate_service_time(self, expected_seconds: float) -> float:
        """Return the average duration of recent calls in seconds.

        After few calls, the result is close to ``expected_seconds``.
        """
        return self._service_time.estimate(expected_seconds, self.clock())

    def record_service_time(self, seconds: float) -> None:
        """Record the duration of a successful call."""
        self._service_time.add(seconds, self.clock())

    async def acquire(
        self,
        tenant: str,
        max_wait_seconds: float,
        expected_seconds: float,
        *,
        is_background: bool = False,
    ) -> Lease | None:
        """Wait for a slot and return its lease; return None if the breaker rejects the call.

        Args:
            tenant: the tenant whose share of the slots the call uses.
            max_wait_seconds: maximum time to wait.
            expected_seconds: estimated duration of the call.
            is_background: True if all other calls have priority over this one.

        Raises:
            Overloaded: too many calls wait already, or no slot became free in time.
        """
        if is_background:
            await self.slots.acquire_in_background(tenant, max_wait_seconds)
        elif not self.slots.try_acquire(tenant):
            await self.slots.wait(
                tenant, max_wait_seconds, self.estimate_service_time(expected_seconds)
            )
        lease = Lease(self, tenant, is_background)
        if not self.breaker.admit():
            lease.release_slot()
            return None
        return lease

    def has_loaded(self, upstream: str) -> bool:
        """Return True if the server is up and has reported that the model is in its memory."""
        return (
            self.is_ready
            and self.loaded is not None
            and self.loaded.get_state(upstream) is ModelState.RESIDENT
        )

    async def check_health(self, on_change: Callable[[str, bool], None]) -> bool:
        """Run one health check; if its result changed, call ``on_change`` with the name and result.

        Returns True if the server's models changed.
        """
        # A single failure may be caused by this process itself: it was suspended or short of
        # processor time during the probe, or it used a connection that had just been closed.
        is_up = await self._probe() or await self._probe()
        have_models_changed = is_up and await self._refresh_models()
        if is_up and self.loaded is not None:
            await self.loaded.refresh()
        if is_up is not self.is_up:
            on_change(self.name, is_up)
        self.is_up = is_up
        return have_models_changed

    async def _probe(self) -> bool:
        try:
            await self.backend.probe()
        except MoyinError:
            return False
        return True

    async def _refresh_models(self) -> bool:
        if self.refresh_models is None:
            return False
        try:
            return await self.refresh_models()
        except MoyinError:
            # Some servers with Ollama's API do not list models; the known models are kept then.
            return False


@dataclass(eq=False, slots=True)
class Lease:
    """Slot of one call at a back end; `BackendRuntime.acquire` creates it.

    The lease is a context manager that releases the slot when the block ends. If the block calls
    `transfer_to_stream` and ends without an error, the stream must call `release` instead.
    """

    _runtime: BackendRuntime
    _tenant: str
    _is_background: bool = False
    _belongs_to_stream: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if error is not None or not self._belongs_to_stream:
            self.release(error)

    def release_slot(self) -> None:
        """Release the slot of a call that was not made; nothing is reported to the breaker."""
        if self._is_background:
            self._runtime.slots.release_in_background(self._tenant)
        else:
            self._runtime.slots.release(self._tenant)

    def transfer_to_stream(self) -> None:
        """Keep the slot after the ``with`` block; the stream must call `release` when it ends."""
        self._belongs_to_stream = True

    def release(self, error: BaseException | None = None) -> None:
        """Release the slot and report the outcome of the call to the back end's breaker.

        Only errors that the back end caused count as failures.
        """
        runtime = self._runtime
        self.release_slot()
        if error is None or isinstance(error, BackendRejected | InvalidToolCall | ModelNotFound):
            runtime.breaker.succeed()
        elif isinstance(error, BackendError | Overloaded):
            runtime.breaker.fail(
                retry_after=error.retry_after, opens_at_once=isinstance(error, BackendKeyRejected)
            )
        else:
            runtime.breaker.abandon()


def is_retryable(error: BaseException) -> bool:
    """Return True if a call that failed with ``error`` may be retried at the same back end soon.

    A timeout is not retried because it already took long. An error with ``retry_after`` is not
    retried because the back end demands a pause.
    """
    return (
        isinstance(error, BackendError | Overloaded)
        and error.retryable
        and error.retry_after is None
        and not isinstance(error, BackendTimeout)
    )
