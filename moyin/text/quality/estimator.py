"""How likely a model answers a question well: the table's ability, and what a tenant's signals taught.

    logit   = ability - difficulty + residual
    p       = logistic(logit / sqrt(1 + pi / 8 * (doubt + variety)))
    low     = logistic((logit - CARE * sqrt(doubt)) / sqrt(1 + pi / 8 * variety))
    high    = logistic((logit + HOPE * sqrt(doubt)) / sqrt(1 + pi / 8 * variety))

``doubt`` is the variance that more signals would take away: of the ability and of what is difficult
here. ``variety`` is how much questions of one kind differ: it never goes away. The square root is
MacKay's approximation of the mean of a logistic function over a normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from moyin.system.bounded import BoundedDict
from moyin.text.quality.abilities import UNKNOWN, Ability, ability_of
from moyin.text.quality.learned_weights import LearnedWeights, Reader
from moyin.text.quality.question import Question
from moyin.text.quality.shared import Levels
from moyin.text.quality.signal import Signal
from moyin.text.quality.state import TenantState

__all__ = ["Estimate", "Estimator", "Limits", "Signal", "TenantState"]

CARE = 1.0  # standard deviations: five of six true values lie above the careful bound
# The hopeful bound, by which a share of requests is tried, is further away: at one standard deviation a
# model that the table underrates by more is never tried, and never found out.
HOPE = 2.0
_VARIETY = 0.5  # share of a difficulty's variance that is between questions of one kind
_MACKAY = math.pi / 8
_FAR = 5.0  # logits: signals can't move an estimate further from the table than this
_DAY = 86_400.0
_NO_LEVELS: Mapping[str, float] = {}


@dataclass(slots=True)  # not frozen: that takes three times as long to make, eight times a decision
class Estimate:
    """How likely an answer is good.

    Attributes:
        p: the expectation.
        low: the careful bound, which decisions use.
        signals: how many signals about this model and kind stand behind it; older ones count less.
        basis: ``table``, ``configuration``, ``learned``, ``shared`` (other tenants' signals) or
            ``unknown``.
        high: the hopeful bound: what the model may turn out to be worth, for a share of requests on
            which an operator lets the router try models that it knows little of.
    """

    p: float
    low: float
    signals: int
    basis: str
    high: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much is learned from whom.

    Attributes:
        key_burst: weight of signals that a key may give at once.
        key_per_day: what it may give again in a day.
        key_step: logits by which its signals together may move a model's estimates in one direction;
            half of it comes back in a day.
        step: logits by which one signal may move the estimate of its own question.
        tenants: that are held in memory; the one used longest ago goes first.
    """

    key_burst: float = 50.0
    key_per_day: float = 200.0
    key_step: float = 2.0
    step: float = 0.5
    tenants: int = 64


class Estimator:
    """Estimates of all tenants of one replica. Pure: no I/O, and time is an argument.

    Args:
        abilities: by model, for models that the public table does not know as the operator does.
    """

    def __init__(
        self, abilities: Mapping[str, Ability] | None = None, limits: Limits | None = None
    ) -> None:
        self._abilities = dict(abilities or {})
        self._limits = limits or Limits()
        self._tenants: BoundedDict[str, TenantState] = BoundedDict(self._limits.tenants)
        self._last: _Asked | None = None
        self._shared: Levels = {}

    def estimate(
        self, tenant: str, model: str, ability: Ability | None, question: Question
    ) -> Estimate:
        """Return how likely ``model`` answers ``question`` well, for ``tenant``."""
        if ability is None:
            ability = UNKNOWN
        ability = ability.kinds.get(question.kind, ability)
        state = self._tenants.get(tenant)
        asked = self._asked(question)
        memory, signals, level = None, 0, 0.0
        if state is not None and (memory := state.models.get(model)) is not None:
            signals = int(memory.counts.get(question.kind, 0.0) + 0.5)
        if self._shared and not (state is not None and state.frozen):
            # Others' experience counts until the tenant has its own.
            level = self._shared.get(model, _NO_LEVELS).get(question.kind, 0.0)
        logit, doubt = asked.logit(ability, memory, level), asked.doubt(ability, memory)
        flat, tanh = asked.flat, math.tanh
        # Logistic functions, written out: a decision has two dozen.
        p = 0.5 + 0.5 * tanh(0.5 * (logit / math.sqrt(1.0 + _MACKAY * (doubt + asked.variety))))
        deviation = math.sqrt(doubt)
        low = 0.5 + 0.5 * tanh(0.5 * ((logit - CARE * deviation) * flat))
        high = 0.5 + 0.5 * tanh(0.5 * ((logit + HOPE * deviation) * flat))
        # Far from 1/2 the expectation is drawn to it by doubt, and may pass a bound.
        basis = "learned" if signals else "shared" if level else ability.basis
        return Estimate(p, low if low < p else p, signals, basis, high if high > p else p)

    def learn(self, tenant: str, signal: Signal) -> float:
        """Learn from ``signal``; returns the weight that it was given."""
        state = self._tenants.get(tenant)
        if state is None:
            state = TenantState()
            self.load(tenant, state)
        if state.frozen:
            return 0.0
        self._tenants.move_to_end(tenant)
        limits, weight = self._limits, signal.weight
        low, high = -limits.step, limits.step
        use = state.key(signal.key, signal.at) if signal.key else None
        if use is not None:
            use.give_back(limits.key_per_day / _DAY, signal.at)
            weight = min(weight, max(limits.key_burst - use.used, 0.0))
            moved = use.moved.get(signal.model, 0.0)
            low = max(low, min(-limits.key_step - moved, 0.0))
            high = min(high, max(limits.key_step - moved, 0.0))
        if weight <= 0.0:
            return 0.0
        memory = state.memory(signal.model, signal.at)
        memory.forget(signal.at)
        ability = self._abilities.get(signal.model) or ability_of(signal.model) or UNKNOWN
        ability = ability.kinds.get(signal.question.kind, ability)
        asked = self._asked(signal.question)
        flat = asked.flat
        # What others learned is left out: replicas learn the same, whatever they know of others.
        logit = asked.logit(ability, memory, 0.0) * flat
        expected = _logistic(logit)
        # Jaakkola and Jordan's bound on the curvature. The curvature itself, p (1 - p), nearly
        # vanishes where all answers were good: a few bad ones would then undo hundreds.
        slope = math.tanh(logit / 2) / (2 * logit) if abs(logit) > 1e-6 else 0.25
        slope *= flat * flat
        error = (signal.score - expected) * flat
        by = memory.learn(signal.question.features, error, slope, weight, (low, high))
        memory.count(signal.question.kind, weight)
        if use is not None:
            use.used += weight
            use.moved[signal.model] = use.moved.get(signal.model, 0.0) + by
        return weight

    def _asked(self, question: Question) -> _Asked:
        # A decision estimates several candidates for one question, one after the other.
        asked = self._last
        if asked is None or asked.question is not question:
            asked = self._last = _Asked(question)
        return asked

    def configure(self, abilities: Mapping[str, Ability]) -> None:
        """Take other abilities for models that the operator knows better than the table."""
        self._abilities = dict(abilities)

    def share(self, levels: Levels) -> None:
        """Take what all tenants together learned, as `moyin.text.quality.shared` works it out."""
        self._shared = levels

    def shared(self, tenant: str, model: str) -> Mapping[str, float]:
        """Return other tenants' levels of ``model`` by kind, as far as ``tenant`` takes them."""
        return {} if self.state(tenant).frozen else self._shared.get(model, {})

    def state(self, tenant: str) -> TenantState:
        """Return what ``tenant``'s signals taught; empty when there were none."""
        return self._tenants.get(tenant) or TenantState()

    def load(self, tenant: str, state: TenantState) -> None:
        """Put ``state`` in the place of what is known of ``tenant``."""
        self._tenants[tenant] = state

    def merge(self, tenant: str, other: TenantState, base: TenantState | None = None) -> None:
        """Add what another replica learned since ``base`` to what is known of ``tenant``."""
        self.load(tenant, self.state(tenant).merged(other, base))

    def reset(self, tenant: str) -> None:
        """Forget everything that ``tenant``'s signals taught."""
        self._tenants.pop(tenant, None)

    def freeze(self, tenant: str, frozen: bool = True) -> None:
        """Stop learning for ``tenant``, or go on."""
        state = self.state(tenant)
        state.frozen = frozen
        self.load(tenant, state)


class _Asked:
    """What the estimates of all candidates for one question share, worked out once."""

    __slots__ = ("difficulty", "flat", "kind", "kind_variance", "question", "reader", "variety")

    def __init__(self, question: Question) -> None:
        self.question = question
        self.difficulty, self.kind = question.difficulty, question.features[1]
        variance = question.spread * question.spread
        self.variety = _VARIETY * variance
        self.kind_variance = variance - self.variety
        self.flat = 1.0 / math.sqrt(1.0 + _MACKAY * self.variety)
        self.reader = Reader(question.features)

    def logit(self, ability: Ability, memory: LearnedWeights | None, level: float) -> float:
        """Ability minus difficulty, what signals taught, which has bounds, and of other tenants'
        ``level`` the share that this tenant's own signals leave."""
        logit = ability.mean - self.difficulty
        if level:
            logit += level * (1.0 if memory is None else memory.doubt(self.kind))
        if memory is None:
            return logit
        residual = self.reader.residual(memory.mean)
        if -_FAR < residual < _FAR:
            return logit + residual
        return logit + math.copysign(_FAR, residual)

    def doubt(self, ability: Ability, memory: LearnedWeights | None) -> float:
        """The variance that more signals would take away."""
        spread = ability.spread
        variance = spread * spread
        if memory is None:
            return variance + self.kind_variance
        return variance * memory.doubt(0) + self.kind_variance * memory.doubt(self.kind)


def _logistic(logit: float) -> float:
    # As a hyperbolic tangent it can't overflow.
    return 0.5 + 0.5 * math.tanh(0.5 * logit)
