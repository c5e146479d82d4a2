"""A stream that has begun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from moyin.domain.money import Usage
from moyin.domain.needs import ResponseConstraints
from moyin.domain.transcript import Transcript
from moyin.errors import BackendKeyRejected, MoyinError, ServiceUnavailable
from moyin.text.routing.routed_call import Hold, RoutedCall
from moyin.text.routing.stream_sources import Source
from moyin.text.routing.stream_start import NO_FAULT, check_start

__all__ = ["MeteredStream", "client_error"]

# A client waits for the first word in any case; for the event before it, no longer than this.
_HELD_SECONDS = 1.0
_HELD_BYTES = 16 * 1024
# Of a stream that is held back as a whole.
_WHOLE_BYTES = 256 * 1024

# Books what was used, leaves the lane, and gives the cost as text.
Settle = Callable[[Usage, BaseException | None], bytes]


class MeteredStream:
    """What is left of a stream, then its cost where the protocol has a place for it.

    A failure is said by an error event of the protocol, never by a silent end. However it ends,
    it settles, once.

    Args:
        transcript: of what the model writes; None: nobody looks at it.

    Attributes:
        is_complete: it has ended well, though its client may not have all of it yet.
        final_usage: what it used, from the moment at which it has ended well and the client gets the
            last piece, which is the note of its cost.
        fault: what was wrong with the beginning, in the words of `checks.find_fault`; empty: nothing.
        on_end: called soon after the stream has ended well.
    """

    def __init__(
        self,
        call: RoutedCall,
        source: Source,
        first: bytes,
        pieces: AsyncGenerator[bytes, None],
        *,
        settle: Settle,
        transcript: Transcript | None = None,
    ) -> None:
        self._call = call
        self._pending: asyncio.Task[bytes] | None = None
        self.transcript = transcript
        self.fault = NO_FAULT
        self.on_end: Callable[[], None] | None = None
        self._settle = settle
        self._source = source
        self._first = first
        self._pieces = pieces
        self._settled = False
        # Of a stream that ended while it was held back.
        self._cost_trailer: tuple[Usage, bytes] | None = None
        self._start_is_sound = False
        self.is_complete = False
        self.final_usage: Usage | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        if self._cost_trailer is not None:
            (self.final_usage, note), self._cost_trailer = self._cost_trailer, None
            return note
        if self._settled:
            raise StopAsyncIteration
        try:
            return await self._next()
        except StopAsyncIteration:
            self.final_usage = self.usage
            return self._end(None)
        except MoyinError as error:
            call = self._call
            event = call.codec.error_event(client_error(error), call.context.request_id)
            return event + self._end(error)
        except BaseException as error:
            self._end(error)
            raise

    async def hold(self, hold: Hold, constraints: ResponseConstraints) -> None:
        """Take pieces until the answer can be judged; they are given to the client together.

        Where there is nothing to judge within a second, or 16 KiB (256 KiB of a whole stream), the
        client gets what there is.

        Raises:
            MoyinError: the stream failed meanwhile. It is not settled then.
        """
        seen = self.transcript
        if seen is None or hold is Hold.NONE:
            return
        whole = hold is Hold.WHOLE
        most = _WHOLE_BYTES if whole else _HELD_BYTES
        loop = asyncio.get_running_loop()
        until = self._call.deadline if whole else loop.time() + _HELD_SECONDS
        held, size = [self._first], len(self._first)
        try:
            # One that has said its last word ends now, and is then booked as a whole.
            while not self._can_judge(seen, constraints, whole=whole) or seen.stop is not None:
                if size > most:
                    break
                piece = await self._next_within(until - loop.time())
                if piece is None:
                    break
                held.append(piece)
                size += len(piece)
        except StopAsyncIteration:
            self._can_judge(seen, constraints, whole=whole)
            # Apart from the rest: what keeps the stream leaves the last piece out.
            self._cost_trailer = self.usage, self._end(None)
        except BaseException:
            await self._abandon()
            raise
        self._first = b"".join(held)

    def _can_judge(
        self, seen: Transcript, constraints: ResponseConstraints, *, whole: bool
    ) -> bool:
        """Whether the answer can be judged by what was seen; if so, `fault` has the outcome."""
        under_way = whole and seen.stop is None and seen.is_complete
        if under_way and self._start_is_sound:
            # Reading all of it again for every piece would take longer the longer it is.
            return False
        verdict = check_start(seen, constraints)
        self.fault = verdict or NO_FAULT
        self._start_is_sound = verdict == NO_FAULT
        return verdict is not None and not (under_way and self._start_is_sound)

    async def _next_within(self, seconds: float) -> bytes | None:
        """The next piece; None when it does not come in time, and then is the next to be read."""
        # Cancelling it would end the stream, so it is waited for elsewhere.
        self._pending = asyncio.create_task(self._read())
        done, _ = await asyncio.wait((self._pending,), timeout=max(seconds, 0.0))
        if not done:
            return None
        pending, self._pending = self._pending, None
        return pending.result()

    async def _read(self) -> bytes:
        return await anext(self._pieces)

    async def _next(self) -> bytes:
        pending, self._pending = self._pending, None
        return await (anext(self._pieces) if pending is None else pending)

    async def aclose(self) -> None:
        """Cancel upstream where it still generates."""
        if not self._settled:
            self._end(asyncio.CancelledError())
            await self._abandon()

    async def _abandon(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()
            await asyncio.wait((pending,))
        await self._pieces.aclose()

    @property
    def usage(self) -> Usage:
        """What was used so far."""
        return self._source.usage

    def _end(self, error: BaseException | None) -> bytes:
        self._settled = True
        usage = self.usage
        if error is None:
            self.is_complete = True
            if self.on_end is not None:
                asyncio.get_running_loop().call_soon(self.on_end)
        return self._call.codec.cost_trailer(self._settle(usage, error))


def client_error(error: MoyinError) -> MoyinError:
    """``error`` as a client may see it: that our own key is refused is the operator's affair."""
    if isinstance(error, BackendKeyRejected):
        return ServiceUnavailable("the back end is not available")
    return error
