"""Combines the back ends of one configuration, and compiles and caches the routes to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from moyin.domain.backend import ApiFormat
from moyin.domain.money import Price
from moyin.errors import ModelNotAllowed
from moyin.text.routing.backend_runtime import BackendHealth, BackendRuntime
from moyin.text.routing.catalog import (
    ANY_TENANT,
    UNRESTRICTED,
    Alias,
    Catalog,
    HedgingPolicy,
    ModelDeployment,
    RescuePolicy,
    TenantPolicy,
)
from moyin.text.routing.compiled_route import (
    CompiledRoute,
    Exclusion,
    RouteTarget,
    compile_target,
    find_exclusion,
)
from moyin.text.routing.ledger import date_from_day, today

_UNCONFIGURED_HEALTH = BackendHealth(is_up=False)
_RouteKey: TypeAlias = tuple[str, int, tuple[str, ...] | None, ApiFormat]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """All back ends, aliases and policies of one configuration.

    A new configuration replaces the whole fleet. The settings ``usd_per_second``,
    ``usd_per_bad_answer``, ``rescue``, ``hold_streams``, ``explore`` and ``hedging`` apply to
    aliases that do not set them; `Alias` and `CompiledRoute` describe them.

    Attributes:
        runtimes: by name of the back end. A back end without its API key has no runtime.
        policies: by tenant. The entry ``*`` applies to all other tenants; without it they are
            unrestricted.
        max_usd_per_bad_answer: maximum cost of a useless answer that a client may set.
        timeout: maximum seconds of a request, including fallbacks.
        embed: returns the semantic features of a prompt. If it is None, only words are features.
    """

    catalog: Catalog
    runtimes: Mapping[str, BackendRuntime]
    policies: Mapping[str, TenantPolicy] = field(default_factory=dict)
    usd_per_second: float = 0.0
    usd_per_bad_answer: float = 0.0
    max_usd_per_bad_answer: float = math.inf
    rescue: RescuePolicy = RescuePolicy.OFF
    hold_streams: bool = False
    explore: float = 0.0
    hedging: HedgingPolicy | None = None
    timeout: float = 600.0
    embed: Callable[[str], tuple[int, ...]] | None = None
    residencies: frozenset[str] = field(init=False)
    # Compiled routes by name, policy (by its `id`), residencies and API format.
    _routes: dict[_RouteKey, CompiledRoute] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "residencies", self.catalog.residencies)

    def get_health(self, name: str) -> BackendHealth:
        """Return the health of a back end; a back end that is not configured is down."""
        runtime = self.runtimes.get(name)
        return runtime.health if runtime is not None else _UNCONFIGURED_HEALTH

    def get_price(self, deployment: ModelDeployment) -> Price:
        """Return the current price per token of a deployment."""
        runtime, gpu = self.runtimes.get(deployment.backend), deployment.model.gpu
        if runtime is None or gpu is None:
            return deployment.model.tariff.get_price_on(today())
        return runtime.get_latency_estimator(deployment.model.name).estimate_price(gpu)

    def get_policy(self, owner: str) -> TenantPolicy:
        """Return the policy of a tenant: its own, the policy ``*``, or no restrictions."""
        return self.policies.get(owner) or self.policies.get(ANY_TENANT, UNRESTRICTED)

    def find_allowed_deployments(self, name: str, owner: str) -> tuple[ModelDeployment, ...]:
        """Return the deployments of a model name that a tenant may use, available or not.

        The result is empty if the tenant may not use the name.

        Raises:
            ModelNotFound: the name is unknown.
        """
        name = self.catalog.get_canonical_name(name)
        deployments, policy = self.catalog.find_deployments(name), self.get_policy(owner)
        if not policy.allows(name):
            return ()
        alias, residencies = self.catalog.get_alias(name), policy.residency
        exclusions = (
            (deployment, find_exclusion(deployment, alias, residencies))
            for deployment in deployments
        )
        return tuple(
            deployment
            for deployment, exclusion in exclusions
            if exclusion is None or exclusion.is_allowed
        )

    def find_callable_deployments(self, name: str, owner: str) -> tuple[ModelDeployment, ...]:
        """Return the deployments of a model name that a tenant may use and that are available.

        If no back end of the model is available, return all deployments whose back end has its API
        key, or else all. Callers can then still describe the model while its server restarts.

        Raises:
            ModelNotFound: the name is unknown.
        """
        allowed_deployments = self.find_allowed_deployments(name, owner)
        configured_deployments = tuple(
            deployment for deployment in allowed_deployments if deployment.configured
        )
        available_deployments = tuple(
            deployment
            for deployment in configured_deployments
            if self.get_health(deployment.backend).is_up
        )
        return available_deployments or configured_deployments or allowed_deployments

    def list_names(self, owner: str) -> tuple[str, ...]:
        """Return the names of the aliases and models that a tenant may use."""
        return tuple(
            name for name in self.catalog.names if self.find_allowed_deployments(name, owner)
        )

    @property
    def is_usable(self) -> bool:
        """True if at least one back end accepts requests."""
        return any(runtime.is_ready for runtime in self.runtimes.values())

    def get_route(
        self,
        name: str,
        owner: str,
        residency: tuple[str, ...] | None,
        api_format: ApiFormat,
        day: int,
    ) -> CompiledRoute:
        """Return the compiled route of a model name, from the cache if it is from the same day.

        Args:
            residency: places where the client allows the data to be processed, sorted.
            api_format: the API format of the client.
            day: the day of the prices, in days since 1970-01-01.

        Raises:
            ModelNotFound: the name is unknown.
            ModelNotAllowed: the tenant's policy does not allow the name.
        """
        policy = self.get_policy(owner)
        key = (name, id(policy), residency, api_format)
        route = self._routes.get(key)
        if route is None or route.day != day:
            route = self._routes[key] = self._compile_route(
                name, policy, residency, api_format, day
            )
        return route

    def _compile_route(
        self,
        name: str,
        policy: TenantPolicy,
        residency: tuple[str, ...] | None,
        api_format: ApiFormat,
        day: int,
    ) -> CompiledRoute:
        name = self.catalog.get_canonical_name(name)
        deployments = self.catalog.find_deployments(name)
        if not policy.allows(name):
            raise ModelNotAllowed(
                f"the policy of this tenant does not allow the model {name!r}; GET /v1/models lists those allowed",
                field="model",
            )
        alias, residencies = self.catalog.get_alias(name), policy.residency
        if residency is not None:
            residencies = frozenset(residency) & (
                self.residencies if residencies is None else residencies
            )
        targets: list[RouteTarget] = []
        exclusions: list[Exclusion] = []
        for position, deployment in enumerate(deployments):
            if (exclusion := find_exclusion(deployment, alias, residencies)) is not None:
                exclusions.append(exclusion)
                continue
            runtime, date = self.runtimes[deployment.backend], date_from_day(day)
            targets.append(
                compile_target(
                    deployment, runtime, position=position, api_format=api_format, day=date
                )
            )
        usd_per_second = alias.usd_per_second
        return CompiledRoute(
            day=day,
            targets=tuple(targets),
            exclusions=tuple(exclusions),
            usd_per_second=self.usd_per_second if usd_per_second is None else usd_per_second,
            timeout=self.timeout,
            usd_per_bad_answer=self._resolve_bad_answer_cost(alias, policy),
            rescue=alias.rescue or self.rescue,
            hold_streams=self.hold_streams if alias.hold_streams is None else alias.hold_streams,
            explore=self.explore if alias.explore is None else alias.explore,
            chooses_model=self.catalog.is_group_name(name),
            hedging=alias.hedging or self.hedging,
            cache=alias.cache,
            omitted_abilities=_find_omitted_abilities(alias, targets),
        )

    def _resolve_bad_answer_cost(self, alias: Alias, policy: TenantPolicy) -> float:
        """Return the cost of a useless answer in US dollars.

        It is that of the alias, else that of the tenant, else that of the fleet.
        """
        for cost in (alias.usd_per_bad_answer, policy.usd_per_bad_answer):
            if cost is not None:
                return cost
        return self.usd_per_bad_answer


def _find_omitted_abilities(alias: Alias, targets: Sequence[RouteTarget]) -> frozenset[str]:
    """Return the abilities whose request fields are removed, because no target has the ability.

    The alias, or the deployment of every target, must allow that the ability is omitted.
    """
    allowed_abilities = set(alias.omitted_abilities)
    if targets:
        allowed_abilities |= frozenset.intersection(
            *(target.deployment.omitted_abilities for target in targets)
        )
    return frozenset(
        ability
        for ability in allowed_abilities
        if not any(getattr(target.model, ability) for target in targets)
    )
