"""Tests which files a process can access when prompts are cancelled at any moment."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest

from moyin.errors import WorkerLost
from moyin.render.comfyui.prompt_lock import PromptLock


class FakeFiles:
    """Records the placed files and the finished prompts; blocks the thread of two prompts.

    The prompt ``slow`` blocks at its start, and ``lingering`` at its end.
    """

    def __init__(self) -> None:
        self.placed_names: list[str] = []
        self.finished: list[str] = []
        self.is_blocked, self.may_proceed = threading.Event(), threading.Event()

    def begin_prompt(self, prompt_id: str, tenant: str) -> None:
        if prompt_id == "slow":
            self.is_blocked.set()
            assert self.may_proceed.wait(10)

    def place_files(self, names: Collection[str]) -> None:
        self.placed_names = list(names)

    def remove_placed_files(self) -> None:
        self.placed_names = []

    def finish_prompt(self, prompt_id: str) -> None:
        self.finished.append(prompt_id)
        if prompt_id == "lingering":
            self.is_blocked.set()
            assert self.may_proceed.wait(10)


def new_lock(files: FakeFiles) -> tuple[PromptLock, Any]:
    session = SimpleNamespace(written_files=files, finish_prompt=files.finish_prompt)
    supervisor: Any = SimpleNamespace(session=session, replace_session=lambda *_: None)
    inputs: Any = files
    return PromptLock(supervisor, inputs), session


@pytest.mark.parametrize("prompt_id", ["slow", "lingering"])
async def test_files_of_a_cancelled_prompt_are_not_moved_during_the_next(
    prompt_id: str,
) -> None:
    files = FakeFiles()
    lock, session = new_lock(files)

    async def execute_prompt(name: str) -> list[str]:
        async with lock.hold_for(session, name, "ada", [name]) as is_present:
            assert is_present
            return files.placed_names

    cancelled_prompt = asyncio.create_task(execute_prompt(prompt_id))
    assert await asyncio.to_thread(files.is_blocked.wait, 10)
    next_prompt = asyncio.create_task(execute_prompt("next"))
    for _ in range(3):
        # A caller may cancel more than once.
        cancelled_prompt.cancel()
        await asyncio.sleep(0.01)
    assert not cancelled_prompt.done()
    assert not next_prompt.done()
    files.may_proceed.set()
    with pytest.raises(asyncio.CancelledError):
        await cancelled_prompt
    assert await next_prompt == ["next"]
    assert files.finished == [prompt_id, "next"]
    assert files.placed_names == []


@pytest.mark.parametrize("is_cancelled", [False, True])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (WorkerLost("a process remains"), "a process remains"),
        # Without the path, because clients get the reason.
        (OSError(5, "I/O", "/srv/moyin"), "the files of a prompt can't be removed"),
        (ValueError(), "the files of a prompt can't be removed"),
    ],
)
async def test_comfyui_is_replaced_if_a_prompt_cannot_be_cleaned_up(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str, is_cancelled: bool
) -> None:
    files = FakeFiles()
    lock, session = new_lock(files)
    replaced_sessions: list[tuple[Any, str]] = []
    monkeypatch.setattr(
        lock._supervisor, "replace_session", lambda *arguments: replaced_sessions.append(arguments)
    )

    def fail(prompt_id: str) -> None:
        files.finish_prompt("lingering")
        raise error

    session.finish_prompt = fail

    async def execute_prompt() -> None:
        async with lock.hold_for(session, "prompt", "ada", []):
            pass

    prompt = asyncio.create_task(execute_prompt())
    assert await asyncio.to_thread(files.is_blocked.wait, 10)
    if is_cancelled:
        prompt.cancel()
        await asyncio.sleep(0.01)
    assert replaced_sessions == []
    files.may_proceed.set()
    with pytest.raises(asyncio.CancelledError if is_cancelled else type(error)):
        await prompt
    assert replaced_sessions == [(session, reason)]
