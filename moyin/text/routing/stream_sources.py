"""Produces the bytes of a stream in the client's format, and measures its usage."""

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
from moyin.domain.needs import count_utf8_bytes, estimate_tokens_from_bytes
from moyin.domain.transcript import Transcript
from moyin.errors import StreamInterrupted
from moyin.text.protocol.codec import StreamTap, StreamWriter

__all__ = ["PassedSource", "Source", "TranslatedSource"]

_NO_USAGE = Usage()


class Source(Protocol):
    """Produces a stream in the client's format."""

    def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes for the client; raise as `ModelBackend` does."""

    @property
    def usage(self) -> Usage:
        """The usage so far; estimated until the back end reports it."""


class PassedSource:
    """Passes on the back end's own bytes.

    Args:
        prompt_tokens: estimate to use if the back end does not report them.
        transcript: records what the model writes; None: the stream is not checked.
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
            raise StreamInterrupted("the back end ended the stream early")

    @property
    def usage(self) -> Usage:
        tap = self._tap
        return _final_usage(tap.usage, self._prompt_tokens, tap.tokens, is_final=tap.finished)


class TranslatedSource:
    """Writes deltas of the domain model in the client's protocol.

    If the back end reports no usage, the client gets the estimate that is recorded.

    Args:
        prompt_tokens: estimate to use if the back end does not report them.
        by_token: each delta is one token; otherwise tokens are estimated from the text's length.
        transcript: records what the model writes; None: the stream is not checked.
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
        self._delta_count = self._text_size = 0
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
        tokens = (
            self._delta_count if self._by_token else estimate_tokens_from_bytes(self._text_size)
        )
        return _final_usage(self._usage, self._prompt_tokens, tokens, is_final=self._usage_is_final)

    def _with_usage(self, delta: Started | Finished) -> Started | Finished:
        """Return the delta with the usage in it.

        Most servers count at the end. Clients of Anthropic read prompt tokens from the first
        event, and the last one corrects them.
        """
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
                self._delta_count += 1
                self._text_size += count_utf8_bytes(delta.text)
            case ToolArguments():
                self._delta_count += 1
                self._text_size += count_utf8_bytes(delta.fragment)
            # A server that reports no usage ends with an empty one; the counted tokens are used then.
            case Finished() if delta.usage != _NO_USAGE:
                self._usage, self._usage_is_final = delta.usage, True


def _final_usage(
    reported: Usage | None, prompt_tokens: int, tokens: int, *, is_final: bool
) -> Usage:
    """Return the usage that the back end reported; otherwise count the tokens that passed."""
    if reported is None or reported == _NO_USAGE:
        return Usage(input_tokens=prompt_tokens, output_tokens=tokens)
    return (
        reported
        if is_final
        else replace(reported, output_tokens=max(reported.output_tokens, tokens))
    )
