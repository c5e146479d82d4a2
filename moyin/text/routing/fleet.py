"""Holds all back ends of one configuration and compiles routes to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from moyin.domain.backend import ApiFormat
from moyin.domain.money import Price
from moyin.errors import ModelNotAllowed
from moyin.text.routing.backend_runtime import BackendHealth, BackendRuntime
from moyin.text.routing.catalog import Alias, Catalog, Hedging, ModelDeployment, Rescue
from moyin.text.routing.compiled_route import (
    CompiledRoute,
    EligibleDeployment,
    Exclusion,
    compile_target,
    exclusion_of,
)
from moyin.text.routing.ledger import date_of, today
from moyin.text.routing.policy import ANY_TENANT, UNRESTRICTED, Policy

__all__ = ["Fleet"]

_UNCONFIGURED = BackendHealth(is_up=False)
_Key: TypeAlias = tuple[str, int, tuple[str, ...] | None, ApiFormat]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """Holds the back ends of one configuration; it is replaced as a whole when that changes.

    A back end that is not configured has deployments in the catalog but no runtime.

    Attributes:
        policies: by owner; ``*`` applies to tenants that are not named. Without it they may use
            everything.
        usd_per_second: price of a second of waiting, unless the alias sets one.
        usd_per_bad_answer: cost of a useless answer, unless the alias or the tenant sets one.
        max_usd_per_bad_answer: the highest cost that a client may set.
        rescue: policy, unless the alias sets one.
        hold_streams: whether streams are held back, unless the alias says so.
        explore: share of requests on which a little-known model may be tried, unless the alias sets
            one.
        hedging: unless the alias configures it.
        timeout: seconds that a whole call may take, fallbacks included.
        embed: returns features of a prompt's meaning; None: only its words are used.
    """

    catalog: Catalog
    runtimes: Mapping[str, BackendRuntime]
    policies: Mapping[str, Policy] = field(default_factory=dict)
    usd_per_second: float = 0.0
    usd_per_bad_answer: float = 0.0
    max_usd_per_bad_answer: float = math.inf
    rescue: Rescue = Rescue.OFF
    hold_streams: bool = False
    explore: float = 0.0
    hedging: Hedging | None = None
    timeout: float = 600.0
    embed: Callable[[str], tuple[int, ...]] | None = None
    residencies: frozenset[str] = field(init=False)
    # At most one entry per name, policy, set of residencies and API format in use.
    _routes: dict[_Key, CompiledRoute] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "residencies", self.catalog.residencies)

    def health(self, name: str) -> BackendHealth:
        """Return the health of a back end."""
        runtime = self.runtimes.get(name)
        return runtime.health if runtime is not None else _UNCONFIGURED

    def price(self, deployment: ModelDeployment) -> Price:
        """Return the current price of tokens of a deployment."""
        runtime, gpu = self.runtimes.get(deployment.backend), deployment.model.gpu
        if runtime is None or gpu is None:
            return deployment.model.tariff.get_price_on(today())
        return runtime.latency(deployment.model.name).price(gpu)

    def policy(self, owner: str) -> Policy:
        """Return the policy of a tenant."""
        return self.policies.get(owner) or self.policies.get(ANY_TENANT, UNRESTRICTED)

    def deployments_for(self, name: str, owner: str) -> tuple[ModelDeployment, ...]:
        """Return the deployments under ``name`` that a tenant may use, available or not.

        Return nothing if the tenant may not use the name.

        Raises:
            ModelNotFound: the name is unknown.
        """
        name = self.catalog.canonical(name)
        deployments, policy = self.catalog.find(name), self.policy(owner)
        if policy.names is not None and name not in policy.names:
            return ()
        alias, residencies = self.catalog.alias(name), policy.residency
        exclusions = (
            (deployment, exclusion_of(deployment, alias, residencies)) for deployment in deployments
        )
        return tuple(
            deployment
            for deployment, exclusion in exclusions
            if exclusion is None or exclusion.is_allowed
        )

    def names(self, owner: str) -> tuple[str, ...]:
        """Return the aliases and models that a tenant may use."""
        return tuple(name for name in self.catalog.names if self.deployments_for(name, owner))

    @property
    def is_usable(self) -> bool:
        """True if at least one back end would be called now."""
        return any(runtime.ready for runtime in self.runtimes.values())

    def route(
        self,
        name: str,
        owner: str,
        residency: tuple[str, ...] | None,
        api_format: ApiFormat,
        day: int,
    ) -> CompiledRoute:
        """Return the compiled route of a name.

        Args:
            residency: places that the client allows, sorted; members of ``residencies``.
            api_format: the client's format.
            day: whose prices apply, in days since 1970-01-01.

        Raises:
            ModelNotFound: the name is unknown.
            ModelNotAllowed: this tenant may not use it.
        """
        policy = self.policy(owner)
        key = (name, id(policy), residency, api_format)
        route = self._routes.get(key)
        if route is None or route.day != day:
            route = self._routes[key] = self._compile(name, policy, residency, api_format, day)
        return route

    def _compile(
        self,
        name: str,
        policy: Policy,
        residency: tuple[str, ...] | None,
        api_format: ApiFormat,
        day: int,
    ) -> CompiledRoute:
        name = self.catalog.canonical(name)
        deployments = self.catalog.find(name)
        if policy.names is not None and name not in policy.names:
            raise ModelNotAllowed(f"this key may not use the model {name!r}", field="model")
        alias, residencies = self.catalog.alias(name), policy.residency
        if residency is not None:
            residencies = frozenset(residency) & (
                self.residencies if residencies is None else residencies
            )
        targets: list[EligibleDeployment] = []
        exclusions: list[Exclusion] = []
        for position, deployment in enumerate(deployments):
            if (exclusion := exclusion_of(deployment, alias, residencies)) is not None:
                exclusions.append(exclusion)
                continue
            price_date = date_of(day)
            runtime = self.runtimes[deployment.backend]
            targets.append(
                compile_target(
                    deployment, runtime, position=position, api_format=api_format, day=price_date
                )
            )
        usd_per_second = alias.usd_per_second
        return CompiledRoute(
            day=day,
            targets=tuple(targets),
            exclusions=tuple(exclusions),
            usd_per_second=self.usd_per_second if usd_per_second is None else usd_per_second,
            timeout=self.timeout,
            usd_per_bad_answer=self._bad_answer_cost(alias, policy),
            rescue=alias.rescue or self.rescue,
            hold_streams=self.hold_streams if alias.hold_streams is None else alias.hold_streams,
            explore=self.explore if alias.explore is None else alias.explore,
            chooses_model=self.catalog.leaves_choice(name),
            hedging=alias.hedging or self.hedging,
            cache=alias.cache,
        )

    def _bad_answer_cost(self, alias: Alias, policy: Policy) -> float:
        """Return the cost of a useless answer set by the alias, the tenant or the configuration."""
        for cost in (alias.usd_per_bad_answer, policy.usd_per_bad_answer):
            if cost is not None:
                return cost
        return self.usd_per_bad_answer
