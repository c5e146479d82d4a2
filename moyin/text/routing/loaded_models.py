"""Tracks which models a host has in memory; others must be loaded first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum

from moyin.errors import MoyinError
from moyin.text.routing.averages import Averages

__all__ = ["LoadedModels", "ModelState"]


class ModelState(StrEnum):
    """State of a model in a host's memory; ``unknown``: the host has not reported it yet.

    Whether a resident model is busy is known from the runtime's slots.
    """

    RESIDENT = "resident"
    LOADING = "loading"
    ABSENT = "absent"
    UNKNOWN = "unknown"


class LoadedModels:
    """Combines the host's last report with what calls have shown since.

    Args:
        list_resident: asks the host for the upstream names of its resident models; costs no token.
        load_seconds: time to load a model, until it was measured.
        clock: monotonic seconds, such as ``time.monotonic``.
    """

    def __init__(
        self,
        list_resident: Callable[[], Awaitable[frozenset[str]]],
        *,
        load_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._list_resident = list_resident
        self._prior = load_seconds
        self._clock = clock
        self._resident: frozenset[str] | None = None
        self._loading: dict[str, float] = {}
        self._load_times = Averages()

    async def refresh(self) -> None:
        """Ask the host. All states are unknown if it does not answer."""
        try:
            self._resident = resident = await self._list_resident()
        except MoyinError:
            self._resident = None
        else:
            self._loading = {m: at for m, at in self._loading.items() if m not in resident}

    def get_state(self, model: str) -> ModelState:
        """Return the state of a model, by upstream name."""
        if self._resident is None:
            return ModelState.UNKNOWN
        if model in self._resident:
            return ModelState.RESIDENT
        return ModelState.LOADING if model in self._loading else ModelState.ABSENT

    def estimate_wait(self, model: str) -> float:
        """Return the seconds until the model is in memory; 0 if it is, or is unknown."""
        if self._resident is None or model in self._resident:
            return 0.0
        load_seconds = self._load_times.estimate(model, self._prior)
        began = self._loading.get(model)
        return load_seconds if began is None else max(began + load_seconds - self._clock(), 0.0)

    def record_call_start(self, model: str) -> bool:
        """Note that a call was sent; return whether the host loads the model for it."""
        if self.get_state(model) is not ModelState.ABSENT:
            return False
        self._loading[model] = self._clock()
        return True

    def record_call_answer(self, model: str) -> bool:
        """Note that the model began to answer; return whether it had to be loaded."""
        began = self._loading.pop(model, None)
        if self._resident is not None and model not in self._resident:
            self._resident |= {model}
        if began is None:
            return False
        self._load_times.add(model, self._clock() - began)
        return True

    def record_call_failure(self, model: str) -> None:
        """Note that a call got no answer, so the model is no longer being loaded for it."""
        self._loading.pop(model, None)
