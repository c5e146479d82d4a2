"""Where a server is. Most never move; an actor's server does when it is restarted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Endpoint", "Endpoints", "Fixed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """``url`` without a slash at its end; ``key`` is sent as a credential when not empty."""

    url: str
    key: str = field(default="", repr=False)


class Endpoints(Protocol):
    """Finds the server of one back end."""

    @property
    def known(self) -> Endpoint | None:
        """The place found last, if it is still believed in."""

    async def find(self) -> Endpoint:
        """Look for the server.

        Raises:
            BackendUnavailable: it is nowhere.
        """

    def forget(self) -> None:
        """Nobody answered there: look again next time."""


class Fixed:
    """A server that never moves."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.known: Endpoint = endpoint

    async def find(self) -> Endpoint:
        return self.known

    def forget(self) -> None:
        return None
