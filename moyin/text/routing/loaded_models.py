"""Which models a host has in memory. A model that is not there must be loaded first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum

from moyin.errors import MoyinError
from moyin.text.routing.averages import Averages

__all__ = ["LoadedModels", "ModelState"]


class ModelState(StrEnum):
    """``unknown``: the host has not told yet. Whether a resident model is busy is another matter:
    the lane's slots know it."""

    RESIDENT = "resident"
    LOADING = "loading"
    ABSENT = "absent"
    UNKNOWN = "unknown"


class LoadedModels:
    """What the host said last, and what calls have shown since.

    Args:
        list_resident: asks the host for the upstream names of its resident models; costs no token.
        load_seconds: what loading a model takes, until it was measured.
        clock: seconds that never go back, such as ``time.monotonic``.
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
        """Ask the host. When it does not say, nothing is known."""
        try:
            self._resident = resident = await self._list_resident()
        except MoyinError:
            self._resident = None
        else:
            self._loading = {m: at for m, at in self._loading.items() if m not in resident}

    def state(self, model: str) -> ModelState:
        if self._resident is None:
            return ModelState.UNKNOWN
        if model in self._resident:
            return ModelState.RESIDENT
        return ModelState.LOADING if model in self._loading else ModelState.ABSENT

    def expected_wait(self, model: str) -> float:
        """Seconds until the model is in memory; 0 when it is, or when nobody knows."""
        if self._resident is None or model in self._resident:
            return 0.0
        load_seconds = self._load_times.estimate(model, self._prior)
        began = self._loading.get(model)
        return load_seconds if began is None else max(began + load_seconds - self._clock(), 0.0)

    def call_started(self, model: str) -> bool:
        """A call goes to the host, which loads the model for it where it must. Returns whether it
        is this call that makes it do so."""
        if self.state(model) is not ModelState.ABSENT:
            return False
        self._loading[model] = self._clock()
        return True

    def call_answered(self, model: str) -> bool:
        """The model has begun to answer, so it is resident. Returns whether it had to be loaded."""
        began = self._loading.pop(model, None)
        if self._resident is not None and model not in self._resident:
            self._resident |= {model}
        if began is None:
            return False
        self._load_times.add(model, self._clock() - began)
        return True

    def call_failed(self, model: str) -> None:
        """A call got no answer: if it was loading the model, nobody does so now."""
        self._loading.pop(model, None)
