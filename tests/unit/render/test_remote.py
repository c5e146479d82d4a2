"""A renderer behind Ray, without Ray: only what it makes of streams that go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from actors.comfyui import ActorStatus, ComfySpec
from deployments.render import remote as module
from deployments.render.remote import RayRenderer
from moyin.comfyui.port import Executed, RenderDone, RendererStatus, RenderEvent, RenderRequest
from moyin.errors import WorkerLost

REQUEST = RenderRequest(prompt_id="p", graph={}, files={}, models={})
DONE = RenderDone(files=(), values={})


class Handle:
    """An actor whose first stream brings what ``first`` holds, and then nothing more.

    Attributes:
        asked: how often it was asked to render.
        running, known: prompts, as the actor tells them.
    """

    def __init__(self, *first: RenderEvent) -> None:
        self.first = first
        self.asked = 0
        self.running: tuple[str, ...] = ()
        self.known: tuple[str, ...] = ()
        self.render = self
        self.status = _Method(self._status)

    def options(self, **_: Any) -> Handle:
        return self

    def remote(self, _: RenderRequest) -> AsyncIterator[Any]:
        self.asked += 1
        return self._lost() if self.asked == 1 else self._kept()

    async def _lost(self) -> AsyncIterator[Any]:
        for event in self.first:
            yield _ready((event,))
        await asyncio.Event().wait()

    async def _kept(self) -> AsyncIterator[Any]:
        yield _ready((Executed(),))
        yield _ready((DONE,))

    async def _status(self) -> ActorStatus:
        renderer = RendererStatus(
            ready=True, pid=1, running=self.running, known=self.known, error=None
        )
        return ActorStatus(
            renderer=renderer, spec=ComfySpec(gpus=0.5), node_id="n", devices=None, started=0
        )


class _Method:
    def __init__(self, call: Any) -> None:
        self.remote = call


async def _ready(value: Any) -> Any:
    return value


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SILENCE_SECONDS", 0.02)
    monkeypatch.setattr(module, "_ASK_SECONDS", 0.05)


async def rendered(handle: Handle) -> list[RenderEvent]:
    async with asyncio.timeout(10):
        return [event async for event in RayRenderer(handle).render(REQUEST)]


async def test_an_end_that_got_lost_is_asked_for_again() -> None:
    handle = Handle(Executed())
    handle.known = ("p",)
    assert await rendered(handle) == [Executed(), Executed(), DONE]
    assert handle.asked == 2


async def test_who_renders_in_silence_is_waited_for() -> None:
    handle = Handle()
    handle.running = handle.known = ("p",)
    waiting = asyncio.create_task(rendered(handle))
    await asyncio.sleep(0.2)
    assert (handle.asked, waiting.done()) == (1, False)
    handle.running = ()
    assert await waiting == [Executed(), DONE]


async def test_a_prompt_that_nobody_knows_any_more_is_lost() -> None:
    with pytest.raises(WorkerLost):
        await rendered(Handle())


async def test_a_reader_that_is_cancelled_leaves_nothing_behind() -> None:
    handle = Handle()
    handle.running = handle.known = ("p",)
    waiting = asyncio.create_task(rendered(handle))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0.05)
    assert asyncio.all_tasks() == {asyncio.current_task()}
