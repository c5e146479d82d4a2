"""Loads the profile and runs a command's coroutine with a client of the gateway."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import typer

from moyin.client.gateway import GatewayClient
from moyin.settings import Settings
from moyin.stack.layout import Layout
from moyin.stack.profile import Profile, read_profile

__all__ = [
    "JOB_DID_NOT_SUCCEED",
    "exit_unless_succeeded",
    "load_profile",
    "open_gateway",
    "with_gateway",
]

T = TypeVar("T")
# The other exit statuses are 0 done, 1 an error (also if the stack is down) and 2 wrong usage.
JOB_DID_NOT_SUCCEED = 3


def load_profile() -> Profile:
    """Load the profile.

    Raises:
        StackError: no profile and no MOYIN_URL names the gateway.
    """
    return read_profile(Layout(Settings().data).profile, os.environ)


def open_gateway(profile: Profile) -> GatewayClient:
    """Return a client of the gateway that the profile names; use it in ``async with``."""
    return GatewayClient(
        profile.url, api_key=profile.api_key, reconnect_seconds=1.0, follow_redirects=True
    )


def with_gateway(work: Callable[[GatewayClient], Awaitable[T]]) -> T:
    """Run ``work`` with a client of the profile's gateway."""

    async def session() -> T:
        async with open_gateway(load_profile()) as gateway:
            return await work(gateway)

    return asyncio.run(session())


def exit_unless_succeeded(job: dict[str, Any]) -> None:
    """Exit with status 3 unless the job succeeded."""
    if job["status"] != "succeeded":
        raise typer.Exit(JOB_DID_NOT_SUCCEED)
