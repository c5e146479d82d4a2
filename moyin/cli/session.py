"""Loads the profile (gateway URL and key), and runs commands with a client of that gateway."""

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

T = TypeVar("T")
# The other exit statuses are 0 (success), 1 (an error) and 2 (wrong usage).
JOB_DID_NOT_SUCCEED = 3


def load_profile() -> Profile:
    """Load the gateway's URL and key from the environment or the profile's file."""
    return read_profile(Layout(Settings().data).profile, os.environ)


def open_gateway(profile: Profile) -> GatewayClient:
    """Return a client of the profile's gateway, to be used in ``async with``."""
    return GatewayClient(
        profile.url, api_key=profile.api_key, reconnect_seconds=1.0, follow_redirects=True
    )


def with_gateway(work: Callable[[GatewayClient], Awaitable[T]]) -> T:
    """Run a coroutine with a client of the profile's gateway, and return its result."""

    async def session() -> T:
        async with open_gateway(load_profile()) as gateway:
            return await work(gateway)

    return asyncio.run(session())


def exit_unless_succeeded(job: dict[str, Any]) -> None:
    if job["status"] != "succeeded":
        raise typer.Exit(JOB_DID_NOT_SUCCEED)
