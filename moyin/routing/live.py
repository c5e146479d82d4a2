"""A stream that has begun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING

from moyin.domain.money import Usage
from moyin.errors import BackendKeyRefused, MoyinError, ServiceUnavailable
from moyin.routing.sources import Source

if TYPE_CHECKING:
    from moyin.routing.attempt import Attempt

__all__ = ["LiveStream", "presentable"]


class LiveStream:
    """What is left of a stream, then its cost where the protocol has a place for it.

    A failure is said by an error event of the protocol, never by a silent end. However it ends,
    it leaves the lane and books what was used, once.

    Attributes:
        completed: what it used, from the moment at which it has ended well.
    """

    def __init__(
        self,
        attempt: Attempt,
        source: Source,
        first: bytes,
        pieces: AsyncGenerator[bytes, None],
    ) -> None:
        self._attempt = attempt
        self._source = source
        self._first = first
        self._pieces = pieces
        self._settled = False
        self.completed: Usage | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        if self._settled:
            raise StopAsyncIteration
        try:
            return await anext(self._pieces)
        except StopAsyncIteration:
            return self._settle(None)
        except MoyinError as error:
            task = self._attempt.task
            event = task.dialect.error_event(presentable(error), task.asker.request_id)
            return event + self._settle(error)
        except BaseException as error:
            self._settle(error)
            raise

    async def aclose(self) -> None:
        """Cancel upstream where it still generates."""
        if not self._settled:
            self._settle(asyncio.CancelledError())
            await self._pieces.aclose()

    def _settle(self, error: BaseException | None) -> bytes:
        self._settled = True
        attempt = self._attempt
        usage = self._source.usage(attempt.task.needs.prompt_tokens)
        if error is None:
            self.completed = usage
        cost = attempt.book(usage, error=None if error is None else _code(error))
        attempt.lane.leave(error)
        return attempt.task.dialect.cost_note(cost)


def presentable(error: MoyinError) -> MoyinError:
    """``error`` as a client may see it: that our own key is refused is the operator's affair."""
    if isinstance(error, BackendKeyRefused):
        return ServiceUnavailable("the back end is not available")
    return error


def _code(error: BaseException) -> str:
    return error.code if isinstance(error, MoyinError) else "cancelled"
