"""Implements the steps of a comparison: the second answer, the verdict, and its quality signals.

The verdict gives one signal to each of the two answers' models.

Temporal may run a step more than once. That costs another call, but changes nothing else.
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
from moyin.text.judging.placement import compile_judge_route, intersect_residencies
from moyin.text.judging.rules import JUDGE_OWNER, JudgeRules
from moyin.text.judging.transcripts import format_answer
from moyin.text.judging.verdict import Outcome, Verdict, build_judge_request, parse_verdict
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.router import Router

_SIGNAL_SOURCE = "judge"
_SIGNAL_WEIGHT = 0.5  # below 1, because a judge errs more often than a person (docs/quality.md)
_RETRY_SECONDS = 5.0


class Judge:
    """Runs the steps of comparisons; the operator pays for the model calls.

    Attributes:
        rules: the current rules, which may be replaced at any time; None turns the judge off.
    """

    def __init__(
        self, router: Router, *, store: ComparisonStore, signals: QualityStore, budget: JudgeBudget
    ) -> None:
        self.rules: JudgeRules | None = None
        self._router = router
        self._store = store
        self._signals = signals
        self._budget = budget

    async def fetch_second_answer(self, comparison_id: str) -> Outcome:
        """Request the second model's answer and store it, unless it is stored already.

        Returns:
            `Outcome.ANSWERED`, or the reason why there is no second answer.

        Raises:
            MoyinError: the step failed and can be retried.
        """
        stored_comparison = await self._store.get(comparison_id)
        if stored_comparison is None:
            return Outcome.EXPIRED
        if stored_comparison.second is not None:
            return Outcome.ANSWERED
        comparison = _decode_comparison(stored_comparison)
        if comparison is None:
            return Outcome.EXPIRED
        answer = await self._call_model(comparison, comparison.request, f"{comparison.id}-second")
        if isinstance(answer, Outcome):
            return answer
        if answer.stop is StopReason.MAX_TOKENS and comparison.bounded:
            return Outcome.TRUNCATED
        # An empty answer is stored, too: the judge will grade it as useless.
        await self._store.add_second_answer(comparison_id, format_answer(answer))
        return Outcome.ANSWERED

    async def fetch_verdict(self, comparison_id: str) -> Verdict | Outcome:
        """Request the judge's verdict on both answers.

        Returns:
            The verdict, or the reason why there is none.

        Raises:
            MoyinError: the step failed and can be retried.
        """
        stored_comparison = await self._store.get(comparison_id)
        if stored_comparison is None or stored_comparison.second is None:
            return Outcome.EXPIRED
        rules = self.rules
        if rules is None:
            return Outcome.DISABLED
        comparison = _decode_comparison(stored_comparison)
        if comparison is None:
            return Outcome.EXPIRED
        if self._judge_wrote_answer(comparison, rules):
            return Outcome.NO_SECOND_MODEL
        request = build_judge_request(
            rules.model,
            comparison.conversation,
            comparison.answer,
            stored_comparison.second,
            is_swapped=comparison.swapped,
        )
        answer = await self._call_model(comparison, request, f"{comparison.id}-verdict")
        if isinstance(answer, Outcome):
            return answer
        return parse_verdict(answer.text, is_swapped=comparison.swapped) or Outcome.UNPARSABLE

    async def record_verdict(self, comparison_id: str, verdict: Verdict) -> bool:
        """Store the verdict as two signals, one per answer; storing them again has no effect.

        Returns:
            False if the comparison expired, so that nothing was stored.

        Raises:
            MoyinError: the step failed and can be retried.
        """
        stored_comparison = await self._store.get(comparison_id)
        comparison = None if stored_comparison is None else _decode_comparison(stored_comparison)
        if comparison is None:
            return False
        client_answer_signal = (
            comparison.request_id,
            comparison.model,
            verdict.given,
            comparison.p_good,
        )
        # The signal about the second answer has the id of the comparison as its request id.
        second_answer_signal = (
            comparison.id,
            comparison.second,
            verdict.other,
            comparison.second_p_good,
        )
        rows = [
            _build_signal_row(comparison, *signal)
            for signal in (client_answer_signal, second_answer_signal)
        ]
        await self._signals.write((), rows)
        return True

    async def delete_comparison(self, comparison_id: str) -> None:
        """Delete the stored conversation and both answers.

        Raises:
            MoyinError: the step failed and can be retried.
        """
        await self._store.remove(comparison_id)

    def _judge_wrote_answer(self, comparison: Comparison, rules: JudgeRules) -> bool:
        """Return True if the current judge model wrote one of the two answers."""
        deployments = self._router.fleet.catalog.find_deployments(rules.model)
        return not {comparison.model, comparison.second}.isdisjoint(
            deployment.model.name for deployment in deployments
        )

    async def _call_model(
        self, comparison: Comparison, body: Mapping[str, Any], request_id: str
    ) -> ChatResponse | Outcome:
        rules, fleet = self.rules, self._router.fleet
        if rules is None:
            return Outcome.DISABLED
        if not fleet.get_policy(comparison.owner).is_judged:
            return Outcome.OPTED_OUT
        # The configuration may allow fewer places now than when the answer was sampled.
        places = intersect_residencies(fleet, comparison.name, comparison.owner, comparison.places)
        if not places:
            return Outcome.RESIDENCY
        budget = self._budget.create_admission(rules)
        try:
            route = compile_judge_route(fleet, body["model"], places)
            if not route.targets and not any(
                exclusion.is_allowed for exclusion in route.exclusions
            ):
                return Outcome.RESIDENCY
            all_slots = [target.runtime.slots for target in route.targets]
            if all_slots and all(slots.is_full or slots.waiting for slots in all_slots):
                raise Overloaded(
                    "the judge must wait, because tenants use all slots of its back ends; retry later",
                    retry_after=_RETRY_SECONDS,
                )
            codec = OpenAICodec()
            context = RoutingContext(
                request_id=request_id,
                owner=JUDGE_OWNER,
                headers=_build_request_headers(places),
                budget=budget,
                # The judge's call counts as this tenant's, so that fair sharing of slots never
                # limits a single tenant in favour of the judge.
                for_tenant=comparison.owner,
            )
            request = codec.parse(to_json(body))
            answer = await self._router.answer(codec, request, context)
        except BudgetExceeded:
            return Outcome.BUDGET
        except BackendTimeout:
            # The provider may charge for the call, so a retry could cost twice.
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
            # The call cost money, and a retry would cost it again.
            return Outcome.FAILED


def _decode_comparison(stored_comparison: StoredComparison) -> Comparison | None:
    """Decode a stored comparison; return None if another version of Moyin wrote another format."""
    try:
        return decode(Comparison, stored_comparison.comparison)
    except ValueError:
        return None


def _build_request_headers(places: tuple[str, ...]) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-moyin-residency", ",".join(places).encode()),
        # Their quality is not estimated, nothing is learned from them, and they are not cached.
        (b"x-moyin-usd-per-bad-answer", b"0"),
        (b"cache-control", b"no-cache"),
    ]


def _build_signal_row(
    comparison: Comparison, request_id: str, model: str, score: float, p_good: float
) -> SignalRow:
    return SignalRow(
        owner=comparison.owner,
        request_id=request_id,
        key_id="",
        source=_SIGNAL_SOURCE,
        model=model,
        question=comparison.question,
        score=score,
        weight=_SIGNAL_WEIGHT,
        p_good=p_good,
        created_at=datetime.fromtimestamp(time.time(), UTC),
    )
