"""Holds what a model name resolves to on one day, compiled once from the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from moyin.domain.backend import ApiFormat
from moyin.domain.money import Price
from moyin.domain.needs import Model
from moyin.http.breaker import Breaker
from moyin.text.routing.backend_runtime import BackendRuntime
from moyin.text.routing.catalog import Alias, Caching, Hedging, ModelDeployment, Rescue
from moyin.text.routing.latency import LatencyEstimator

__all__ = [
    "CompiledRoute",
    "EligibleDeployment",
    "Exclusion",
    "compile_target",
    "exclusion_of",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exclusion:
    """Holds a deployment that may not answer, and why.

    Attributes:
        reason: in a few words.
        missing: abilities that the model lacks; empty when it could answer but is unavailable.
        is_allowed: tenant, alias and client all permit it.
        retry_after: seconds until it may be called again.
    """

    deployment: ModelDeployment
    reason: str
    missing: tuple[str, ...] = ()
    is_allowed: bool = True
    retry_after: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EligibleDeployment:
    """Combines a configured and allowed deployment with the runtime that serves it.

    Attributes:
        model_breaker: open while the back end reports the model as missing; see
            `BackendRuntime.model_breaker`.
        position: in the order of the configuration.
        needs_translation: the client's format differs from the back end's.
        fixed_price: of the day; None: it depends on the machine's measured speed.
        headers: response headers that name back end and model.
    """

    deployment: ModelDeployment
    runtime: BackendRuntime
    latency: LatencyEstimator
    model_breaker: Breaker
    position: int
    needs_translation: bool
    fixed_price: Price | None
    headers: tuple[tuple[bytes, bytes], ...]

    @property
    def model(self) -> Model:
        """The model of the deployment."""
        return self.deployment.model

    @property
    def is_free(self) -> bool:
        """True if no token costs anything."""
        return self.fixed_price is not None and self.fixed_price.is_free

    def price(self) -> Price:
        """Return the current price of tokens."""
        if self.fixed_price is not None:
            return self.fixed_price
        assert self.model.gpu is not None, "either a price or a machine"
        return self.latency.price(self.model.gpu)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CompiledRoute:
    """Lists the targets of one name, for one tenant, in one API format, on one day.

    Attributes:
        day: days since 1970-01-01.
        exclusions: deployments that are excluded for every request.
        usd_per_second: price of a second of waiting.
        usd_per_bad_answer: cost of a useless answer; 0: quality is not weighed.
        rescue: when a better model is asked after an answer that fails a check.
        hold_streams: streams with a checkable format are held back until they are complete.
        explore: share of requests on which a little-known model may be tried.
        chooses_model: False if the name is that of a single model, so that quality is irrelevant.
        timeout: seconds that a whole call may take, fallbacks included.
    """

    day: int
    targets: tuple[EligibleDeployment, ...]
    exclusions: tuple[Exclusion, ...]
    usd_per_second: float
    timeout: float
    usd_per_bad_answer: float = 0.0
    chooses_model: bool = True
    rescue: Rescue = Rescue.OFF
    hold_streams: bool = False
    explore: float = 0.0
    hedging: Hedging | None = None
    cache: Caching | None = None


def compile_target(
    deployment: ModelDeployment,
    runtime: BackendRuntime,
    *,
    position: int,
    api_format: ApiFormat | None,
    day: date,
) -> EligibleDeployment:
    """Return a deployment with its runtime and its price on ``day``."""
    model = deployment.model
    return EligibleDeployment(
        deployment=deployment,
        runtime=runtime,
        latency=runtime.latency(model.name),
        model_breaker=runtime.model_breaker(model.upstream),
        position=position,
        needs_translation=deployment.api_format is not api_format,
        fixed_price=model.tariff.get_price_on(day) if model.gpu is None else None,
        headers=(
            (b"x-moyin-backend", runtime.name.encode()),
            (b"x-moyin-model", model.name.encode()),
        ),
    )


def exclusion_of(
    deployment: ModelDeployment, alias: Alias, residencies: frozenset[str] | None
) -> Exclusion | None:
    """Return why ``deployment`` is excluded for every request; None if it is not.

    Args:
        residencies: where tenant and client allow data to go; None: anywhere.
    """
    if not (
        alias.allows(deployment) and (residencies is None or deployment.residency in residencies)
    ):
        return Exclusion(
            deployment=deployment,
            reason=f"not allowed: data would go to {deployment.residency}",
            is_allowed=False,
        )
    return (
        None if deployment.configured else Exclusion(deployment=deployment, reason="not configured")
    )
