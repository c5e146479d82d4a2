"""Runs the steps of a comparison: the second answer, the verdict, and its signals.

Each step may run more than once; only the cost of its call is then paid again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json, to_json

from moyin.domain.chat import ChatResponse, StopReason
from moyin.domain.serialization import decode
from moyin.errors import BackendTimeout, BudgetExceeded, MoyinError, Overloaded
from moyin.store.comparisons import ComparisonStore, StoredComparison
from moyin.store.quality import QualityStore, SignalRow
from moyin.text.judging.budget import JudgeBudget
from moyin.text.judging.comparison import Comparison
from moyin.text.judging.outcomes import Outcome
from moyin.text.judging.rules import JUDGE_OWNER, JudgeRules, allowed_residencies, route_for
from moyin.text.judging.transcripts import answer_text
from moyin.text.judging.verdict import Verdict, judge_request, verdict_of
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.router import Router

__all__ = ["SOURCE", "Judge"]

SOURCE = "judge"
# A judge errs more often than a human rater: see docs/quality.md.
_WEIGHT = 0.5
_BUSY_SECONDS = 5.0


class Judge:
    """Calls the judge model through the router, at the operator's cost.

    Attributes:
        rules: may be replaced at any time; None: the judge is off.
    """

    def __init__(
        self,
        router: Router,
        *,
        store: ComparisonStore,
        signals: QualityStore,
        budget: JudgeBudget,
    ) -> None:
        self.rules: JudgeRules | None = None
        self._router = router
        self._store = store
        self._signals = signals
        self._budget = budget

    async def answer(self, comparison_id: str) -> Outcome:
        """Get the second model's answer unless it is stored already.

        Return `Outcome.ANSWERED`, or why there is no answer.

        Raises:
            MoyinError: the step can be retried.
        """
        stored = await self._store.get(comparison_id)
        if stored is None:
            return Outcome.GONE
        if stored.second is not None:
            return Outcome.ANSWERED
        comparison = _decode(stored)
        if comparison is None:
            return Outcome.GONE
        answer = await self._call_model(comparison, comparison.request, f"{comparison.id}-second")
        if isinstance(answer, Outcome):
            return answer
        if answer.stop is StopReason.MAX_TOKENS and comparison.bounded:
            return Outcome.CUT
        # An empty answer counts as a bad one.
        await self._store.add_second_answer(comparison_id, answer_text(answer))
        return Outcome.ANSWERED

    async def decide(self, comparison_id: str) -> Verdict | Outcome:
        """Return the judge's verdict on both answers, or why there is none.

        Raises:
            MoyinError: the step can be retried.
        """
        stored = await self._store.get(comparison_id)
        if stored is None or stored.second is None:
            return Outcome.GONE
        rules = self.rules
        if rules is None:
            return Outcome.OFF
        comparison = _decode(stored)
        if comparison is None:
            return Outcome.GONE
        if self._wrote_an_answer(comparison, rules):
            return Outcome.ALONE
        request = judge_request(
            rules.model,
            comparison.conversation,
            comparison.answer,
            stored.second,
            swapped=comparison.swapped,
        )
        answer = await self._call_model(comparison, request, f"{comparison.id}-verdict")
        if isinstance(answer, Outcome):
            return answer
        return verdict_of(answer.text, swapped=comparison.swapped) or Outcome.UNPARSABLE

    async def record(self, comparison_id: str, verdict: Verdict) -> bool:
        """Write the verdict to the log of signals, once; return False if the comparison is gone.

        Raises:
            MoyinError: the step can be retried.
        """
        stored = await self._store.get(comparison_id)
        comparison = None if stored is None else _decode(stored)
        if comparison is None:
            return False
        first = (comparison.request_id, comparison.model, verdict.given, comparison.p_good)
        # The second answer belongs to a request of its own, named by the comparison.
        second = (comparison.id, comparison.second, verdict.other, comparison.second_p_good)
        rows = [_signal_row(comparison, *parts) for parts in (first, second)]
        await self._signals.write((), rows)
        return True

    async def close(self, comparison_id: str) -> None:
        """Delete the conversation and both answers.

        Raises:
            MoyinError: the step can be retried.
        """
        await self._store.remove(comparison_id)

    def _wrote_an_answer(self, comparison: Comparison, rules: JudgeRules) -> bool:
        """Return whether the current judge model wrote one of the answers."""
        deployments = self._router.fleet.catalog.find(rules.model)
        return not {comparison.model, comparison.second}.isdisjoint(
            deployment.model.name for deployment in deployments
        )

    async def _call_model(
        self, comparison: Comparison, body: Mapping[str, Any], request_id: str
    ) -> ChatResponse | Outcome:
        rules, fleet = self.rules, self._router.fleet
        if rules is None:
            return Outcome.OFF
        if not fleet.policy(comparison.owner).is_judged:
            return Outcome.OPTED_OUT
        # The configuration may have narrowed since the answer was sampled.
        places = allowed_residencies(fleet, comparison.name, comparison.owner, comparison.places)
        if not places:
            return Outcome.RESIDENCY
        budget = self._budget.for_call(rules)
        try:
            route = route_for(fleet, body["model"], places)
            if not route.targets and not any(
                exclusion.is_allowed for exclusion in route.exclusions
            ):
                return Outcome.RESIDENCY
            all_slots = [target.runtime.slots for target in route.targets]
            if all_slots and all(slots.is_full or slots.waiting for slots in all_slots):
                raise Overloaded("tenants have priority over the judge", retry_after=_BUSY_SECONDS)
            codec = OpenAICodec()
            context = RoutingContext(
                request_id=request_id,
                owner=JUDGE_OWNER,
                headers=_request_headers(places),
                budget=budget,
                # Otherwise a single tenant would have to leave a slot to the judge.
                for_tenant=comparison.owner,
            )
            request = codec.parse(to_json(body))
            answer = await self._router.answer(codec, request, context)
        except BudgetExceeded:
            return Outcome.BUDGET
        except BackendTimeout:
            # The call may have been paid for, so it is not retried.
            return Outcome.FAILED
        except MoyinError as error:
            if error.retryable:
                raise
            return Outcome.FAILED
        finally:
            budget.release()
        try:
            return codec.read_response(from_json(answer.body))
        except MoyinError:
            # The call was paid for; a retry would be paid again.
            return Outcome.FAILED


def _decode(stored: StoredComparison) -> Comparison | None:
    """Return the stored comparison; None if another version wrote it in another format."""
    try:
        return decode(Comparison, stored.comparison)
    except ValueError:
        return None


def _request_headers(places: tuple[str, ...]) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-moyin-residency", ",".join(places).encode()),
        # The judge's calls are not weighed, not learned from and not cached.
        (b"x-moyin-usd-per-bad-answer", b"0"),
        (b"cache-control", b"no-cache"),
    ]


def _signal_row(
    comparison: Comparison, request_id: str, model: str, score: float, p_good: float
) -> SignalRow:
    return SignalRow(
        owner=comparison.owner,
        request_id=request_id,
        key_id="",
        source=SOURCE,
        model=model,
        question=comparison.question,
        score=score,
        weight=_WEIGHT,
        p_good=p_good,
        created_at=datetime.fromtimestamp(time.time(), UTC),
    )
