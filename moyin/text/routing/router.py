"""One text request from its parsed call to its answer: choose, ask, fall back."""

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
from moyin.text.routing.answer import Answer, RoutingContext
from moyin.text.routing.answer_cache import AnswerCache, ResponseCache
from moyin.text.routing.answer_review import Review
from moyin.text.routing.attempt import Attempt
from moyin.text.routing.backend_runtime import is_retryable
from moyin.text.routing.budget_reservation import BudgetReservation
from moyin.text.routing.catalog import Hedging
from moyin.text.routing.compiled_route import CompiledRoute, EligibleDeployment
from moyin.text.routing.decision import Candidate, decide, why_nobody, why_not_able
from moyin.text.routing.explanation import Explanation, explain, route_of
from moyin.text.routing.exploration import share_of, with_trial
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.followups import FollowUps
from moyin.text.routing.hedging import Hedge, race
from moyin.text.routing.learning import Learning
from moyin.text.routing.ledger import Ledger, day_now
from moyin.text.routing.metered_stream import presentable
from moyin.text.routing.policy import RequestPreferences, wishes_of
from moyin.text.routing.request_quality import RequestQuality
from moyin.text.routing.reservation import worst_call, worst_case
from moyin.text.routing.routed_call import CallAccounting, Hold, PictureSource, RoutedCall
from moyin.text.routing.sampling import Sampler
from moyin.text.routing.telemetry import NoTelemetry, Telemetry
from moyin.text.routing.usage_history import UsageHistory

__all__ = ["Router"]

# Full jitter: a pause between nothing and this, doubled with every try.
_RETRY_SECONDS = 0.2
# What a call may take where nothing was weighed nor measured.
_SERVICE_SECONDS = 5.0
# What an answer of any length is taken for until it is there, in limits on tokens.
_USUAL_TOKENS = 256


class Router:
    """Answers text requests.

    Args:
        pictures: fetches those that a request names by URL.
        cache: keeps answers, for aliases that want it.
        estimator: tells how well a model would answer; None: quality is not weighed.
        learning: notes decisions and loads what a tenant's signals taught; None: neither.
        follow_ups: notices what clients do after an answer; None: nobody does.

    Attributes:
        fleet: may be replaced at any time; requests under way keep the one they began with.
        sampler: looks at a share of the answers whose quality was weighed; None: nobody does.
    """

    def __init__(
        self,
        fleet: Fleet,
        ledger: Ledger,
        pictures: PictureSource | None = None,
        telemetry: Telemetry | None = None,
        cache: ResponseCache | None = None,
        estimator: Estimator | None = None,
        learning: Learning | None = None,
        follow_ups: FollowUps | None = None,
    ) -> None:
        self.fleet = fleet
        self.sampler: Sampler | None = None
        self._estimator = estimator
        self._learning = learning
        self._review = Review(learning, follow_ups)
        self._pictures = pictures
        self._history = UsageHistory()
        self._books = CallAccounting(
            ledger=ledger,
            telemetry=telemetry or NoTelemetry(),
            noted=self._history.note,
            prompt_tokens=self._history.prompt_tokens,
        )
        self._hedge = Hedge()
        self._replay = None if cache is None else AnswerCache(cache)

    def allowed(
        self, name: str, wire: ApiFormat, asker: RoutingContext
    ) -> tuple[EligibleDeployment, ...]:
        """Who may be sent what this client sends under ``name``, in the order of the configuration.

        Raises:
            ModelNotFound, ModelNotAllowed: nothing has that name, or not for this tenant.
            InvalidRequest: names a header.
        """
        fleet = self.fleet
        wishes = self._wishes(asker)
        return fleet.shortlist(name, asker.owner, wishes.residency, wire, day_now()).contenders

    async def prepare(self, owner: str) -> None:
        """Load what the tenant's signals taught, unless it is in memory."""
        if self._learning is not None and not self._learning.knows(owner):
            await self._learning.ready(owner)

    def explain(
        self, dialect: ProtocolCodec, call: ParsedRequest, asker: RoutingContext
    ) -> Explanation:
        """Who would answer, and why, without asking anybody.

        Raises:
            ModelNotFound, ModelNotAllowed: nothing has that name, or not for this tenant.
            InvalidRequest: names a header.
        """
        wishes = self._wishes(asker)
        shortlist = self._shortlist(dialect, call, asker, wishes)
        needs = call.needs()
        quality = self._quality(call, needs, asker, wishes, shortlist)
        return explain(call.model, shortlist, needs, self._history, quality)

    def _weighed(self, task: RoutedCall, shortlist: CompiledRoute) -> list[Candidate]:
        """The candidates in the order in which they are asked."""
        quality = task.quality
        candidates = decide(shortlist, task.needs, self._history, quality=quality)
        if quality is None or task.again:
            return candidates
        share = share_of(shortlist, quality)
        if not share or random.random() >= share:
            return candidates
        return with_trial(candidates, quality)

    async def answer(
        self, dialect: ProtocolCodec, call: ParsedRequest, asker: RoutingContext
    ) -> Answer:
        """The first answer that a candidate gives.

        Raises:
            ModelNotFound, ModelNotAllowed, ServiceUnavailable: nobody can be asked.
            InvalidRequest, UnsupportedFeature, ContextTooLong, BackendRejected: the request is at
                fault.
            BackendError, Overloaded: the last candidate's failure.
        """
        wishes = self._wishes(asker)
        shortlist = self._shortlist(dialect, call, asker, wishes)
        seconds = shortlist.timeout
        if wishes.timeout is not None:
            seconds = min(seconds, wishes.timeout)
        needs = call.needs()
        task = RoutedCall(
            dialect=dialect,
            call=call,
            needs=needs,
            asker=asker,
            books=self._books,
            pictures=self._pictures,
            deadline=asyncio.get_running_loop().time() + seconds,
            traceparent=wishes.traceparent,
            quality=self._quality(call, needs, asker, wishes, shortlist),
        )
        if task.quality is not None:
            await self.prepare(asker.owner)
        if shortlist.cache is None or self._replay is None or wishes.fresh:
            return await self._ask(task, shortlist)
        return await self._replay.answer(
            task, shortlist, shortlist.cache, lambda: self._ask(task, shortlist)
        )

    def _wishes(self, asker: RoutingContext) -> RequestPreferences:
        fleet = self.fleet
        return wishes_of(asker.headers, fleet.places, fleet.most_usd_per_bad_answer)

    def _quality(
        self,
        call: ParsedRequest,
        needs: Needs,
        asker: RoutingContext,
        wishes: RequestPreferences,
        shortlist: CompiledRoute,
    ) -> RequestQuality | None:
        """Return the estimates of one request; None where quality has no say: the name is that of a
        model, vectors are asked for, or neither a cost of bad answers nor a floor is set."""
        if self._estimator is None or not shortlist.chooses_model or needs.embeddings:
            return None
        cost = wishes.usd_per_bad_answer
        if cost is None:
            cost = shortlist.usd_per_bad_answer
        if not cost and not wishes.quality:
            return None
        return RequestQuality(
            self._estimator,
            asker.owner,
            call,
            needs,
            usd_per_bad_answer=cost,
            floor=wishes.quality,
            embed=self.fleet.embed,
        )

    def _shortlist(
        self,
        dialect: ProtocolCodec,
        call: ParsedRequest,
        asker: RoutingContext,
        wishes: RequestPreferences,
    ) -> CompiledRoute:
        return self.fleet.shortlist(
            call.model, asker.owner, wishes.residency, dialect.api_format, day_now()
        )

    async def _ask(self, task: RoutedCall, shortlist: CompiledRoute) -> Answer:
        # Not where the answer is kept: many ask for that, who found nothing wrong with it.
        task.again = self._review.noticed(task, shortlist)
        candidates = self._weighed(task, shortlist)
        chosen, rescued = "", None
        if candidates:
            chosen = route_of(candidates, task.quality)
            if self._review.watch(task, shortlist, candidates):
                rescued = candidates[0]
        reserved = None
        if task.asker.purse is not None:
            reserved = await _reserve(task.asker.purse, task, shortlist, rescued)
        failure: MoyinError | None = None
        unable: set[ApiFormat | None] = set()
        for place, candidate in enumerate(candidates):
            try:
                if place == 0 and shortlist.hedging is not None and _may_hedge(task):
                    answer = await self._hedged(task, shortlist.hedging, candidates, chosen)
                    candidate = _who(answer, candidates, candidate)
                else:
                    route = candidate.reason if place else chosen
                    answer = await _try(task, candidate, _route(route, failure))
            except BackendRejected:
                # What one back end finds wrong with the request, the next one would find too.
                raise
            except MoyinError as error:
                # That one cannot take the request, or lacks what it names, says nothing against
                # another that could, and that may be asked again.
                if failure is None or not isinstance(error, RequestError | ModelNotFound):
                    failure = error
                if isinstance(error, UnsupportedFeature):
                    unable.add(candidate.offer.wire)
                if asyncio.get_running_loop().time() >= task.deadline:
                    break
            else:
                if answer is not None:
                    answer = await self._review.reviewed(
                        task, shortlist, candidates, (candidate, answer), reserved, _try
                    )
                    sampler = self.sampler
                    return answer if sampler is None else sampler.sampled(task, candidates, answer)
        if isinstance(failure, UnsupportedFeature | ModelNotFound):
            raise why_not_able(shortlist, task.needs, unable) or failure
        raise presentable(failure) if failure else why_nobody(shortlist, task.needs, task.quality)

    async def _hedged(
        self, task: RoutedCall, hedging: Hedging, candidates: Sequence[Candidate], route: str
    ) -> Answer | None:
        self._hedge.count(hedging.share)
        first = candidates[0]
        after = first.contender.pace.first_token_p95()
        others = [one for one in candidates[1:] if one.contender.lane is not first.contender.lane]
        if after is None or not others:
            return await _try(task, first, route)
        return await race(
            _try(task, first, route),
            lambda: _try(task, others[0], "hedged"),
            after=after,
            may=self._hedge.spend,
        )


def _may_hedge(task: RoutedCall) -> bool:
    """Whether how soon the call begins to be answered says whether its back end is slow."""
    return task.call.streams and task.hold is not Hold.WHOLE


def _who(answer: Answer | None, candidates: Sequence[Candidate], asked: Candidate) -> Candidate:
    """Return the candidate that gave a hedged answer; ``asked`` where there is none."""
    names = () if answer is None else answer.headers
    return next((one for one in candidates if set(one.contender.headers) <= set(names)), asked)


async def _try(task: RoutedCall, candidate: Candidate, route: str) -> Answer | None:
    """The candidate's answer; None when its breaker lets nobody through by now.

    Raises:
        MoyinError: its last failure.
    """
    contender = candidate.contender
    lane = contender.lane
    if lane.bounds_schemas:
        # Before it waits for a place.
        task.check_schemas()
    tenant = task.asker.tenant
    loop = asyncio.get_running_loop()
    tries = 0
    while True:
        left = task.deadline - loop.time()
        lease = await lane.acquire(tenant, left, _service(candidate))
        if lease is None:
            return None
        try:
            with lease:
                return await Attempt(task=task, contender=contender, route=route, lease=lease).run()
        except MoyinError as error:
            pause = random.uniform(0, _RETRY_SECONDS * 2**tries)
            if tries >= lane.retries or not is_retryable(error) or not lane.ready:
                raise
            if loop.time() + pause >= task.deadline:
                raise
        tries += 1
        await asyncio.sleep(pause)


async def _reserve(
    purse: BudgetReservation, task: RoutedCall, shortlist: CompiledRoute, rescued: Candidate | None
) -> Decimal | None:
    """Set aside what the call may cost at most; returns it, or None where the price does not matter.

    Args:
        rescued: whose answer comes first where a better model may be asked after it, so that both are
            paid; None: there is no second call.

    Raises:
        LimitExceeded, ServiceUnavailable: see `BudgetReservation.take`.
    """
    call, needs = task.call, task.needs
    if not purse.spends:
        await purse.take(Decimal(0), 0)
        return None
    choices = call.data.get("n")
    dearest = worst_case(
        shortlist,
        needs,
        # Where a protocol knows no such member nobody has looked at it.
        choices=max(choices, 1) if isinstance(choices, int) else 1,
        streams=call.streams,
    )
    if rescued is not None:
        dearest += worst_call(rescued.contender, needs)
    await purse.take(dearest, needs.prompt_tokens + (needs.max_tokens or _USUAL_TOKENS))
    return dearest


def _service(candidate: Candidate) -> float:
    forecast = candidate.forecast
    return _SERVICE_SECONDS if forecast is None else forecast.first_token + forecast.writing


def _route(reason: str, failure: MoyinError | None) -> str:
    return reason if failure is None else f"fallback after {failure.code}"
