"""Defines the state learned from one tenant's signals, and the part that other tenants share.

Tenants share one number per model and kind of request, the shared level: the median over tenants of
how much better the model is than its public scores suggest. A single tenant cannot move the median
of at least `MIN_TENANTS` tenants beyond the others' values.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from moyin.text.quality.learned_weights import LearnedWeights
from moyin.text.quality.question import KIND_NUMBER

_VERSION = 1
_MAX_MODELS = 24  # above this, the model whose last signal is oldest is dropped
_MAX_KEYS = 512
_DAY = 86_400.0
MIN_TENANTS = 5  # a median of fewer would reveal too much about each
_MIN_SIGNALS = 20.0  # a tenant with fewer signals about a model and kind is not counted
_MAX_LEVEL = 1.5  # logits

# The logits by which models are better than their public scores, by model and kind.
SharedLevels = Mapping[str, Mapping[str, float]]


@dataclass(slots=True)
class KeyUsage:
    """The influence that one API key's signals have had, so that it can be limited.

    Attributes:
        used: the total weight of the key's signals; a fixed amount per day is subtracted from it.
        moved: for each model, the logits by which the key moved its estimates; halved every day.
        at: the time of the last update in Unix seconds.
    """

    at: float
    used: float = 0.0
    moved: dict[str, float] = field(default_factory=dict)

    def decay(self, per_second: float, now: float) -> None:
        """Reduce the key's recorded influence for the time since the last update.

        Args:
            per_second: the weight that is subtracted from ``used`` per second.
            now: the current time in Unix seconds.
        """
        elapsed_seconds = max(now - self.at, 0.0)
        self.used = max(self.used - elapsed_seconds * per_second, 0.0)
        fade_factor = 0.5 ** (elapsed_seconds / _DAY)
        self.moved = {
            model: remaining_logits
            for model, logits in self.moved.items()
            if abs(remaining_logits := logits * fade_factor) > 0.01
        }
        self.at = max(now, self.at)

    @classmethod
    def from_json(cls, stored_usage: Any) -> KeyUsage:
        """Decode a `KeyUsage` from a value within the JSON that `TenantState.to_json` returns."""
        moved = {str(model): float(logits) for model, logits in stored_usage["moved"].items()}
        return cls(at=float(stored_usage["at"]), used=float(stored_usage["used"]), moved=moved)


@dataclass(slots=True)
class TenantState:
    """The state learned from one tenant's signals.

    Attributes:
        models: the learned weights by model name.
        keys: the influence of each API key's signals, by key id.
        frozen: True if learning from the tenant's signals is stopped.
    """

    models: dict[str, LearnedWeights] = field(default_factory=dict)
    keys: dict[str, KeyUsage] = field(default_factory=dict)
    frozen: bool = False

    def get_or_create_weights(self, model: str, now: float) -> LearnedWeights:
        """Return the weights of ``model``, which are created on first use.

        Args:
            now: the current time in Unix seconds.
        """
        weights = self.models.pop(model, None)
        if weights is None:
            if len(self.models) >= _MAX_MODELS:
                del self.models[next(iter(self.models))]
            weights = LearnedWeights(faded_at=now)
        self.models[model] = weights  # moves to the end, so that the first is unused for longest
        return weights

    def get_or_create_key_usage(self, key_id: str, now: float) -> KeyUsage:
        """Return the tracked influence of an API key, which is created on first use.

        Args:
            key_id: the id of the key.
            now: the current time in Unix seconds.
        """
        key_usage = self.keys.pop(key_id, None) or KeyUsage(at=now)
        if len(self.keys) >= _MAX_KEYS:
            # Dropping the smallest usage gives away the smallest part of the limits.
            del self.keys[min(self.keys, key=lambda other: self.keys[other].used)]
        self.keys[key_id] = key_usage
        return key_usage

    def merge_with(self, other: TenantState, base: TenantState | None = None) -> TenantState:
        """Return the combination of this state and another replica's state.

        Args:
            base: the state from which both started; None if it was empty.
        """
        base_state = base or TenantState()
        merged_state = TenantState(frozen=self.frozen or other.frozen)
        for model in sorted(self.models.keys() | other.models.keys()):
            own_weights = self.models.get(model) or LearnedWeights()
            other_weights = other.models.get(model) or LearnedWeights()
            merged_state.models[model] = own_weights.merge_with(
                other_weights, base_state.models.get(model)
            )
        while len(merged_state.models) > _MAX_MODELS:
            del merged_state.models[
                min(merged_state.models, key=lambda name: merged_state.models[name].faded_at)
            ]
        for name in sorted(self.keys.keys() | other.keys.keys()):
            usages = [use for state in (self, other) if (use := state.keys.get(name))]
            # If a key used both replicas, the larger usage counts.
            merged_state.keys[name] = max(usages, key=lambda use: (use.used, use.at))
        while len(merged_state.keys) > _MAX_KEYS:
            del merged_state.keys[
                min(merged_state.keys, key=lambda name: merged_state.keys[name].used)
            ]
        return merged_state

    def to_json(self) -> dict[str, Any]:
        """Encode the state as a JSON value of bounded size."""
        return {
            "version": _VERSION,
            "frozen": self.frozen,
            "models": {name: weights.to_json() for name, weights in self.models.items()},
            "keys": {name: asdict(use) for name, use in self.keys.items()},
        }

    @classmethod
    def from_json(cls, stored_state: Any) -> TenantState:
        """Decode a state that `to_json` encoded.

        Raises:
            ValueError: ``stored_state`` is malformed or has another version.
        """
        if not isinstance(stored_state, dict) or stored_state.get("version") != _VERSION:
            raise ValueError(f"the stored tenant state must be an object of version {_VERSION}")
        try:
            keys = {
                str(name): KeyUsage.from_json(stored_usage)
                for name, stored_usage in stored_state["keys"].items()
            }
            models = {
                str(name): LearnedWeights.from_json(weights)
                for name, weights in stored_state["models"].items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the stored tenant state is malformed: {error!r}") from error
        return cls(models=models, keys=keys, frozen=bool(stored_state.get("frozen")))


def extract_levels(state: TenantState) -> dict[str, dict[str, float]]:
    """Return how many logits better than its public scores each model is, per kind of request.

    Kinds with few signals are left out. The result is empty if the tenant is frozen.

    Args:
        state: the state of one tenant.
    """
    if state.frozen:
        return {}
    levels_by_model = {
        model: {
            kind: round(weights.mean[0] + weights.mean[KIND_NUMBER[kind]], 3)
            for kind, count in weights.counts.items()
            if count >= _MIN_SIGNALS and kind in KIND_NUMBER
        }
        for model, weights in state.models.items()
    }
    return {model: kinds for model, kinds in levels_by_model.items() if kinds}


def compute_shared_levels(
    contributions: Iterable[Mapping[str, Any]],
) -> dict[str, dict[str, float]]:
    """Return the shared level of each model per kind of request: the median over tenants.

    Kinds for which fewer than `MIN_TENANTS` tenants have a value are left out.

    Args:
        contributions: the stored result of `extract_levels` for each tenant. Malformed values are
            ignored.
    """
    levels_of_tenants: dict[tuple[str, str], list[float]] = {}
    for contribution in contributions:
        for model, kinds in contribution.items():
            for kind, level in kinds.items() if isinstance(kinds, Mapping) else ():
                if kind in KIND_NUMBER and isinstance(level, int | float) and math.isfinite(level):
                    levels_of_tenants.setdefault((model, kind), []).append(level)
    shared_levels: dict[str, dict[str, float]] = {}
    for (model, kind), levels in levels_of_tenants.items():
        if len(levels) >= MIN_TENANTS:
            level = max(-_MAX_LEVEL, min(statistics.median(levels), _MAX_LEVEL))
            shared_levels.setdefault(model, {})[kind] = level
    return shared_levels
