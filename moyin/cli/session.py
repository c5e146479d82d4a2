"""Loads the profile (gateway URL and key), and runs commands with a client of that gateway."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar
from urllib.parse import urlencode

import typer

from moyin.client.gateway import GatewayClient
from moyin.errors import StackError
from moyin.settings import Settings
from moyin.stack.layout import Layout
from moyin.stack.named_profiles import LOCAL, find_profiles_file, read_named_profiles
from moyin.stack.profile import Profile, read_profile

T = TypeVar("T")
# The other exit statuses are 0 (success), 1 (an error) and 2 (wrong usage).
JOB_DID_NOT_SUCCEED = 3
_PROFILE = "MOYIN_PROFILE"
# The value of --profile of the running command; the callback of the command line sets it.
_selected_name: ContextVar[str | None] = ContextVar("profile", default=None)


def select_profile(name: str | None) -> None:
    """Store the value of --profile; with None, MOYIN_PROFILE or the default names the profile."""
    _selected_name.set(name)


def find_profile_name() -> str:
    """Return the name of the profile to use, from --profile, MOYIN_PROFILE or the default."""
    name = _selected_name.get() or os.environ.get(_PROFILE)
    return name or read_named_profiles(find_profiles_file(os.environ)).default


def is_remote() -> bool:
    """Return True if a named profile is selected: its gateway may be on another machine."""
    return find_profile_name() != LOCAL


def load_profile() -> Profile:
    """Load the gateway's URL and key from the environment or the selected profile.

    The variables MOYIN_URL and MOYIN_API_KEY override the profile. But the key of a named profile
    is never combined with another URL.

    Raises:
        StackError: MOYIN_URL differs from the URL of the named profile.
    """
    url, key = os.environ.get("MOYIN_URL"), os.environ.get("MOYIN_API_KEY")
    is_set_by_variables = bool(url and key) and _selected_name.get() is None
    if is_set_by_variables or (name := find_profile_name()) == LOCAL:
        return read_profile(Layout(Settings().data).profile, os.environ)
    profile = read_named_profiles(find_profiles_file(os.environ)).get(name)
    if url and url.rstrip("/") != profile.url:
        raise StackError(
            f"MOYIN_URL is not the URL of the profile {name!r}, whose key is for that URL only: "
            "unset MOYIN_URL, or set MOYIN_API_KEY too and leave out --profile"
        )
    return Profile(url=profile.url, api_key=key or profile.api_key)


def open_gateway(profile: Profile) -> GatewayClient:
    """Return a client of the profile's gateway, to be used in ``async with``."""
    return GatewayClient(
        profile.url, api_key=profile.api_key, reconnect_seconds=1.0, follow_redirects=True
    )


def run_with_gateway(work: Callable[[GatewayClient], Awaitable[T]]) -> T:
    """Run ``work`` with a client of the selected profile's gateway, and return the result."""
    return run_with_profile(load_profile(), work)


def run_with_profile(profile: Profile, work: Callable[[GatewayClient], Awaitable[T]]) -> T:
    """Run ``work`` with a client of the profile's gateway, and return the result."""

    async def run_in_session() -> T:
        async with open_gateway(profile) as gateway:
            return await work(gateway)

    return asyncio.run(run_in_session())


def build_path(path: str, parameters: Mapping[str, Any]) -> str:
    """Return ``path`` with query parameters; None is left out, and a list repeats its parameter."""
    set_parameters = {name: value for name, value in parameters.items() if value is not None}
    return f"{path}?{urlencode(set_parameters, doseq=True)}" if set_parameters else path


def send_request(method: str, path: str, body: Any = None) -> None:
    """Send a request to the selected gateway, and ignore the body of its response."""

    async def send_and_discard(gateway: GatewayClient) -> None:
        async with gateway.open(method, path, body):
            return

    run_with_gateway(send_and_discard)


def exit_unless_succeeded(job: dict[str, Any]) -> None:
    if job["status"] != "succeeded":
        raise typer.Exit(JOB_DID_NOT_SUCCEED)
