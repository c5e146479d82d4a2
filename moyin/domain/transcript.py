"""What a model has written so far in a stream, so that the answer can be checked."""

from __future__ import annotations

from collections.abc import Sequence

from moyin.domain.chat import (
    ChatResponse,
    Delta,
    Finished,
    Part,
    StopReason,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolArguments,
    ToolStarted,
    ToolUse,
)
from moyin.domain.money import Usage

__all__ = ["Transcript"]

# Longer answers lose their beginning: only the end of such a text is looked at.
_MOST = 64 * 1024
_END = 4 * 1024
_MOST_CALLS = 64


class Transcript:
    """Text and tool calls of one stream, bounded.

    Attributes:
        thought: the model has begun to reason.
        refused: the model says that it does not do what was asked for.
        stop: why it ended; None: it has not.
        complete: nothing was left out.
        readable: every part had a known shape.
    """

    __slots__ = (
        "_names",
        "_pieces",
        "_size",
        "_written",
        "has_thinking",
        "is_complete",
        "is_readable",
        "is_refusal",
        "stop",
    )

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._size = 0
        self._names: dict[int, str] = {}
        self._written: dict[int, list[str]] = {}
        self.has_thinking = self.is_refusal = False
        self.stop: StopReason | None = None
        self.is_complete = self.is_readable = True

    def add(self, deltas: Sequence[Delta]) -> None:
        """Add what a part of the stream says."""
        for delta in deltas:
            match delta:
                case TextDelta():
                    self.is_refusal = self.is_refusal or delta.refusal
                    self.add_text(delta.text)
                case ThinkingDelta():
                    self.has_thinking = True
                case ToolStarted() if len(self._names) < _MOST_CALLS:
                    self._names[delta.index] = delta.name
                case ToolArguments() if delta.index in self._names:
                    self._written.setdefault(delta.index, []).append(delta.fragment)
                    self._add(len(delta.fragment))
                case ToolStarted() | ToolArguments():
                    self.is_complete = False
                case Finished():
                    self.stop = delta.stop

    def add_text(self, text: str) -> None:
        """Add text; as `note` does, for streams whose events hold little else."""
        self._pieces.append(text)
        self._add(len(text))

    def mark_unreadable(self) -> None:
        """Note that a part of the stream has a shape that is not known."""
        self.is_complete = self.is_readable = False

    @property
    def tools(self) -> Sequence[str]:
        """Names of the tools that are called."""
        return list(self._names.values())

    @property
    def text(self) -> str:
        """The text so far; of a long one its end."""
        return "".join(self._pieces)

    def answer(self) -> ChatResponse:
        """Return what was written, as a whole answer."""
        parts: list[Part] = [Thinking()] if self.has_thinking else []
        if text := self.text:
            parts.append(Text(text=text))
        for index, name in self._names.items():
            arguments = "".join(self._written.get(index, ()))
            parts.append(ToolUse(id=str(index), name=name, arguments=arguments))
        stop = self.stop or StopReason.END
        return ChatResponse(id="", model="", parts=tuple(parts), stop=stop, usage=Usage())

    def _add(self, size: int) -> None:
        self._size += size
        if self._size > _MOST:
            self.is_complete = False
            end = self.text[-_END:]
            self._pieces, self._written, self._size = [end], {}, len(end)
