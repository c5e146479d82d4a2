"""Turns a sampled answer into a comparison job, or says why it cannot be compared."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from pydantic_core import from_json, to_json

from moyin.domain.chat import ChatRequest
from moyin.domain.money import Usage
from moyin.domain.needs import Needs, estimate_tokens
from moyin.errors import ModelNotFound, MoyinError
from moyin.text.judging.outcomes import Outcome
from moyin.text.judging.rules import JudgeRules, allowed_residencies, route_for
from moyin.text.judging.transcripts import answer_text, conversation_text, streamed_answer
from moyin.text.judging.verdict import LONGEST_VERDICT
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.protocol.openai.request_to_upstream import chat_request_to_upstream
from moyin.text.routing.compiled_route import RouteTarget, compute_max_request_cost
from moyin.text.routing.decision import Candidate
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.request_preferences import parse_preferences
from moyin.text.routing.request_quality import question_to_json
from moyin.text.routing.rescue import has_higher_quality
from moyin.text.routing.routed_call import RoutedCall

__all__ = [
    "FRAME_TOKENS",
    "Comparison",
    "NotCompared",
    "Sample",
    "comparison_id",
    "comparison_of",
]

_PREFIX = "judge-"
# Tokens of the judge's instructions, marks and schema.
FRAME_TOKENS = 600
_LARGEST_BODY = 256 * 1024


class NotCompared(Exception):
    """Carries the reason why a sampled answer is not compared."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


# Not frozen: freezing doubles the cost of creating one on the hot path.
@dataclass(kw_only=True, slots=True)
class Sample:
    """Holds an answer as the hot path leaves it.

    Attributes:
        candidates: of the routing decision, in the order in which they would be tried.
        model: that answered.
        body: the answer in the client's protocol, whole or as a complete stream.
    """

    call: RoutedCall
    candidates: Sequence[Candidate]
    model: str
    body: bytes
    usage: Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Holds the data of a comparison job; it is stored only while the job runs.

    Attributes:
        name: model name in the request, such as ``auto``.
        places: where the data may go.
        model: that answered the client.
        second: model whose answer it is compared with.
        p_good: probability of a good answer of ``model``, as estimated before.
        second_p_good: the same of ``second``.
        question: of the request, as `moyin.text.quality` stores it.
        request: the conversation in OpenAI's protocol, with ``second`` as its model.
        conversation: text that the judge reads.
        answer: text of the client's answer that the judge reads.
        swapped: the second answer is shown first, as drawn at random.
        bounded: the second answer has a lower token limit than the client set.
        most_usd: highest cost of both calls.
    """

    id: str
    owner: str
    request_id: str
    name: str
    places: tuple[str, ...]
    model: str
    second: str
    p_good: float
    second_p_good: float
    question: Mapping[str, Any]
    request: Mapping[str, Any]
    conversation: str
    answer: str
    swapped: bool
    bounded: bool
    most_usd: Decimal


def comparison_id(owner: str, request_id: str) -> str:
    """Return the id of an answer's comparison; it is the same each time it is sampled."""
    text = f"{len(owner)}:{owner}{request_id}"
    return _PREFIX + hashlib.sha256(text.encode()).hexdigest()[:40]


def comparison_of(sample: Sample, fleet: Fleet, rules: JudgeRules) -> Comparison:
    """Return the comparison of a sample.

    Raises:
        NotCompared: the answer cannot or must not be compared.
    """
    call = sample.call
    context, quality = call.context, call.quality
    assert quality is not None, "only answers whose quality was weighed are sampled"
    if not fleet.get_policy(context.owner).is_judged:
        raise NotCompared(Outcome.OPTED_OUT)
    if not fleet.catalog.is_group_name(call.request.model):
        # An alias of an earlier configuration: its data-residency rules are gone.
        raise NotCompared(Outcome.UNSUITABLE)
    try:
        request = call.request.to_domain("")
        assert isinstance(request, ChatRequest), "embeddings are never sampled"
        conversation, answer = conversation_text(request), _answer_text(sample)
        residency = parse_preferences(context.headers, fleet.residencies).residency
    except (MoyinError, ValueError):
        # Parts that the domain model cannot express, pictures, or an outdated header.
        raise NotCompared(Outcome.UNSUITABLE) from None
    if not answer or len(conversation) + len(answer) > _LARGEST_BODY:
        raise NotCompared(Outcome.UNSUITABLE)
    places = allowed_residencies(fleet, call.request.model, context.owner, residency)
    judge_needs = Needs(
        prompt_tokens=estimate_tokens(conversation)
        + estimate_tokens(answer)
        + rules.most_answer_tokens
        + FRAME_TOKENS,
        max_tokens=LONGEST_VERDICT,
        schema=True,
    )
    judge_targets, judge_usd = _able_targets(fleet, rules.model, places, judge_needs)
    judge_models = {candidate.model.name for candidate in judge_targets}
    if sample.model in judge_models:
        raise NotCompared(Outcome.ALONE)
    body, bounded = _second_request(request, rules)
    needs = OpenAICodec().parse(to_json({**body, "model": sample.model})).needs()
    second = _second_model(sample, rules, judge_models)
    second_targets, second_usd = _able_targets(fleet, second, places, needs)
    first = next(
        candidate
        for candidate in sample.candidates
        if candidate.deployment.model.name == sample.model
    )
    return Comparison(
        id=comparison_id(context.owner, context.request_id),
        owner=context.owner,
        request_id=context.request_id,
        name=call.request.model,
        places=places,
        model=sample.model,
        second=second,
        p_good=quality.estimate(first.deployment).p,
        second_p_good=quality.estimate(second_targets[0].deployment).p,
        question=question_to_json(quality.question),
        request={**body, "model": second},
        conversation=conversation,
        answer=answer,
        # Needs to be fair, not unpredictable.
        swapped=random.random() < 0.5,
        bounded=bounded,
        most_usd=judge_usd + second_usd,
    )


def _answer_text(sample: Sample) -> str:
    call = sample.call
    if call.request.streams:
        return answer_text(streamed_answer(call.codec, sample.body))
    return answer_text(call.codec.read_response(from_json(sample.body)))


def _second_request(request: ChatRequest, rules: JudgeRules) -> tuple[dict[str, Any], bool]:
    """Return the request for the second model, and whether its answer is limited further.

    The client's user id is removed.
    """
    max_tokens = rules.most_answer_tokens
    bounded = request.max_tokens is None or request.max_tokens > max_tokens
    shorter = replace(request, max_tokens=max_tokens if bounded else request.max_tokens, user=None)
    return chat_request_to_upstream(shorter, stream=False), bounded


def _second_model(sample: Sample, rules: JudgeRules, judge_models: set[str]) -> str:
    """Return the model to compare with.

    It is the configured one, else the next better candidate, else the next cheaper, else the next.
    The judge never evaluates its own answer.

    Raises:
        NotCompared: there is no such model.
    """
    if rules.second is not None and rules.second != sample.model:
        return rules.second
    first = next(
        candidate
        for candidate in sample.candidates
        if candidate.deployment.model.name == sample.model
    )
    others = [
        candidate
        for candidate in sample.candidates
        if candidate.deployment.model.name != sample.model
        and candidate.deployment.model.name not in judge_models
    ]
    if not others:
        raise NotCompared(Outcome.ALONE)
    better = (candidate for candidate in others if has_higher_quality(candidate, first))
    cheaper = (candidate for candidate in others if _is_cheaper(candidate, first))
    chosen = next(better, None) or next(cheaper, None) or others[0]
    return chosen.deployment.model.name


def _is_cheaper(candidate: Candidate, other: Candidate) -> bool:
    forecast, than = candidate.forecast, other.forecast
    return forecast is not None and than is not None and forecast.cost_pico < than.cost_pico


def _able_targets(
    fleet: Fleet, name: str, places: Sequence[str], needs: Needs
) -> tuple[list[RouteTarget], Decimal]:
    """Return the targets that could answer, and the highest cost in US dollars."""
    try:
        route = route_for(fleet, name, places)
    except ModelNotFound:
        # The name comes from an earlier configuration.
        raise NotCompared(Outcome.ALONE) from None
    able = [candidate for candidate in route.targets if candidate.model.supports(needs)]
    if able:
        return able, compute_max_request_cost(route, needs, choices=1, streams=False)
    if route.targets:
        raise NotCompared(Outcome.UNSUITABLE)
    configured = any(exclusion.is_allowed for exclusion in route.exclusions)
    raise NotCompared(Outcome.UNAVAILABLE if configured else Outcome.RESIDENCY)
