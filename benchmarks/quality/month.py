"""Simulates how well a router serves a studio for a month, in which models change.

Every request has a topic in the studio's own vocabulary. Every model has a true probability of a
good answer for each topic. The router does not know it; it varies around the estimate in the
product's table of abilities. On day 15 one model gets worse at some topics and another gets better;
on day 20 a new model is added. The router gets a signal about some answers of the models that it
chose, from one of forty people. On one request in four it may try a model with little data: it then
decides by the upper bounds of the estimates. If this changes its choice, a judge rates the answer,
and the judge's call costs money.

Three kinds of policies get the same requests with the same random numbers: the router; each model
alone; and every assignment of one model to each kind of request, of which the best is selected
afterwards. The total of a policy is money + seconds * usd_per_second + bad answers *
usd_per_bad_answer, computed with the true values.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from moyin.text.quality.abilities import Ability, look_up_ability
from moyin.text.quality.estimator import Estimator, Signal
from moyin.text.quality.question import Question, build_question
from moyin.text.routing.exploration import choose_at_upper_bound

DAYS = 30
_PER_DAY = 400
_DRIFT_DAY, _NEW_DAY = 15, 20
_SIGNALLED = 0.25  # share of answers that are rated, checked or requested again
# Share of requests on which the router may try a model with little data; few become trials.
_TRIED = 0.25
_USD_PER_VERDICT = 0.0015  # price of the judge's verdict on a trial
_PEOPLE = 40
_USD_PER_SECOND = 0.00002  # the default
_USD_PER_BAD = 0.02
_TENANT = "studio"
_DAY = 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedModel:
    """A model with its price, its speed and its true quality relative to Moyin's estimate.

    Attributes:
        surprise: mean difference in logits between the model's true quality and the estimate from
            public scores (`moyin.text.quality.abilities`). The differences for single topics
            vary around this mean.
        since: day on which the model is added.
    """

    name: str
    usd: float
    seconds: float
    surprise: float
    since: int = 0

    @property
    def price(self) -> float:
        """The cost of an answer in USD, including the cost of waiting for it."""
        return self.usd + self.seconds * _USD_PER_SECOND


MODELS = (
    SimulatedModel(name="smollm2-135m", usd=0.0, seconds=1.5, surprise=0.0),
    SimulatedModel(name="llama-3.1-8b", usd=0.0, seconds=6.0, surprise=0.4),
    SimulatedModel(name="qwen3-32b", usd=0.0003, seconds=12.0, surprise=-0.5),
    SimulatedModel(name="claude-haiku-5-5", usd=0.0015, seconds=4.0, surprise=-0.6),
    SimulatedModel(name="claude-opus-5-5", usd=0.0110, seconds=9.0, surprise=0.2),
    SimulatedModel(name="claude-sonnet-5-5", usd=0.0045, seconds=6.0, surprise=0.5, since=_NEW_DAY),
)

# The studio's topics: name, share of requests, how much harder the topic truly is than the product's
# prior assumes, and text.
_TOPICS: tuple[tuple[str, float, float, str], ...] = (
    ("greeting", 0.08, 0.0, "Hello there {a}"),
    ("barks", 0.20, 0.3, "Write three short lines that a guard says when {a} enters the {b}"),
    ("quests", 0.10, 1.2, "Write a quest outline in which the player brings {a} to the {b}"),
    ("tags", 0.18, -0.8, "Classify this asset by material and era: {a}, {b}"),
    ("shader", 0.10, 1.3, "Write a shader in HLSL that makes {a} glow under {b}"),
    ("tooling", 0.12, -0.4, "Write a Python function that renames {a} files to {b}"),
    ("contracts", 0.05, 0.5, "Is this clause of the licence contract with {a} valid about {b}?"),
    (
        "german",
        0.07,
        0.2,
        "Übersetze für die Packung: das Spiel um {a} und {b} ist nicht für Kinder",
    ),
    ("balance", 0.10, 0.6, "Calculate the damage per second of {a} when {b} adds 15 % to 240"),
)
_WORDS = [
    "dragon",
    "lantern",
    "castle",
    "harbour",
    "sword",
    "merchant",
    "ruin",
    "forest",
    "engine",
    "goblin",
    "river",
    "crown",
]


@dataclass(slots=True)
class SimulatedRequest:
    """A simulated request, with the random numbers that decide its outcome for every policy."""

    day: float
    topic: int
    question: Question
    luck: float
    signalled: bool
    person: str
    trying: bool


@dataclass(slots=True)
class SimulatedMonth:
    """The results of a month: totals by policy, and the router's regret by day.

    Attributes:
        totals: total cost in USD by policy.
        bad: number of bad answers by policy.
        regret: by day, how much more the router has cost so far than the best fixed policy;
            negative if it has cost less.
        policy: the best fixed policy: the model that costs least for each kind of request.
    """

    totals: dict[str, float] = field(default_factory=dict)
    bad: dict[str, float] = field(default_factory=dict)
    regret: list[float] = field(default_factory=list)
    policy: dict[str, str] = field(default_factory=dict)


class SimulatedWorld:
    """Holds each model's true probability of a good answer, by topic and day."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self._surprises = {
            model.name: [rng.gauss(model.surprise, 0.8) for _ in _TOPICS] for model in MODELS
        }
        # An update makes a local model better at two topics; a cloud model gets worse at two.
        self._drifts = {
            "llama-3.1-8b": dict.fromkeys(rng.sample(range(1, len(_TOPICS)), 2), 2.0),
            "claude-haiku-5-5": dict.fromkeys(rng.sample(range(1, len(_TOPICS)), 2), -2.0),
        }

    def compute_chance(self, model: SimulatedModel, request: SimulatedRequest) -> float:
        """Return the true probability that the model answers the request well."""
        ability = get_assumed_ability(model)
        ability = ability.kinds.get(request.question.kind, ability)
        _, _, topic_difficulty, _ = _TOPICS[request.topic]
        logit = ability.mean - request.question.difficulty - topic_difficulty
        logit += self._surprises[model.name][request.topic]
        if request.day >= _DRIFT_DAY:
            logit += self._drifts.get(model.name, {}).get(request.topic, 0.0)
        return 1 / (1 + math.exp(-logit))

    def compute_loss(self, model: SimulatedModel, request: SimulatedRequest) -> tuple[float, bool]:
        """Return the cost of the model's answer in USD, and True if the answer is bad.

        The cost includes the time of waiting, and `_USD_PER_BAD` if the answer is bad.
        """
        is_bad = request.luck >= self.compute_chance(model, request)
        return model.price + _USD_PER_BAD * is_bad, is_bad


def get_assumed_ability(model: SimulatedModel) -> Ability:
    """Return the quality of ``model`` that the product assumes before it has learned anything."""
    ability = look_up_ability(model.name)
    assert ability is not None
    return ability


def generate_requests(seed: int) -> list[SimulatedRequest]:
    """Return the month's requests in order."""
    rng = random.Random(seed + 1)
    shares = [share for _, share, _, _ in _TOPICS]
    month_requests = []
    for number in range(DAYS * _PER_DAY):
        topic = rng.choices(range(len(_TOPICS)), shares)[0]
        prompt = _TOPICS[topic][3].format(a=rng.choice(_WORDS), b=rng.choice(_WORDS))
        question = build_question(
            [("user", prompt)],
            tools=False,
            schema=False,
            pictures=False,
            thinking=False,
            prompt_tokens=len(prompt) // 4,
        )
        month_requests.append(
            SimulatedRequest(
                day=number / _PER_DAY,
                topic=topic,
                question=question,
                luck=rng.random(),
                signalled=rng.random() < _SIGNALLED,
                person=f"person-{rng.randrange(_PEOPLE)}",
                trying=rng.random() < _TRIED,
            )
        )
    return month_requests


def choose_model(
    estimator: Estimator, models: Sequence[SimulatedModel], question: Question, may_explore: bool
) -> tuple[SimulatedModel, bool]:
    """Return the model that the router chooses, and True if it was chosen for exploration.

    The router chooses the lowest expected cost. It uses the lower confidence bound of p_good or, if
    ``may_explore`` is True, the upper bound. As in `moyin.text.routing.exploration`, a choice counts as
    exploration only if the two bounds select different models.
    """
    estimates = [
        (model.price, estimator.estimate(_TENANT, model.name, get_assumed_ability(model), question))
        for model in models
    ]
    scores = [usd + (1 - estimate.low) * _USD_PER_BAD for usd, estimate in estimates]
    lower_bound_choice = scores.index(min(scores))
    if not may_explore:
        return models[lower_bound_choice], False
    upper_bound_choice = choose_at_upper_bound(estimates, _USD_PER_BAD)
    return models[upper_bound_choice], upper_bound_choice != lower_bound_choice


def simulate_month(seed: int) -> SimulatedMonth:
    """Simulate the month for every policy and return the results."""
    world, month, estimator = SimulatedWorld(seed), SimulatedMonth(), Estimator()
    loss_by_day = [0.0] * DAYS
    totals = {"router": 0.0}
    bad_answers = {"router": 0.0}
    fixed_losses: dict[tuple[str, str], float] = {}
    fixed_losses_by_day: dict[tuple[str, str], list[float]] = {}
    for request in generate_requests(seed):
        available_models = [model for model in MODELS if model.since <= request.day]
        chosen_model, has_tried = choose_model(
            estimator, available_models, request.question, request.trying
        )
        loss, has_failed = world.compute_loss(chosen_model, request)
        loss += _USD_PER_VERDICT * has_tried
        totals["router"] += loss
        bad_answers["router"] += has_failed
        loss_by_day[int(request.day)] += loss
        if request.signalled or has_tried:
            signal = Signal(
                model=chosen_model.name,
                question=request.question,
                score=0.0 if has_failed else 1.0,
                weight=1.0,
                source="feedback",
                key=request.person,
                at=request.day * _DAY,
            )
            estimator.learn(_TENANT, signal)
        for model in MODELS:
            # Until a model is added, the most expensive one takes its place.
            substitute_model = model if model.since <= request.day else MODELS[4]
            loss, has_failed = world.compute_loss(substitute_model, request)
            policy_key = (request.question.kind, model.name)
            fixed_losses[policy_key] = fixed_losses.get(policy_key, 0.0) + loss
            fixed_losses_by_day.setdefault(policy_key, [0.0] * DAYS)[int(request.day)] += loss
            if not model.since:
                totals[model.name] = totals.get(model.name, 0.0) + loss
                bad_answers[model.name] = bad_answers.get(model.name, 0.0) + has_failed
    best_models: dict[str, str] = {}
    for kind in {kind for kind, _ in fixed_losses}:
        losses = {model.name: fixed_losses[kind, model.name] for model in MODELS}
        best_models[kind] = min(losses, key=losses.__getitem__)
    totals["best fixed policy"] = sum(
        fixed_losses[policy_key_of_kind] for policy_key_of_kind in best_models.items()
    )
    regret = 0.0
    for day in range(DAYS):
        regret += loss_by_day[day] - sum(
            fixed_losses_by_day[policy_key_of_kind][day]
            for policy_key_of_kind in best_models.items()
        )
        month.regret.append(regret)
    month.totals, month.bad, month.policy = totals, bad_answers, best_models
    return month
