"""What the client of a request said, by which its next requests are known."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from moyin.text.protocol.codec import ParsedRequest, Turn
from moyin.text.routing.answer import RoutingContext

__all__ = ["Conversation"]

# Characters at each end of a long text that tell it from others.
_END_LENGTH = 2_000


class Conversation:
    """What a client says in one request, read and hashed once.

    Attributes:
        user_messages: the user's last messages, newest first; None where something else came last, such as
            the result of a tool.
    """

    __slots__ = ("_fingerprints", "_request", "_user_messages", "context")

    def __init__(self, context: RoutingContext, request: ParsedRequest) -> None:
        self.context = context
        self._request: ParsedRequest | None = request
        self._user_messages: list[str] | None = None
        self._fingerprints: tuple[bytes, bytes | None] | None = None

    @property
    def user_messages(self) -> list[str] | None:
        request, self._request = self._request, None
        if request is not None:
            self._user_messages = _user_messages(request.recent_turns())
        return self._user_messages

    def fingerprints(self, secret: bytes) -> tuple[bytes, bytes | None]:
        """Return the names of the conversation up to this request, and up to the message before it;
        None: it is the first."""
        if self._fingerprints is None:
            user_messages = self.user_messages or ()
            before = (
                _fingerprint(secret, self.context, user_messages[1:])
                if len(user_messages) > 1
                else None
            )
            self._fingerprints = _fingerprint(secret, self.context, user_messages), before
        return self._fingerprints


def _fingerprint(secret: bytes, context: RoutingContext, user_messages: Sequence[str]) -> bytes:
    """A name for the last two of the user's messages, the newest first."""
    texts = [
        f"{len(text)}:{text if len(text) <= 2 * _END_LENGTH else text[:_END_LENGTH] + text[-_END_LENGTH:]}"
        for text in (context.owner, context.key_id, *user_messages[:2])
    ]
    data = "".join(texts).encode(errors="surrogatepass")
    return hashlib.blake2b(data, key=secret, digest_size=16).digest()


def _user_messages(turns: Sequence[Turn]) -> list[str] | None:
    """The user's last messages, newest first; None where something else came last, such as the
    result of a tool."""
    if not turns or turns[-1][0] != "user":
        return None
    return [text for role, text in reversed(turns) if role == "user"]
