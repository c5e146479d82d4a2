"""Routes one text request from its parsed form to its answer: decide, call, fall back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from decimal import Decimal

from moyin.domain.backend import ApiFormat
from moyin.domain.needs import Needs
from moyin.errors import (
    BackendRejected,
    ModelNotFound,
    MoyinError,
    RequestError,
    UnsupportedFeature,
)
from moyin.text.protocol.codec import ParsedRequest, ProtocolCodec
from moyin.text.quality.estimator import Estimator
from moyin.text.routing.answer import Answer, BudgetReservation, RoutingContext
from moyin.text.routing.answer_cache import AnswerCache, CachedResponses
from moyin.text.routing.answer_review import AnswerReviewer
from moyin.text.routing.attempt import Attempt
from moyin.text.routing.backend_runtime import is_retryable
from moyin.text.routing.catalog import HedgingPolicy
from moyin.text.routing.compiled_route import (
    CompiledRoute,
    RouteTarget,
    compute_max_call_cost,
    compute_max_request_cost,
)
from moyin.text.routing.decision import (
    Candidate,
    build_no_candidate_error,
    build_unavailable_error,
    rank_candidates,
)
from moyin.text.routing.explanation import Explanation, describe_choice, explain_decision
from moyin.text.routing.exploration import compute_trial_share, put_trial_first
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.followups import FollowUpDetector
from moyin.text.routing.hedging import HedgeBudget, race_calls
from moyin.text.routing.learning import QualityLearner
from moyin.text.routing.ledger import Ledger, current_day
from moyin.text.routing.metered_stream import to_client_error
from moyin.text.routing.request_preferences import RequestPreferences, parse_preferences
from moyin.text.routing.request_quality import RequestQuality
from moyin.text.routing.routed_call import (
    AnswerSampler,
    CallAccounting,
    PictureSource,
    RoutedCall,
    StreamHold,
)
from moyin.text.routing.telemetry import NoTelemetry, Telemetry
from moyin.text.routing.usage_history import UsageHistory

__all__ = ["Router"]

# Retries pause for a random time up to this (full jitter); the limit doubles with every try.
_RETRY_SECONDS = 0.2
# Expected duration of a call that has no forecast.
_DEFAULT_CALL_SECONDS = 5.0
# Output tokens reserved against token limits where the client sets no maximum.
_DEFAULT_OUTPUT_TOKENS = 256


class Router:
    """Answers text requests.

    Args:
        pictures: fetches pictures that a request names by URL.
        cache: stores answers for aliases that enable caching.
        estimator: estimates how well a model would answer; None: quality is not weighed.
        learning: records decisions and loads what a tenant's signals taught; None: neither.
        follow_ups: detects what clients do after an answer; None: follow-ups are not detected.

    Attributes:
        fleet: may be replaced at any time; running requests keep the one they began with.
        sampler: samples a share of the answers whose quality was weighed; None: no sampling.
    """

    def __init__(
        self,
        fleet: Fleet,
        ledger: Ledger,
        pictures: PictureSource | None = None,
        telemetry: Telemetry | None = None,
        cache: CachedResponses | None = None,
        estimator: Estimator | None = None,
        learning: QualityLearner | None = None,
        follow_ups: FollowUpDetector | None = None,
    ) -> None:
        self.fleet = fleet
        self.sampler: AnswerSampler | None = None
        self._estimator = estimator
        self._learning = learning
        self._reviewer = AnswerReviewer(learning, follow_ups)
        self._pictures = pictures
        self._history = UsageHistory()
        self._accounting = CallAccounting(
            ledger=ledger,
            telemetry=telemetry or NoTelemetry(),
            record_usage=self._history.record,
            estimate_prompt_tokens=self._history.estimate_prompt_tokens,
        )
        self._hedge = HedgeBudget()
        self._answer_cache = None if cache is None else AnswerCache(cache)

    def list_allowed_targets(
        self, name: str, api_format: ApiFormat, context: RoutingContext
    ) -> tuple[RouteTarget, ...]:
        """Return the targets that may serve ``name`` to this client, in configuration order.

        Raises:
            ModelNotFound, ModelNotAllowed: the name is unknown, or closed to this tenant.
            InvalidRequest: names the header.
        """
        fleet = self.fleet
        preferences = self._preferences(context)
        return fleet.get_route(
            name, context.owner, preferences.residency, api_format, current_day()
        ).targets

    async def load_learned_state(self, owner: str) -> None:
        """Load what the tenant's signals taught, unless it is in memory."""
        if self._learning is not None and not self._learning.is_ready(owner):
            await self._learning.load_tenant(owner)

    def explain(
        self, codec: ProtocolCodec, request: ParsedRequest, context: RoutingContext
    ) -> Explanation:
        """Explain which candidate would answer and why, without calling a back end.

        Raises:
            ModelNotFound, ModelNotAllowed: the name is unknown, or closed to this tenant.
            InvalidRequest: names the header.
        """
        preferences = self._preferences(context)
        route = self._route(codec, request, context, preferences)
        needs = request.needs()
        quality = self._quality(request, needs, context, preferences, route)
        return explain_decision(request.model, route, needs, self._history, quality)

    def _rank_candidates(self, call: RoutedCall, route: CompiledRoute) -> list[Candidate]:
        """Return the candidates in the order in which they are tried."""
        quality = call.quality
        candidates = rank_candidates(route, call.needs, self._history, quality=quality)
        if quality is None or call.is_repeat:
            return candidates
        share = compute_trial_share(route, quality)
        if not share or random.random() >= share:
            return candidates
        return put_trial_first(candidates, quality)

    async def answer(
        self, codec: ProtocolCodec, request: ParsedRequest, context: RoutingContext
    ) -> Answer:
        """Return the first answer that a candidate gives.

        Raises:
            ModelNotFound, ModelNotAllowed, ServiceUnavailable: no candidate can be called.
            InvalidRequest, UnsupportedFeature, ContextTooLong, BackendRejected: the request is at
                fault.
            BackendError, Overloaded: the last candidate's failure.
        """
        preferences = self._preferences(context)
        route = self._route(codec, request, context, preferences)
        seconds = route.timeout
        if preferences.timeout is not None:
            seconds = min(seconds, preferences.timeout)
        needs = request.needs()
        call = RoutedCall(
            codec=codec,
            request=request,
            needs=needs,
            context=context,
            accounting=self._accounting,
            pictures=self._pictures,
            deadline=asyncio.get_running_loop().time() + seconds,
            traceparent=preferences.traceparent,
            quality=self._quality(request, needs, context, preferences, route),
        )
        if call.quality is not None:
            await self.load_learned_state(context.owner)
        if route.cache is None or self._answer_cache is None or preferences.bypass_cache:
            return await self._call_candidates(call, route)
        return await self._answer_cache.get_or_call(
            call, route, route.cache, lambda: self._call_candidates(call, route)
        )

    def _preferences(self, context: RoutingContext) -> RequestPreferences:
        fleet = self.fleet
        return parse_preferences(context.headers, fleet.residencies, fleet.max_usd_per_bad_answer)

    def _quality(
        self,
        request: ParsedRequest,
        needs: Needs,
        context: RoutingContext,
        preferences: RequestPreferences,
        route: CompiledRoute,
    ) -> RequestQuality | None:
        """Return the request's quality estimates; None where quality is not weighed.

        That is: the name is a single model's, the request is for embeddings, or neither a cost of
        bad answers nor a minimum quality is set.
        """
        if self._estimator is None or not route.chooses_model or needs.embeddings:
            return None
        cost = preferences.usd_per_bad_answer
        if cost is None:
            cost = route.usd_per_bad_answer
        if not cost and not preferences.quality:
            return None
        return RequestQuality(
            self._estimator,
            context.owner,
            request,
            needs,
            usd_per_bad_answer=cost,
            floor=preferences.quality,
            embed=self.fleet.embed,
        )

    def _route(
        self,
        codec: ProtocolCodec,
        request: ParsedRequest,
        context: RoutingContext,
        preferences: RequestPreferences,
    ) -> CompiledRoute:
        return self.fleet.get_route(
            request.model, context.owner, preferences.residency, codec.api_format, current_day()
        )

    async def _call_candidates(self, call: RoutedCall, route: CompiledRoute) -> Answer:
        # Not for cached answers: many clients repeat a request without having a complaint.
        call.is_repeat = self._reviewer.detect_follow_up(call, route)
        candidates = self._rank_candidates(call, route)
        chosen, rescued = "", None
        if candidates:
            chosen = describe_choice(candidates, call.quality)
            if self._reviewer.plan_checks(call, route, candidates):
                rescued = candidates[0]
        reserved = None
        if call.context.budget is not None:
            reserved = await _reserve(call.context.budget, call, route, rescued)
        failure: MoyinError | None = None
        unsupported_formats: set[ApiFormat | None] = set()
        for index, candidate in enumerate(candidates):
            try:
                if index == 0 and route.hedging is not None and _may_hedge(call):
                    answer = await self._call_hedged(call, route.hedging, candidates, chosen)
                    candidate = _answering_candidate(answer, candidates, candidate)
                else:
                    reason = candidate.reason if index else chosen
                    answer = await _call_candidate(
                        call, candidate, _describe_reason(reason, failure)
                    )
            except BackendRejected:
                # The next back end would reject the request for the same reason.
                raise
            except MoyinError as error:
                # An earlier failure of a back end that could answer is worth a retry, so it is
                # reported rather than this one's inability.
                if failure is None or not isinstance(error, RequestError | ModelNotFound):
                    failure = error
                if isinstance(error, UnsupportedFeature):
                    unsupported_formats.add(candidate.deployment.api_format)
                if asyncio.get_running_loop().time() >= call.deadline:
                    break
            else:
                if answer is not None:
                    answer = await self._reviewer.review(
                        call, route, candidates, (candidate, answer), reserved, _call_candidate
                    )
                    sampler = self.sampler
                    return answer if sampler is None else sampler.sample(call, candidates, answer)
        if isinstance(failure, UnsupportedFeature | ModelNotFound):
            raise build_unavailable_error(route, call.needs, unsupported_formats) or failure
        raise (
            to_client_error(failure)
            if failure
            else build_no_candidate_error(route, call.needs, call.quality)
        )

    async def _call_hedged(
        self, call: RoutedCall, hedging: HedgingPolicy, candidates: Sequence[Candidate], reason: str
    ) -> Answer | None:
        self._hedge.earn(hedging.share)
        first = candidates[0]
        after = first.target.latency.get_first_token_p95()
        others = [
            other for other in candidates[1:] if other.target.runtime is not first.target.runtime
        ]
        if after is None or not others:
            return await _call_candidate(call, first, reason)
        return await race_calls(
            _call_candidate(call, first, reason),
            lambda: _call_candidate(call, others[0], "hedged"),
            after=after,
            may_start_second=self._hedge.try_spend,
        )


def _may_hedge(call: RoutedCall) -> bool:
    """Return whether a late first piece would show that the back end is slow."""
    return call.request.streams and call.hold is not StreamHold.WHOLE


def _answering_candidate(
    answer: Answer | None, candidates: Sequence[Candidate], first: Candidate
) -> Candidate:
    """Return the candidate that gave a hedged answer; ``first`` where there is no answer."""
    names = () if answer is None else answer.headers
    return next((other for other in candidates if set(other.target.headers) <= set(names)), first)


async def _call_candidate(call: RoutedCall, candidate: Candidate, reason: str) -> Answer | None:
    """Return the candidate's answer; None when its breaker lets no request through.

    Raises:
        MoyinError: its last failure.
    """
    target = candidate.target
    runtime = target.runtime
    if runtime.checks_schemas:
        # Before it waits for a slot.
        call.check_schemas()
    tenant = call.context.tenant
    loop = asyncio.get_running_loop()
    tries = 0
    while True:
        remaining = call.deadline - loop.time()
        lease = await runtime.acquire(tenant, remaining, _expected_seconds(candidate))
        if lease is None:
            return None
        try:
            with lease:
                return await Attempt(call=call, target=target, reason=reason, lease=lease).run()
        except MoyinError as error:
            pause = random.uniform(0, _RETRY_SECONDS * 2**tries)
            if tries >= runtime.retries or not is_retryable(error) or not runtime.is_ready:
                raise
            if loop.time() + pause >= call.deadline:
                raise
        tries += 1
        await asyncio.sleep(pause)


async def _reserve(
    budget: BudgetReservation, call: RoutedCall, route: CompiledRoute, rescued: Candidate | None
) -> Decimal | None:
    """Reserve what the call may cost at most; return it, or None where spending is not limited.

    Args:
        rescued: candidate whose answer a better model may replace, so that both calls are paid;
            None: there is no second call.

    Raises:
        LimitExceeded, ServiceUnavailable: see `BudgetReservation.reserve`.
    """
    request, needs = call.request, call.needs
    if not budget.limits_spending:
        await budget.reserve(Decimal(0), 0)
        return None
    choices = request.data.get("n")
    max_usd = compute_max_request_cost(
        route,
        needs,
        # Protocols without this member do not validate it.
        choices=max(choices, 1) if isinstance(choices, int) else 1,
        streams=request.streams,
    )
    if rescued is not None:
        max_usd += compute_max_call_cost(rescued.target, needs)
    await budget.reserve(
        max_usd, needs.prompt_tokens + (needs.max_tokens or _DEFAULT_OUTPUT_TOKENS)
    )
    return max_usd


def _expected_seconds(candidate: Candidate) -> float:
    forecast = candidate.forecast
    return (
        _DEFAULT_CALL_SECONDS
        if forecast is None
        else forecast.first_token_seconds + forecast.writing_seconds
    )


def _describe_reason(reason: str, failure: MoyinError | None) -> str:
    return reason if failure is None else f"fallback after {failure.code}"
