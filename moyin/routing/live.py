"""A stream that has begun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from moyin.domain.money import Usage
from moyin.errors import BackendKeyRefused, MoyinError, ServiceUnavailable
from moyin.routing.sources import Source
from moyin.routing.task import Task

__all__ = ["LiveStream", "presentable"]

# Books what was used, leaves the lane, and gives the cost as text.
Settle = Callable[[Usage, BaseException | None], bytes]


class LiveStream:
    """What is left of a stream, then its cost where the protocol has a place for it.

    A failure is said by an error event of the protocol, never by a silent end. However it ends,
    it settles, once.

    Attributes:
        completed: what it used, from the moment at which it has ended well.
    """

    def __init__(
        self,
        task: Task,
        source: Source,
        first: bytes,
        pieces: AsyncGenerator[bytes, None],
        *,
        settle: Settle,
    ) -> None:
        self._task = task
        self._settle = settle
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
            return self._end(None)
        except MoyinError as error:
            task = self._task
            event = task.dialect.error_event(presentable(error), task.asker.request_id)
            return event + self._end(error)
        except BaseException as error:
            self._end(error)
            raise

    async def aclose(self) -> None:
        """Cancel upstream where it still generates."""
        if not self._settled:
            self._end(asyncio.CancelledError())
            await self._pieces.aclose()

    def _end(self, error: BaseException | None) -> bytes:
        self._settled = True
        usage = self._source.usage(self._task.needs.prompt_tokens)
        if error is None:
            self.completed = usage
        return self._task.dialect.cost_note(self._settle(usage, error))


def presentable(error: MoyinError) -> MoyinError:
    """``error`` as a client may see it: that our own key is refused is the operator's affair."""
    if isinstance(error, BackendKeyRefused):
        return ServiceUnavailable("the back end is not available")
    return error
