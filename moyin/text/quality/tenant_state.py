"""Holds what one tenant's signals taught: weights per model, and the allowance of each key."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from moyin.text.quality.learned_weights import LearnedWeights

__all__ = ["TenantState"]

_VERSION = 1
_MAX_MODELS = 24  # the ones without signals for longest are dropped first
_MAX_KEYS = 512
_DAY = 86_400.0


@dataclass(slots=True)
class KeyUse:
    """Tracks what a key has used of its allowance.

    Attributes:
        used: weight of its signals; it decreases evenly over time.
        moved: by model, net logits by which its signals moved estimates; halved every day.
        at: time of the last update, in seconds since 1970.
    """

    at: float
    used: float = 0.0
    moved: dict[str, float] = field(default_factory=dict)

    def refill(self, per_second: float, now: float) -> None:
        """Restore the allowance of the time since the last signal."""
        elapsed = max(now - self.at, 0.0)
        self.used = max(self.used - elapsed * per_second, 0.0)
        fade = 0.5 ** (elapsed / _DAY)
        self.moved = {
            model: remaining
            for model, logits in self.moved.items()
            if abs(remaining := logits * fade) > 0.01
        }
        self.at = max(now, self.at)

    @classmethod
    def from_json(cls, value: Any) -> KeyUse:
        """Return the use that was written as JSON."""
        moved = {str(model): float(logits) for model, logits in value["moved"].items()}
        return cls(at=float(value["at"]), used=float(value["used"]), moved=moved)


@dataclass(slots=True)
class TenantState:
    """Holds what one tenant's signals taught.

    Attributes:
        models: by model name.
        keys: use of the allowance, by key.
        frozen: nothing is learned until it is thawed.
    """

    models: dict[str, LearnedWeights] = field(default_factory=dict)
    keys: dict[str, KeyUse] = field(default_factory=dict)
    frozen: bool = False

    def weights_for(self, model: str, now: float) -> LearnedWeights:
        """Return the weights of ``model``, created on first use."""
        weights = self.models.pop(model, None)
        if weights is None:
            if len(self.models) >= _MAX_MODELS:
                del self.models[next(iter(self.models))]
            weights = LearnedWeights(at=now)
        self.models[model] = weights  # moved to the end: the oldest comes first
        return weights

    def key_use(self, name: str, now: float) -> KeyUse:
        """Return the use of the key ``name``, created on first use."""
        use = self.keys.pop(name, None) or KeyUse(at=now)
        if len(self.keys) >= _MAX_KEYS:
            # The key that used least gains least from being forgotten.
            del self.keys[min(self.keys, key=lambda other: self.keys[other].used)]
        self.keys[name] = use
        return use

    def merged(self, other: TenantState, base: TenantState | None = None) -> TenantState:
        """Return what both learned together; ``base``: what both started from."""
        start = base or TenantState()
        result = TenantState(frozen=self.frozen or other.frozen)
        for model in sorted(self.models.keys() | other.models.keys()):
            ours = self.models.get(model) or LearnedWeights()
            theirs = other.models.get(model) or LearnedWeights()
            result.models[model] = ours.merged(theirs, start.models.get(model))
        while len(result.models) > _MAX_MODELS:
            del result.models[min(result.models, key=lambda name: result.models[name].at)]
        for name in sorted(self.keys.keys() | other.keys.keys()):
            uses = [use for remaining in (self, other) if (use := remaining.keys.get(name))]
            # A key that used both replicas is counted by its larger use.
            result.keys[name] = max(uses, key=lambda use: (use.used, use.at))
        while len(result.keys) > _MAX_KEYS:
            del result.keys[min(result.keys, key=lambda name: result.keys[name].used)]
        return result

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value of bounded size."""
        return {
            "version": _VERSION,
            "frozen": self.frozen,
            "models": {name: weights.to_json() for name, weights in self.models.items()},
            "keys": {name: asdict(use) for name, use in self.keys.items()},
        }

    @classmethod
    def from_json(cls, value: Any) -> TenantState:
        """Return the state that `to_json` wrote.

        Raises:
            ValueError: ``value`` is malformed, or from a later version.
        """
        if not isinstance(value, dict) or value.get("version") != _VERSION:
            raise ValueError(f"not a tenant's state of version {_VERSION}")
        try:
            keys = {str(name): KeyUse.from_json(use) for name, use in value["keys"].items()}
            models = {
                str(name): LearnedWeights.from_json(weights)
                for name, weights in value["models"].items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a tenant's state: {error}") from error
        return cls(models=models, keys=keys, frozen=bool(value.get("frozen")))
