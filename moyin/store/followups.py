"""Stores references to recent answers in Valkey, so that any replica recognises follow-ups.

A follow-up is a request that continues the conversation of an earlier one. A reference is stored
under a keyed hash of the conversation, and its value identifies the earlier request. No text is
stored, and values expire after minutes. Requests must not wait for this store.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from redis.exceptions import RedisError

from moyin.store.valkey import connect_cache

_log = logging.getLogger(__name__)
_PREFIX = b"moyin:followups:"
_TIMEOUT_SECONDS = 0.5
_PAUSE_SECONDS = 5.0

# All texts are one argument, each prefixed by its length in two bytes, and only existing values are
# returned, each after its position, since redis-py takes ten microseconds per argument and value.
_READ_TEXT = """
local packed, at, place = ARGV[1], 1, 0
local function text()
  local high, low = string.byte(packed, at, at + 1)
  local first = at + 2
  at = first + high * 256 + low
  return string.sub(packed, first, at - 1)
end
"""
_FIND = (
    _READ_TEXT
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
    _READ_TEXT
    + """
while at <= #packed do
  local name = ARGV[2] .. text()
  redis.call('SET', name, text(), 'EX', ARGV[3])
end
"""
)


class FollowUpStore:
    """Stores references to answers until they expire or are popped.

    A reference has the keyed hash of a conversation as its name; its value identifies a request.
    """

    def __init__(self, url: str) -> None:
        # Typed as Any, since redis-py's types assume that responses are decoded.
        self._redis: Any = connect_cache(url, _TIMEOUT_SECONDS)
        self._find = self._redis.register_script(_FIND)
        self._put = self._redis.register_script(_PUT)
        self._unavailable_until = 0.0

    @property
    def is_unavailable(self) -> bool:
        """True if Valkey failed within the last five seconds."""
        return time.monotonic() < self._unavailable_until

    async def get(self, names: Sequence[bytes]) -> list[bytes | None] | None:
        """Return the value of each name, or None for a name without a value.

        If Valkey is unavailable, return None instead of the list.
        """
        return await self._fetch_values("GET", names)

    async def pop(self, names: Sequence[bytes]) -> list[bytes | None] | None:
        """Return values as `get` does and delete them; no two callers get the same value."""
        return await self._fetch_values("GETDEL", names)

    async def put(self, values: Mapping[bytes, bytes], lifetime_seconds: int) -> None:
        """Store values by name, which expire after ``lifetime_seconds``."""
        packed_pairs = _pack_texts(text for pair in values.items() for text in pair)
        try:
            await self._put(args=[packed_pairs, _PREFIX, lifetime_seconds])
        except (RedisError, OSError) as error:
            self._record_outage(error)

    async def _fetch_values(
        self, command: str, names: Sequence[bytes]
    ) -> list[bytes | None] | None:
        try:
            reply = await self._find(args=[_pack_texts(names), _PREFIX, command])
        except (RedisError, OSError) as error:
            self._record_outage(error)
            return None
        values: list[bytes | None] = [None] * len(names)
        for position, value in zip(reply[::2], reply[1::2], strict=True):
            values[position] = value
        return values

    async def close(self) -> None:
        await self._redis.aclose()

    def _record_outage(self, error: Exception) -> None:
        self._unavailable_until = time.monotonic() + _PAUSE_SECONDS
        _log.warning(
            "Valkey is unavailable, so follow-ups to answers of other replicas are not recognised: %s",
            error,
        )


def _pack_texts(texts: Iterable[bytes]) -> bytes:
    return b"".join([part for text in texts for part in (len(text).to_bytes(2, "big"), text)])
