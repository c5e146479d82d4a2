"""Provides a fake renderer for tests of code that uses a renderer."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence

from moyin.domain.prompt import PromptRecord
from moyin.domain.render_run import RenderRun
from moyin.domain.renderer import (
    ExecutionFinished,
    ExecutionStarted,
    RenderedFile,
    RendererStatus,
    RenderEvent,
    RenderRequest,
    RenderResult,
    RenderSucceeded,
)
from moyin.errors import MoyinError, RenderFailed


class FakeRenderer:
    """An implementation of `moyin.domain.renderer.Renderer` in memory.

    Each render returns ``file`` and ``repeatable``. The method `status` returns ``models``,
    ``memory``, ``ready`` and ``error``.

    Attributes:
        busy: set when a prompt has been submitted.
        held: event that all prompts wait for. It is set at first; a test clears it to hold prompts
            back.
        failure: error that unfinished prompts raise, or None.
        started: ids of submitted prompts, in order.
        interrupted: ComfyUI history entry that `cancel` returns.
        cancelled: ids of cancelled prompts.
        prepared: ids of prepared prompts.
        bodies: response bodies of `get`, by path.
        seconds: the duration of every run in seconds.
        runs: the runs that have not been settled, in order; tests may add runs that have not ended.
    """

    def __init__(self, *, file: RenderedFile | None = None) -> None:
        self.busy = asyncio.Event()
        self.held = asyncio.Event()
        self.held.set()
        self.failure: MoyinError | None = None
        self.interrupted: PromptRecord | None = None
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.prepared: list[str] = []
        self.repeatable = True
        self.models: tuple[str, ...] = ()
        self.memory: int | None = None
        self.seconds = 0.0
        self.runs: list[RenderRun] = []
        self.ready = True
        self.error: str | None = None
        self.bodies: dict[str, bytes] = {}
        self.requests: dict[str, RenderRequest] = {}
        self.file = file or RenderedFile(
            name="p_00001_.png",
            media_type="image/png",
            size=3,
            sha256="0" * 64,
            node="2",
            slot="images",
        )
        self._running: set[str] = set()
        self._finished: set[str] = set()
        self._ended_runs: dict[str, RenderRun] = {}

    async def render(self, request: RenderRequest) -> AsyncGenerator[RenderEvent, None]:
        prompt_id = request.prompt_id
        if prompt_id not in self._running | self._finished:
            self.started.append(prompt_id)
            self.requests[prompt_id] = request
        self._running.add(prompt_id)
        self.busy.set()
        yield ExecutionStarted()
        await self.held.wait()
        self._running.discard(prompt_id)
        error = self.failure
        if prompt_id in self.cancelled:
            error = RenderFailed("the render was cancelled")
        is_known = prompt_id in self._finished
        run = self._ended_runs.get(prompt_id) if is_known else None
        run = run or self._end_run(request, error)
        if error is not None:
            yield run
            raise error
        self._finished.add(prompt_id)
        yield ExecutionFinished()
        yield run
        yield RenderSucceeded(files=(self.file,), repeatable=self.repeatable)

    def _end_run(self, request: RenderRequest, error: Exception | None) -> RenderRun:
        run = RenderRun(
            id=uuid.uuid4().hex,
            prompt_id=request.prompt_id,
            account=request.account,
            seconds=self.seconds,
            pictures=0 if error else 1,
            error=getattr(error, "code", None),
        )
        self._ended_runs[request.prompt_id] = run
        if run.account is not None:
            self.runs.append(run)
        return run

    async def prepare(self, request: RenderRequest) -> None:
        self.prepared.append(request.prompt_id)

    async def cancel(self, prompt_id: str) -> PromptRecord | None:
        self.cancelled.append(prompt_id)
        return self.interrupted

    async def settle(self, run_ids: Sequence[str]) -> None:
        self.runs = [run for run in self.runs if run.id not in run_ids]

    async def get(self, path: str) -> bytes | None:
        return self.bodies.get(path)

    async def results(self) -> dict[str, RenderResult]:
        done = RenderSucceeded(files=(self.file,), repeatable=self.repeatable)
        runs = {prompt_id: (run,) for prompt_id, run in self._ended_runs.items()}
        return {
            prompt_id: RenderResult(done=done, runs=runs.get(prompt_id, ()))
            for prompt_id in self._finished
        }

    async def status(self) -> RendererStatus:
        return RendererStatus(
            ready=self.ready,
            error=self.error,
            running=tuple(self._running),
            known=(*self._running.difference(self.cancelled), *self._finished),
            models=self.models,
            memory=self.memory,
            runs=tuple(self.runs),
        )
