"""Holds the operator's rules for the judge; it is off without them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from moyin.domain.backend import ApiFormat
from moyin.text.routing.compiled_route import CompiledRoute
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.ledger import current_day

__all__ = ["JUDGE_OWNER", "JudgeRules", "allowed_residencies", "route_for"]

# The judge's calls are in the ledger under this owner, whose budget is the operator's.
JUDGE_OWNER = "moyin:judge"


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeRules:
    """Configures how much of the traffic is judged, by which model, and at what cost.

    Attributes:
        share: of the suitable answers, from 0 to 1.
        model: name of the judge: a model or an alias.
        second: model to compare with; None: the next better candidate, else the next cheaper one.
        usd_per_month: budget per UTC calendar month, for second answers and verdicts together.
        most_prompt_tokens: longer conversations are not judged.
        most_answer_tokens: longer answers are not judged; second answers are limited to it.
        parallel: concurrent comparisons per replica.
    """

    share: float
    model: str
    usd_per_month: Decimal
    second: str | None = None
    most_prompt_tokens: int = 8_000
    most_answer_tokens: int = 2_000
    parallel: int = 1


def allowed_residencies(
    fleet: Fleet, name: str, owner: str, residency: Iterable[str] | None
) -> tuple[str, ...]:
    """Return the places where a request's data may go, sorted.

    Tenant, alias and client must all allow them.

    Args:
        name: model name in the request.
        residency: places that the client named; None: it named none.
    """
    places = set(fleet.residencies)
    policy, alias = fleet.get_policy(owner), fleet.catalog.get_alias(name)
    if policy.residency is not None:
        places &= policy.residency
    if alias.residency:
        places &= set(alias.residency)
    if residency is not None:
        places &= set(residency)
    return tuple(sorted(places))


def route_for(fleet: Fleet, name: str, places: Sequence[str]) -> CompiledRoute:
    """Return the route of one of the judge's own calls.

    Raises:
        ModelNotFound: the name is unknown.
    """
    return fleet.get_route(
        name, JUDGE_OWNER, tuple(sorted(places)), ApiFormat.OPENAI, current_day()
    )
