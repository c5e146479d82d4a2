"""Estimates how likely a model answers a request well, and learns from a tenant's signals.

    logit   = ability - difficulty + residual
    p       = logistic(logit / sqrt(1 + pi / 8 * (uncertainty + variety)))
    low     = logistic((logit - LOWER_DEVIATIONS * sqrt(uncertainty)) / sqrt(1 + pi / 8 * variety))
    high    = logistic((logit + UPPER_DEVIATIONS * sqrt(uncertainty)) / sqrt(1 + pi / 8 * variety))

``residual`` is the correction learned from the tenant's signals. ``uncertainty`` is the variance of
the estimated ability and difficulty, which shrinks with every signal. ``variety`` is the variance
between requests of one kind, which signals do not reduce. The square root is MacKay's approximation
of the mean of a logistic function over a normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from moyin.system.bounded import BoundedDict
from moyin.text.quality.abilities import UNKNOWN_ABILITY, Ability, look_up_ability
from moyin.text.quality.learned_weights import LearnedWeights, WeightReader
from moyin.text.quality.question import Question
from moyin.text.quality.tenant_state import SharedLevels, TenantState

LOWER_DEVIATIONS = 1.0  # standard deviations; five of six true values lie above the lower bound
# With only one standard deviation, a model that its public scores underrate by more would never be
# tried, so its ability would never be discovered.
UPPER_DEVIATIONS = 2.0
_VARIETY_SHARE = 0.5  # the part of a difficulty's variance that signals do not remove
_MACKAY = math.pi / 8
_MAX_RESIDUAL = 5.0  # the logits by which signals can move an estimate at most
_DAY = 86_400.0
_NO_LEVELS: Mapping[str, float] = {}


# Not frozen, because that would triple the time of creating the eight estimates of a decision.
@dataclass(slots=True)
class Estimate:
    """The estimated probability that a model answers a request well.

    Attributes:
        p: the expected probability.
        low: the lower bound of the probability, which routing decisions use.
        signals: the number of signals about this model and kind; older signals count less.
        basis: the source of the estimate: ``table`` (public scores), ``configuration``,
            ``learned`` (the tenant's own signals), ``shared`` (other tenants' signals) or
            ``unknown``.
        high: the upper bound of the probability. A small share of decisions, which the operator
            sets, uses it instead of ``low``, so that little-known models are tried.
    """

    p: float
    low: float
    signals: int
    basis: str
    high: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningLimits:
    """Limits how far signals move estimates, and how many tenants' states are in memory.

    Attributes:
        key_burst: the largest total weight of one API key's signals. Signals beyond it are ignored.
        key_per_day: the weight that is subtracted from this total per day, so that the key's
            signals count again.
        max_key_shift: the largest logits by which a key's signals together may move a model's
            estimates in one direction; half of the shift is forgotten per day.
        max_signal_shift: the largest logits by which a signal may move the estimate of its request.
        max_tenants: the number of tenants' states in memory. Beyond it, the state that has had no
            signals for the longest time is dropped.
    """

    key_burst: float = 50.0
    key_per_day: float = 200.0
    max_key_shift: float = 2.0
    max_signal_shift: float = 0.5
    max_tenants: int = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Signal:
    """A signal about how good a model's answer was.

    Attributes:
        score: from 0 (a useless answer) to 1 (a good answer).
        weight: the reliability of the source from 0 to 1: 1 for a rating, less for a repeated
            request.
        source: the kind of signal, such as ``feedback``, ``regenerated``, ``rescue`` or ``judge``.
        key: the id of the signal's author, such as an API key's; empty for the router itself.
        at: the time of the signal in Unix seconds.
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
                raise ValueError(f"Signal.{name} must be between 0 and 1, not {value!r}")


class Estimator:
    """Estimates answers' quality for all tenants of one replica, without I/O or a clock.

    Args:
        abilities: the abilities that the operator configured, by model name.
    """

    def __init__(
        self, abilities: Mapping[str, Ability] | None = None, limits: LearningLimits | None = None
    ) -> None:
        self._abilities = dict(abilities or {})
        self._limits = limits or LearningLimits()
        self._tenants: BoundedDict[str, TenantState] = BoundedDict(self._limits.max_tenants)
        self._last_terms: _QuestionTerms | None = None
        self._shared_levels: SharedLevels = {}

    def estimate(
        self, tenant: str, model: str, ability: Ability | None, question: Question
    ) -> Estimate:
        """Estimate how likely ``model`` answers ``question`` well for ``tenant``.

        Args:
            ability: the model's ability before any signal; None if it is unknown.
        """
        if ability is None:
            ability = UNKNOWN_ABILITY
        ability = ability.kinds.get(question.kind, ability)
        state = self._tenants.get(tenant)
        terms = self._get_terms(question)
        weights, signals, shared_level = None, 0, 0.0
        if state is not None and (weights := state.models.get(model)) is not None:
            signals = int(weights.counts.get(question.kind, 0.0) + 0.5)
        if self._shared_levels and not (state is not None and state.frozen):
            # Other tenants' signals count less the more signals the tenant has itself.
            shared_level = self._shared_levels.get(model, _NO_LEVELS).get(question.kind, 0.0)
        logit = terms.compute_logit(ability, weights, shared_level)
        uncertainty = terms.compute_uncertainty(ability, weights)
        flattening, tanh = terms.flattening, math.tanh
        # Calls of `_logistic` would be slower, and a decision needs two dozen of them.
        p = 0.5 + 0.5 * tanh(
            0.5 * (logit / math.sqrt(1.0 + _MACKAY * (uncertainty + terms.variety)))
        )
        deviation = math.sqrt(uncertainty)
        low = 0.5 + 0.5 * tanh(0.5 * ((logit - LOWER_DEVIATIONS * deviation) * flattening))
        high = 0.5 + 0.5 * tanh(0.5 * ((logit + UPPER_DEVIATIONS * deviation) * flattening))
        # Uncertainty moves the expectation towards 1/2, possibly beyond a bound.
        basis = "learned" if signals else "shared" if shared_level else ability.basis
        return Estimate(p, low if low < p else p, signals, basis, high if high > p else p)

    def learn(self, tenant: str, signal: Signal) -> float:
        """Update the tenant's learned weights for the model that the signal is about.

        Returns:
            The weight with which the signal counted; 0 if the tenant is frozen or the key used up
            its allowance.
        """
        state = self._tenants.get(tenant)
        if state is None:
            state = TenantState()
            self.replace_state(tenant, state)
        if state.frozen:
            return 0.0
        self._tenants.move_to_end(tenant)
        limits, weight = self._limits, signal.weight
        min_shift, max_shift = -limits.max_signal_shift, limits.max_signal_shift
        key_usage = state.get_or_create_key_usage(signal.key, signal.at) if signal.key else None
        if key_usage is not None:
            key_usage.decay(limits.key_per_day / _DAY, signal.at)
            weight = min(weight, max(limits.key_burst - key_usage.used, 0.0))
            past_shift = key_usage.moved.get(signal.model, 0.0)
            min_shift = max(min_shift, min(-limits.max_key_shift - past_shift, 0.0))
            max_shift = min(max_shift, max(limits.max_key_shift - past_shift, 0.0))
        if weight <= 0.0:
            return 0.0
        weights = state.get_or_create_weights(signal.model, signal.at)
        weights.fade(signal.at)
        ability = (
            self._abilities.get(signal.model) or look_up_ability(signal.model) or UNKNOWN_ABILITY
        )
        ability = ability.kinds.get(signal.question.kind, ability)
        terms = self._get_terms(signal.question)
        flattening = terms.flattening
        # Shared levels are not added, because all replicas must learn the same from a signal.
        logit = terms.compute_logit(ability, weights, 0.0) * flattening
        expected_score = _logistic(logit)
        # Jaakkola and Jordan's bound on the curvature. The curvature itself, p (1 - p), nearly
        # vanishes where all answers were good, so that a few bad ones would undo hundreds.
        slope = math.tanh(logit / 2) / (2 * logit) if abs(logit) > 1e-6 else 0.25
        slope *= flattening * flattening
        error = (signal.score - expected_score) * flattening
        shift = weights.learn(
            signal.question.features, error, slope, weight, (min_shift, max_shift)
        )
        weights.count_signal(signal.question.kind, weight)
        if key_usage is not None:
            key_usage.used += weight
            key_usage.moved[signal.model] = key_usage.moved.get(signal.model, 0.0) + shift
        return weight

    def _get_terms(self, question: Question) -> _QuestionTerms:
        # A decision estimates several candidates for the same question, one after another.
        terms = self._last_terms
        if terms is None or terms.question is not question:
            terms = self._last_terms = _QuestionTerms(question)
        return terms

    def set_abilities(self, abilities: Mapping[str, Ability]) -> None:
        """Replace all abilities that the operator configured; the keys are model names."""
        self._abilities = dict(abilities)

    def set_shared_levels(self, levels: SharedLevels) -> None:
        """Replace the corrections to public scores that apply to all tenants, by model and kind."""
        self._shared_levels = levels

    def get_shared_levels(self, tenant: str, model: str) -> Mapping[str, float]:
        """Return how many logits better than its public scores a model is, per kind of request.

        The values are medians over all tenants. The result is empty for a frozen tenant.
        """
        return {} if self.get_state(tenant).frozen else self._shared_levels.get(model, {})

    def get_state(self, tenant: str) -> TenantState:
        """Return the state learned from the tenant's signals; empty if there were none."""
        return self._tenants.get(tenant) or TenantState()

    def replace_state(self, tenant: str, state: TenantState) -> None:
        """Replace everything that was learned from the tenant's signals by ``state``."""
        self._tenants[tenant] = state

    def merge_state(
        self, tenant: str, learned_state: TenantState, base: TenantState | None = None
    ) -> None:
        """Add to the tenant's state what another replica has learned from the tenant's signals.

        Args:
            learned_state: the other replica's state.
            base: the state from which both replicas started; None if it was empty.
        """
        self.replace_state(tenant, self.get_state(tenant).merge_with(learned_state, base))

    def reset(self, tenant: str) -> None:
        """Delete everything that was learned from the tenant's signals."""
        self._tenants.pop(tenant, None)

    def freeze(self, tenant: str, frozen: bool = True) -> None:
        """Stop learning for ``tenant``, or resume it if ``frozen`` is False."""
        state = self.get_state(tenant)
        state.frozen = frozen
        self.replace_state(tenant, state)


class _QuestionTerms:
    """The terms of the estimate that depend only on the question, not on the candidate."""

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
        self.variety = _VARIETY_SHARE * variance
        self.kind_variance = variance - self.variety
        self.flattening = 1.0 / math.sqrt(1.0 + _MACKAY * self.variety)
        self.reader = WeightReader(question.features)

    def compute_logit(
        self, ability: Ability, weights: LearnedWeights | None, level: float
    ) -> float:
        """Return the model's ability minus the question's difficulty plus corrections, in logits.

        Args:
            ability: the model's ability for this kind of request.
            weights: the tenant's learned weights of the model; None if it has none.
            level: the correction in logits from all tenants' signals. The more signals the tenant
                has given, the less it counts.
        """
        logit = ability.mean - self.difficulty
        if level:
            logit += level * (
                1.0 if weights is None else weights.compute_remaining_variance(self.kind)
            )
        if weights is None:
            return logit
        residual = self.reader.compute_residual(weights.mean)
        if -_MAX_RESIDUAL < residual < _MAX_RESIDUAL:
            return logit + residual
        return logit + math.copysign(_MAX_RESIDUAL, residual)

    def compute_uncertainty(self, ability: Ability, weights: LearnedWeights | None) -> float:
        """Return the variance of the model's ability minus the question's difficulty.

        It shrinks with every signal.
        """
        spread = ability.spread
        variance = spread * spread
        if weights is None:
            return variance + self.kind_variance
        kind_variance = self.kind_variance * weights.compute_remaining_variance(self.kind)
        return variance * weights.compute_remaining_variance(0) + kind_variance


def _logistic(logit: float) -> float:
    # Unlike the exponential function, the hyperbolic tangent cannot overflow.
    return 0.5 + 0.5 * math.tanh(0.5 * logit)
