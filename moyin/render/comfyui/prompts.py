"""Prompts that a renderer works on or remembers."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

from moyin.domain.prompt import PromptRecord
from moyin.domain.renderer import (
    ExecutionFinished,
    RenderEvent,
    RenderProgress,
    RenderRequest,
    RenderSucceeded,
)
from moyin.errors import MoyinError
from moyin.render.comfyui.relay import Relay
from moyin.render.protocol.response import Meter, ended
from moyin.render.protocol.wire import Message

__all__ = ["BoundedDict", "Prompt"]

# Each is a message through Ray, which costs both sides a millisecond or two.
_EVENT_SECONDS = 0.25
K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V], Generic[K, V]):
    """A mapping that forgets what was put in longest ago."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self._limit:
            self.popitem(last=False)


class Prompt:
    """One prompt on its way: fed with events, followed by any number of watchers.

    Args:
        relay: to the client that wants to hear all of it.

    Attributes:
        record: what ComfyUI's history said of it.
    """

    def __init__(self, request: RenderRequest, relay: Relay | None = None) -> None:
        self.request = request
        self.relay = relay
        self.record: PromptRecord | None = None
        self.submitted = False
        self.cancelled = False
        # An event said that ComfyUI has come to it.
        self.begun = False
        # Wakes whoever works on it, to see what ComfyUI says of it.
        self.look = asyncio.Event()
        self._meter = Meter(request.graph)
        self._executed = False
        self._result: RenderSucceeded | None = None
        self._error: MoyinError | None = None
        self._news = asyncio.Event()
        self._urgent = asyncio.Event()

    def feed(self, message: Message) -> None:
        """Take an event about this prompt."""
        if self._meter.feed(message):
            self._tell()
        self.begun = self.begun or message.type == "execution_start"
        if ended(message):
            self.look.set()

    def executed(self) -> None:
        """ComfyUI is through with it."""
        self._executed = True
        self._hurry()

    def succeed(self, result: RenderSucceeded) -> None:
        self._result = result
        self._hurry()

    def fail(self, error: MoyinError) -> None:
        if not self._over:
            self._error = error
            self._hurry()

    async def follow(self) -> AsyncGenerator[RenderEvent, None]:
        """What `Renderer.render` gives, from now on."""
        told_progress: RenderProgress | None = None
        told_executed = told_record = False
        while True:
            news = self._news
            if self._executed and not told_executed:
                told_executed = True
                yield ExecutionFinished()
            if self.record is not None and not told_record and self._over:
                told_record = True
                yield self.record
            if self._error is not None:
                # A copy: several watchers may raise it, each with a traceback of its own.
                raise type(self._error)(self._error.message, details=self._error.details)
            if self._result is not None:
                yield self._result
                return
            if not told_executed and self._progress() != told_progress:
                # Before it is told, not after: a small picture is done by then.
                if await self._hurries(_EVENT_SECONDS):
                    continue
                told_progress = self._progress()
                yield told_progress
            elif not self._over:
                await news.wait()

    @property
    def _over(self) -> bool:
        return self._result is not None or self._error is not None

    async def _hurries(self, seconds: float) -> bool:
        """Whether there is something more urgent than progress, within so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._urgent.wait()
        return False

    def _progress(self) -> RenderProgress:
        meter = self._meter
        return RenderProgress(value=round(meter.value, 3), max=meter.max, node=meter.node)

    def _hurry(self) -> None:
        self._urgent.set()
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
