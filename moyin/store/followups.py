"""Answers that clients may come back to, in Valkey, so that every replica notices it.

Names are keyed hashes of a conversation, values tell which request it was. No text is kept, and nothing
longer than some minutes. Like a cache it is never worth waiting for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from moyin.store.valkey import ValkeyConnection

__all__ = ["FollowUpStore"]

_log = logging.getLogger(__name__)
_PREFIX = b"moyin:followups:"
_TIMEOUT_SECONDS = 0.5
_PAUSE_SECONDS = 5.0

# Each is one command with one argument, in which texts follow each other, each after its length in
# two bytes. The client takes some ten microseconds for each argument and value of its own, and nearly
# all that is looked up is not there: so the server says only what it has, by its place.
_EACH = """
local packed, at, place = ARGV[1], 1, 0
local function text()
  local high, low = string.byte(packed, at, at + 1)
  local first = at + 2
  at = first + high * 256 + low
  return string.sub(packed, first, at - 1)
end
"""
_FIND = (
    _EACH
    + """
local found = {}
while at <= #packed do
  local value = redis.call(ARGV[3], ARGV[2] .. text())
  if value then
    found[#found + 1] = place
    found[#found + 1] = value
  end
  place = place + 1
end
return found
"""
)
_PUT = (
    _EACH
    + """
while at <= #packed do
  local name = ARGV[2] .. text()
  redis.call('SET', name, text(), 'EX', ARGV[3])
end
"""
)


class FollowUpStore:
    """Values by name, of which each can be taken once."""

    def __init__(self, url: str) -> None:
        # Any: the client's types speak of texts, which it gives only when it decodes.
        self._redis: Any = redis.Redis.from_url(
            url,
            connection_class=ValkeyConnection,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            socket_timeout=_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._find = self._redis.register_script(_FIND)
        self._put = self._redis.register_script(_PUT)
        self._rests_until = 0.0

    @property
    def away(self) -> bool:
        """Whether Valkey did not answer a moment ago."""
        return time.monotonic() < self._rests_until

    async def get(self, names: Sequence[bytes]) -> list[bytes | None] | None:
        """Return the values of ``names``, in one round trip; None: Valkey is away."""
        return await self._found("GET", names)

    async def take(self, names: Sequence[bytes]) -> list[bytes | None] | None:
        """Return the values of ``names`` and delete them: of several that take one, one gets it."""
        return await self._found("GETDEL", names)

    async def put(self, values: Mapping[bytes, bytes], seconds: int) -> None:
        """Keep ``values`` by name for so many seconds."""
        packed = _packed(text for pair in values.items() for text in pair)
        try:
            await self._put(args=[packed, _PREFIX, seconds])
        except (RedisError, OSError) as error:
            self._rest(error)

    async def _found(self, command: str, names: Sequence[bytes]) -> list[bytes | None] | None:
        try:
            found = await self._find(args=[_packed(names), _PREFIX, command])
        except (RedisError, OSError) as error:
            self._rest(error)
            return None
        values: list[bytes | None] = [None] * len(names)
        for place, value in zip(found[::2], found[1::2], strict=True):
            values[place] = value
        return values

    async def close(self) -> None:
        await self._redis.aclose()

    def _rest(self, error: Exception) -> None:
        self._rests_until = time.monotonic() + _PAUSE_SECONDS
        _log.warning("follow-ups of other replicas are not noticed: %s", error)


def _packed(texts: Iterable[bytes]) -> bytes:
    return b"".join([part for text in texts for part in (len(text).to_bytes(2, "big"), text)])
