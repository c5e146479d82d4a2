"""Defines the routing configuration: model deployments, aliases, and policies of tenants."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from moyin.domain.backend import ApiFormat
from moyin.domain.model_file import ModelFile
from moyin.domain.money import Tariff
from moyin.domain.needs import Model
from moyin.errors import ModelNotFound
from moyin.text.quality.abilities import Ability

AUTO = "auto"
# Ollama's clients add this tag to a model name that has none.
LATEST_TAG = ":latest"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDeployment:
    """One model on one back end, with its settings from the configuration.

    Attributes:
        backend: name of the back end. If it has several hosts, each host has a name of its own.
        family: name of the back end in the configuration; empty if it equals ``backend``.
        api_format: API format whose requests the back end accepts unchanged; None if all requests
            are translated.
        residency: place where the data is processed, such as ``on-premises``.
        configured: False if the back end lacks its API key. It is then listed but never called.
        key_env: environment variable of the API key; empty if no key is needed.
        ability: prior estimate of the model's ability; None if unknown.
        file: description of the model on the server's disk; None if the server gives none.
        omitted_abilities: optional abilities, such as ``tools``. If no deployment of the requested
            name has an ability, the fields that need the ability are removed from requests.
        batch_tariff: prices of requests that the back end runs through its own batch API; None if
            it is not used.
    """

    backend: str
    model: Model
    family: str = ""
    api_format: ApiFormat | None = None
    residency: str = "cloud"
    configured: bool = True
    key_env: str = ""
    ability: Ability | None = None
    file: ModelFile | None = None
    omitted_abilities: frozenset[str] = frozenset()
    batch_tariff: Tariff | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which a request can select this deployment."""
        name = self.model.name
        return (name, f"{self.backend}/{name}", f"{self.family or self.backend}/{name}")


@dataclass(frozen=True, kw_only=True, slots=True)
class HedgingPolicy:
    """Configures hedging: a second back end is called if the first begins to answer late.

    Attributes:
        share: maximum share of streamed requests that are sent to a second back end.
    """

    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CachingPolicy:
    """Configures the caching of answers to equal requests of a tenant.

    Attributes:
        ttl: seconds until a cached answer expires.
        max_bytes: maximum size of an answer; longer answers are not cached.
        max_entries: maximum number of cached answers per tenant.
    """

    ttl: int
    max_bytes: int
    max_entries: int


class RescuePolicy(StrEnum):
    """Setting that decides which faulty answers are replaced by the answer of a better model.

    ``off`` disables the rescue. ``schema`` applies to requests that demand JSON or offer tools, and
    ``checked`` to all requests.
    """

    OFF = "off"
    CHECKED = "checked"
    SCHEMA = "schema"


@dataclass(frozen=True, kw_only=True, slots=True)
class Alias:
    """Name for a group of models, with rules for the choice among them.

    For an attribute that is None, the setting of the `Fleet` applies, unless stated otherwise.

    Attributes:
        models: names of the models in the group; empty for all.
        quality: minimum quality tier of the models.
        residency: places where the data may be processed; empty for anywhere.
        usd_per_second: price of a second of waiting.
        usd_per_bad_answer: cost of a useless answer; if it is None, the tenant's setting applies.
        explore: share of requests on which a little-known model may be tried.
        cache: configures the caching of answers. If it is None, answers are not cached.
        omitted_abilities: optional abilities, such as ``tools``. If no model of the group has an
            ability, the fields that need the ability are removed from requests.
    """

    models: tuple[str, ...] = ()
    quality: int = 0
    residency: tuple[str, ...] = ()
    usd_per_second: float | None = None
    usd_per_bad_answer: float | None = None
    rescue: RescuePolicy | None = None
    hold_streams: bool | None = None
    explore: float | None = None
    hedging: HedgingPolicy | None = None
    cache: CachingPolicy | None = None
    omitted_abilities: frozenset[str] = frozenset()

    def allows_residency_of(self, deployment: ModelDeployment) -> bool:
        """Return True if the alias allows this deployment to process a request's data."""
        return not self.residency or deployment.residency in self.residency


@dataclass(frozen=True, kw_only=True, slots=True)
class TenantPolicy:
    """Restrictions and settings of one tenant.

    Attributes:
        residency: places where its data may be processed; None for anywhere.
        names: aliases and models that it may use; None for all.
        usd_per_bad_answer: cost of a useless answer, unless the alias sets one. If it is None, the
            setting of the `Fleet` applies.
        is_judged: True if the judge model may evaluate a sample of its answers.
    """

    residency: frozenset[str] | None = None
    names: frozenset[str] | None = None
    usd_per_bad_answer: float | None = None
    is_judged: bool = True

    def allows(self, name: str) -> bool:
        """Return True if the tenant may use the alias or model ``name``.

        Args:
            name: the configured spelling, as `Catalog.get_canonical_name` returns it.
        """
        return self.names is None or _is_listed(name, self.names)


UNRESTRICTED = TenantPolicy()
# Key of the policy for all tenants that have no policy of their own.
ANY_TENANT = "*"


_NO_ALIAS = Alias()


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """All model deployments and aliases, in the order of the configuration."""

    deployments: tuple[ModelDeployment, ...]
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    # The deployments among which `auto` and aliases choose.
    _group: tuple[ModelDeployment, ...] = field(init=False, repr=False, compare=False)
    _by_name: Mapping[str, tuple[ModelDeployment, ...]] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        group = tuple(map(_limit_to_chat, self.deployments))
        object.__setattr__(self, "_group", group)
        deployments_by_name: dict[str, list[ModelDeployment]] = {}
        for deployment in self.deployments:
            for name in frozenset(deployment.names):
                deployments_by_name.setdefault(name, []).append(deployment)
        object.__setattr__(
            self,
            "_by_name",
            {name: tuple(deployments) for name, deployments in deployments_by_name.items()},
        )

    def get_alias(self, name: str) -> Alias:
        """Return the alias with this name, or an alias without restrictions if there is none."""
        return self.aliases.get(self.get_canonical_name(name), _NO_ALIAS)

    def get_canonical_name(self, name: str) -> str:
        """Return a name as the configuration spells it: with or without Ollama's tag ``:latest``.

        An unknown name is returned unchanged.
        """
        if self._is_known(name):
            return name
        untagged_name = name.removesuffix(LATEST_TAG)
        alternative_name = f"{name}{LATEST_TAG}" if untagged_name == name else untagged_name
        return alternative_name if self._is_known(alternative_name) else name

    def _is_known(self, name: str) -> bool:
        return name == AUTO or name in self.aliases or name in self._by_name

    def is_group_name(self, name: str) -> bool:
        """Return True if ``name`` is ``auto`` or an alias, so that the router chooses a model."""
        name = self.get_canonical_name(name)
        return name == AUTO or name in self.aliases

    def find_deployments(self, name: str) -> tuple[ModelDeployment, ...]:
        """Return the deployments that a name in a request stands for.

        Args:
            name: ``auto``, an alias, a model, or ``<back end>/<model>``.

        Raises:
            ModelNotFound: the name is unknown.
        """
        name = self.get_canonical_name(name)
        if name == AUTO and AUTO not in self.aliases:
            return self._group
        if (alias := self.aliases.get(name)) is not None:
            return tuple(
                deployment for deployment in self._group if _is_in_alias(alias, deployment.model)
            )
        deployments = self._by_name.get(name)
        if deployments is None:
            raise ModelNotFound(
                f"there is no model {name!r}; GET /v1/models lists the models", field="model"
            )
        return deployments

    @property
    def names(self) -> tuple[str, ...]:
        """All names that a request can use: ``auto``, the aliases and the models."""
        models = [deployment.model.name for deployment in self.deployments]
        return tuple(dict.fromkeys([AUTO, *self.aliases, *models]))

    @property
    def abilities(self) -> dict[str, Ability]:
        """The prior estimates of the models' abilities, by model name."""
        return {
            deployment.model.name: deployment.ability
            for deployment in self.deployments
            if deployment.ability is not None
        }

    @property
    def residencies(self) -> frozenset[str]:
        """The places, such as ``on-premises``, where at least one deployment processes data."""
        return frozenset(deployment.residency for deployment in self.deployments)


def _limit_to_chat(deployment: ModelDeployment) -> ModelDeployment:
    """Return the deployment, marked as unable to compute embeddings if its model can chat.

    Vectors of different models cannot be compared. Therefore ``auto`` uses no chat model for
    embeddings; a request must name it.
    """
    model = deployment.model
    if not (model.chat and model.embeddings):
        return deployment
    return replace(deployment, model=replace(model, embeddings=False))


def _is_listed(name: str, names: Collection[str]) -> bool:
    """Return True if ``names`` contains the name, with or without Ollama's tag ``:latest``."""
    return name in names or f"{name}{LATEST_TAG}" in names


def _is_in_alias(alias: Alias, model: Model) -> bool:
    is_listed = not alias.models or _is_listed(model.name, alias.models)
    return is_listed and model.quality >= alias.quality
