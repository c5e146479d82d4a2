"""A back end in service: the server, its breaker, its slots, its health and its pace."""

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
    """How a back end is right now.

    Attributes:
        is_up: its health check passes and its breaker lets requests through.
        load: requests that it works on for us.
        waiting: requests that wait for it here.
        retry_after: seconds until it may be asked again, when it is not up.
    """

    is_up: bool = True
    load: int = 0
    waiting: int = 0
    retry_after: float = 0.0


@dataclass(kw_only=True, eq=False)
class BackendRuntime:
    """Not frozen: it counts.

    Attributes:
        pass_through: the same back end where it takes a protocol's bytes.
        timeout: seconds that a whole call may take.
        first_byte_timeout: seconds within which a stream must begin; None: within ``timeout``.
        retries: how often a call that failed at once is tried again here.
        provider: what kind of server it is, for metrics.
        checks_schemas: JSON schemas that it is sent are weighed first: it may be one that makes
            grammars of them.
        loaded: which models are in its memory, where it tells.
        priors: what to believe of a model's pace before it was measured, by the model's name.
        is_up: what the last health check said; None before the first.
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
        """Whether it would be asked now."""
        return self.is_up is not False and self.breaker.ready

    @property
    def load(self) -> int:
        return self.slots.taken

    @property
    def health(self) -> BackendHealth:
        return BackendHealth(
            is_up=self.ready,
            load=self.slots.taken,
            waiting=self.slots.waiting,
            retry_after=self.breaker.retry_after,
        )

    def latency(self, model: str) -> LatencyEstimator:
        """Of one of the models that it offers."""
        latency = self._latencies.get(model)
        if latency is None:
            prior = self.priors.get(model, DEFAULT_LATENCY)
            latency = self._latencies[model] = LatencyEstimator(prior, self.clock)
        return latency

    def model_breaker(self, upstream: str) -> Breaker:
        """Of a model by its name here: open while the back end keeps saying that it has none. Nobody
        is kept from it then, but others are asked first."""
        model_breaker = self._model_breakers.get(upstream)
        if model_breaker is None:
            model_breaker = self._model_breakers[upstream] = Breaker(self.clock)
        return model_breaker

    def service_time(self, expected: float) -> float:
        """Seconds that a call usually takes here; ``expected`` where too few were seen."""
        return self._service_time.estimate(expected, self.clock())

    def record_service_time(self, seconds: float) -> None:
        """A call ended well after ``seconds``."""
        self._service_time.add(seconds, self.clock())

    async def acquire(self, tenant: str, seconds: float, expected: float) -> Lease | None:
        """Take a place for one call; None when the breaker lets none through.

        Args:
            seconds: time left to the call.
            expected: seconds that the call will probably take.

        Raises:
            Overloaded: too many calls wait already, or it took too long.
        """
        if not self.slots.take(tenant):
            await self.slots.wait(tenant, seconds, self.service_time(expected))
        if not self.breaker.admit():
            self.slots.free(tenant)
            return None
        return Lease(self, tenant)

    async def check(self, note: Callable[[str, bool], None]) -> None:
        """One health check; ``note`` hears of every change."""
        try:
            await self.backend.probe()
            is_up = True
        except MoyinError:
            is_up = False
        if is_up and self.loaded is not None:
            await self.loaded.refresh()
        if is_up is not self.is_up:
            note(self.name, is_up)
        self.is_up = is_up


class Lease:
    """One call's place at a back end. `BackendRuntime.acquire` makes it.

    As a context manager it is released when the block ends, unless the block called `keep`: then its
    new owner, a stream, must call `release`.
    """

    __slots__ = ("_kept", "_runtime", "_tenant")

    def __init__(self, runtime: BackendRuntime, tenant: str) -> None:
        self._runtime = runtime
        self._tenant = tenant
        self._kept = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if error is not None or not self._kept:
            self.release(error)

    def keep(self) -> None:
        """Leave the release to the stream that the block returns."""
        self._kept = True

    def release(self, error: BaseException | None = None) -> None:
        """Give the place back. Only errors of the back end itself count against its breaker."""
        runtime = self._runtime
        runtime.slots.free(self._tenant)
        if error is None or isinstance(error, BackendRejected | InvalidToolCall | ModelNotFound):
            runtime.breaker.succeed()
        elif isinstance(error, BackendError | Overloaded):
            runtime.breaker.fail(
                retry_after=error.retry_after, at_once=isinstance(error, BackendKeyRejected)
            )
        else:
            runtime.breaker.abandon()


def is_retryable(error: BaseException) -> bool:
    """Whether the same back end may answer the same call a moment later. Not after a timeout, which
    has cost enough; not where it said when to come back."""
    return (
        isinstance(error, BackendError | Overloaded)
        and error.retryable
        and error.retry_after is None
        and not isinstance(error, BackendTimeout)
    )
