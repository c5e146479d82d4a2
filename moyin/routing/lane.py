"""A back end in service: the server, its breaker, its health and its load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moyin.domain.backend import ModelBackend, PassThrough
from moyin.errors import (
    BackendError,
    BackendKeyRefused,
    BackendRejected,
    MoyinError,
    Overloaded,
)
from moyin.routing.breaker import Breaker
from moyin.routing.choice import Standing

__all__ = ["Lane"]


@dataclass(kw_only=True, eq=False)
class Lane:
    """Not frozen: it counts.

    Attributes:
        passes: the same back end where it takes a protocol's bytes.
        timeout: seconds that a whole call may take.
        up: what the last health check said; None before the first.
    """

    name: str
    backend: ModelBackend
    passes: PassThrough | None
    timeout: float
    breaker: Breaker
    up: bool | None = None
    load: int = 0

    @property
    def standing(self) -> Standing:
        return Standing(
            up=self.up is not False and self.breaker.ready,
            load=self.load,
            retry_after=self.breaker.retry_after,
        )

    def enter(self) -> bool:
        """Begin a call; False when the breaker lets none through. Each begun call must `leave`."""
        if not self.breaker.admit():
            return False
        self.load += 1
        return True

    def leave(self, error: BaseException | None = None) -> None:
        """End a call that began. Only what says something about the back end moves the breaker."""
        self.load -= 1
        if error is None or isinstance(error, BackendRejected):
            self.breaker.succeed()
        elif isinstance(error, BackendError | Overloaded):
            self.breaker.fail(
                retry_after=error.retry_after, at_once=isinstance(error, BackendKeyRefused)
            )
        else:
            self.breaker.abandon()

    async def check(self, note: Callable[[str, bool], None]) -> None:
        """One health check; ``note`` hears of every change."""
        try:
            await self.backend.probe()
            up = True
        except MoyinError:
            up = False
        if up is not self.up:
            note(self.name, up)
        self.up = up
