"""Records the text and tool calls of a model's stream, so that the answer can be checked."""

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

# Longer answers lose their beginning, because checks use only the end of a long text.
_MAX_CHARACTERS = 64 * 1024
_KEPT_CHARACTERS = 4 * 1024
_MAX_CALLS = 64


class Transcript:
    """Records the text and the tool calls of a stream, up to a bound.

    Attributes:
        has_thinking: True if the model has written reasoning.
        is_refusal: True if the model refuses the request.
        stop: the reason why the stream ended; None while the stream runs.
        is_complete: True if no text or tool call was dropped.
        is_readable: True if every event was well-formed.
    """

    __slots__ = (
        "_arguments",
        "_names",
        "_pieces",
        "_size",
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
        self._arguments: dict[int, list[str]] = {}
        self.has_thinking = self.is_refusal = False
        self.stop: StopReason | None = None
        self.is_complete = self.is_readable = True

    def add(self, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            match delta:
                case TextDelta():
                    self.is_refusal = self.is_refusal or delta.refusal
                    self.add_text(delta.text)
                case ThinkingDelta():
                    self.has_thinking = True
                case ToolStarted() if len(self._names) < _MAX_CALLS:
                    self._names[delta.index] = delta.name
                case ToolArguments() if delta.index in self._names:
                    self._arguments.setdefault(delta.index, []).append(delta.fragment)
                    self._add_size(len(delta.fragment))
                case ToolStarted() | ToolArguments():
                    self.is_complete = False
                case Finished():
                    self.stop = delta.stop

    def add_text(self, text: str) -> None:
        """Record text. Most events contain only text, for which this is faster than `add`."""
        self._pieces.append(text)
        self._add_size(len(text))

    def mark_unreadable(self) -> None:
        """Record that an event of the stream was malformed."""
        self.is_complete = self.is_readable = False

    @property
    def tools(self) -> Sequence[str]:
        return list(self._names.values())

    @property
    def text(self) -> str:
        """The recorded text; if it is longer than 64 Ki characters, only its end."""
        return "".join(self._pieces)

    def to_response(self) -> ChatResponse:
        """Return the recorded parts as a whole response."""
        parts: list[Part] = [Thinking()] if self.has_thinking else []
        if text := self.text:
            parts.append(Text(text=text))
        for index, name in self._names.items():
            arguments = "".join(self._arguments.get(index, ()))
            parts.append(ToolUse(id=str(index), name=name, arguments=arguments))
        stop = self.stop or StopReason.END
        return ChatResponse(id="", model="", parts=tuple(parts), stop=stop, usage=Usage())

    def _add_size(self, size: int) -> None:
        self._size += size
        if self._size > _MAX_CHARACTERS:
            self.is_complete = False
            kept_text = self.text[-_KEPT_CHARACTERS:]
            self._pieces, self._arguments, self._size = [kept_text], {}, len(kept_text)
