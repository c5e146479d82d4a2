"""The steps of a comparison: the second answer, the verdict, and what it teaches.

Each may run more than once and then has the effect of one, but for what a call costs.
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
# A judge errs more often than somebody who rates: see the documentation.
_WEIGHT = 0.5
_BUSY_SECONDS = 5.0


class Judge:
    """Makes the judge's calls through the router, at the operator's cost.

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
        """Ask the second model, unless its answer is there: `Outcome.ANSWERED`, or why there is none.

        Raises:
            MoyinError: it can be tried again.
        """
        stored = await self._store.get(comparison_id)
        if stored is None:
            return Outcome.GONE
        if stored.second is not None:
            return Outcome.ANSWERED
        comparison = _read(stored)
        if comparison is None:
            return Outcome.GONE
        found = await self._ask(comparison, comparison.request, f"{comparison.id}-second")
        if isinstance(found, Outcome):
            return found
        if found.stop is StopReason.MAX_TOKENS and comparison.bounded:
            return Outcome.CUT
        # An empty answer is one, and a bad one.
        await self._store.keep_second(comparison_id, answer_text(found))
        return Outcome.ANSWERED

    async def decide(self, comparison_id: str) -> Verdict | Outcome:
        """Ask the judge about both answers: its verdict, or why there is none.

        Raises:
            MoyinError: it can be tried again.
        """
        stored = await self._store.get(comparison_id)
        if stored is None or stored.second is None:
            return Outcome.GONE
        rules = self.rules
        if rules is None:
            return Outcome.OFF
        comparison = _read(stored)
        if comparison is None:
            return Outcome.GONE
        if self._is_own(comparison, rules):
            return Outcome.ALONE
        request = judge_request(
            rules.model,
            comparison.conversation,
            comparison.answer,
            stored.second,
            swapped=comparison.swapped,
        )
        found = await self._ask(comparison, request, f"{comparison.id}-verdict")
        if isinstance(found, Outcome):
            return found
        return verdict_of(found.text, swapped=comparison.swapped) or Outcome.UNPARSABLE

    async def record(self, comparison_id: str, verdict: Verdict) -> bool:
        """Write the verdict into the log of signals, once; False when the comparison is gone.

        Raises:
            MoyinError: it can be tried again.
        """
        stored = await self._store.get(comparison_id)
        one = None if stored is None else _read(stored)
        if one is None:
            return False
        given = (one.request_id, one.model, verdict.given, one.p_good)
        # The second answer is that of a request of its own: the comparison.
        other = (one.id, one.second, verdict.other, one.second_p_good)
        rows = [_signal(one, *parts) for parts in (given, other)]
        await self._signals.write((), rows)
        return True

    async def close(self, comparison_id: str) -> None:
        """Delete the conversation and both answers.

        Raises:
            MoyinError: it can be tried again.
        """
        await self._store.remove(comparison_id)

    def _is_own(self, comparison: Comparison, rules: JudgeRules) -> bool:
        """Return whether the judge, which may be another by now, wrote one of the answers."""
        deployments = self._router.fleet.catalog.find(rules.model)
        return not {comparison.model, comparison.second}.isdisjoint(
            deployment.model.name for deployment in deployments
        )

    async def _ask(
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
            found = route_for(fleet, body["model"], places)
            if not found.targets and not any(one.is_allowed for one in found.exclusions):
                return Outcome.RESIDENCY
            runtimes = [one.runtime for one in found.targets]
            if runtimes and all(
                runtime.slots.full or runtime.slots.waiting for runtime in runtimes
            ):
                raise Overloaded("tenants' calls go first", retry_after=_BUSY_SECONDS)
            codec = OpenAICodec()
            context = RoutingContext(
                request_id=request_id,
                owner=JUDGE_OWNER,
                headers=_headers(places),
                budget=budget,
                # Else a tenant that is alone would have to leave a place to the judge.
                for_tenant=comparison.owner,
            )
            request = codec.parse(to_json(body))
            answer = await self._router.answer(codec, request, context)
        except BudgetExceeded:
            return Outcome.BUDGET
        except BackendTimeout:
            # Whoever asks again after minutes may pay again.
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
            # It has been paid for, and would be again.
            return Outcome.FAILED


def _read(stored: StoredComparison) -> Comparison | None:
    """Return what was stored; None where another version wrote it in another shape."""
    try:
        return decode(Comparison, stored.comparison)
    except ValueError:
        return None


def _headers(places: tuple[str, ...]) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-moyin-residency", ",".join(places).encode()),
        # The judge's own calls are neither weighed nor learned from, nor taken from a cache.
        (b"x-moyin-usd-per-bad-answer", b"0"),
        (b"cache-control", b"no-cache"),
    ]


def _signal(
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
