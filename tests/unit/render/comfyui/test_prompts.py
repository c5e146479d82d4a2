from __future__ import annotations

import asyncio

import pytest

from moyin.domain.renderer import (
    ExecutionFinished,
    ExecutionStarted,
    RenderEvent,
    RenderProgress,
    RenderRequest,
    RenderSucceeded,
)
from moyin.errors import WorkerLost
from moyin.render.comfyui import prompts as module
from moyin.render.comfyui.prompts import RunningPrompt
from moyin.render.protocol.wire import EventMessage

RESULT = RenderSucceeded(files=())


def make_prompt() -> RunningPrompt:
    return RunningPrompt(RenderRequest(prompt_id="p", graph={"1": {}, "2": {}}))


def make_progress_event(progress: float) -> EventMessage:
    nodes = {"1": {"state": "running", "value": progress, "max": 1}}
    return EventMessage(type="progress_state", data={"prompt_id": "p", "nodes": nodes})


async def collect_events(prompt: RunningPrompt) -> list[RenderEvent]:
    return [event async for event in prompt.follow()]


async def test_follower_gets_progress_executed_and_the_result() -> None:
    followed_prompt = make_prompt()
    task = asyncio.create_task(collect_events(followed_prompt))
    await asyncio.sleep(0.5)
    followed_prompt.process_event(make_progress_event(0.5))
    await asyncio.sleep(0.5)
    followed_prompt.mark_executed()
    await asyncio.sleep(0)
    followed_prompt.succeed(RESULT)
    assert await task == [
        RenderProgress(value=0, max=2),
        RenderProgress(value=0.5, max=2, node="1"),
        ExecutionFinished(),
        RESULT,
    ]


async def test_frequent_progress_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVENT_SECONDS", 0.1)
    followed_prompt = make_prompt()
    task = asyncio.create_task(collect_events(followed_prompt))
    for number in range(200):
        followed_prompt.process_event(make_progress_event(number / 200))
        await asyncio.sleep(0.001)
    followed_prompt.mark_executed()
    followed_prompt.succeed(RESULT)
    events = await task
    assert events[-2:] == [ExecutionFinished(), RESULT]
    assert 1 <= len(events) - 2 < 100


async def test_end_does_not_wait_for_the_next_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_EVENT_SECONDS", 60.0)
    followed_prompt = make_prompt()
    task = asyncio.create_task(collect_events(followed_prompt))
    followed_prompt.process_event(make_progress_event(0.5))
    await asyncio.sleep(0.01)
    followed_prompt.mark_executed()
    followed_prompt.succeed(RESULT)
    async with asyncio.timeout(10):
        assert await task == [ExecutionFinished(), RESULT]


async def test_short_render_sends_only_its_end() -> None:
    followed_prompt = make_prompt()
    task = asyncio.create_task(collect_events(followed_prompt))
    followed_prompt.process_event(make_progress_event(0.5))
    await asyncio.sleep(0)
    followed_prompt.mark_executed()
    followed_prompt.succeed(RESULT)
    assert await task == [ExecutionFinished(), RESULT]


async def test_start_is_sent_once_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVENT_SECONDS", 60.0)
    followed_prompt = make_prompt()
    tasks = [asyncio.create_task(collect_events(followed_prompt)) for _ in range(2)]
    await asyncio.sleep(0.01)
    followed_prompt.mark_started()
    followed_prompt.mark_started()
    await asyncio.sleep(0.01)
    followed_prompt.process_event(make_progress_event(0.5))
    await asyncio.sleep(0.01)
    followed_prompt.mark_executed()
    followed_prompt.succeed(RESULT)
    async with asyncio.timeout(10):
        for events in await asyncio.gather(*tasks):
            assert events == [ExecutionStarted(), ExecutionFinished(), RESULT]


async def test_late_follower_gets_the_end() -> None:
    followed_prompt = make_prompt()
    followed_prompt.mark_executed()
    followed_prompt.succeed(RESULT)
    assert await collect_events(followed_prompt) == [ExecutionFinished(), RESULT]


async def test_every_follower_gets_its_own_error() -> None:
    followed_prompt = make_prompt()
    tasks = [asyncio.create_task(collect_events(followed_prompt)) for _ in range(2)]
    await asyncio.sleep(0)
    followed_prompt.fail(WorkerLost("gone", details={"a": 1}))
    followed_prompt.fail(WorkerLost("a later error"))
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(error) for error in errors] == ["gone", "gone"]
    assert errors[0] is not errors[1]
    assert all(isinstance(e, WorkerLost) and e.details == {"a": 1} for e in errors)


async def test_last_event_requests_a_poll() -> None:
    followed_prompt = make_prompt()
    followed_prompt.process_event(
        EventMessage(type="executing", data={"prompt_id": "p", "node": "1"})
    )
    assert not followed_prompt.should_poll.is_set()
    followed_prompt.process_event(
        EventMessage(type="executing", data={"prompt_id": "p", "node": None})
    )
    assert followed_prompt.should_poll.is_set()


def test_prompt_is_running_after_its_start_event() -> None:
    followed_prompt = make_prompt()
    followed_prompt.process_event(make_progress_event(0.5))
    assert not followed_prompt.has_begun
    followed_prompt.process_event(EventMessage(type="execution_start", data={"prompt_id": "p"}))
    assert followed_prompt.has_begun
