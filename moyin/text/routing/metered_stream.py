"""Passes on a stream that has begun, and records what it used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from moyin.domain.money import Usage
from moyin.domain.needs import ResponseConstraints
from moyin.domain.transcript import Transcript
from moyin.errors import BackendKeyRejected, MoyinError, ServiceUnavailable
from moyin.text.routing.answer_checks import NO_FAULT, find_start_fault
from moyin.text.routing.routed_call import RoutedCall, StreamHold
from moyin.text.routing.stream_sources import StreamSource

__all__ = ["MeteredStream", "to_client_error"]

# Limits on holding back the beginning of a stream, in which no text may have arrived yet.
_MAX_HELD_SECONDS = 1.0
_MAX_HELD_BYTES = 16 * 1024
# Limit on holding back a whole stream.
_MAX_WHOLE_BYTES = 256 * 1024

# Records the usage, releases the slot and returns the cost as text.
Settle = Callable[[Usage, BaseException | None], bytes]


class MeteredStream:
    """Yields the rest of a stream, then its cost where the protocol has a place for it.

    A failure becomes an error event of the protocol, never a silent end. However the stream ends,
    it is settled exactly once.

    Args:
        transcript: records what the model writes; None: the stream is not checked.

    Attributes:
        is_complete: it ended well, though its client may not have received all of it yet.
        final_usage: what it used, set when it has ended well and the client gets the last piece,
            which states the cost.
        fault: fault of the beginning, in the words of `answer_checks.find_fault`; empty: none.
        on_end: called soon after the stream has ended well.
    """

    def __init__(
        self,
        call: RoutedCall,
        source: StreamSource,
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
        # Set when the stream ended while it was held back.
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
            event = call.codec.error_event(to_client_error(error), call.context.request_id)
            return event + self._end(error)
        except BaseException as error:
            self._end(error)
            raise

    async def hold_until_checked(self, hold: StreamHold, constraints: ResponseConstraints) -> None:
        """Read pieces until the answer can be checked; the client gets them together.

        The client gets them unchecked if there is nothing to check within a second or 16 KiB. The
        limit is 256 KiB where the whole stream is held.

        Raises:
            MoyinError: the stream failed meanwhile. It is not settled then.
        """
        transcript = self.transcript
        if transcript is None or hold is StreamHold.NONE:
            return
        is_whole = hold is StreamHold.WHOLE
        max_bytes = _MAX_WHOLE_BYTES if is_whole else _MAX_HELD_BYTES
        loop = asyncio.get_running_loop()
        deadline = self._call.deadline if is_whole else loop.time() + _MAX_HELD_SECONDS
        pieces, size = [self._first], len(self._first)
        try:
            # A stream whose last event arrived is read to its end, so that it is recorded as complete.
            while (
                not self._can_judge(transcript, constraints, is_whole=is_whole)
                or transcript.stop is not None
            ):
                if size > max_bytes:
                    break
                piece = await self._next_within(deadline - loop.time())
                if piece is None:
                    break
                pieces.append(piece)
                size += len(piece)
        except StopAsyncIteration:
            self._can_judge(transcript, constraints, is_whole=is_whole)
            # Kept apart, because the answer cache does not store the last piece.
            self._cost_trailer = self.usage, self._end(None)
        except BaseException:
            await self._abandon()
            raise
        self._first = b"".join(pieces)

    def _can_judge(
        self, transcript: Transcript, constraints: ResponseConstraints, *, is_whole: bool
    ) -> bool:
        """Check the transcript; return whether `fault` now holds the outcome."""
        is_running = is_whole and transcript.stop is None and transcript.is_complete
        if is_running and self._start_is_sound:
            # Checking the whole text again for every piece would take quadratic time.
            return False
        verdict = find_start_fault(transcript, constraints)
        self.fault = verdict or NO_FAULT
        self._start_is_sound = verdict == NO_FAULT
        return verdict is not None and not (is_running and self._start_is_sound)

    async def _next_within(self, seconds: float) -> bytes | None:
        """Return the next piece; None if it is late, and then it stays the next to be read."""
        # Cancelling the read would end the stream, so it runs in its own task.
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
        """Cancel the upstream request if it is still generating."""
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
        """The usage so far."""
        return self._source.usage

    def _end(self, error: BaseException | None) -> bytes:
        self._settled = True
        usage = self.usage
        if error is None:
            self.is_complete = True
            if self.on_end is not None:
                asyncio.get_running_loop().call_soon(self.on_end)
        return self._call.codec.cost_trailer(self._settle(usage, error))


def to_client_error(error: MoyinError) -> MoyinError:
    """Return the error as a client may see it: our own rejected key is an internal detail."""
    if isinstance(error, BackendKeyRejected):
        return ServiceUnavailable("the back end is unavailable")
    return error
