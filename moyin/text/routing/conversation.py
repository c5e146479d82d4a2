"""Computes fingerprints of conversations, with which later requests are matched to answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from moyin.text.protocol.codec import ParsedRequest, Turn
from moyin.text.routing.answer import RoutingContext

# Of a long text, only this many characters at the beginning and at the end are hashed.
_MAX_HASHED_LENGTH = 2_000


@dataclass(eq=False, slots=True)
class Conversation:
    """The user's messages in one request, read and hashed on first use.

    Attributes:
        user_messages: the user's last messages, newest first. It is None if the last message is
            not the user's but, for example, the result of a tool.
    """

    context: RoutingContext
    _request: ParsedRequest | None
    _user_messages: list[str] | None = None
    _fingerprints: tuple[bytes, bytes | None] | None = None

    @property
    def user_messages(self) -> list[str] | None:
        request, self._request = self._request, None
        if request is not None:
            self._user_messages = _read_user_messages(request.select_recent_turns())
        return self._user_messages

    def compute_fingerprints(self, secret: bytes) -> tuple[bytes, bytes | None]:
        """Return the keyed hashes of the conversation with and without its newest message.

        The second hash is None if the conversation has only one message.
        """
        if self._fingerprints is None:
            user_messages = self.user_messages or ()
            previous_fingerprint = (
                _hash_messages(secret, self.context, user_messages[1:])
                if len(user_messages) > 1
                else None
            )
            self._fingerprints = (
                _hash_messages(secret, self.context, user_messages),
                previous_fingerprint,
            )
        return self._fingerprints


def _hash_messages(secret: bytes, context: RoutingContext, user_messages: Sequence[str]) -> bytes:
    """Return the keyed hash of tenant, API key and the user's last two messages."""
    hashed_texts = [
        f"{len(text)}:{text if len(text) <= 2 * _MAX_HASHED_LENGTH else text[:_MAX_HASHED_LENGTH] + text[-_MAX_HASHED_LENGTH:]}"
        for text in (context.owner, context.key_id, *user_messages[:2])
    ]
    data = "".join(hashed_texts).encode(errors="surrogatepass")
    return hashlib.blake2b(data, key=secret, digest_size=16).digest()


def _read_user_messages(turns: Sequence[Turn]) -> list[str] | None:
    """Return the user's messages, newest first; None if the last message is not the user's."""
    if not turns or turns[-1][0] != "user":
        return None
    return [text for role, text in reversed(turns) if role == "user"]
