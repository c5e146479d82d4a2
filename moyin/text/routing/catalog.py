"""Which models there are, where, and under which names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from moyin.domain.backend import ApiFormat
from moyin.domain.needs import Model
from moyin.errors import ModelNotFound
from moyin.text.quality.abilities import Ability

__all__ = ["AUTO", "Alias", "Caching", "Catalog", "Hedging", "ModelDeployment", "Rescue"]

AUTO = "auto"
# What Ollama's clients add to a name without a tag.
_LATEST = ":latest"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDeployment:
    """A model on a back end.

    Attributes:
        backend: its lane; one of several where the configuration names several hosts.
        family: the back end as the configuration calls it; empty: the same.
        api_format: the format in which the back end takes bytes; None: only translated requests.
        residency: where the data goes, such as ``on-premises``.
        configured: False when the back end lacks its key; it is then listed but never asked.
        key_env: the environment variable that its key comes from; empty: it needs none.
        ability: what is known of the model's ability before it was observed; None: nothing.
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
        """What this very offer may be called."""
        name = self.model.name
        return (name, f"{self.backend}/{name}", f"{self.family or self.backend}/{name}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hedging:
    """A second back end is asked when the first is slower than usual to begin.

    Attributes:
        share: of streamed requests that may be asked twice, at most.
    """

    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Caching:
    """Answers to the same request are kept.

    Attributes:
        ttl: seconds.
        max_bytes: bytes of an answer; longer ones are not kept.
        max_entries: per tenant.
    """

    ttl: int
    max_bytes: int
    max_entries: int


class Rescue(StrEnum):
    """When a better model is asked after an answer that fails what can be checked."""

    OFF = "off"
    CHECKED = "checked"
    SCHEMA = "schema"


@dataclass(frozen=True, kw_only=True, slots=True)
class Alias:
    """A name for several models; the one with the lowest score answers.

    Attributes:
        models: names of models; empty: all.
        quality: models of a lower tier are left out.
        residency: where the data may go; empty: anywhere.
        usd_per_second: what a second of waiting is worth; None: as everywhere.
        usd_per_bad_answer: cost of a useless answer; None: the tenant's, else as everywhere.
        rescue: None: as everywhere.
        hold_streams: None: as everywhere.
        explore: share of requests on which a model may be tried; None: as everywhere.
        hedging: None: as everywhere.
        cache: None: none.
    """

    models: tuple[str, ...] = ()
    quality: int = 0
    residency: tuple[str, ...] = ()
    usd_per_second: float | None = None
    usd_per_bad_answer: float | None = None
    rescue: Rescue | None = None
    hold_streams: bool | None = None
    explore: float | None = None
    hedging: Hedging | None = None
    cache: Caching | None = None

    def allows(self, deployment: ModelDeployment) -> bool:
        return not self.residency or deployment.residency in self.residency


_PLAIN = Alias()


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """All offers, in the order of the configuration."""

    deployments: tuple[ModelDeployment, ...]
    aliases: Mapping[str, Alias] = field(default_factory=dict)

    def alias(self, name: str) -> Alias:
        """The alias ``name``; for a model's own name one that changes nothing."""
        return self.aliases.get(self.canonical(name), _PLAIN)

    def canonical(self, name: str) -> str:
        """Return the configured name that ``name`` means: itself, or the same with or without Ollama's
        tag ``:latest``; where there is none, ``name``."""
        if self._has(name):
            return name
        bare = name.removesuffix(_LATEST)
        other = f"{name}{_LATEST}" if bare == name else bare
        return other if self._has(other) else name

    def _has(self, name: str) -> bool:
        if name == AUTO or name in self.aliases:
            return True
        return any(name in deployment.names for deployment in self.deployments)

    def leaves_choice(self, name: str) -> bool:
        """Return whether ``name`` leaves the choice of a model to the router. A model's own name
        asks for that model, however well it answers."""
        name = self.canonical(name)
        return name == AUTO or name in self.aliases

    def find(self, name: str) -> tuple[ModelDeployment, ...]:
        """The offers that ``name`` stands for: ``auto``, an alias, a model, or
        ``<back end>/<model>``.

        Raises:
            ModelNotFound: nothing has that name.
        """
        name = self.canonical(name)
        if name == AUTO and AUTO not in self.aliases:
            return self.deployments
        if (alias := self.aliases.get(name)) is not None:
            return tuple(
                deployment for deployment in self.deployments if _matches(alias, deployment.model)
            )
        found = tuple(deployment for deployment in self.deployments if name in deployment.names)
        if not found:
            raise ModelNotFound(
                f"there is no model {name!r}; GET /v1/models lists them", field="model"
            )
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """``auto``, the aliases, and the models, each once."""
        models = [deployment.model.name for deployment in self.deployments]
        return tuple(dict.fromkeys([AUTO, *self.aliases, *models]))

    @property
    def abilities(self) -> dict[str, Ability]:
        """What is known of each model before it was observed."""
        return {
            deployment.model.name: deployment.ability
            for deployment in self.deployments
            if deployment.ability is not None
        }

    @property
    def residencies(self) -> frozenset[str]:
        """Where data may go at all."""
        return frozenset(deployment.residency for deployment in self.deployments)


def _matches(alias: Alias, model: Model) -> bool:
    return (not alias.models or model.name in alias.models) and model.quality >= alias.quality
