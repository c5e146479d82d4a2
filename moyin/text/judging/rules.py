"""Defines the operator's rules and budget for the judge model, and where its calls may go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from moyin.access.gatekeeper.limits import Admission, RequestMeter
from moyin.domain.backend import ApiFormat
from moyin.domain.limits import Limit
from moyin.text.routing.compiled_route import CompiledRoute
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.ledger import current_day

# The ledger lists the judge's calls under this tenant, because the operator pays for them.
JUDGE_OWNER = "moyin:judge"
_BUDGET_SUBJECT = f"owner:{JUDGE_OWNER}"


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeRules:
    """The operator's rules for judging answers.

    Attributes:
        share: the share of the suitable answers that is judged, from 0 to 1.
        model: the name of the judge's model or alias.
        second: the model that writes second answers. If None, it is the next better candidate for
            the request, or else the next cheaper one.
        usd_per_month: the budget for second answers and verdicts per UTC calendar month.
        max_prompt_tokens: the longest conversation that is judged.
        max_answer_tokens: the longest answer that is judged, and the limit of second answers.
        parallel: the number of comparisons that one replica runs at a time.
    """

    share: float
    model: str
    usd_per_month: Decimal
    second: str | None = None
    max_prompt_tokens: int = 8_000
    max_answer_tokens: int = 2_000
    parallel: int = 1


class JudgeBudget:
    """The operator's monthly budget for the judge, which all replicas share in Valkey.

    Each call reserves its highest possible cost and later settles its real cost. If the replica
    dies in between, the reservation remains, because only the provider knows the real cost.

    Args:
        meter: counts the cost. It must refuse calls while Valkey is unavailable.
    """

    def __init__(self, meter: RequestMeter) -> None:
        self._meter = meter

    def create_admission(self, rules: JudgeRules) -> Admission:
        """Create the budget reservation of one call, which the caller must release."""
        limit = Limit(subject=_BUDGET_SUBJECT, usd_per_month=rules.usd_per_month)
        return Admission(self._meter, [limit], JUDGE_OWNER)

    async def read_spent_usd(self) -> Decimal:
        """Read how many US dollars of this month's budget are spent or reserved.

        Raises:
            ServiceUnavailable: Valkey does not answer.
        """
        return await self._meter.budgets.get_month_spending(_BUDGET_SUBJECT, JUDGE_OWNER)


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
        places: the places where the data may go.

    Raises:
        ModelNotFound: no model or alias has this name.
    """
    return fleet.get_route(
        name, JUDGE_OWNER, tuple(sorted(places)), ApiFormat.OPENAI, current_day()
    )
