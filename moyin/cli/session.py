"""What the commands share: the profile, and running a coroutine with a door."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import typer

from moyin.cli.gateway_client import Door
from moyin.settings import Settings
from moyin.stack.layout import Layout
from moyin.stack.profile import Profile, load

__all__ = ["JOB_DID_NOT_SUCCEED", "end_with", "profile", "with_door"]

T = TypeVar("T")
# Exit statuses: 0 done, 1 an error (also when the stack is down), 2 wrong usage, and this one.
JOB_DID_NOT_SUCCEED = 3


def profile() -> Profile:
    """
    Raises:
        StackError: nothing says where the door is.
    """
    return load(Layout(Settings().data).profile, os.environ)


def with_door(work: Callable[[Door], Awaitable[T]]) -> T:
    """Run ``work`` with an open door."""

    async def session() -> T:
        async with Door(profile()) as door:
            return await work(door)

    return asyncio.run(session())


def end_with(job: dict[str, Any]) -> None:
    """Exit with a status of its own unless the job succeeded."""
    if job["status"] != "succeeded":
        raise typer.Exit(JOB_DID_NOT_SUCCEED)
