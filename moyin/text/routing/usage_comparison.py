"""Computes what recorded calls would have cost if the most expensive model had answered them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from moyin.domain.money import PICO_PER_USD, Price, Usage
from moyin.domain.operation import Unit
from moyin.store.usage_reports import PriceClasses, UsageSum
from moyin.text.routing.catalog import ModelDeployment
from moyin.text.routing.fleet import Fleet


@dataclass(frozen=True, kw_only=True, slots=True)
class PricedModel:
    """A model that costs money, with its current price."""

    model: str
    backend: str
    embeddings: bool
    price: Price


class UsageComparison:
    """Computes what calls would have cost at the most expensive model that a tenant may call.

    Calls to chat models and to embedding models are compared separately. Other operations, such as
    transcriptions, and all renders count with their actual cost, because routing does not change
    it.

    Args:
        owner: the tenant; None stands for all tenants.
    """

    def __init__(self, fleet: Fleet, owner: str | None) -> None:
        self._models = _list_priced_models(fleet, owner)
        self._bounds = sorted(
            {
                band.up_to
                for model in self._models
                for band in model.price.bands
                if band.up_to is not None
            }
        )
        self._embeddings = frozenset(
            deployment.model.name
            for deployment in fleet.catalog.deployments
            if not deployment.model.chat
        )

    @property
    def price_classes(self) -> PriceClasses:
        """The classes into which the recorded calls are divided before their tokens are added up.

        All calls of a class have the same price at any given model. A class depends on the length
        of the prompt and on whether the model is for embeddings.
        """
        return PriceClasses(prompt_bounds=tuple(self._bounds), embeddings=self._embeddings)

    def choose_models(self, sums: Sequence[UsageSum]) -> dict[bool, PricedModel]:
        """Return the models that would be most expensive for this usage.

        The key True has the model for embeddings, and the key False the model for chats. A key is
        missing if no model for such calls has a price.

        Args:
            sums: sums of the recorded usage; each covers calls of one class of `price_classes`.
        """
        merged_sums = _merge_groups(sums)
        return {
            embeddings: max(
                candidates,
                key=lambda model: self._add_costs(merged_sums, {model.embeddings: model}),
            )
            for embeddings in (False, True)
            if (candidates := [m for m in self._models if m.embeddings is embeddings])
        }

    def compute_pico_cost(
        self, sums: Sequence[UsageSum], dearest_models: Mapping[bool, PricedModel]
    ) -> int | None:
        """Return the cost of the usage with the most expensive models, in picodollars.

        Failed and cancelled model calls are left out, because the most expensive models are assumed
        to answer every call. Renders keep their actual cost. The result is None if no model has a
        price.

        Args:
            dearest_models: the most expensive models, as `choose_models` returns them.
        """
        return self._add_costs(sums, dearest_models) if dearest_models else None

    def _add_costs(self, sums: Sequence[UsageSum], models: Mapping[bool, PricedModel]) -> int:
        return sum(
            self._compute_cost(models[usage_sum.is_embedding].price, usage_sum)
            for usage_sum in sums
            if usage_sum.is_complete and usage_sum.unit is None and usage_sum.is_embedding in models
        ) + sum(
            int(usage_sum.cost_usd * PICO_PER_USD)
            for usage_sum in sums
            if usage_sum.unit == Unit.GPU_MILLISECONDS
            or (usage_sum.is_complete and usage_sum.unit is not None)
        )

    def _compute_cost(self, price: Price, usage_sum: UsageSum) -> int:
        # Any number of tokens in the band, because all calls in it have the same rates.
        is_last_band = usage_sum.band == len(self._bounds)
        prompt_tokens = self._bounds[-1] + 1 if is_last_band and self._bounds else 0
        if not is_last_band:
            prompt_tokens = self._bounds[usage_sum.band]
        usage = Usage(
            input_tokens=usage_sum.input_tokens - usage_sum.cached_tokens,
            cached_tokens=usage_sum.cached_tokens,
            output_tokens=usage_sum.output_tokens,
        )
        return price.select_rates(prompt_tokens).compute_pico_cost(usage)


def _merge_groups(sums: Sequence[UsageSum]) -> list[UsageSum]:
    """Add up the token counts of the complete calls in each class; see `price_classes`."""
    merged_sums: dict[tuple[int, bool], UsageSum] = {}
    for usage_sum in sums:
        if not usage_sum.is_complete or usage_sum.unit is not None:
            continue
        merged_sum = merged_sums.get((usage_sum.band, usage_sum.is_embedding))
        if merged_sum is None:
            merged_sums[usage_sum.band, usage_sum.is_embedding] = replace(usage_sum, group=())
        else:
            merged_sum.input_tokens += usage_sum.input_tokens
            merged_sum.cached_tokens += usage_sum.cached_tokens
            merged_sum.output_tokens += usage_sum.output_tokens
    return list(merged_sums.values())


def _list_priced_models(fleet: Fleet, owner: str | None) -> list[PricedModel]:
    models = []
    for deployment in _list_deployments(fleet, owner):
        if not deployment.model.takes_prompts:
            continue
        if deployment.configured and not (price := fleet.get_price(deployment)).is_free:
            models.append(
                PricedModel(
                    model=deployment.model.name,
                    backend=deployment.backend,
                    embeddings=not deployment.model.chat,
                    price=price,
                )
            )
    return models


def _list_deployments(fleet: Fleet, owner: str | None) -> Iterable[ModelDeployment]:
    if owner is None:
        return fleet.catalog.deployments
    deployments = {
        (deployment.backend, deployment.model.name): deployment
        for name in fleet.list_names(owner)
        for deployment in fleet.find_allowed_deployments(name, owner)
    }
    return deployments.values()
