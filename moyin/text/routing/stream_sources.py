"""Produces the bytes of a streamed answer in the client's API format, and measures its usage."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import KW_ONLY, dataclass, replace
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

_NO_USAGE = Usage()


class StreamSource(Protocol):
    """Interface of the objects that produce a streamed answer in the client's API format."""

    def iterate_pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of the stream that the client receives.

        The errors are those that `ModelBackend` documents for streams.
        """

    @property
    def usage(self) -> Usage:
        """The usage so far; it is estimated until the back end reports it."""


@dataclass(eq=False, slots=True)
class ForwardedSource:
    """Source that forwards the back end's bytes, because both sides have the same API format.

    Args:
        tap: reads the usage from the forwarded bytes.
        transcript: records the text of the answer. If it is None, the stream is not checked.
        prompt_tokens: estimated tokens of the prompt, used if the back end does not report them.
    """

    upstream: AsyncGenerator[bytes, None]
    tap: StreamTap
    transcript: Transcript | None = None
    _: KW_ONLY
    prompt_tokens: int

    def __post_init__(self) -> None:
        self.tap.transcript = self.transcript
        self.tap.prompt_tokens = self.prompt_tokens

    async def iterate_pieces(self) -> AsyncGenerator[bytes, None]:
        tap = self.tap
        async with aclosing(self.upstream) as upstream:
            async for piece in upstream:
                if output := tap.feed(piece):
                    yield output
        if last_bytes := tap.flush():
            yield last_bytes
        if not tap.is_finished:
            raise StreamInterrupted(
                "the back end ended the stream before its final event; retry later"
            )

    @property
    def usage(self) -> Usage:
        tap = self.tap
        return _complete_usage(tap.usage, self.prompt_tokens, tap.tokens, is_final=tap.is_finished)


@dataclass(eq=False, slots=True)
class TranslatedSource:
    """Source that writes the back end's deltas in the client's API format.

    If the back end reports no usage, the estimated usage is sent to the client and recorded.

    Args:
        by_token: True if each delta is one token. Otherwise the tokens are estimated from the
            length of the text.
        prompt_tokens: estimated tokens of the prompt, used if the back end does not report them.
        transcript: records the text of the answer. If it is None, the stream is not checked.
    """

    deltas: AsyncGenerator[Delta, None]
    writer: StreamWriter
    _: KW_ONLY
    by_token: bool
    prompt_tokens: int
    transcript: Transcript | None = None
    _usage: Usage | None = None
    _usage_is_final: bool = False
    _delta_count: int = 0
    _text_size: int = 0

    async def iterate_pieces(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self.deltas) as deltas:
            async for delta in deltas:
                self._count_tokens(delta)
                if self.transcript is not None:
                    self.transcript.add((delta,))
                if isinstance(delta, Started | Finished):
                    delta = self._add_usage(delta)
                if output := self.writer.write(delta):
                    yield output

    @property
    def usage(self) -> Usage:
        output_tokens = (
            self._delta_count if self.by_token else estimate_tokens_from_bytes(self._text_size)
        )
        return _complete_usage(
            self._usage, self.prompt_tokens, output_tokens, is_final=self._usage_is_final
        )

    def _add_usage(self, delta: Started | Finished) -> Started | Finished:
        """Return the first or last delta of a stream with the usage set.

        The first delta gets an estimate, because Anthropic's clients read the prompt tokens there and
        most back ends report them only at the end. The last delta corrects it.
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
                self._text_size += count_utf8_bytes(delta.text)
            case ToolArguments():
                self._delta_count += 1
                self._text_size += count_utf8_bytes(delta.fragment)
            # An empty usage means that the back end reports none.
            case Finished() if delta.usage != _NO_USAGE:
                self._usage, self._usage_is_final = delta.usage, True


def _complete_usage(
    reported_usage: Usage | None, prompt_tokens: int, output_tokens: int, *, is_final: bool
) -> Usage:
    """Return the reported usage, or the estimated one as far as the back end has not reported it.

    Args:
        reported_usage: the usage that the back end reported so far; None if it reported none.
        prompt_tokens: the estimated tokens of the prompt, used if none were reported.
        output_tokens: the output tokens that were counted so far.
        is_final: True if the answer is complete. Before that, the reported output tokens may be too
            low, so that the counted tokens are used if they are higher.
    """
    if reported_usage is None or reported_usage == _NO_USAGE:
        return Usage(input_tokens=prompt_tokens, output_tokens=output_tokens)
    return (
        reported_usage
        if is_final
        else replace(reported_usage, output_tokens=max(reported_usage.output_tokens, output_tokens))
    )
