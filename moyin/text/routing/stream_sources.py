"""Produces the bytes of a streamed answer in the client's API format, and measures its usage."""

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

__all__ = ["ForwardedSource", "StreamSource", "TranslatedSource"]

_NO_USAGE = Usage()


class StreamSource(Protocol):
    """Source of a streamed answer in the client's API format."""

    def iterate_pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes for the client; raise the errors that `ModelBackend` documents."""

    @property
    def usage(self) -> Usage:
        """The usage so far; it is estimated until the back end reports it."""


class ForwardedSource:
    """Source that forwards the back end's bytes, because both sides have the same API format.

    Args:
        tap: reads the usage from the bytes that pass.
        transcript: records the text of the answer. If it is None, the stream is not checked.
        prompt_tokens: estimated tokens of the prompt, used if the back end does not report them.
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

    async def iterate_pieces(self) -> AsyncGenerator[bytes, None]:
        tap = self._tap
        async with aclosing(self._upstream) as upstream:
            async for piece in upstream:
                if output := tap.feed(piece):
                    yield output
        if last := tap.end():
            yield last
        if not tap.finished:
            raise StreamInterrupted("the back end ended the stream early")

    @property
    def usage(self) -> Usage:
        tap = self._tap
        return _complete_usage(tap.usage, self._prompt_tokens, tap.tokens, is_final=tap.finished)


class TranslatedSource:
    """Source that writes the back end's deltas in the client's API format.

    If the back end reports no usage, the estimated usage is sent to the client and recorded.

    Args:
        by_token: True if each delta is one token. Otherwise the tokens are estimated from the
            length of the text.
        prompt_tokens: estimated tokens of the prompt, used if the back end does not report them.
        transcript: records the text of the answer. If it is None, the stream is not checked.
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

    async def iterate_pieces(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._deltas) as deltas:
            async for delta in deltas:
                self._count_tokens(delta)
                if self._transcript is not None:
                    self._transcript.add((delta,))
                if isinstance(delta, Started | Finished):
                    delta = self._with_usage(delta)
                if output := self._writer.write(delta):
                    yield output

    @property
    def usage(self) -> Usage:
        tokens = self._delta_count if self._by_token else tokens_in(self._text_size)
        return _complete_usage(
            self._usage, self._prompt_tokens, tokens, is_final=self._usage_is_final
        )

    def _with_usage(self, delta: Started | Finished) -> Started | Finished:
        """Return the first or last delta of a stream with the usage set.

        Anthropic's clients read the prompt tokens from the first event. Most back ends report them
        only at the end, so the first event has an estimate, which the last event corrects.
        """
        if isinstance(delta, Started):
            return delta if delta.usage.prompt_tokens else replace(delta, usage=self.usage)
        return delta if self._usage_is_final else replace(delta, usage=self.usage)

    def _count_tokens(self, delta: Delta) -> None:
        match delta:
            case Started() if delta.usage.prompt_tokens:
                self._usage = delta.usage
            case UsageUpdate():
                self._usage = delta.usage
            case TextDelta() | ThinkingDelta():
                self._delta_count += 1
                self._text_size += text_size(delta.text)
            case ToolArguments():
                self._delta_count += 1
                self._text_size += text_size(delta.fragment)
            # An empty usage means that the back end reports none.
            case Finished() if delta.usage != _NO_USAGE:
                self._usage, self._usage_is_final = delta.usage, True


def _complete_usage(
    reported: Usage | None, prompt_tokens: int, tokens: int, *, is_final: bool
) -> Usage:
    """Return the reported usage, completed by the counted tokens if it is missing or not final."""
    if reported is None or reported == _NO_USAGE:
        return Usage(input_tokens=prompt_tokens, output_tokens=tokens)
    return (
        reported
        if is_final
        else replace(reported, output_tokens=max(reported.output_tokens, tokens))
    )
