"""Routes operations, such as moderations or speech, to the cheapest back end that supports them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moyin.domain.backend import ApiFormat
from moyin.domain.money import pico_to_usd
from moyin.domain.operation import Operation, OperationUsage
from moyin.errors import (
    BackendRejected,
    ModelNotAllowed,
    ModelNotFound,
    MoyinError,
    OperationNotConfigured,
    RequestError,
    ServiceUnavailable,
    UnsupportedFeature,
)
from moyin.text.protocol.openai.operations import OperationRequest
from moyin.text.routing.answer import Answer, BudgetReservation, RoutingContext
from moyin.text.routing.backend_runtime import is_retryable
from moyin.text.routing.compiled_route import CompiledRoute, RouteTarget
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.ledger import current_day
from moyin.text.routing.metered_stream import to_client_error
from moyin.text.routing.operation_attempt import OperationAttempt, compute_pico_cost
from moyin.text.routing.request_preferences import parse_preferences
from moyin.text.routing.routed_call import CallAccounting

_MAX_FIRST_PAUSE_SECONDS = 0.2
# Assumed seconds of a call, to estimate the wait in a full queue.
_EXPECTED_SECONDS = 5.0
# The largest amount that Valkey's 64-bit counters can hold.
_MAX_COUNTED_TOKENS = 2**53


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    target: RouteTarget
    reason: str


class OperationRouter:
    """Router of operations, which shares the back ends and their slots with `Router`.

    Args:
        get_fleet: returns the current configuration.
    """

    def __init__(self, get_fleet: Callable[[], Fleet], accounting: CallAccounting) -> None:
        self._get_fleet = get_fleet
        self._accounting = accounting

    def knows_model(self, name: str) -> bool:
        """Return True if a model or an alias has this name, whatever operations it supports."""
        try:
            self._get_fleet().catalog.find_deployments(name)
        except ModelNotFound:
            return False
        return True

    def require_operation(self, operation: Operation) -> None:
        """Raise OperationNotConfigured if no model supports the operation."""
        _require_operation(self._get_fleet(), operation)

    async def answer(self, request: OperationRequest, context: RoutingContext) -> Answer:
        """Answer a request with the cheapest candidate that does not fail.

        Raises:
            OperationNotConfigured: no model supports the operation.
            ModelNotFound, ModelNotAllowed, ServiceUnavailable: no candidate can be called.
            InvalidRequest, UnsupportedFeature, BackendRejected: the request is invalid.
            BackendError, Overloaded: all candidates failed; this is the error of the last one.
        """
        fleet = self._get_fleet()
        _require_operation(fleet, request.operation)
        preferences = parse_preferences(context.headers, fleet.residencies)
        route = fleet.get_route(
            request.model, context.owner, preferences.residency, ApiFormat.OPENAI, current_day()
        )
        capable_targets = [t for t in route.targets if request.operation in t.model.operations]
        if not capable_targets:
            raise _build_no_capable_target_error(route, request)
        max_usage = request.max_usage
        candidates = _rank_candidates(capable_targets, request.operation, max_usage)
        if not candidates:
            retry_seconds = [target.runtime.health.retry_after for target in capable_targets]
            raise ServiceUnavailable(
                "every back end that can answer this request is unavailable; retry later",
                retry_after=max(1.0, min(retry_seconds)),
            )
        timeout_seconds = min(route.timeout, preferences.timeout or route.timeout)
        if context.budget is not None:
            await _reserve_budget(
                context.budget, capable_targets, request.operation, max_usage, timeout_seconds
            )
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        failure: MoyinError | None = None
        for candidate in candidates:
            reason = candidate.reason
            if failure is not None:
                reason = f"fallback after {failure.code}"
            try:
                answer = await self._call_candidate(
                    request, context, candidate.target, reason, deadline, preferences.traceparent
                )
            except BackendRejected:
                # The next back end would reject the request for the same reason.
                raise
            except MoyinError as error:
                if failure is None or not isinstance(error, RequestError | ModelNotFound):
                    failure = error
                if asyncio.get_running_loop().time() >= deadline:
                    break
            else:
                if answer is not None:
                    return answer
        if failure is None:
            raise ServiceUnavailable(
                "every back end that can answer this request is unavailable; retry later",
                retry_after=1.0,
            )
        raise to_client_error(failure)

    async def _call_candidate(
        self,
        request: OperationRequest,
        context: RoutingContext,
        target: RouteTarget,
        reason: str,
        deadline: float,
        traceparent: bytes | None,
    ) -> Answer | None:
        """Call a candidate, with retries; return None if its breaker rejects the call.

        Args:
            reason: the reason why the candidate was chosen, for the header ``x-moyin-route``.
            deadline: the ``loop.time()`` by which the request must end.
            traceparent: the client's trace context in W3C format; None if it sent none.
        """
        runtime, loop = target.runtime, asyncio.get_running_loop()
        failed_call_count = 0
        while True:
            lease = await runtime.acquire(context.tenant, deadline - loop.time(), _EXPECTED_SECONDS)
            if lease is None:
                return None
            try:
                with lease:
                    attempt = OperationAttempt(
                        request=request,
                        context=context,
                        accounting=self._accounting,
                        target=target,
                        reason=reason,
                        lease=lease,
                        traceparent=traceparent,
                    )
                    return await attempt.run(deadline)
            except MoyinError as error:
                pause = random.uniform(0, _MAX_FIRST_PAUSE_SECONDS * 2**failed_call_count)
                if (
                    failed_call_count >= runtime.retries
                    or not is_retryable(error)
                    or not runtime.is_ready
                ):
                    raise
                if loop.time() + pause >= deadline:
                    raise
            failed_call_count += 1
            await asyncio.sleep(pause)


def _require_operation(fleet: Fleet, operation: Operation) -> None:
    if not any(operation in d.model.operations for d in fleet.catalog.deployments):
        raise OperationNotConfigured(
            f"no model is configured for this call: give a model of a back end of type 'openai' the "
            f"setting abilities: [{operation}] in the configuration of the app 'models'",
            field="model",
            details={"ability": operation.value},
        )


def _build_no_capable_target_error(route: CompiledRoute, request: OperationRequest) -> MoyinError:
    capable_exclusions = [
        exclusion
        for exclusion in route.exclusions
        if request.operation in exclusion.deployment.model.operations
    ]
    if not capable_exclusions:
        return UnsupportedFeature(
            f"no model under the name {request.model!r} has the ability {request.operation.value!r}; "
            f"GET /v1/models shows the abilities",
            field="model",
        )
    if not any(exclusion.is_allowed for exclusion in capable_exclusions):
        return ModelNotAllowed(
            "data-residency rules exclude every back end for this model: choose another model",
            field="model",
        )
    missing_keys = sorted(
        f"{d.key_env} for {d.family or d.backend!r}"
        for d in (exclusion.deployment for exclusion in capable_exclusions if exclusion.is_allowed)
    )
    return ServiceUnavailable(
        f"no back end for this model has its API key: set {', '.join(dict.fromkeys(missing_keys))}"
    )


def _rank_candidates(
    targets: Sequence[RouteTarget], operation: Operation, usage: OperationUsage
) -> list[_Candidate]:
    """Return the ready targets, cheapest first; those whose back end lacks the model come last.

    Args:
        usage: the highest possible usage, because tokens are not known before the call.
    """
    ready_targets = [target for target in targets if target.runtime.is_ready]
    pico_costs = {
        id(target): compute_pico_cost(target, operation, usage, _EXPECTED_SECONDS)
        for target in ready_targets
    }
    ready_targets.sort(
        key=lambda t: (not t.model_breaker.ready, pico_costs[id(t)], t.runtime.load, t.position)
    )
    return [
        _Candidate(target=target, reason=_describe_rank(target, is_only=len(ready_targets) == 1))
        for target in ready_targets
    ]


def _describe_rank(target: RouteTarget, *, is_only: bool) -> str:
    if target.is_free and target.model.unit_rates.is_free:
        return "free"
    return "only" if is_only else "cheapest"


async def _reserve_budget(
    budget: BudgetReservation,
    targets: Sequence[RouteTarget],
    operation: Operation,
    max_usage: OperationUsage,
    max_seconds: float,
) -> None:
    """Reserve the maximum cost of a request at the most expensive target.

    Args:
        max_seconds: the maximum duration of the call, for targets that are priced by time.

    Raises:
        LimitExceeded: the remaining budget is too small.
        ServiceUnavailable: the budget cannot be read.
    """
    max_pico_cost = max(
        compute_pico_cost(
            target, operation, max_usage, min(max_seconds, target.runtime.timeout), shares_gpu=False
        )
        for target in targets
    )
    token_count = max_usage.tokens.prompt_tokens + max_usage.tokens.output_tokens
    await budget.reserve(pico_to_usd(max_pico_cost), min(token_count, _MAX_COUNTED_TOKENS))
