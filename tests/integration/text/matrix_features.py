"""Defines the requests and answers of the matrix's clients, independent of the protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

HISTORY = (("user", "One?"), ("assistant", "One."))
SYSTEM = "Be brief."


@dataclass(frozen=True, kw_only=True)
class RequestedFeatures:
    """The features that a client requests.

    Attributes:
        tools: offer one tool; with `forces_tool`, the model must call it.
        allows_single_tool_call: allow at most one tool call per answer.
        picture: the content of a picture, or its URL.
        wants_json: the answer must be JSON; with `has_schema`, JSON that matches a schema.
    """

    text: str = "hi"
    history: bool = False
    tools: bool = False
    forces_tool: bool = False
    allows_single_tool_call: bool = False
    picture: bytes | str | None = None
    has_schema: bool = False
    wants_json: bool = False
    stop: str | None = None
    thinking: bool = False
    seed: int | None = None
    results: tuple[str, ...] = ()
    previous_answer: ReceivedAnswer | None = None


@dataclass(kw_only=True)
class ReceivedAnswer:
    """An answer; ``message`` is the message that the client must send back in the next turn."""

    text: str = ""
    thinking: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    reason: str | None = None
    prompt: int = 0
    cached: int | None = None
    output: int = 0
    message: Any = None


class Refused(Exception):
    """Raised if the gateway refused a request and named ``field``."""

    def __init__(self, status: int, code: str, field: str | None) -> None:
        super().__init__(f"{status} {code} {field}")
        self.status = status
        self.code = code
        self.field = field


class Client(Protocol):
    async def send_request(
        self, model: str, features: RequestedFeatures, *, stream: bool
    ) -> ReceivedAnswer | None:
        """Send a request and return the answer, or None if the protocol cannot express the request.

        Raises:
            Refused: the gateway refused the request.
        """
