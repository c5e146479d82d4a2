"""Forwards a stream to the client once it has begun, and records its usage when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import KW_ONLY, dataclass

from moyin.domain.money import Usage
from moyin.domain.needs import ResponseConstraints
from moyin.domain.transcript import Transcript
from moyin.errors import BackendKeyRejected, MoyinError, Overloaded, ServiceUnavailable
from moyin.text.routing.answer_checks import NO_FAULT, find_start_fault
from moyin.text.routing.routed_call import RoutedCall, StreamHold
from moyin.text.routing.stream_sources import StreamSource

# Limits on holding back the beginning of a stream until it can be checked.
_MAX_HELD_SECONDS = 1.0
_MAX_HELD_BYTES = 16 * 1024
# Limit on holding back a whole stream.
_MAX_HELD_WHOLE_BYTES = 256 * 1024

# Seconds to wait for a server with a full queue, such as Ollama, which does not report when to
# retry.
_OVERLOADED_SECONDS = 1.0

# Called once at the end of a stream, with its usage and error. It releases the slot and returns the
# cost as text.
FinishStream = Callable[[Usage, BaseException | None], bytes]


@dataclass(eq=False, slots=True)
class MeteredStream:
    """Stream that forwards an answer; an error becomes an event, and the cost comes last.

    ``finish`` is called exactly once, whether the stream ends, fails or is closed.

    Args:
        first_piece: the first bytes of the stream, which were already read.
        pieces: the rest of the stream.
        finish: records the usage, releases the slot and returns the cost as text.
        transcript: records the text of the answer. If it is None, the stream is not checked.

    Attributes:
        is_complete: True if the stream ended without an error. The client may not have received
            all of it yet.
        final_usage: the usage of the whole stream; None until the stream ends without an error.
        fault: the fault that `hold_until_checked` found, such as ``empty``, or `NO_FAULT`.
        on_end: called after the stream has ended without an error.
    """

    call: RoutedCall
    source: StreamSource
    first_piece: bytes
    pieces: AsyncGenerator[bytes, None]
    _: KW_ONLY
    finish: FinishStream
    transcript: Transcript | None = None
    is_complete: bool = False
    final_usage: Usage | None = None
    fault: str = NO_FAULT
    on_end: Callable[[], None] | None = None
    _pending_read: asyncio.Task[bytes] | None = None
    _is_finished: bool = False
    # Set if the stream ends while it is held back.
    _cost_trailer: tuple[Usage, bytes] | None = None
    _start_has_no_fault: bool = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self.first_piece:
            first_piece, self.first_piece = self.first_piece, b""
            return first_piece
        if self._cost_trailer is not None:
            (self.final_usage, trailer), self._cost_trailer = self._cost_trailer, None
            return trailer
        if self._is_finished:
            raise StopAsyncIteration
        try:
            return await self._read_piece()
        except StopAsyncIteration:
            self.final_usage = self.usage
            return self._finish_stream(None)
        except MoyinError as error:
            call = self.call
            event = call.codec.render_error_event(to_client_error(error), call.context.request_id)
            return event + self._finish_stream(error)
        except BaseException as error:
            self._finish_stream(error)
            raise

    async def hold_until_checked(self, hold: StreamHold, constraints: ResponseConstraints) -> None:
        """Buffer the stream until it can be checked for faults, and set `fault`.

        The beginning of a stream is buffered for at most a second or 16 KiB, a whole stream for at
        most 256 KiB. If the limit is reached, the stream continues unchecked.

        Raises:
            MoyinError: the stream failed meanwhile. ``finish`` is not called then.
        """
        transcript = self.transcript
        if transcript is None or hold is StreamHold.NONE:
            return
        is_whole = hold is StreamHold.WHOLE
        max_bytes = _MAX_HELD_WHOLE_BYTES if is_whole else _MAX_HELD_BYTES
        loop = asyncio.get_running_loop()
        deadline = self.call.deadline if is_whole else loop.time() + _MAX_HELD_SECONDS
        pieces, size = [self.first_piece], len(self.first_piece)
        try:
            # After the last event the stream is read to its end, so that it is recorded as complete.
            while (
                not self._check_transcript(transcript, constraints, is_whole=is_whole)
                or transcript.stop is not None
            ):
                if size > max_bytes:
                    break
                piece = await self._read_piece_within(deadline - loop.time())
                if piece is None:
                    break
                pieces.append(piece)
                size += len(piece)
        except StopAsyncIteration:
            self._check_transcript(transcript, constraints, is_whole=is_whole)
            # The trailer is separate, because the answer cache does not store the last piece.
            self._cost_trailer = self.usage, self._finish_stream(None)
        except BaseException:
            await self._close_source()
            raise
        self.first_piece = b"".join(pieces)

    def _check_transcript(
        self, transcript: Transcript, constraints: ResponseConstraints, *, is_whole: bool
    ) -> bool:
        """Check the transcript and set `fault`; return False if more of the stream is needed.

        Args:
            is_whole: True if the whole answer must be checked, not only its beginning.
        """
        is_running = is_whole and transcript.stop is None and transcript.is_complete
        if is_running and self._start_has_no_fault:
            # A check of the whole text after every piece would take quadratic time.
            return False
        start_fault = find_start_fault(transcript, constraints)
        self.fault = start_fault or NO_FAULT
        self._start_has_no_fault = start_fault == NO_FAULT
        return start_fault is not None and not (is_running and self._start_has_no_fault)

    async def _read_piece_within(self, timeout_seconds: float) -> bytes | None:
        """Return the next piece, or None if it does not arrive in time.

        A late piece is not lost: the next call of `_read_piece` returns it.
        """
        # The read runs in its own task, because cancelling it would end the stream.
        self._pending_read = asyncio.create_task(self._read_next())
        done_tasks, _ = await asyncio.wait((self._pending_read,), timeout=max(timeout_seconds, 0.0))
        if not done_tasks:
            return None
        pending_read, self._pending_read = self._pending_read, None
        return pending_read.result()

    async def _read_next(self) -> bytes:
        return await anext(self.pieces)

    async def _read_piece(self) -> bytes:
        pending_read, self._pending_read = self._pending_read, None
        return await (anext(self.pieces) if pending_read is None else pending_read)

    async def aclose(self) -> None:
        """Close the stream, and cancel the request to the back end if it still runs."""
        if not self._is_finished:
            self._finish_stream(asyncio.CancelledError())
            await self._close_source()

    async def _close_source(self) -> None:
        pending_read, self._pending_read = self._pending_read, None
        if pending_read is not None:
            pending_read.cancel()
            await asyncio.wait((pending_read,))
        await self.pieces.aclose()

    @property
    def usage(self) -> Usage:
        """The usage of the tokens that were received so far."""
        return self.source.usage

    def _finish_stream(self, error: BaseException | None) -> bytes:
        self._is_finished = True
        usage = self.usage
        if error is None:
            self.is_complete = True
            if self.on_end is not None:
                asyncio.get_running_loop().call_soon(self.on_end)
        return self.call.codec.encode_cost_trailer(self.finish(usage, error))


def to_client_error(error: MoyinError) -> MoyinError:
    """Return the error that the client receives for ``error``, usually ``error`` itself.

    That a back end rejected the gateway's API key is hidden from clients. An overload error without
    a time to wait gets one, because most clients would otherwise retry at once.
    """
    if isinstance(error, BackendKeyRejected):
        return ServiceUnavailable("the back end for this model is unavailable; retry later")
    if isinstance(error, Overloaded) and error.retry_after is None:
        return Overloaded(error.message, retry_after=_OVERLOADED_SECONDS)
    return error
