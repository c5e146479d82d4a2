"""Holds the run-time state of a back end: client, breaker, slots, health and latency."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from moyin.domain.backend import ModelBackend, PassThroughBackend
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
from moyin.text.routing.averages import Average
from moyin.text.routing.latency import DEFAULT_LATENCY, LatencyEstimator, LatencyPrior
from moyin.text.routing.loaded_models import LoadedModels

__all__ = ["BackendHealth", "BackendRuntime", "Lease", "is_retryable"]

_HALF_LIFE = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendHealth:
    """Describes the state of a back end at one moment.

    Attributes:
        is_up: its health check passes and its breaker lets requests through.
        load: requests of this replica that it is working on.
        waiting: requests of this replica that wait for a slot.
        retry_after: seconds until it may be called again, while it is not up.
    """

    is_up: bool = True
    load: int = 0
    waiting: int = 0
    retry_after: float = 0.0


@dataclass(kw_only=True, eq=False)
class BackendRuntime:
    """Holds the run-time state of one back end.

    Attributes:
        pass_through: the same back end, where it accepts a client's bytes unchanged.
        timeout: seconds that a whole call may take.
        first_byte_timeout: seconds within which a stream must begin; None: within ``timeout``.
        retries: how often a call that failed quickly is retried on this back end.
        provider: kind of server, for metrics.
        checks_schemas: JSON schemas are checked before they are sent, because the server may
            compile them into grammars.
        loaded: models in the server's memory; None: the server does not report them.
        priors: latency to assume before a model was measured, by model name.
        is_up: result of the last health check; None before the first.
    """

    name: str
    backend: ModelBackend
    pass_through: PassThroughBackend | None
    timeout: float
    breaker: Breaker
    slots: Slots = field(default_factory=Slots)
    first_byte_timeout: float | None = None
    retries: int = 0
    provider: str = "openai"
    checks_schemas: bool = True
    loaded: LoadedModels | None = None
    priors: dict[str, LatencyPrior] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    is_up: bool | None = None
    _latencies: dict[str, LatencyEstimator] = field(default_factory=dict)
    _model_breakers: dict[str, Breaker] = field(default_factory=dict)
    _service_time: Average = field(default_factory=lambda: Average(_HALF_LIFE))

    @property
    def ready(self) -> bool:
        """True if a request would be sent to it now."""
        return self.is_up is not False and self.breaker.ready

    @property
    def load(self) -> int:
        """The number of taken slots."""
        return self.slots.taken

    @property
    def health(self) -> BackendHealth:
        """The state at this moment."""
        return BackendHealth(
            is_up=self.ready,
            load=self.slots.taken,
            waiting=self.slots.waiting,
            retry_after=self.breaker.retry_after,
        )

    def latency(self, model: str) -> LatencyEstimator:
        """Return the latency estimator of one of its models."""
        latency = self._latencies.get(model)
        if latency is None:
            prior = self.priors.get(model, DEFAULT_LATENCY)
            latency = self._latencies[model] = LatencyEstimator(prior, self.clock)
        return latency

    def model_breaker(self, upstream: str) -> Breaker:
        """Return the breaker of one of its models, by upstream name.

        It is open while the back end reports that model as missing. Requests still go there, but
        other targets come first.
        """
        model_breaker = self._model_breakers.get(upstream)
        if model_breaker is None:
            model_breaker = self._model_breakers[upstream] = Breaker(self.clock)
        return model_breaker

    def service_time(self, expected: float) -> float:
        """Return the usual seconds of a call here; ``expected`` until enough were measured."""
        return self._service_time.estimate(expected, self.clock())

    def record_service_time(self, seconds: float) -> None:
        """Record how long a successful call took."""
        self._service_time.add(seconds, self.clock())

    async def acquire(self, tenant: str, seconds: float, expected: float) -> Lease | None:
        """Take a slot for one call; return None when the breaker lets no request through.

        Args:
            seconds: time left to the call.
            expected: seconds that the call will probably take.

        Raises:
            Overloaded: too many calls wait already, or no slot became free in time.
        """
        if not self.slots.try_acquire(tenant):
            await self.slots.wait(tenant, seconds, self.service_time(expected))
        if not self.breaker.admit():
            self.slots.release(tenant)
            return None
        return Lease(self, tenant)

    async def check(self, on_change: Callable[[str, bool], None]) -> None:
        """Run one health check; call ``on_change`` if the result differs from the last."""
        try:
            await self.backend.probe()
            is_up = True
        except MoyinError:
            is_up = False
        if is_up and self.loaded is not None:
            await self.loaded.refresh()
        if is_up is not self.is_up:
            on_change(self.name, is_up)
        self.is_up = is_up


class Lease:
    """Holds one call's slot at a back end; `BackendRuntime.acquire` creates it.

    As a context manager it is released when the block ends, unless the block called `keep`. Then
    its new owner, a stream, must call `release`.
    """

    __slots__ = ("_is_kept", "_runtime", "_tenant")

    def __init__(self, runtime: BackendRuntime, tenant: str) -> None:
        self._runtime = runtime
        self._tenant = tenant
        self._is_kept = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if error is not None or not self._is_kept:
            self.release(error)

    def keep(self) -> None:
        """Leave the release to the stream that the block returns."""
        self._is_kept = True

    def release(self, error: BaseException | None = None) -> None:
        """Release the slot. Only errors of the back end itself count against its breaker."""
        runtime = self._runtime
        runtime.slots.release(self._tenant)
        if error is None or isinstance(error, BackendRejected | InvalidToolCall | ModelNotFound):
            runtime.breaker.succeed()
        elif isinstance(error, BackendError | Overloaded):
            runtime.breaker.fail(
                retry_after=error.retry_after, at_once=isinstance(error, BackendKeyRejected)
            )
        else:
            runtime.breaker.abandon()


def is_retryable(error: BaseException) -> bool:
    """Return whether the same back end may answer the same call a moment later.

    Not after a timeout, which took long enough, and not when the back end named a time to wait.
    """
    return (
        isinstance(error, BackendError | Overloaded)
        and error.retryable
        and error.retry_after is None
        and not isinstance(error, BackendTimeout)
    )
