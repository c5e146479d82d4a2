"""Decides in which places the judge's calls may be processed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from moyin.domain.backend import ApiFormat
from moyin.text.judging.rules import JUDGE_OWNER
from moyin.text.routing.compiled_route import CompiledRoute
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.ledger import current_day


def intersect_residencies(
    fleet: Fleet, name: str, owner: str, residency: Iterable[str] | None
) -> tuple[str, ...]:
    """Return the places that tenant, alias and client all allow for a request's data, sorted.

    Args:
        name: the model or alias that the request names.
        owner: the tenant.
        residency: the places that the client allows; None if it allows all.
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


def compile_judge_route(fleet: Fleet, name: str, places: Sequence[str]) -> CompiledRoute:
    """Compile the route of a call by the judge: to the judge model or to the second model.

    Args:
        name: the model or alias to call.
        places: the places where data-residency rules allow the data to be processed.

    Raises:
        ModelNotFound: no model or alias has this name.
    """
    return fleet.get_route(
        name, JUDGE_OWNER, tuple(sorted(places)), ApiFormat.OPENAI, current_day()
    )
