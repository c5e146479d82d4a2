"""Routes text requests: ranks the candidates, calls the first, and falls back to the next."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial

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
from moyin.text.routing.omission import omit_unusable_members
from moyin.text.routing.request_gaps import find_gap
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

# Maximum pause before the first retry. The pause is random (full jitter), and its maximum doubles
# with every retry.
_MAX_FIRST_PAUSE_SECONDS = 0.2
# Assumed seconds of a call without a forecast.
_DEFAULT_CALL_SECONDS = 5.0
# The largest amount that Valkey's 64-bit counters can hold.
_MAX_COUNTED_TOKENS = 2**53
# Output tokens that are reserved if the client sets no maximum.
_DEFAULT_OUTPUT_TOKENS = 256


class Router:
    """Router of text requests; each replica has one.

    A feature whose service is None is disabled.

    Args:
        pictures: fetches the pictures that requests reference by URL.
        cache: stores answers for the aliases that enable caching.
        estimator: estimates how well a model would answer a request.
        learning: records decisions and loads the learned states of tenants.
        follow_ups: detects requests that follow up an answer.

    Attributes:
        fleet: the current configuration. It may be replaced at any time; running requests continue
            with the previous one.
        sampler: selects answers for the judge. If it is None, no answer is judged.
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

    @property
    def accounting(self) -> CallAccounting:
        """The services that record the usage and cost of the router's calls."""
        return self._accounting

    def list_allowed_targets(
        self, name: str, api_format: ApiFormat, context: RoutingContext
    ) -> tuple[RouteTarget, ...]:
        """Return the targets of a model name that this client may use, in configuration order.

        Raises:
            ModelNotFound, ModelNotAllowed: the name is unknown or not allowed for the tenant.
            InvalidRequest: a header of the request is invalid.
        """
        return self._resolve_route(name, api_format, context)[1].targets

    async def load_learned_state(self, owner: str) -> None:
        """Load the tenant's learned state into memory, unless it is already loaded."""
        if self._learning is not None and self._learning.needs_load(owner):
            await self._learning.load_tenant(owner)

    def explain(
        self, codec: ProtocolCodec, request: ParsedRequest, context: RoutingContext
    ) -> Explanation:
        """Explain which candidate would answer and why, without calling a back end.

        Raises:
            ModelNotFound, ModelNotAllowed: the name is unknown or not allowed for the tenant.
            InvalidRequest: a header of the request is invalid.
        """
        preferences, route = self._resolve_route(request.model, codec.api_format, context)
        request, omitted_abilities = omit_unusable_members(codec, request, route)
        needs = request.derive_needs()
        quality = self._build_quality(request, needs, context, preferences, route)
        find_target_gap = partial(
            find_gap,
            codec,
            request,
            needs,
            fetches_pictures=self._pictures is not None,
        )
        explanation = explain_decision(
            request.model, route, needs, self._history, quality, find_gap=find_target_gap
        )
        return replace(explanation, omitted=omitted_abilities)

    def _rank_candidates(self, call: RoutedCall, route: CompiledRoute) -> list[Candidate]:
        """Return the candidates in the order in which they are called, with a trial in front."""
        quality = call.quality
        candidates = rank_candidates(route, call.needs, self._history, quality=quality)
        if quality is None or call.is_repeat:
            return candidates
        trial_share = compute_trial_share(route, quality)
        if not trial_share or random.random() >= trial_share:
            return candidates
        return put_trial_first(candidates, quality)

    async def answer(
        self, codec: ProtocolCodec, request: ParsedRequest, context: RoutingContext
    ) -> Answer:
        """Answer a request from the cache or with the best candidate that does not fail.

        Raises:
            ModelNotFound, ModelNotAllowed, ServiceUnavailable: no candidate can be called.
            InvalidRequest, UnsupportedFeature, ContextTooLong, BackendRejected: the request is
                invalid or not supported.
            BackendError, Overloaded: all candidates failed; this is the error of the last one.
        """
        preferences, route = self._resolve_route(request.model, codec.api_format, context)
        timeout_seconds = route.timeout
        if preferences.timeout is not None:
            timeout_seconds = min(timeout_seconds, preferences.timeout)
        request, omitted_abilities = omit_unusable_members(codec, request, route)
        needs = request.derive_needs()
        call = RoutedCall(
            codec=codec,
            request=request,
            needs=needs,
            context=context,
            accounting=self._accounting,
            pictures=self._pictures,
            deadline=asyncio.get_running_loop().time() + timeout_seconds,
            traceparent=preferences.traceparent,
            quality=self._build_quality(request, needs, context, preferences, route),
            omitted=omitted_abilities,
        )
        if call.quality is not None:
            await self.load_learned_state(context.owner)
        if route.cache is None or self._answer_cache is None or preferences.bypass_cache:
            return await self._call_candidates(call, route)
        return await self._answer_cache.get_or_call(
            call, route, route.cache, lambda: self._call_candidates(call, route)
        )

    def _resolve_route(
        self, name: str, api_format: ApiFormat, context: RoutingContext
    ) -> tuple[RequestPreferences, CompiledRoute]:
        """Return the preferences in the client's headers, and the route of a model name."""
        fleet = self.fleet
        preferences = parse_preferences(
            context.headers, fleet.residencies, fleet.max_usd_per_bad_answer
        )
        route = fleet.get_route(
            name, context.owner, preferences.residency, api_format, current_day()
        )
        return preferences, route

    def _build_quality(
        self,
        request: ParsedRequest,
        needs: Needs,
        context: RoutingContext,
        preferences: RequestPreferences,
        route: CompiledRoute,
    ) -> RequestQuality | None:
        """Create the request's quality estimates, or return None if quality is not weighed.

        Quality is not weighed if the request names a single model, if it is for embeddings, or if
        neither a cost of bad answers nor a minimum quality is set.
        """
        if self._estimator is None or not route.chooses_model or needs.embeddings:
            return None
        usd_per_bad_answer = preferences.usd_per_bad_answer
        if usd_per_bad_answer is None:
            usd_per_bad_answer = route.usd_per_bad_answer
        if not usd_per_bad_answer and not preferences.quality:
            return None
        return RequestQuality(
            self._estimator,
            context.owner,
            request,
            needs,
            usd_per_bad_answer=usd_per_bad_answer,
            floor=preferences.quality,
            embed=self.fleet.embed,
        )

    async def _call_candidates(self, call: RoutedCall, route: CompiledRoute) -> Answer:
        # Repeated requests for cached answers do not count as follow-ups: many clients send the
        # same request.
        call.is_repeat = self._reviewer.detect_follow_up(call, route)
        candidates = self._rank_candidates(call, route)
        choice_description, rescued_candidate = "", None
        if candidates:
            choice_description = describe_choice(candidates, call.quality)
            if self._reviewer.plan_checks(call, route, candidates):
                rescued_candidate = candidates[0]
        reserved_usd = None
        if call.context.budget is not None:
            reserved_usd = await _reserve_budget(
                call.context.budget, call, route, rescued_candidate
            )
        failure: MoyinError | None = None
        unsupported_formats: set[ApiFormat | None] = set()
        for index, candidate in enumerate(candidates):
            try:
                if index == 0 and route.hedging is not None and _is_hedgeable(call):
                    answer = await self._call_hedged(
                        call, route.hedging, candidates, choice_description
                    )
                    candidate = _find_answering_candidate(answer, candidates, candidate)
                else:
                    reason = candidate.reason if index else choice_description
                    answer = await _call_candidate(
                        call, candidate, _describe_reason(reason, failure)
                    )
            except BackendRejected:
                # The next back end would reject the request for the same reason.
                call.record_failure()
                raise
            except MoyinError as error:
                # The failure of a back end that supports the request is reported in preference to
                # an unsupported request, because the client may retry it.
                if failure is None or not isinstance(error, RequestError | ModelNotFound):
                    failure = error
                if isinstance(error, UnsupportedFeature):
                    unsupported_formats.add(candidate.deployment.api_format)
                if asyncio.get_running_loop().time() >= call.deadline:
                    break
            else:
                if answer is not None:
                    answer = await self._reviewer.review(
                        call, route, candidates, (candidate, answer), reserved_usd, _call_candidate
                    )
                    sampler = self.sampler
                    return answer if sampler is None else sampler.sample(call, candidates, answer)
        call.record_failure()
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
        self._hedge.add_credit(hedging.share)
        first_candidate = candidates[0]
        delay_seconds = first_candidate.target.latency.get_first_token_p95()
        other_candidates = [
            other
            for other in candidates[1:]
            if other.target.runtime is not first_candidate.target.runtime
        ]
        if delay_seconds is None or not other_candidates:
            return await _call_candidate(call, first_candidate, reason)
        return await race_calls(
            _call_candidate(call, first_candidate, reason),
            lambda: _call_candidate(call, other_candidates[0], "hedged"),
            delay_seconds=delay_seconds,
            may_start_second=self._hedge.try_spend_credit,
        )


def _is_hedgeable(call: RoutedCall) -> bool:
    """Return True if the call may be hedged: it is streamed, but not held back until its end."""
    return call.request.is_streamed and call.hold is not StreamHold.WHOLE


def _find_answering_candidate(
    answer: Answer | None, candidates: Sequence[Candidate], first_candidate: Candidate
) -> Candidate:
    """Return the candidate that gave a hedged answer; without an answer, ``first_candidate``."""
    answer_headers = () if answer is None else answer.headers
    return next(
        (other for other in candidates if set(other.target.headers) <= set(answer_headers)),
        first_candidate,
    )


async def _call_candidate(call: RoutedCall, candidate: Candidate, reason: str) -> Answer | None:
    """Call a candidate, with retries, and return its answer.

    Returns:
        None if the breaker of the back end rejects the call.

    Raises:
        MoyinError: the call and its retries failed; this is the last error.
    """
    target = candidate.target
    runtime = target.runtime
    if runtime.checks_schemas:
        # An invalid schema is rejected before the request waits for a slot.
        call.check_schemas()
    tenant = call.context.tenant
    loop = asyncio.get_running_loop()
    failed_call_count = 0
    while True:
        remaining_seconds = call.deadline - loop.time()
        lease = await runtime.acquire(
            tenant,
            remaining_seconds,
            _estimate_call_seconds(candidate),
            is_background=call.context.is_background,
        )
        if lease is None:
            return None
        try:
            with lease:
                return await Attempt(call=call, target=target, reason=reason, lease=lease).run()
        except MoyinError as error:
            pause = random.uniform(0, _MAX_FIRST_PAUSE_SECONDS * 2**failed_call_count)
            if (
                failed_call_count >= runtime.retries
                or not is_retryable(error)
                or not runtime.is_ready
            ):
                raise
            if loop.time() + pause >= call.deadline:
                raise
        failed_call_count += 1
        await asyncio.sleep(pause)


async def _reserve_budget(
    budget: BudgetReservation,
    call: RoutedCall,
    route: CompiledRoute,
    rescued_candidate: Candidate | None,
) -> Decimal | None:
    """Reserve the maximum cost of a request in the caller's budgets.

    Args:
        rescued_candidate: the first candidate, if a better model may replace its faulty answer. The
            cost of its call is then added, because both calls are charged. None if this is not
            possible.

    Returns:
        The reserved US dollars; None if spending is not limited.

    Raises:
        LimitExceeded: the remaining budget is too small.
        ServiceUnavailable: the budget cannot be read.
    """
    request, needs = call.request, call.needs
    if not budget.limits_spending:
        await budget.reserve(Decimal(0), 0)
        return None
    max_usd = compute_max_request_cost(route, needs, streams=request.is_streamed)
    if rescued_candidate is not None:
        max_usd += compute_max_call_cost(rescued_candidate.target, needs)
    await budget.reserve(
        max_usd,
        min(
            needs.prompt_tokens + needs.choices * (needs.max_tokens or _DEFAULT_OUTPUT_TOKENS),
            _MAX_COUNTED_TOKENS,
        ),
    )
    return max_usd


def _estimate_call_seconds(candidate: Candidate) -> float:
    forecast = candidate.forecast
    return (
        _DEFAULT_CALL_SECONDS
        if forecast is None
        else forecast.first_token_seconds + forecast.writing_seconds
    )


def _describe_reason(reason: str, failure: MoyinError | None) -> str:
    return reason if failure is None else f"fallback after {failure.code}"
