"""From a sampled answer to the comparison that its job makes, or why there is none."""

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
from moyin.text.routing.compiled_route import EligibleDeployment
from moyin.text.routing.decision import Candidate
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.policy import parse_preferences
from moyin.text.routing.request_quality import question_to_json
from moyin.text.routing.rescue import is_better
from moyin.text.routing.reservation import max_cost
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
# What the judge's instructions, marks and schema take, in tokens.
FRAME_TOKENS = 600
_LARGEST_BODY = 256 * 1024


class NotCompared(Exception):
    """Says why a sampled answer is not compared."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


# Not frozen: one is made on the hot path, and freezing doubles what that costs.
@dataclass(kw_only=True, slots=True)
class Sample:
    """An answer as the hot path leaves it.

    Attributes:
        candidates: of the decision, in the order in which they would be asked.
        model: that answered.
        body: the answer in the client's protocol, a whole one or all of a stream.
    """

    call: RoutedCall
    candidates: Sequence[Candidate]
    model: str
    body: bytes
    usage: Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All that a job must know; kept only while it runs.

    Attributes:
        name: that the client asked for, such as ``auto``.
        places: where the data may go.
        model, second: who answered, and whose answer it is compared with.
        p_good, second_p_good: what was expected of each.
        question: of the request, as `moyin.text.quality` knows it.
        request: the conversation in OpenAI's protocol, with ``second`` as its model.
        conversation, answer: as the judge reads them.
        swapped: a coin has put the second answer first.
        bounded: the second answer is held shorter than the client's own limit holds it.
        most_usd: of both calls, at most.
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
    """Return the name of the comparison of one answer: the same however often it is sampled."""
    text = f"{len(owner)}:{owner}{request_id}"
    return _PREFIX + hashlib.sha256(text.encode()).hexdigest()[:40]


def comparison_of(sample: Sample, fleet: Fleet, rules: JudgeRules) -> Comparison:
    """Return what is to be compared.

    Raises:
        NotCompared: the answer can't or must not be.
    """
    call = sample.call
    context, quality = call.context, call.quality
    assert quality is not None, "only answers whose quality was weighed are sampled"
    if not fleet.policy(context.owner).is_judged:
        raise NotCompared(Outcome.OPTED_OUT)
    if not fleet.catalog.leaves_choice(call.request.model):
        # An alias of an earlier configuration: where its data may go nobody knows any more.
        raise NotCompared(Outcome.UNSUITABLE)
    try:
        request = call.request.to_domain("")
        assert isinstance(request, ChatRequest), "vectors have no quality"
        conversation, answer = conversation_text(request), _text_of(sample)
        residency = parse_preferences(context.headers, fleet.residencies).residency
    except (MoyinError, ValueError):
        # Parts that the domain has no words for, pictures, or a header of an earlier configuration.
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
    judges, most_for_judge = _able(fleet, rules.model, places, judge_needs)
    judging = {one.model.name for one in judges}
    if sample.model in judging:
        raise NotCompared(Outcome.ALONE)
    body, bounded = _second_request(request, rules)
    needs = OpenAICodec().parse(to_json({**body, "model": sample.model})).needs()
    second = _second_model(sample, rules, judging)
    seconds, most_for_second = _able(fleet, second, places, needs)
    given = next(one for one in sample.candidates if one.deployment.model.name == sample.model)
    return Comparison(
        id=comparison_id(context.owner, context.request_id),
        owner=context.owner,
        request_id=context.request_id,
        name=call.request.model,
        places=places,
        model=sample.model,
        second=second,
        p_good=quality.estimate(given.deployment).p,
        second_p_good=quality.estimate(seconds[0].deployment).p,
        question=question_to_json(quality.question),
        request={**body, "model": second},
        conversation=conversation,
        answer=answer,
        # A fair coin, and nothing that a secret depends on.
        swapped=random.random() < 0.5,
        bounded=bounded,
        most_usd=most_for_judge + most_for_second,
    )


def _text_of(sample: Sample) -> str:
    call = sample.call
    if call.request.streams:
        return answer_text(streamed_answer(call.codec, sample.body))
    return answer_text(call.codec.read_response(from_json(sample.body)))


def _second_request(request: ChatRequest, rules: JudgeRules) -> tuple[dict[str, Any], bool]:
    """Return the conversation as the second model gets it, and whether its answer is held shorter
    than the client holds it. The person behind the client is not named."""
    most = rules.most_answer_tokens
    bounded = request.max_tokens is None or request.max_tokens > most
    shorter = replace(request, max_tokens=most if bounded else request.max_tokens, user=None)
    return chat_request_to_upstream(shorter, stream=False), bounded


def _second_model(sample: Sample, rules: JudgeRules, judging: set[str]) -> str:
    """Return the model to compare with: the configured one, else the next better of the candidates,
    else the next cheaper, else the next. No judge judges its own answer.

    Raises:
        NotCompared: there is none.
    """
    if rules.second is not None and rules.second != sample.model:
        return rules.second
    given = next(one for one in sample.candidates if one.deployment.model.name == sample.model)
    others = [
        one
        for one in sample.candidates
        if one.deployment.model.name != sample.model and one.deployment.model.name not in judging
    ]
    if not others:
        raise NotCompared(Outcome.ALONE)
    better = (one for one in others if is_better(one, given))
    cheaper = (one for one in others if _is_cheaper(one, given))
    chosen = next(better, None) or next(cheaper, None) or others[0]
    return chosen.deployment.model.name


def _is_cheaper(candidate: Candidate, than: Candidate) -> bool:
    its, other = candidate.forecast, than.forecast
    return its is not None and other is not None and its.cost_pico < other.cost_pico


def _able(
    fleet: Fleet, name: str, places: Sequence[str], needs: Needs
) -> tuple[list[EligibleDeployment], Decimal]:
    """Return the deployments that could answer, and US dollars that the dearest may cost."""
    try:
        found = route_for(fleet, name, places)
    except ModelNotFound:
        # It was in an earlier configuration.
        raise NotCompared(Outcome.ALONE) from None
    able = [one for one in found.targets if one.model.supports(needs)]
    if able:
        return able, max_cost(found, needs, choices=1, streams=False)
    if found.targets:
        raise NotCompared(Outcome.UNSUITABLE)
    configured = any(exclusion.is_allowed for exclusion in found.exclusions)
    raise NotCompared(Outcome.UNAVAILABLE if configured else Outcome.RESIDENCY)
