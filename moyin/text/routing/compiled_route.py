"""Everything about a name that depends on the configuration and the day only, worked out once."""

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
    """An offer that may not answer.

    Attributes:
        reason: in a few words.
        missing: what the model can't do; empty when it could answer but is not up.
        is_allowed: whether tenant, alias and client let it be asked.
        retry_after: seconds until it may be asked again.
    """

    deployment: ModelDeployment
    reason: str
    missing: tuple[str, ...] = ()
    is_allowed: bool = True
    retry_after: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EligibleDeployment:
    """An offer that is configured and allowed, with the parts that answer for it.

    Attributes:
        model_breaker: of the model on the back end; see `BackendRuntime.model_breaker`.
        position: in the order of the configuration.
        needs_translation: the client speaks another format than the back end.
        fixed_price: the day's price; None: it follows the pace of the machine.
        headers: that tell the client who answered.
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
        return self.deployment.model

    @property
    def is_free(self) -> bool:
        return self.fixed_price is not None and self.fixed_price.is_free

    def price(self) -> Price:
        """What tokens cost now."""
        if self.fixed_price is not None:
            return self.fixed_price
        assert self.model.gpu is not None, "either a price or a machine"
        return self.latency.price(self.model.gpu)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CompiledRoute:
    """Who may answer under one name, for one tenant, in one format, on one day.

    Attributes:
        exclusions: offers that are out whatever the request says.
        usd_per_second: what a second of waiting is worth.
        usd_per_bad_answer: cost of a useless answer; 0: quality is not weighed.
        rescue: when a better model is asked after an answer that fails a check.
        hold_streams: streams whose form can be checked are held back until they are complete.
        explore: share of requests on which a model that little is known of may be tried.
        chooses_model: False where the name is that of a model, so that quality changes nothing.
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
    model = deployment.model
    return EligibleDeployment(
        deployment=deployment,
        runtime=runtime,
        latency=runtime.latency(model.name),
        model_breaker=runtime.model_breaker(model.upstream),
        position=position,
        needs_translation=deployment.api_format is not api_format,
        fixed_price=model.tariff.price_on(day) if model.gpu is None else None,
        headers=(
            (b"x-moyin-backend", runtime.name.encode()),
            (b"x-moyin-model", model.name.encode()),
        ),
    )


def exclusion_of(
    deployment: ModelDeployment, alias: Alias, residencies: frozenset[str] | None
) -> Exclusion | None:
    """Why ``deployment`` is out from the start, if it is.

    Args:
        residencies: where tenant and client let the data go; None: anywhere.
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
