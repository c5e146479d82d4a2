"""What the clients of the matrix ask for and hear, whatever their protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

HISTORY = (("user", "One?"), ("assistant", "One."))
SYSTEM = "Be brief."


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a client asks for.

    Attributes:
        tools: offers one tool; ``forced`` to be called; ``single``: one call at a time.
        picture: ``bytes``, or a URL.
        json: any JSON; ``schema``: JSON of a schema.
    """

    text: str = "hi"
    history: bool = False
    tools: bool = False
    forced: bool = False
    single: bool = False
    picture: bytes | str | None = None
    schema: bool = False
    json: bool = False
    stop: str | None = None
    thinking: bool = False
    seed: int | None = None
    results: tuple[str, ...] = ()
    heard: Heard | None = None


@dataclass(kw_only=True)
class Heard:
    """An answer. ``said`` is what the client sends back to go on."""

    text: str = ""
    thinking: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    reason: str | None = None
    prompt: int = 0
    cached: int | None = None
    output: int = 0
    said: Any = None


class Refused(Exception):
    """The gateway said no, naming ``field``."""

    def __init__(self, status: int, code: str, field: str | None) -> None:
        super().__init__(f"{status} {code} {field}")
        self.status = status
        self.code = code
        self.field = field


class Client(Protocol):
    async def ask(self, model: str, wish: Wish, *, stream: bool) -> Heard | None:
        """None: the protocol has no word for the wish. Raises Refused."""
