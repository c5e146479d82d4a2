"""What is known of one tenant: a memory per model, and how much each key was listened to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from moyin.text.quality.learned_weights import LearnedWeights

__all__ = ["TenantState"]

_VERSION = 1
_MOST_MODELS = 24  # those that were signalled longest ago go first
_MOST_KEYS = 512
_DAY = 86_400.0


@dataclass(slots=True)
class KeyUse:
    """What a key has used of its allowance.

    Attributes:
        used: weight of its signals; it is given back evenly over time.
        moved: by model, logits by which its signals moved estimates, up counted against down; half
            of it is given back in a day.
        at: seconds since 1970, when both were worked out.
    """

    at: float
    used: float = 0.0
    moved: dict[str, float] = field(default_factory=dict)

    def give_back(self, refill: float, now: float) -> None:
        """Give back what the time since the last signal allows: ``refill`` of weight per second."""
        passed = max(now - self.at, 0.0)
        self.used = max(self.used - passed * refill, 0.0)
        left = 0.5 ** (passed / _DAY)
        self.moved = {
            model: part for model, by in self.moved.items() if abs(part := by * left) > 0.01
        }
        self.at = max(now, self.at)

    @classmethod
    def from_json(cls, value: Any) -> KeyUse:
        """Return the use that was written as JSON."""
        moved = {str(model): float(by) for model, by in value["moved"].items()}
        return cls(at=float(value["at"]), used=float(value["used"]), moved=moved)


@dataclass(slots=True)
class TenantState:
    """What one tenant's signals taught.

    Attributes:
        models: by the model's name.
        keys: by key, what it has used of its allowance.
        frozen: nothing more is learned until it is thawed.
    """

    models: dict[str, LearnedWeights] = field(default_factory=dict)
    keys: dict[str, KeyUse] = field(default_factory=dict)
    frozen: bool = False

    def memory(self, model: str, now: float) -> LearnedWeights:
        """Return the memory of ``model``, made where there is none."""
        memory = self.models.pop(model, None)
        if memory is None:
            if len(self.models) >= _MOST_MODELS:
                del self.models[next(iter(self.models))]
            memory = LearnedWeights(at=now)
        self.models[model] = memory  # last: what was signalled longest ago stands first
        return memory

    def key(self, name: str, now: float) -> KeyUse:
        """Return what the key ``name`` used of its allowance by now, made where there is nothing."""
        use = self.keys.pop(name, None) or KeyUse(at=now)
        if len(self.keys) >= _MOST_KEYS:
            # The key that used least has least to gain from being forgotten.
            del self.keys[min(self.keys, key=lambda other: self.keys[other].used)]
        self.keys[name] = use
        return use

    def merged(self, other: TenantState, base: TenantState | None = None) -> TenantState:
        """Return what both learned together; ``base``: what both started from."""
        start = base or TenantState()
        result = TenantState(frozen=self.frozen or other.frozen)
        for model in sorted(self.models.keys() | other.models.keys()):
            mine = self.models.get(model) or LearnedWeights()
            theirs = other.models.get(model) or LearnedWeights()
            result.models[model] = mine.merged(theirs, start.models.get(model))
        while len(result.models) > _MOST_MODELS:
            del result.models[min(result.models, key=lambda name: result.models[name].at)]
        for name in sorted(self.keys.keys() | other.keys.keys()):
            uses = [use for part in (self, other) if (use := part.keys.get(name))]
            # A key that spoke to both replicas is counted where it said more.
            result.keys[name] = max(uses, key=lambda use: (use.used, use.at))
        while len(result.keys) > _MOST_KEYS:
            del result.keys[min(result.keys, key=lambda name: result.keys[name].used)]
        return result

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value of bounded size."""
        return {
            "version": _VERSION,
            "frozen": self.frozen,
            "models": {name: memory.to_json() for name, memory in self.models.items()},
            "keys": {name: asdict(use) for name, use in self.keys.items()},
        }

    @classmethod
    def from_json(cls, value: Any) -> TenantState:
        """Return the state that `to_json` wrote.

        Raises:
            ValueError: ``value`` is something else, or of a later version.
        """
        if not isinstance(value, dict) or value.get("version") != _VERSION:
            raise ValueError(f"not a tenant's state of version {_VERSION}")
        try:
            keys = {str(name): KeyUse.from_json(use) for name, use in value["keys"].items()}
            models = {
                str(name): LearnedWeights.from_json(memory)
                for name, memory in value["models"].items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a tenant's state: {error}") from error
        return cls(models=models, keys=keys, frozen=bool(value.get("frozen")))
