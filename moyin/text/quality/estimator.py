"""Estimates how likely a model answers a question well, and learns from a tenant's signals.

    logit   = ability - difficulty + residual
    p       = logistic(logit / sqrt(1 + pi / 8 * (uncertainty + variety)))
    low     = logistic((logit - LOWER_DEVIATIONS * sqrt(uncertainty)) / sqrt(1 + pi / 8 * variety))
    high    = logistic((logit + UPPER_DEVIATIONS * sqrt(uncertainty)) / sqrt(1 + pi / 8 * variety))

``uncertainty`` is the variance that more signals would remove: of the ability and of the difficulty
for this tenant. ``variety`` is how much questions of one kind differ, which never goes away. The
square root is MacKay's approximation of the mean of a logistic function over a normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from moyin.system.bounded import BoundedDict
from moyin.text.quality.abilities import UNKNOWN, Ability, ability_of
from moyin.text.quality.learned_weights import LearnedWeights, WeightReader
from moyin.text.quality.question import Question
from moyin.text.quality.shared_levels import Levels
from moyin.text.quality.tenant_state import TenantState

__all__ = ["Estimate", "Estimator", "Limits", "Signal", "TenantState"]

LOWER_DEVIATIONS = 1.0  # standard deviations; five of six true values lie above the lower bound
# Further away than the lower bound. At one standard deviation, a model that the table underrates by more
# would never be tried, so its ability would never be discovered.
UPPER_DEVIATIONS = 2.0
_VARIETY = 0.5  # share of a difficulty's variance between questions of one kind
_MACKAY = math.pi / 8
_MAX_RESIDUAL = 5.0  # logits; signals cannot move an estimate further from the table
_DAY = 86_400.0
_NO_LEVELS: Mapping[str, float] = {}


@dataclass(
    slots=True
)  # not frozen: freezing triples the cost of creating one, eight times per decision
class Estimate:
    """Holds the probability that an answer is good.

    Attributes:
        p: the expected probability.
        low: the lower ("careful") bound, which decisions use.
        signals: number of signals about this model and kind; older ones count less.
        basis: ``table``, ``configuration``, ``learned``, ``shared`` (other tenants' signals) or
            ``unknown``.
        high: the upper ("hopeful") bound, used on the share of requests on which the operator lets
            the router try little-known models.
    """

    p: float
    low: float
    signals: int
    basis: str
    high: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits how far keys and signals move estimates.

    Attributes:
        key_burst: weight of signals that a key may give at once.
        key_per_day: weight that it regains per day.
        key_step: logits by which a key's signals together may move a model's estimates in one
            direction; half of it is regained per day.
        step: logits by which one signal may move the estimate of its own question.
        tenants: states held in memory; the one unused for longest is dropped first.
    """

    key_burst: float = 50.0
    key_per_day: float = 200.0
    key_step: float = 2.0
    step: float = 0.5
    tenants: int = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Signal:
    """Describes how good one answer was.

    Attributes:
        score: 0 for a useless answer, 1 for a good one.
        weight: 0 to 1, how reliable the source is: 1 for a rating, less for a repeated request.
        source: ``feedback``, ``regenerated``, ``switched``, ``checked``, ``rescue``, ``judge``
            and others.
        key: who gave it, such as the id of an API key; empty: the system itself.
        at: seconds since 1970.
    """

    model: str
    question: Question
    score: float
    weight: float
    source: str
    key: str
    at: float

    def __post_init__(self) -> None:
        for name in ("score", "weight"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:  # also refuses NaN
                raise ValueError(f"{name} must be between 0 and 1, not {value!r}")


class Estimator:
    """Holds the estimates of all tenants of one replica. Pure: no I/O; time is an argument.

    Args:
        abilities: of models that the operator configured, by name.
    """

    def __init__(
        self, abilities: Mapping[str, Ability] | None = None, limits: Limits | None = None
    ) -> None:
        self._abilities = dict(abilities or {})
        self._limits = limits or Limits()
        self._tenants: BoundedDict[str, TenantState] = BoundedDict(self._limits.tenants)
        self._last_terms: _QuestionTerms | None = None
        self._shared_levels: Levels = {}

    def estimate(
        self, tenant: str, model: str, ability: Ability | None, question: Question
    ) -> Estimate:
        """Return how likely ``model`` answers ``question`` well, for ``tenant``."""
        if ability is None:
            ability = UNKNOWN
        ability = ability.kinds.get(question.kind, ability)
        state = self._tenants.get(tenant)
        terms = self._terms(question)
        weights, signals, level = None, 0, 0.0
        if state is not None and (weights := state.models.get(model)) is not None:
            signals = int(weights.counts.get(question.kind, 0.0) + 0.5)
        if self._shared_levels and not (state is not None and state.frozen):
            # Other tenants' signals count until the tenant has its own.
            level = self._shared_levels.get(model, _NO_LEVELS).get(question.kind, 0.0)
        logit, uncertainty = (
            terms.logit(ability, weights, level),
            terms.uncertainty(ability, weights),
        )
        flattening, tanh = terms.flattening, math.tanh
        # Logistic functions are inlined, because a decision has two dozen of them.
        p = 0.5 + 0.5 * tanh(
            0.5 * (logit / math.sqrt(1.0 + _MACKAY * (uncertainty + terms.variety)))
        )
        deviation = math.sqrt(uncertainty)
        low = 0.5 + 0.5 * tanh(0.5 * ((logit - LOWER_DEVIATIONS * deviation) * flattening))
        high = 0.5 + 0.5 * tanh(0.5 * ((logit + UPPER_DEVIATIONS * deviation) * flattening))
        # Uncertainty draws the expectation towards 1/2, possibly beyond a bound.
        basis = "learned" if signals else "shared" if level else ability.basis
        return Estimate(p, low if low < p else p, signals, basis, high if high > p else p)

    def learn(self, tenant: str, signal: Signal) -> float:
        """Learn from ``signal``; return the weight that it got."""
        state = self._tenants.get(tenant)
        if state is None:
            state = TenantState()
            self.load(tenant, state)
        if state.frozen:
            return 0.0
        self._tenants.move_to_end(tenant)
        limits, weight = self._limits, signal.weight
        low, high = -limits.step, limits.step
        use = state.key_use(signal.key, signal.at) if signal.key else None
        if use is not None:
            use.refill(limits.key_per_day / _DAY, signal.at)
            weight = min(weight, max(limits.key_burst - use.used, 0.0))
            already_moved = use.moved.get(signal.model, 0.0)
            low = max(low, min(-limits.key_step - already_moved, 0.0))
            high = min(high, max(limits.key_step - already_moved, 0.0))
        if weight <= 0.0:
            return 0.0
        weights = state.weights_for(signal.model, signal.at)
        weights.forget(signal.at)
        ability = self._abilities.get(signal.model) or ability_of(signal.model) or UNKNOWN
        ability = ability.kinds.get(signal.question.kind, ability)
        terms = self._terms(signal.question)
        flattening = terms.flattening
        # Shared levels are left out, so that all replicas learn the same.
        logit = terms.logit(ability, weights, 0.0) * flattening
        expected = _logistic(logit)
        # Jaakkola and Jordan's bound on the curvature. The curvature itself, p (1 - p), nearly
        # vanishes where all answers were good, so that a few bad ones would undo hundreds.
        slope = math.tanh(logit / 2) / (2 * logit) if abs(logit) > 1e-6 else 0.25
        slope *= flattening * flattening
        error = (signal.score - expected) * flattening
        moved = weights.learn(signal.question.features, error, slope, weight, (low, high))
        weights.count(signal.question.kind, weight)
        if use is not None:
            use.used += weight
            use.moved[signal.model] = use.moved.get(signal.model, 0.0) + moved
        return weight

    def _terms(self, question: Question) -> _QuestionTerms:
        # A decision estimates several candidates for one question, one after the other.
        terms = self._last_terms
        if terms is None or terms.question is not question:
            terms = self._last_terms = _QuestionTerms(question)
        return terms

    def configure(self, abilities: Mapping[str, Ability]) -> None:
        """Replace the abilities that the operator configured."""
        self._abilities = dict(abilities)

    def set_shared_levels(self, levels: Levels) -> None:
        """Replace the levels that all tenants share (`moyin.text.quality.shared_levels`)."""
        self._shared_levels = levels

    def shared_levels(self, tenant: str, model: str) -> Mapping[str, float]:
        """Return the shared levels of ``model`` by kind; none for a frozen tenant."""
        return {} if self.state(tenant).frozen else self._shared_levels.get(model, {})

    def state(self, tenant: str) -> TenantState:
        """Return what the tenant's signals taught; empty if there were none."""
        return self._tenants.get(tenant) or TenantState()

    def load(self, tenant: str, state: TenantState) -> None:
        """Replace the state of ``tenant``."""
        self._tenants[tenant] = state

    def merge(self, tenant: str, learned: TenantState, base: TenantState | None = None) -> None:
        """Add what another replica learned since ``base`` to the tenant's state."""
        self.load(tenant, self.state(tenant).merged(learned, base))

    def reset(self, tenant: str) -> None:
        """Forget everything that the tenant's signals taught."""
        self._tenants.pop(tenant, None)

    def freeze(self, tenant: str, frozen: bool = True) -> None:
        """Stop or resume learning for ``tenant``."""
        state = self.state(tenant)
        state.frozen = frozen
        self.load(tenant, state)


class _QuestionTerms:
    """Caches the terms that the estimates of all candidates for one question share."""

    __slots__ = (
        "difficulty",
        "flattening",
        "kind",
        "kind_variance",
        "question",
        "reader",
        "variety",
    )

    def __init__(self, question: Question) -> None:
        self.question = question
        self.difficulty, self.kind = question.difficulty, question.features[1]
        variance = question.spread * question.spread
        self.variety = _VARIETY * variance
        self.kind_variance = variance - self.variety
        self.flattening = 1.0 / math.sqrt(1.0 + _MACKAY * self.variety)
        self.reader = WeightReader(question.features)

    def logit(self, ability: Ability, weights: LearnedWeights | None, level: float) -> float:
        """Return ability minus difficulty, plus what was learned.

        That is the tenant's own residual, within bounds, and the part of the shared ``level`` that
        its signals have not replaced.
        """
        logit = ability.mean - self.difficulty
        if level:
            logit += level * (1.0 if weights is None else weights.uncertainty(self.kind))
        if weights is None:
            return logit
        residual = self.reader.residual(weights.mean)
        if -_MAX_RESIDUAL < residual < _MAX_RESIDUAL:
            return logit + residual
        return logit + math.copysign(_MAX_RESIDUAL, residual)

    def uncertainty(self, ability: Ability, weights: LearnedWeights | None) -> float:
        """Return the variance that more signals would remove."""
        spread = ability.spread
        variance = spread * spread
        if weights is None:
            return variance + self.kind_variance
        return variance * weights.uncertainty(0) + self.kind_variance * weights.uncertainty(
            self.kind
        )


def _logistic(logit: float) -> float:
    # Written as a hyperbolic tangent, it cannot overflow.
    return 0.5 + 0.5 * math.tanh(0.5 * logit)
