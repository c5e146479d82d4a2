"""Defines the kinds of model calls besides chats and embeddings, and the units of their billing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Final

from moyin.domain.money import PICO_PER_USD, Usage

_NO_TOKENS = Usage()
# The operation of renders in the usage ledger, which no model of the text back ends has.
RENDER: Final = "render"


class Operation(StrEnum):
    """A kind of call that only some models support; its value is also the name of that ability."""

    MODERATION = "moderation"
    RERANK = "rerank"
    SPEECH = "speech"
    TRANSCRIPTION = "transcription"
    TRANSLATION = "translation"
    IMAGE_EDIT = "image_edit"
    IMAGE_VARIATION = "image_variation"


class Unit(StrEnum):
    """The unit in which an operation's usage is counted.

    ``searches`` are queries with up to a hundred documents each, ``seconds`` are those of
    transcribed or translated audio, and ``gpu_milliseconds`` the time for which a render occupied a
    GPU.
    """

    INPUTS = "inputs"
    SEARCHES = "searches"
    CHARACTERS = "characters"
    SECONDS = "seconds"
    IMAGES = "images"
    GPU_MILLISECONDS = "gpu_milliseconds"


UNITS: Mapping[Operation, Unit] = {
    Operation.MODERATION: Unit.INPUTS,
    Operation.RERANK: Unit.SEARCHES,
    Operation.SPEECH: Unit.CHARACTERS,
    Operation.TRANSCRIPTION: Unit.SECONDS,
    Operation.TRANSLATION: Unit.SECONDS,
    Operation.IMAGE_EDIT: Unit.IMAGES,
    Operation.IMAGE_VARIATION: Unit.IMAGES,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OperationUsage:
    """The usage of one call: its units of the operation, and its tokens.

    Attributes:
        quantity: the number of units, rounded up.
        tokens: the tokens that the back end reported or that follow from the request; zero if
            neither is the case.
        is_estimated: True if ``quantity`` or ``tokens`` are estimates, because the back end did not
            report them and they do not follow from the request.
    """

    quantity: int
    tokens: Usage = _NO_TOKENS
    is_estimated: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitRates:
    """The prices of units in US dollars, with at most six decimals.

    Attributes:
        characters: price of a million characters.
        minutes: price of a minute of audio; seconds are billed in proportion.
        images: price of a picture.
        searches: price of a thousand searches.
    """

    characters: Decimal = Decimal(0)
    minutes: Decimal = Decimal(0)
    images: Decimal = Decimal(0)
    searches: Decimal = Decimal(0)
    # For each unit the price in picodollars, and the number of units that have this price.
    _pico: Mapping[Unit, tuple[int, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pico_prices = {
            Unit.CHARACTERS: (_to_pico(self.characters), 1_000_000),
            Unit.SECONDS: (_to_pico(self.minutes), 60),
            Unit.IMAGES: (_to_pico(self.images), 1),
            Unit.SEARCHES: (_to_pico(self.searches), 1_000),
            Unit.INPUTS: (0, 1),
        }
        object.__setattr__(self, "_pico", pico_prices)

    @property
    def is_free(self) -> bool:
        return not any(price for price, _ in self._pico.values())

    def compute_pico_cost(self, unit: Unit, quantity: int) -> int:
        """Return the cost of ``quantity`` units in picodollars, rounded up."""
        price, count = self._pico[unit]
        return -(-price * quantity // count)


def _to_pico(usd: Decimal) -> int:
    return int(usd * PICO_PER_USD)


FREE_UNITS = UnitRates()
