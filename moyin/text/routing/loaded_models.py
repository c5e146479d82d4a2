"""Tracks which models a server has in memory, and how long it takes to load another one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import Any

from moyin.errors import MoyinError
from moyin.text.routing.averages import KeyedAverages


class ModelState(StrEnum):
    """State of a model in a server's memory.

    It is ``unknown`` while the server's list of resident models is not available.
    """

    RESIDENT = "resident"
    LOADING = "loading"
    ABSENT = "absent"
    UNKNOWN = "unknown"


@dataclass(eq=False)
class LoadedModels:
    """Tracker of the models in one server's memory.

    The states follow from the server's last list of resident models and from the calls since then.

    Args:
        list_resident: requests the resident models from the server; returns the server's report
            about each, by upstream name.
        load_seconds: returns the prior estimate of the seconds to load a model.
        clock: returns monotonic seconds, such as ``time.monotonic``.
    """

    list_resident: Callable[[], Awaitable[Mapping[str, Mapping[str, Any]]]]
    _: KW_ONLY
    load_seconds: Callable[[str], float]
    clock: Callable[[], float]
    _resident: Mapping[str, Mapping[str, Any]] | None = None
    _loading: dict[str, float] = field(default_factory=dict)
    _load_times: KeyedAverages = field(default_factory=KeyedAverages)

    async def refresh(self) -> None:
        """Request the list of resident models; if that fails, all states become unknown."""
        try:
            self._resident = reports = await self.list_resident()
        except MoyinError:
            self._resident = None
        else:
            self._loading = {
                model: started_at
                for model, started_at in self._loading.items()
                if model not in reports
            }

    def get_report(self, model: str) -> Mapping[str, Any]:
        """Return the server's report about a resident model; empty if there is none."""
        return (self._resident or {}).get(model, {})

    def get_state(self, model: str) -> ModelState:
        """Return the state of a model.

        Args:
            model: the server's name of the model.
        """
        if self._resident is None:
            return ModelState.UNKNOWN
        if model in self._resident:
            return ModelState.RESIDENT
        return ModelState.LOADING if model in self._loading else ModelState.ABSENT

    def estimate_wait(self, model: str) -> float:
        """Return the expected seconds until the model is in memory; 0 if its state is unknown."""
        if self._resident is None or model in self._resident:
            return 0.0
        load_seconds = self._load_times.estimate(model, self.load_seconds(model))
        load_started_at = self._loading.get(model)
        return (
            load_seconds
            if load_started_at is None
            else max(load_started_at + load_seconds - self.clock(), 0.0)
        )

    def record_call_start(self, model: str) -> bool:
        """Record that a call is sent; return True if it makes the server load the model."""
        if self.get_state(model) is not ModelState.ABSENT:
            return False
        self._loading[model] = self.clock()
        return True

    def record_call_answer(self, model: str) -> bool:
        """Record that the model began to answer; return True if it was loaded for the call."""
        load_started_at = self._loading.pop(model, None)
        if self._resident is not None and model not in self._resident:
            self._resident = {**self._resident, model: {}}
        if load_started_at is None:
            return False
        self._load_times.add(model, self.clock() - load_started_at)
        return True

    def record_call_failure(self, model: str) -> None:
        """Record that a call failed before its answer; the model no longer counts as loading."""
        self._loading.pop(model, None)
