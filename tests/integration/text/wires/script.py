"""Determines the mock model's answer to a request, independent of the API format."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any

# It uses only keywords that every provider accepts: Claude refuses bounds such as `minimum`.
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "pattern": "^[A-Z][a-z]+$"}},
    "required": ["city"],
    "additionalProperties": False,
}
# One transparent pixel.
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
SEEN = hashlib.sha256(PICTURE).hexdigest()[:8]
THOUGHT = "Let me think. "
# The token count of every prompt, and how many of these tokens are reported as cached.
PROMPT, CACHED = 100, 60


@dataclass(frozen=True, kw_only=True)
class WireRequest:
    """A request, independent of the API format."""

    system: str
    turn_count: int
    text: str
    tools: tuple[str, ...]
    forces_tool: bool
    allows_single_tool_call: bool
    tool_results: tuple[str, ...]
    images: tuple[bytes, ...]
    has_schema: bool
    wants_json: bool
    stop: tuple[str, ...]
    thinking: bool
    seed: int | None


@dataclass(frozen=True, kw_only=True)
class WireAnswer:
    """The mock model's answer, independent of the API format.

    Attributes:
        calls: name and arguments of each tool call.
        stopped_by: the stop string at which the text was cut off; None if none occurred.
    """

    text: str
    calls: tuple[tuple[str, dict[str, Any]], ...]
    thinking: str
    stopped_by: str | None

    @property
    def words(self) -> list[str]:
        *words, last_word = self.text.split(" ")
        return [*(f"{word} " for word in words), last_word]

    @property
    def token_count(self) -> int:
        return len(self.text.split()) + len(self.calls) + len(self.thinking.split())


def choose_answer(request: WireRequest) -> WireAnswer:
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    if request.tool_results:
        text = " and ".join(request.tool_results)
    elif request.tools and (request.forces_tool or "weather" in request.text):
        is_multiple = "both" in request.text and not request.allows_single_tool_call
        cities = ("Paris", "Rome") if is_multiple else ("Paris",)
        text, calls = "", tuple((request.tools[0], {"city": city}) for city in cities)
    elif request.images:
        text = " ".join(hashlib.sha256(image).hexdigest()[:8] for image in request.images)
    elif request.has_schema:
        text = '{"city": "Paris"}'
    elif request.wants_json:
        text = '{"any": "shape"}'
    elif request.seed is not None:
        text = f"seed {request.seed}"
    else:
        text = f"{request.system} After {request.turn_count} turns STOP: hello"
    stop_text = next((stop for stop in request.stop if stop in text), None)
    if stop_text is not None:
        text = text.partition(stop_text)[0]
    thinking = THOUGHT if request.thinking else ""
    return WireAnswer(text=text, calls=calls, thinking=thinking, stopped_by=stop_text)
