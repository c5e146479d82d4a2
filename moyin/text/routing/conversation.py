"""Identifies the conversation of a request, so that later requests can be matched to it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from moyin.text.protocol.codec import ParsedRequest, Turn
from moyin.text.routing.answer import RoutingContext

__all__ = ["Conversation"]

# Only this many characters at each end of a long text are hashed.
_END_LENGTH = 2_000


class Conversation:
    """Holds the client's messages of one request, read and hashed once.

    Attributes:
        user_messages: the user's last messages, newest first; None if the last message is not the
            user's, such as the result of a tool.
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

    def compute_fingerprints(self, secret: bytes) -> tuple[bytes, bytes | None]:
        """Return the keyed hashes of the conversation with and without its newest message.

        The second one is None for the first message.
        """
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
    """Return the keyed hash of the last two user messages, the newest first."""
    texts = [
        f"{len(text)}:{text if len(text) <= 2 * _END_LENGTH else text[:_END_LENGTH] + text[-_END_LENGTH:]}"
        for text in (context.owner, context.key_id, *user_messages[:2])
    ]
    data = "".join(texts).encode(errors="surrogatepass")
    return hashlib.blake2b(data, key=secret, digest_size=16).digest()


def _user_messages(turns: Sequence[Turn]) -> list[str] | None:
    """Return the user's messages, newest first; None if the last message is not the user's."""
    if not turns or turns[-1][0] != "user":
        return None
    return [text for role, text in reversed(turns) if role == "user"]
