"""Streams in the client's format, from either kind of back end, with what they used so far."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from moyin.domain.chat import (
    Delta,
    Finished,
    Started,
    TextDelta,
    ThinkingDelta,
    ToolArguments,
    UsageUpdate,
)
from moyin.domain.money import Usage
from moyin.domain.needs import text_size, tokens_in
from moyin.domain.transcript import Transcript
from moyin.errors import StreamInterrupted
from moyin.text.protocol.codec import StreamTap, StreamWriter

__all__ = ["PassedSource", "Source", "TranslatedSource"]

_NO_USAGE = Usage()


class Source(Protocol):
    """A stream in the client's format."""

    def pieces(self) -> AsyncGenerator[bytes, None]:
        """The bytes for the client; raises as `ModelBackend` does."""

    @property
    def usage(self) -> Usage:
        """What was used so far; estimated where upstream has said nothing."""


class PassedSource:
    """Upstream's own bytes.

    Args:
        prompt_tokens: stand in where upstream does not state them.
        transcript: takes down what the model writes; None: nobody looks at it.
    """

    def __init__(
        self,
        upstream: AsyncGenerator[bytes, None],
        tap: StreamTap,
        transcript: Transcript | None = None,
        *,
        prompt_tokens: int,
    ) -> None:
        self._upstream = upstream
        self._prompt_tokens = prompt_tokens
        self._tap = tap
        tap.transcript = transcript

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        tap = self._tap
        async with aclosing(self._upstream) as upstream:
            async for piece in upstream:
                if passed := tap.feed(piece):
                    yield passed
        if last := tap.end():
            yield last
        if not tap.finished:
            raise StreamInterrupted("the back end ended its answer early")

    @property
    def usage(self) -> Usage:
        tap = self._tap
        return _final_usage(tap.usage, self._prompt_tokens, tap.tokens, final=tap.finished)


class TranslatedSource:
    """Deltas of the domain, written in the client's protocol. Where upstream states no usage, the
    client is told the estimate that is booked.

    Args:
        prompt_tokens: stand in where upstream does not state them.
        by_token: each delta is one token; else their number is estimated from their length.
        transcript: takes down what the model writes; None: nobody looks at it.
    """

    def __init__(
        self,
        deltas: AsyncGenerator[Delta, None],
        writer: StreamWriter,
        *,
        by_token: bool,
        prompt_tokens: int,
        transcript: Transcript | None = None,
    ) -> None:
        self._deltas = deltas
        self._transcript = transcript
        self._writer = writer
        self._by_token = by_token
        self._prompt_tokens = prompt_tokens
        self._usage: Usage | None = None
        self._pieces = self._size = 0
        self._usage_is_final = False

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._deltas) as deltas:
            async for delta in deltas:
                self._count(delta)
                if self._transcript is not None:
                    self._transcript.add((delta,))
                if isinstance(delta, Started | Finished):
                    delta = self._with_usage(delta)
                if written := self._writer.write(delta):
                    yield written

    @property
    def usage(self) -> Usage:
        seen = self._pieces if self._by_token else tokens_in(self._size)
        return _final_usage(self._usage, self._prompt_tokens, seen, final=self._usage_is_final)

    def _with_usage(self, delta: Started | Finished) -> Started | Finished:
        """Return a delta that states the usage. Most servers count at the end; clients of Anthropic
        take the prompt from the beginning, and the end settles it."""
        if isinstance(delta, Started):
            return delta if delta.usage.prompt_tokens else replace(delta, usage=self.usage)
        return delta if self._usage_is_final else replace(delta, usage=self.usage)

    def _count(self, delta: Delta) -> None:
        match delta:
            case Started() if delta.usage.prompt_tokens:
                self._usage = delta.usage
            case UsageUpdate():
                self._usage = delta.usage
            case TextDelta() | ThinkingDelta():
                self._pieces += 1
                self._size += text_size(delta.text)
            case ToolArguments():
                self._pieces += 1
                self._size += text_size(delta.fragment)
            # A server that told no usage ends with none: what was seen to go by still counts.
            case Finished() if delta.usage != _NO_USAGE:
                self._usage, self._usage_is_final = delta.usage, True


def _final_usage(known: Usage | None, prompt_tokens: int, seen: int, *, final: bool) -> Usage:
    """Upstream's word where it gave it; else the tokens that were seen to go by."""
    if known is None or known == _NO_USAGE:
        return Usage(input_tokens=prompt_tokens, output_tokens=seen)
    return known if final else replace(known, output_tokens=max(known.output_tokens, seen))
