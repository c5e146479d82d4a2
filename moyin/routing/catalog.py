"""Which models there are, where, and under which names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moyin.domain.backend import Wire
from moyin.domain.needs import Model
from moyin.errors import ModelNotFound

__all__ = ["AUTO", "Alias", "Catalog", "Offer"]

AUTO = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """A model on a back end.

    Attributes:
        wire: the format in which the back end takes bytes; None: only translated requests.
        configured: False when the back end lacks its key; it is then listed but never asked.
    """

    backend: str
    model: Model
    wire: Wire | None = None
    configured: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Alias:
    """A name for several models; the cheapest able one answers.

    Attributes:
        models: names of models; empty: all.
        quality: models of a lower tier are left out.
    """

    models: tuple[str, ...] = ()
    quality: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """All offers, in the order of the configuration."""

    offers: tuple[Offer, ...]
    aliases: Mapping[str, Alias] = field(default_factory=dict)

    def find(self, name: str) -> tuple[Offer, ...]:
        """The offers that ``name`` stands for: ``auto``, an alias, a model, or
        ``<back end>/<model>``.

        Raises:
            ModelNotFound: nothing has that name.
        """
        if name == AUTO and AUTO not in self.aliases:
            return self.offers
        if (alias := self.aliases.get(name)) is not None:
            return tuple(offer for offer in self.offers if _matches(alias, offer.model))
        found = tuple(
            offer
            for offer in self.offers
            if name in (offer.model.name, f"{offer.backend}/{offer.model.name}")
        )
        if not found:
            raise ModelNotFound(
                f"there is no model {name!r}; GET /v1/models lists them", field="model"
            )
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """``auto``, the aliases, and the models, each once."""
        models = [offer.model.name for offer in self.offers]
        return tuple(dict.fromkeys([AUTO, *self.aliases, *models]))


def _matches(alias: Alias, model: Model) -> bool:
    return (not alias.models or model.name in alias.models) and model.quality >= alias.quality
