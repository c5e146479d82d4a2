"""Collects the events of a running prompt for the callers that follow it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from moyin.domain.prompt import PromptRecord
from moyin.domain.render_run import RenderRun
from moyin.domain.renderer import (
    ExecutionFinished,
    ExecutionStarted,
    RenderEvent,
    RenderProgress,
    RenderRequest,
    RenderSucceeded,
)
from moyin.errors import MoyinError
from moyin.render.comfyui.preview_publisher import PreviewPublisher
from moyin.render.comfyui.relay import Relay
from moyin.render.protocol.graph import find_model_files
from moyin.render.protocol.response import ProgressMeter, is_last_event
from moyin.render.protocol.wire import EventMessage

# The interval of progress events. Each event is a message through Ray, which costs milliseconds.
_EVENT_SECONDS = 0.25


class RunningPrompt:
    """A running prompt; any number of callers can `follow` its events.

    Args:
        relay: publishes the events to the client that submitted the prompt, or None.
        previews: publishes previews to clients that follow the job, or None.

    Attributes:
        record: ComfyUI's history entry, or None until the prompt has been executed.
        runs: the measured runs of the prompt; empty until the prompt has ended.
        is_submitted: whether the prompt has been submitted to ComfyUI.
        is_cancelled: whether a caller has cancelled the prompt.
        has_begun: whether ComfyUI has sent the event that the execution has begun.
        loader_nodes: ids of the graph's nodes that load model files.
        should_poll: set when the renderer should request the prompt's state from ComfyUI.
    """

    def __init__(
        self,
        request: RenderRequest,
        relay: Relay | None = None,
        previews: PreviewPublisher | None = None,
    ) -> None:
        self.request = request
        self.relay = relay
        self.previews = previews
        self.record: PromptRecord | None = None
        self.runs: tuple[RenderRun, ...] = ()
        self.is_submitted = False
        self.is_cancelled = False
        self.has_begun = False
        self.loader_nodes = frozenset(
            node_id for node_id, node in request.graph.items() if find_model_files({node_id: node})
        )
        self.should_poll = asyncio.Event()
        self._meter = ProgressMeter(request.graph)
        self._is_started = False
        self._is_executed = False
        self._result: RenderSucceeded | None = None
        self._error: MoyinError | None = None
        # The event is set at each change, and then replaced by a new one.
        self._changed = asyncio.Event()
        # Set when a follower must send an event without the delay of progress events.
        self._urgent = asyncio.Event()

    def process_event(self, message: EventMessage) -> None:
        if self._meter.update(message):
            self._notify()
        self.has_begun = self.has_begun or message.type == "execution_start"
        if is_last_event(message):
            self.should_poll.set()

    def mark_started(self) -> None:
        """Send `ExecutionStarted` to the followers; a second call has no effect."""
        if not self._is_started:
            self._is_started = True
            self._notify_urgently()

    def mark_executed(self) -> None:
        """Send `ExecutionFinished` to the followers."""
        self._is_executed = True
        self._notify_urgently()

    def succeed(self, result: RenderSucceeded) -> None:
        self._result = result
        self._notify_urgently()

    def fail(self, error: MoyinError) -> None:
        """End the prompt with an error, unless the prompt has already ended."""
        if not self._is_over:
            self._error = error
            self._notify_urgently()

    async def follow(self) -> AsyncGenerator[RenderEvent, None]:
        """Yield the present progress, then all later events of the prompt until it has ended."""
        sent_progress: RenderProgress | None = None
        has_sent_started = has_sent_executed = has_sent_record = has_sent_runs = False
        while True:
            change_event = self._changed
            if self._is_started and not has_sent_started:
                has_sent_started = True
                self._urgent.clear()
                yield ExecutionStarted()
                continue
            if self._is_executed and not has_sent_executed:
                has_sent_executed = True
                yield ExecutionFinished()
            if self._is_over and not has_sent_runs:
                has_sent_runs = True
                for run in self.runs:
                    yield run
            if self.record is not None and not has_sent_record and self._is_over:
                has_sent_record = True
                yield self.record
            if self._error is not None:
                # A copy, because each follower that raises the error adds its own traceback.
                raise type(self._error)(self._error.message, details=self._error.details)
            if self._result is not None:
                yield self._result
                return
            if not has_sent_executed and self._read_progress() != sent_progress:
                # Delayed before the event, because a small picture finishes within the delay.
                if await self._wait_for_urgent(_EVENT_SECONDS):
                    continue
                sent_progress = self._read_progress()
                yield sent_progress
            elif not self._is_over:
                await change_event.wait()

    @property
    def _is_over(self) -> bool:
        return self._result is not None or self._error is not None

    async def _wait_for_urgent(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for an event that must not be delayed; return True if it came."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._urgent.wait()
        return False

    def _read_progress(self) -> RenderProgress:
        meter = self._meter
        return RenderProgress(value=round(meter.value, 3), max=meter.max, node=meter.node)

    def _notify_urgently(self) -> None:
        self._urgent.set()
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
