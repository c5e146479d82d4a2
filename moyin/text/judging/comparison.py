"""Creates the comparison of a sampled answer with a second model's answer."""

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
from moyin.text.judging.placement import compile_judge_route, intersect_residencies
from moyin.text.judging.rules import JudgeRules
from moyin.text.judging.transcripts import decode_stream, format_answer, format_conversation
from moyin.text.judging.verdict import INSTRUCTION_TOKENS, MAX_VERDICT_TOKENS, Outcome
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.protocol.openai.request_to_upstream import chat_request_to_upstream
from moyin.text.routing.compiled_route import RouteTarget, compute_max_request_cost
from moyin.text.routing.decision import Candidate
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.request_preferences import parse_preferences
from moyin.text.routing.request_quality import question_to_json
from moyin.text.routing.rescue import has_higher_quality
from moyin.text.routing.routed_call import RoutedCall

_ID_PREFIX = "judge-"
_MAX_CHARACTERS = 256 * 1024


class NotComparable(Exception):
    """Raised if a sampled answer is not compared; ``outcome`` is the reason."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


# The class is not frozen, because that would double the time of creating a sample in a request.
@dataclass(kw_only=True, slots=True)
class SampledAnswer:
    """A sampled answer and the request that it answers.

    Attributes:
        candidates: the candidates of the routing decision, in the order of preference.
        model: the model that answered.
        body: the answer in the client's protocol: a whole response or a complete stream.
    """

    call: RoutedCall
    candidates: Sequence[Candidate]
    model: str
    body: bytes
    usage: Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The data of a comparison job, which is stored only while the job runs.

    Attributes:
        name: the model or alias that the client's request names, such as ``auto``.
        places: the places where data-residency rules allow the data to be processed.
        model: the model that answered the client.
        second: the model that writes the second answer.
        p_good: the probability of a good answer of ``model``, as estimated before the request.
        second_p_good: the probability of a good answer of ``second``, estimated likewise.
        question: the stored form of the request's `moyin.text.quality.question.Question`.
        request: the body of the chat completion for the second model.
        conversation: the conversation as text for the judge.
        answer: the client's answer as text for the judge.
        swapped: True if the judge reads the second answer first, which is decided at random.
        bounded: True if the second answer has a lower token limit than the client set.
        most_usd: the highest possible cost of both calls in US dollars.
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


def derive_comparison_id(owner: str, request_id: str) -> str:
    """Derive a comparison's id from tenant and request id, so that no request is compared twice."""
    hashed_text = f"{len(owner)}:{owner}{request_id}"
    return _ID_PREFIX + hashlib.sha256(hashed_text.encode()).hexdigest()[:40]


def create_comparison(sample: SampledAnswer, fleet: Fleet, rules: JudgeRules) -> Comparison:
    """Create the comparison of a sampled answer.

    Raises:
        NotComparable: the answer cannot or must not be compared.
    """
    call = sample.call
    context, quality = call.context, call.quality
    assert quality is not None, f"request {context.request_id} was sampled without an estimate"
    if not fleet.get_policy(context.owner).is_judged:
        raise NotComparable(Outcome.OPTED_OUT)
    if not fleet.catalog.is_group_name(call.request.model):
        # A reload of the configuration removed the alias and its data-residency rules.
        raise NotComparable(Outcome.UNSUITABLE)
    try:
        request = call.request.to_domain("")
        assert isinstance(request, ChatRequest), f"embeddings {context.request_id} were sampled"
        conversation, answer = format_conversation(request), _format_sampled_answer(sample)
        residency = parse_preferences(context.headers, fleet.residencies).residency
    except (MoyinError, ValueError):
        # The request has pictures, parts that `ChatRequest` cannot express, or an outdated header.
        raise NotComparable(Outcome.UNSUITABLE) from None
    if not answer or len(conversation) + len(answer) > _MAX_CHARACTERS:
        raise NotComparable(Outcome.UNSUITABLE)
    places = intersect_residencies(fleet, call.request.model, context.owner, residency)
    judge_needs = Needs(
        prompt_tokens=estimate_tokens(conversation)
        + estimate_tokens(answer)
        + rules.max_answer_tokens
        + INSTRUCTION_TOKENS,
        max_tokens=MAX_VERDICT_TOKENS,
        schema=True,
    )
    judge_targets, judge_usd = _find_capable_targets(fleet, rules.model, places, judge_needs)
    judge_models = {candidate.model.name for candidate in judge_targets}
    if sample.model in judge_models:
        raise NotComparable(Outcome.NO_SECOND_MODEL)
    body, is_bounded = _encode_second_request(request, rules)
    needs = OpenAICodec().parse(to_json({**body, "model": sample.model})).derive_needs()
    second_model = _choose_second_model(sample, rules, judge_models)
    second_targets, second_usd = _find_capable_targets(fleet, second_model, places, needs)
    answering_candidate = _find_answering_candidate(sample)
    return Comparison(
        id=derive_comparison_id(context.owner, context.request_id),
        owner=context.owner,
        request_id=context.request_id,
        name=call.request.model,
        places=places,
        model=sample.model,
        second=second_model,
        p_good=quality.estimate(answering_candidate.deployment).p,
        second_p_good=quality.estimate(second_targets[0].deployment).p,
        question=question_to_json(quality.question),
        request={**body, "model": second_model},
        conversation=conversation,
        answer=answer,
        # The order must be fair, but not secret.
        swapped=random.random() < 0.5,
        bounded=is_bounded,
        most_usd=judge_usd + second_usd,
    )


def _format_sampled_answer(sample: SampledAnswer) -> str:
    call = sample.call
    if call.request.is_streamed:
        return format_answer(decode_stream(call.codec, sample.body))
    return format_answer(call.codec.read_response(from_json(sample.body)))


def _encode_second_request(request: ChatRequest, rules: JudgeRules) -> tuple[dict[str, Any], bool]:
    """Encode the request for the second model, without the client's user id.

    Returns:
        The body, and True if it has a lower token limit than the client set.
    """
    max_tokens = rules.max_answer_tokens
    is_bounded = request.max_tokens is None or request.max_tokens > max_tokens
    limited_request = replace(
        request, max_tokens=max_tokens if is_bounded else request.max_tokens, user=None
    )
    return chat_request_to_upstream(limited_request, stream=False), is_bounded


def _choose_second_model(sample: SampledAnswer, rules: JudgeRules, judge_models: set[str]) -> str:
    """Return the model that writes the second answer, which is never the judge.

    The second model is the configured one, else the next better candidate, else the next cheaper
    candidate, else any other candidate.

    Raises:
        NotComparable: there is no other candidate.
    """
    if rules.second is not None and rules.second != sample.model:
        return rules.second
    answering_candidate, excluded_models = (
        _find_answering_candidate(sample),
        {sample.model, *judge_models},
    )
    other_candidates = [
        candidate
        for candidate in sample.candidates
        if candidate.deployment.model.name not in excluded_models
    ]
    if not other_candidates:
        raise NotComparable(Outcome.NO_SECOND_MODEL)
    better_candidates = (
        candidate
        for candidate in other_candidates
        if has_higher_quality(candidate, answering_candidate)
    )
    cheaper_candidates = (
        candidate for candidate in other_candidates if _is_cheaper(candidate, answering_candidate)
    )
    chosen_candidate = (
        next(better_candidates, None) or next(cheaper_candidates, None) or other_candidates[0]
    )
    return chosen_candidate.deployment.model.name


def _find_answering_candidate(sample: SampledAnswer) -> Candidate:
    return next(
        candidate
        for candidate in sample.candidates
        if candidate.deployment.model.name == sample.model
    )


def _is_cheaper(candidate: Candidate, other_candidate: Candidate) -> bool:
    forecast, other_forecast = candidate.forecast, other_candidate.forecast
    return (
        forecast is not None
        and other_forecast is not None
        and forecast.cost_pico < other_forecast.cost_pico
    )


def _find_capable_targets(
    fleet: Fleet, model_name: str, places: Sequence[str], needs: Needs
) -> tuple[list[RouteTarget], Decimal]:
    """Return the deployments that can answer, and the highest cost of an answer in US dollars.

    Args:
        model_name: the model or alias.
        places: the places where data-residency rules allow the data to be processed.
        needs: the needs of the request.

    Raises:
        NotComparable: no deployment of the model can answer.
    """
    try:
        route = compile_judge_route(fleet, model_name, places)
    except ModelNotFound:
        # A reload of the configuration removed the model.
        raise NotComparable(Outcome.NO_SECOND_MODEL) from None
    capable_targets = [candidate for candidate in route.targets if candidate.model.supports(needs)]
    if capable_targets:
        return capable_targets, compute_max_request_cost(route, needs, streams=False)
    if route.targets:
        raise NotComparable(Outcome.UNSUITABLE)
    is_configured = any(exclusion.is_allowed for exclusion in route.exclusions)
    raise NotComparable(Outcome.UNAVAILABLE if is_configured else Outcome.RESIDENCY)
