"""Whose files are in a process's reach, when prompts are cancelled at any moment."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
from moyin.render.comfyui.turns import Turns


class Files:
    """Input files in their place, and a thread that waits before it puts some there."""

    def __init__(self) -> None:
        self.placed: list[str] = []
        self.finished: list[str] = []
        self.at_work, self.go_on = threading.Event(), threading.Event()

    def begin(self, prompt_id: str) -> None:
        if prompt_id == "slow":
            self.at_work.set()
            assert self.go_on.wait(10)

    def place(self, names: Collection[str]) -> None:
        self.placed = list(names)

    def take_away(self) -> None:
        self.placed = []

    def finish(self, prompt_id: str) -> None:
        self.finished.append(prompt_id)
        if prompt_id == "lingering":
            self.at_work.set()
            assert self.go_on.wait(10)


def turns(files: Files) -> tuple[Turns, Any]:
    session = SimpleNamespace(written=files, finish=files.finish)
    keeper: Any = SimpleNamespace(session=session, give_up=lambda _: None)
    inputs: Any = files
    return Turns(keeper, inputs), session


@pytest.mark.parametrize("prompt_id", ["slow", "lingering"])
async def test_files_of_a_cancelled_prompt_are_not_moved_in_the_next_ones_turn(
    prompt_id: str,
) -> None:
    files = Files()
    made, session = turns(files)

    async def turn(name: str) -> list[str]:
        async with made.take(session, name, [name]) as ours:
            assert ours
            return files.placed

    cancelled = asyncio.create_task(turn(prompt_id))
    assert await asyncio.to_thread(files.at_work.wait, 10)
    following = asyncio.create_task(turn("next"))
    for _ in range(3):
        # Whoever is impatient may cancel again.
        cancelled.cancel()
        await asyncio.sleep(0.01)
    assert not cancelled.done()
    assert not following.done()
    files.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert await following == ["next"]
    assert files.finished == [prompt_id, "next"]
    assert files.placed == []
