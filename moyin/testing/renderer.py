"""Provides a fake renderer for tests of code that uses a renderer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from moyin.domain.prompt import PromptRecord
from moyin.domain.renderer import (
    ExecutionFinished,
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

    The attributes ``file``, ``repeatable``, ``models``, ``memory``, ``ready`` and ``error`` are the
    results of its methods.

    Attributes:
        busy: set when a prompt has been submitted.
        held: event for which all prompts wait; it is set at first.
        failure: error that unfinished prompts raise, or None.
        started: ids of submitted prompts, in order.
        interrupted: history record that `cancel` returns.
        cancelled: ids of cancelled prompts.
        prepared: ids of prepared prompts.
        bodies: response bodies of `get`, by path.
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

    async def render(self, request: RenderRequest) -> AsyncGenerator[RenderEvent, None]:
        prompt_id = request.prompt_id
        if prompt_id not in self._running | self._finished:
            self.started.append(prompt_id)
            self.requests[prompt_id] = request
        self._running.add(prompt_id)
        self.busy.set()
        await self.held.wait()
        self._running.discard(prompt_id)
        if prompt_id in self.cancelled:
            raise RenderFailed("the render was cancelled")
        if self.failure is not None:
            raise self.failure
        self._finished.add(prompt_id)
        yield ExecutionFinished()
        yield RenderSucceeded(files=(self.file,), repeatable=self.repeatable)

    async def prepare(self, request: RenderRequest) -> None:
        self.prepared.append(request.prompt_id)

    async def cancel(self, prompt_id: str) -> PromptRecord | None:
        self.cancelled.append(prompt_id)
        return self.interrupted

    async def get(self, path: str) -> bytes | None:
        return self.bodies.get(path)

    async def results(self) -> dict[str, RenderResult]:
        done = RenderSucceeded(files=(self.file,), repeatable=self.repeatable)
        return {prompt_id: RenderResult(done=done) for prompt_id in self._finished}

    async def status(self) -> RendererStatus:
        return RendererStatus(
            ready=self.ready,
            error=self.error,
            running=tuple(self._running),
            known=(*self._running, *self._finished),
            models=self.models,
            memory=self.memory,
        )
