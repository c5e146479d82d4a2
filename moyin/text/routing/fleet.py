"""All back ends of one configuration."""

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
    """Replaced as a whole when the configuration changes. A back end that is not configured has
    offers in the catalog but no lane.

    Attributes:
        policies: of tenants, by owner; ``*`` is for who is not named, without it they may use
            everything.
        usd_per_second: what a second of waiting is worth where an alias says nothing else.
        usd_per_bad_answer: cost of a useless answer where neither alias nor tenant say otherwise.
        max_usd_per_bad_answer: the highest that a client may name.
        rescue: where an alias has no policy of its own.
        hold_streams: whether streams are held back, where an alias says nothing of it.
        explore: share of requests on which a model may be tried, where an alias says nothing of it.
        hedging: where an alias has none of its own.
        timeout: seconds that a whole call may take, fallbacks included.
        embed: returns the numbers of what a prompt means; None: its words say all.
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
    # What was worked out: as many entries as names, policies and sets of places in use.
    _routes: dict[_Key, CompiledRoute] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "residencies", self.catalog.residencies)

    def health(self, name: str) -> BackendHealth:
        runtime = self.runtimes.get(name)
        return runtime.health if runtime is not None else _UNCONFIGURED

    def price(self, deployment: ModelDeployment) -> Price:
        """What tokens cost there now."""
        runtime, gpu = self.runtimes.get(deployment.backend), deployment.model.gpu
        if runtime is None or gpu is None:
            return deployment.model.tariff.price_on(today())
        return runtime.latency(deployment.model.name).price(gpu)

    def policy(self, owner: str) -> Policy:
        """Return what a tenant may use."""
        return self.policies.get(owner) or self.policies.get(ANY_TENANT, UNRESTRICTED)

    def deployments_for(self, name: str, owner: str) -> tuple[ModelDeployment, ...]:
        """Return the offers that a tenant may be answered by under ``name``, up or not; none where
        it may not use the name.

        Raises:
            ModelNotFound: nothing has that name.
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
        """Return the aliases and models that a tenant may ask for."""
        return tuple(name for name in self.catalog.names if self.deployments_for(name, owner))

    @property
    def is_usable(self) -> bool:
        """Whether at least one back end would be asked now."""
        return any(runtime.ready for runtime in self.runtimes.values())

    def route(
        self,
        name: str,
        owner: str,
        residency: tuple[str, ...] | None,
        api_format: ApiFormat,
        day: int,
    ) -> CompiledRoute:
        """Who may answer.

        Args:
            residency: what the client asks for: places in ``residencies``, sorted.
            api_format: the client's format.
            day: since 1970-01-01, whose prices hold.

        Raises:
            ModelNotFound: nothing has that name.
            ModelNotAllowed: this tenant may not use it.
        """
        policy = self.policy(owner)
        key = (name, id(policy), residency, api_format)
        found = self._routes.get(key)
        if found is None or found.day != day:
            found = self._routes[key] = self._compile(name, policy, residency, api_format, day)
        return found

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
            prices_of = date_of(day)
            runtime = self.runtimes[deployment.backend]
            targets.append(
                compile_target(
                    deployment, runtime, position=position, api_format=api_format, day=prices_of
                )
            )
        worth = alias.usd_per_second
        return CompiledRoute(
            day=day,
            targets=tuple(targets),
            exclusions=tuple(exclusions),
            usd_per_second=self.usd_per_second if worth is None else worth,
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
        """Return the cost of a useless answer: the alias's, as it names the kind of work; else the
        tenant's; else the general one."""
        for cost in (alias.usd_per_bad_answer, policy.usd_per_bad_answer):
            if cost is not None:
                return cost
        return self.usd_per_bad_answer
