"""Measures how long prompts occupy ComfyUI, and keeps the runs until their cost is recorded."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from moyin.domain.render_run import RenderAccount, RenderRun
from moyin.domain.renderer import RenderRequest
from moyin.errors import StepFailed
from moyin.system.bounded import BoundedDict

# Pools settle ended runs every second, so this limit is only reached while no pool exists.
_MAX_UNSETTLED = 4096
_MAX_PROMPTS = 256


@dataclass(slots=True)
class _Measurement:
    id: str
    account: RenderAccount | None
    begun_at: float
    ended_at: float | None = None
    # When the present node began to load model files, and how long earlier nodes loaded them.
    loading_since: float | None = None
    loaded_seconds: float = 0


class RunJournal:
    """Records the runs of one renderer's prompts.

    A run stays open until its prompt has ended, because only then its result or error is known. Its
    measured time ends when ComfyUI has executed the prompt: storing the files, which comes after
    that, does not occupy the GPU.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[str, list[_Measurement]] = {}
        self._ended: BoundedDict[str, tuple[RenderRun, ...]] = BoundedDict(_MAX_PROMPTS)
        self._unsettled: BoundedDict[str, RenderRun] = BoundedDict(_MAX_UNSETTLED)

    @contextmanager
    def measure(self, request: RenderRequest) -> Iterator[None]:
        """Measure how long the block runs, and record that time as a run of the prompt."""
        run = _Measurement(secrets.token_hex(16), request.account, self._clock())
        self._open.setdefault(request.prompt_id, []).append(run)
        try:
            yield
        finally:
            # `end_prompt` may have ended the run meanwhile, for example because the process was
            # lost.
            self._end_measurement(run)

    def record_node(self, prompt_id: str, *, loads_models: bool) -> None:
        """Record that ComfyUI begins the prompt's next node, or has executed the last one.

        Args:
            loads_models: True if the node that begins loads model files; False for any other node,
                and after the last node.
        """
        for run in self._open.get(prompt_id, ())[-1:]:
            if run.ended_at is None:
                run.loaded_seconds = self._measure_loading(run)
                run.loading_since = self._clock() if loads_models else None

    def end_prompt(
        self, prompt_id: str, *, picture_count: int = 0, error: str | None = None
    ) -> tuple[RenderRun, ...]:
        """End the open runs of a prompt and return them.

        The last run gets the prompt's ``picture_count`` and ``error``. The earlier runs failed and
        were repeated.
        """
        runs = self._open.pop(prompt_id, [])
        for run in runs:
            self._end_measurement(run)
        last_index = len(runs) - 1
        ended_runs = tuple(
            RenderRun(
                id=run.id,
                prompt_id=prompt_id,
                account=run.account,
                seconds=self._measure_seconds(run),
                load_seconds=self._measure_loading(run),
                pictures=picture_count if index == last_index else 0,
                error=error if index == last_index else StepFailed.code,
            )
            for index, run in enumerate(runs)
        )
        if ended_runs:
            self._ended[prompt_id] = ended_runs
        for ended_run in ended_runs:
            if ended_run.account is not None:
                self._unsettled[ended_run.id] = ended_run
        return ended_runs

    def list_ended(self, prompt_id: str) -> tuple[RenderRun, ...]:
        """Return the runs of a prompt that has ended recently; empty for any other prompt."""
        return self._ended.get(prompt_id, ())

    def list_unsettled(self) -> tuple[RenderRun, ...]:
        """Return all runs that cost money and whose final cost has not been recorded yet.

        These are the runs of prompts that have not ended, with their time so far, and the ended
        runs that `settle` has not dropped.
        """
        open_runs = (
            RenderRun(
                id=run.id,
                prompt_id=prompt_id,
                account=run.account,
                seconds=self._measure_seconds(run),
                load_seconds=self._measure_loading(run),
                is_ended=False,
            )
            for prompt_id, runs in self._open.items()
            for run in runs
            if run.account is not None
        )
        return (*self._unsettled.values(), *open_runs)

    def settle(self, run_ids: Iterable[str]) -> None:
        """Drop the runs with these ids, because their cost has been recorded."""
        for run_id in run_ids:
            self._unsettled.pop(run_id, None)

    def _end_measurement(self, run: _Measurement) -> None:
        if run.ended_at is None:
            run.ended_at = self._clock()

    def _measure_loading(self, run: _Measurement) -> float:
        if run.loading_since is None:
            return run.loaded_seconds
        end_time = self._clock() if run.ended_at is None else run.ended_at
        return run.loaded_seconds + end_time - run.loading_since

    def _measure_seconds(self, run: _Measurement) -> float:
        return (self._clock() if run.ended_at is None else run.ended_at) - run.begun_at
