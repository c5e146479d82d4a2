"""What is known of one tenant: a memory per model, and how much each key was listened to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from moyin.quality.memory import Memory

__all__ = ["TenantState"]

_VERSION = 1
_MOST_MODELS = 24  # those that were signalled longest ago go first
_MOST_KEYS = 512


@dataclass(slots=True)
class TenantState:
    """What one tenant's signals taught.

    Attributes:
        models: by the model's name.
        keys: by key, how much of its allowance it has used and when that was worked out.
        frozen: nothing more is learned until it is thawed.
    """

    models: dict[str, Memory] = field(default_factory=dict)
    keys: dict[str, tuple[float, float]] = field(default_factory=dict)
    frozen: bool = False

    def memory(self, model: str, now: float) -> Memory:
        """Return the memory of ``model``, made where there is none."""
        memory = self.models.pop(model, None)
        if memory is None:
            if len(self.models) >= _MOST_MODELS:
                del self.models[next(iter(self.models))]
            memory = Memory(at=now)
        self.models[model] = memory  # last: what was signalled longest ago stands first
        return memory

    def allowance(self, key: str, wanted: float, most: float, refill: float, now: float) -> float:
        """Return how much of ``wanted`` the key may still say, and count it.

        Args:
            most: that a key may say at once.
            refill: what it may say again per second.
        """
        used, at = self.keys.pop(key, (0.0, now))
        used = max(used - max(now - at, 0.0) * refill, 0.0)
        granted = min(wanted, max(most - used, 0.0))
        if len(self.keys) >= _MOST_KEYS:
            # The key that used least has least to gain from being forgotten.
            del self.keys[min(self.keys, key=lambda name: self.keys[name][0])]
        self.keys[key] = (used + granted, max(now, at))
        return granted

    def merged(self, other: TenantState, base: TenantState | None = None) -> TenantState:
        """Return what both learned together; ``base``: what both started from."""
        start = base or TenantState()
        result = TenantState(frozen=self.frozen or other.frozen)
        for model in sorted(self.models.keys() | other.models.keys()):
            mine = self.models.get(model) or Memory()
            theirs = other.models.get(model) or Memory()
            result.models[model] = mine.merged(theirs, start.models.get(model))
        while len(result.models) > _MOST_MODELS:
            del result.models[min(result.models, key=lambda name: result.models[name].at)]
        for key in sorted(self.keys.keys() | other.keys.keys()):
            # A key that spoke to both is counted where it said more.
            result.keys[key] = max(self.keys.get(key, (0.0, 0.0)), other.keys.get(key, (0.0, 0.0)))
        return result

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value of bounded size."""
        return {
            "version": _VERSION,
            "frozen": self.frozen,
            "models": {name: memory.to_json() for name, memory in self.models.items()},
            "keys": {name: list(spent) for name, spent in self.keys.items()},
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
            keys = {
                str(name): (float(used), float(at)) for name, (used, at) in value["keys"].items()
            }
            models = {
                str(name): Memory.from_json(memory) for name, memory in value["models"].items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a tenant's state: {error}") from error
        return cls(models=models, keys=keys, frozen=bool(value.get("frozen")))
