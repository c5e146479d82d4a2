"""What the client of a request said, by which its next requests are known."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from moyin.text.protocol.codec import ParsedRequest, Turn
from moyin.text.routing.answer import RoutingContext

__all__ = ["Conversation"]

# Characters at each end of a long text that tell it from others.
_ENDS = 2_000


class Conversation:
    """What a client says in one request, read and hashed once.

    Attributes:
        said: the user's last messages, newest first; None where something else came last, such as
            the result of a tool.
    """

    __slots__ = ("_names", "_request", "_said", "context")

    def __init__(self, context: RoutingContext, request: ParsedRequest) -> None:
        self.context = context
        self._request: ParsedRequest | None = request
        self._said: list[str] | None = None
        self._names: tuple[bytes, bytes | None] | None = None

    @property
    def said(self) -> list[str] | None:
        request, self._request = self._request, None
        if request is not None:
            self._said = _said(request.recent_turns())
        return self._said

    def names(self, secret: bytes) -> tuple[bytes, bytes | None]:
        """Return the names of the conversation up to this request, and up to the message before it;
        None: it is the first."""
        if self._names is None:
            said = self.said or ()
            before = _hash(secret, self.context, said[1:]) if len(said) > 1 else None
            self._names = _hash(secret, self.context, said), before
        return self._names


def _hash(secret: bytes, context: RoutingContext, said: Sequence[str]) -> bytes:
    """A name for the last two of the user's messages, the newest first."""
    texts = [
        f"{len(text)}:{text if len(text) <= 2 * _ENDS else text[:_ENDS] + text[-_ENDS:]}"
        for text in (context.owner, context.key_id, *said[:2])
    ]
    data = "".join(texts).encode(errors="surrogatepass")
    return hashlib.blake2b(data, key=secret, digest_size=16).digest()


def _said(turns: Sequence[Turn]) -> list[str] | None:
    """The user's last messages, newest first; None where something else came last, such as the
    result of a tool."""
    if not turns or turns[-1][0] != "user":
        return None
    return [text for role, text in reversed(turns) if role == "user"]
