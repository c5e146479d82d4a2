"""How long the models' answers usually are."""

from __future__ import annotations

from moyin.domain.needs import Needs
from moyin.routing.catalog import Offer

__all__ = ["OutputHistory"]

_UNKNOWN = 256.0
_WEIGHT = 0.05


class OutputHistory:
    """A moving average of output tokens per model; holds one number per configured model."""

    def __init__(self) -> None:
        self._average: dict[str, float] = {}

    def note(self, model: str, output_tokens: int) -> None:
        known = self._average.get(model, _UNKNOWN)
        self._average[model] = known + _WEIGHT * (output_tokens - known)

    def expect(self, offer: Offer, needs: Needs) -> int:
        """Output tokens to expect, never more than the client allows."""
        usual = round(self._average.get(offer.model.name, _UNKNOWN))
        return usual if needs.max_tokens is None else min(usual, needs.max_tokens)
