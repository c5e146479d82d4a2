"""The policy: of the offers that can answer and are up, the lowest expected cost first. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from moyin.domain.backend import Wire
from moyin.domain.money import Usage
from moyin.domain.needs import Needs
from moyin.errors import ContextTooLong, MoyinError, ServiceUnavailable, UnsupportedFeature
from moyin.routing.catalog import Offer

# The request's member that asks for an ability.
_FIELDS = {"tools": "tools", "vision": "messages", "schema": "response_format"}

__all__ = ["Candidate", "Decision", "Refusal", "Standing", "decide"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How a back end is right now.

    Attributes:
        up: its health check passes and its breaker lets requests through.
        load: requests that it works on for us.
        retry_after: seconds until it may be asked again, when it is not up.
    """

    up: bool = True
    load: int = 0
    retry_after: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """An offer that may answer. ``expected_cost`` in US dollars."""

    offer: Offer
    expected_cost: Decimal
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """An offer that may not answer.

    Attributes:
        reason: in a few words.
        lacks: what the model can't do; empty when it could answer but is not up.
        retry_after: seconds until it may be asked again.
    """

    offer: Offer
    reason: str
    lacks: tuple[str, ...] = ()
    retry_after: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """``candidates`` in the order in which they are to be asked."""

    candidates: tuple[Candidate, ...]
    refusals: tuple[Refusal, ...]

    def error(self, needs: Needs) -> MoyinError:
        """Why nobody answers: what the client asked too much of, or that nobody is up."""
        asked = [refusal for refusal in self.refusals if refusal.offer.configured]
        if not asked:
            return ServiceUnavailable("no back end under this name is configured")
        waits = [refusal.retry_after for refusal in asked if not refusal.lacks]
        if waits:
            return ServiceUnavailable(
                "no back end that could answer is available", retry_after=max(1.0, min(waits))
            )
        return _inability(needs, asked)


def _inability(needs: Needs, refusals: Sequence[Refusal]) -> MoyinError:
    """The field that no offer can take; of several, the one that most offers lack."""
    for ability, field in _FIELDS.items():
        if all(f"no {ability}" in refusal.lacks for refusal in refusals):
            return UnsupportedFeature(f"no model under this name can do {ability}", field=field)
    if all(any(lack.startswith("context") for lack in refusal.lacks) for refusal in refusals):
        return _too_long(needs, refusals)
    lacks = sorted({lack for refusal in refusals for lack in refusal.lacks})
    return UnsupportedFeature(f"every model lacks something: {', '.join(lacks)}", field="model")


def _too_long(needs: Needs, refusals: Sequence[Refusal]) -> ContextTooLong:
    largest = max(refusal.offer.model.context for refusal in refusals)
    asked = needs.max_tokens or 0
    return ContextTooLong(
        f"about {needs.prompt_tokens} tokens of prompt and {asked} of answer do not fit into "
        f"{largest}, the largest context under this name",
        field="messages" if needs.prompt_tokens > largest else "max_tokens",
        details={
            "prompt_tokens": needs.prompt_tokens,
            "max_tokens": asked,
            "context": largest,
        },
    )


def decide(
    offers: Sequence[Offer],
    needs: Needs,
    *,
    standing: Callable[[str], Standing],
    expected_output: Callable[[Offer, Needs], int],
    day: date,
    wire: Wire,
) -> Decision:
    """Sort ``offers`` into candidates and refusals.

    Among equal costs: bytes that pass untouched before translation, then the least load, then
    the order of the configuration.

    Args:
        standing: of a back end by name.
        expected_output: tokens that the offer's model will probably generate.
        day: whose prices hold.
        wire: the client's format.
    """
    ranked: list[tuple[tuple[Decimal, bool, int, int], Candidate]] = []
    refusals: list[Refusal] = []
    for place, offer in enumerate(offers):
        now = standing(offer.backend)
        if (refusal := _refusal(offer, needs, now)) is not None:
            refusals.append(refusal)
            continue
        usage = Usage(input_tokens=needs.prompt_tokens, output_tokens=expected_output(offer, needs))
        cost = offer.model.tariff.on(day).cost(usage)
        reason = "free" if cost == 0 else "cheapest"
        candidate = Candidate(offer=offer, expected_cost=cost, reason=reason)
        ranked.append(((cost, offer.wire is not wire, now.load, place), candidate))
    ranked.sort(key=lambda entry: entry[0])
    candidates = tuple(candidate for _, candidate in ranked)
    return Decision(candidates=candidates, refusals=tuple(refusals))


def _refusal(offer: Offer, needs: Needs, now: Standing) -> Refusal | None:
    if not offer.configured:
        return Refusal(offer=offer, reason="not configured")
    if lacks := tuple(offer.model.lacks(needs)):
        return Refusal(offer=offer, reason=", ".join(lacks), lacks=lacks)
    if not now.up:
        return Refusal(offer=offer, reason="down", retry_after=now.retry_after)
    return None
