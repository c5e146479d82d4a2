"""Holds the configured models, the back ends that serve them, and their aliases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from moyin.domain.backend import ApiFormat
from moyin.domain.needs import Model
from moyin.errors import ModelNotFound
from moyin.text.quality.abilities import Ability

__all__ = [
    "ANY_TENANT",
    "AUTO",
    "UNRESTRICTED",
    "Alias",
    "CachingPolicy",
    "Catalog",
    "HedgingPolicy",
    "ModelDeployment",
    "RescuePolicy",
    "TenantPolicy",
]

AUTO = "auto"
# Ollama's clients add this tag to a name without one.
_LATEST_TAG = ":latest"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDeployment:
    """Describes a model on a back end, as configured.

    Attributes:
        backend: name of its runtime; one of several where the configuration names several hosts.
        family: name of the back end in the configuration; empty: the same as ``backend``.
        api_format: format in which the back end accepts bytes; None: only translated requests.
        residency: where the data goes, such as ``on-premises``.
        configured: False if the back end lacks its key; it is then listed but never called.
        key_env: environment variable of its key; empty: it needs none.
        ability: the model's ability before it was observed; None: unknown.
    """

    backend: str
    model: Model
    family: str = ""
    api_format: ApiFormat | None = None
    residency: str = "cloud"
    configured: bool = True
    key_env: str = ""
    ability: Ability | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which a request can select this deployment."""
        name = self.model.name
        return (name, f"{self.backend}/{name}", f"{self.family or self.backend}/{name}")


@dataclass(frozen=True, kw_only=True, slots=True)
class HedgingPolicy:
    """Configures hedging: a second back end is called if the first is slow to begin.

    Attributes:
        share: largest share of streamed requests that may be sent twice.
    """

    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CachingPolicy:
    """Configures caching of answers to equal requests.

    Attributes:
        ttl: seconds that an answer is stored.
        max_bytes: size of the largest answer that is stored.
        max_entries: answers stored per tenant.
    """

    ttl: int
    max_bytes: int
    max_entries: int


class RescuePolicy(StrEnum):
    """When a better model is called after an answer that fails a check."""

    OFF = "off"
    CHECKED = "checked"
    SCHEMA = "schema"


@dataclass(frozen=True, kw_only=True, slots=True)
class Alias:
    """Names a group of models; the one with the lowest score answers.

    Where an attribute is None, the general setting applies.

    Attributes:
        models: model names; empty: all.
        quality: models of a lower tier are left out.
        residency: where the data may go; empty: anywhere.
        usd_per_second: price of a second of waiting.
        usd_per_bad_answer: cost of a useless answer; the tenant's setting comes before the general
            one.
        explore: share of requests on which a little-known model may be tried.
        cache: None: answers are not cached.
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

    def allows_residency_of(self, deployment: ModelDeployment) -> bool:
        """Return whether data may go where this deployment runs."""
        return not self.residency or deployment.residency in self.residency


@dataclass(frozen=True, kw_only=True, slots=True)
class TenantPolicy:
    """Restricts what one tenant may use.

    Attributes:
        residency: where its data may go; None: anywhere.
        names: aliases and models that it may use; None: all.
        usd_per_bad_answer: cost of a useless answer, unless the alias sets one; None: the general
            setting.
        is_judged: the judge may evaluate a share of its answers, where one is configured.
    """

    residency: frozenset[str] | None = None
    names: frozenset[str] | None = None
    usd_per_bad_answer: float | None = None
    is_judged: bool = True


UNRESTRICTED = TenantPolicy()
# The key of the policy for all tenants without one of their own.
ANY_TENANT = "*"


_NO_ALIAS = Alias()


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """Lists all deployments, in the order of the configuration."""

    deployments: tuple[ModelDeployment, ...]
    aliases: Mapping[str, Alias] = field(default_factory=dict)

    def get_alias(self, name: str) -> Alias:
        """Return the alias ``name``; for a model's own name, an alias without restrictions."""
        return self.aliases.get(self.get_canonical_name(name), _NO_ALIAS)

    def get_canonical_name(self, name: str) -> str:
        """Return the configured form of ``name``, which may add or lack Ollama's tag ``:latest``.

        Return ``name`` itself if neither form is configured.
        """
        if self._is_known(name):
            return name
        untagged = name.removesuffix(_LATEST_TAG)
        alternative = f"{name}{_LATEST_TAG}" if untagged == name else untagged
        return alternative if self._is_known(alternative) else name

    def _is_known(self, name: str) -> bool:
        if name == AUTO or name in self.aliases:
            return True
        return any(name in deployment.names for deployment in self.deployments)

    def is_group_name(self, name: str) -> bool:
        """Return whether ``name`` leaves the choice of a model to the router.

        A model's own name selects that model, however well it answers.
        """
        name = self.get_canonical_name(name)
        return name == AUTO or name in self.aliases

    def find_deployments(self, name: str) -> tuple[ModelDeployment, ...]:
        """Return the deployments of ``name``.

        It is ``auto``, an alias, a model, or ``<back end>/<model>``.

        Raises:
            ModelNotFound: the name is unknown.
        """
        name = self.get_canonical_name(name)
        if name == AUTO and AUTO not in self.aliases:
            return self.deployments
        if (alias := self.aliases.get(name)) is not None:
            return tuple(
                deployment for deployment in self.deployments if _includes(alias, deployment.model)
            )
        deployments = tuple(
            deployment for deployment in self.deployments if name in deployment.names
        )
        if not deployments:
            raise ModelNotFound(
                f"there is no model {name!r}; GET /v1/models lists the models", field="model"
            )
        return deployments

    @property
    def names(self) -> tuple[str, ...]:
        """``auto``, the aliases and the models, each once."""
        models = [deployment.model.name for deployment in self.deployments]
        return tuple(dict.fromkeys([AUTO, *self.aliases, *models]))

    @property
    def abilities(self) -> dict[str, Ability]:
        """The abilities of the models before they were observed, by model name."""
        return {
            deployment.model.name: deployment.ability
            for deployment in self.deployments
            if deployment.ability is not None
        }

    @property
    def residencies(self) -> frozenset[str]:
        """All places where data may go."""
        return frozenset(deployment.residency for deployment in self.deployments)


def _includes(alias: Alias, model: Model) -> bool:
    return (not alias.models or model.name in alias.models) and model.quality >= alias.quality
