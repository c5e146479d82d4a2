"""Determines the mock model's answer to a request, independent of the API format."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any

# Of keywords that every server takes: Claude refuses bounds.
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
# Tokens of every prompt, and how many of them every cache knows.
PROMPT, CACHED = 100, 60


@dataclass(frozen=True, kw_only=True)
class WireRequest:
    """A request, independent of the API format."""

    system: str
    turns: int
    text: str
    tools: tuple[str, ...]
    forced: bool
    single: bool
    results: tuple[str, ...]
    images: tuple[bytes, ...]
    schema: bool
    json: bool
    stop: tuple[str, ...]
    thinking: bool
    seed: int | None


@dataclass(frozen=True, kw_only=True)
class Said:
    text: str
    calls: tuple[tuple[str, dict[str, Any]], ...]
    thinking: str
    stopped_by: str | None

    @property
    def words(self) -> list[str]:
        *words, last = self.text.split(" ")
        return [*(f"{word} " for word in words), last]

    @property
    def tokens(self) -> int:
        return len(self.text.split()) + len(self.calls) + len(self.thinking.split())


def say(asked: WireRequest) -> Said:
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    if asked.results:
        text = " and ".join(asked.results)
    elif asked.tools and (asked.forced or "weather" in asked.text):
        many = "both" in asked.text and not asked.single
        cities = ("Paris", "Rome") if many else ("Paris",)
        text, calls = "", tuple((asked.tools[0], {"city": city}) for city in cities)
    elif asked.images:
        text = " ".join(hashlib.sha256(image).hexdigest()[:8] for image in asked.images)
    elif asked.schema:
        text = '{"city": "Paris"}'
    elif asked.json:
        text = '{"any": "shape"}'
    elif asked.seed is not None:
        text = f"seed {asked.seed}"
    else:
        text = f"{asked.system} After {asked.turns} turns STOP: hello"
    stopped_by = next((stop for stop in asked.stop if stop in text), None)
    if stopped_by is not None:
        text = text.partition(stopped_by)[0]
    thinking = THOUGHT if asked.thinking else ""
    return Said(text=text, calls=calls, thinking=thinking, stopped_by=stopped_by)
