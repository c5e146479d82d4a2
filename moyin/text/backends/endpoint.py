"""Holds the address of a back end's server, which changes when an actor restarts it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Endpoint", "Endpoints", "FixedEndpoint"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """The address of a server. ``url`` has no trailing slash; an empty ``key`` is not sent."""

    url: str
    key: str = field(default="", repr=False)


class Endpoints(Protocol):
    """Finds the server of a back end."""

    @property
    def known(self) -> Endpoint | None:
        """The endpoint that was found last, unless it was forgotten."""

    async def find(self) -> Endpoint:
        """Find the server.

        Raises:
            BackendUnavailable: there is no server.
        """

    def forget(self) -> None:
        """Forget the endpoint after a failed call, so that the next call finds it again."""


class FixedEndpoint:
    """The endpoint of a server whose address never changes."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.known: Endpoint = endpoint

    async def find(self) -> Endpoint:
        return self.known

    def forget(self) -> None:
        return None
