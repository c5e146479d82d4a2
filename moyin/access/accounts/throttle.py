"""Slows down guessing without shutting anybody out.

Attempts are counted before they are judged. Beyond a number in an hour they are judged one by one, at a
fixed pace, so the number of guesses is bounded; whoever knows the password waits for a turn, and gets
in. The newest and the oldest of those who wait are served in turns: a burst that came before holds
nobody up, and a flood that goes on does not overtake for ever.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import redis.asyncio as redis
from redis.exceptions import RedisError

from moyin.errors import ServiceUnavailable, TooManyAttempts
from moyin.store.events import connect

__all__ = ["AttemptRate", "Gate", "Paces", "Throttle"]

_log = logging.getLogger(__name__)
_HOUR_SECONDS = 3600
# Those who wait for their turn in this process; beyond that, whoever has waited longest is refused.
_WAITING = 1_000
_KNOWN_SECONDS = 30 * 86_400
# Counts an attempt; returns the milliseconds until its turn, 0: now.
_ATTEMPT = """
local count = redis.call('INCR', KEYS[1])
if redis.call('TTL', KEYS[1]) < 0 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
if count <= tonumber(ARGV[2]) then return 0 end
if redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[3]) then return 0 end
return math.max(redis.call('PTTL', KEYS[2]), 1)
"""
_TURN = """
if redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[1]) then return 0 end
return math.max(redis.call('PTTL', KEYS[1]), 1)
"""
_TAKE_BACK = """
if tonumber(redis.call('GET', KEYS[1]) or 0) > 0 then redis.call('DECR', KEYS[1]) end
"""


@dataclass(frozen=True, slots=True)
class AttemptRate:
    """``free`` attempts in an hour are judged at once, the others one in ``every`` seconds."""

    free: int
    every: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Paces:
    """How fast may be guessed. docs/accounts.md has the numbers of guesses an hour.

    Attributes:
        device: by one device that has signed in to the account before.
        pair: at one account from one address.
        address: at all accounts from one address.
        account: at one account by all whom nothing is known of.
        patience: seconds that an attempt waits for its turn.
    """

    device: AttemptRate = AttemptRate(10, 10.0)
    pair: AttemptRate = AttemptRate(10, 10.0)
    address: AttemptRate = AttemptRate(100, 0.5)
    account: AttemptRate = AttemptRate(100, 0.5)
    patience: float = 20.0


@dataclass(frozen=True, slots=True)
class Gate:
    """What an attempt counts against: ``name`` may be of any length, and is kept as a digest."""

    name: str
    pace: AttemptRate


class _Room:
    """Those who wait for the turns of one gate."""

    def __init__(self) -> None:
        self.waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self.driver: asyncio.Task[None] | None = None


class Throttle:
    """Counts in Valkey, for all replicas together.

    Args:
        fail_open: whether people may sign in while Valkey is away.
    """

    def __init__(
        self, redis_url: str, *, fail_open: bool = True, paces: Paces | None = None
    ) -> None:
        self._redis: redis.Redis = connect(redis_url)
        self._attempt = self._redis.register_script(_ATTEMPT)
        self._turn = self._redis.register_script(_TURN)
        self._take_back = self._redis.register_script(_TAKE_BACK)
        self._fail_open = fail_open
        self.paces = paces or Paces()
        self._rooms: dict[str, _Room] = {}
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    async def turn(self, *gates: Gate) -> None:
        """Count an attempt at each gate, and wait for its turn where there were too many.

        Raises:
            TooManyAttempts: its turn did not come in time; with the seconds to wait.
            ServiceUnavailable: Valkey is away, and nobody may pass then.
        """
        try:
            async with asyncio.timeout(self.paces.patience):
                # Whoever does not get through one gate has not been counted at the next.
                for gate in gates:
                    await self._pass(gate)
        except TimeoutError:
            raise _too_many(max(gate.pace.every for gate in gates)) from None
        except RedisError as error:
            self._fail(error)

    async def limit(self, name: str, most: int, *, seconds: int = 900) -> None:
        """Count one of at most ``most`` in ``seconds``.

        Raises:
            TooManyAttempts, ServiceUnavailable: see `turn`.
        """
        key = _key("limit", name)
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.incr(key)
                pipeline.expire(key, seconds, nx=True)
                pipeline.ttl(key)
                count, _, left = await pipeline.execute()
        except RedisError as error:
            self._fail(error)
            return
        if count > most:
            raise _too_many(max(left, 1))

    async def forgive(self, *gates: Gate) -> None:
        """The attempt was right: it counts at no gate."""
        await self._quietly([(self._take_back, _key("count", gate.name)) for gate in gates])

    async def forgive_limit(self, name: str) -> None:
        """What `limit` counted came to a good end: it does not count."""
        await self._quietly([(self._take_back, _key("limit", name))])

    async def remember(self, name: str) -> None:
        """Note that ``name``, an account at an address, has signed in."""
        try:
            await self._redis.set(_key("known", name), "1", ex=_KNOWN_SECONDS)
        except RedisError as error:
            _log.warning("a sign-in can't be remembered: %s", type(error).__name__)

    async def is_known(self, name: str) -> bool:
        """Whether `remember` noted ``name`` in the last thirty days."""
        try:
            return bool(await self._redis.exists(_key("known", name)))
        except RedisError:
            return False

    async def close(self) -> None:
        drivers = [room.driver for room in self._rooms.values() if room.driver is not None]
        for driver in drivers:
            driver.cancel()
        await asyncio.gather(*drivers, return_exceptions=True)
        await self._redis.aclose()

    async def _pass(self, gate: Gate) -> None:
        pace, turns = gate.pace, _key("turn", gate.name)
        arguments = [_HOUR_SECONDS, pace.free, int(pace.every * 1000)]
        if await self._attempt(keys=[_key("count", gate.name), turns], args=arguments) == 0:
            return
        if len(self._waiting) >= _WAITING:
            oldest = next(iter(self._waiting))
            if not oldest.done():
                oldest.set_exception(_too_many(pace.every))
        room = self._rooms.setdefault(turns, _Room())
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        room.waiting[mine] = None
        self._waiting[mine] = None
        if room.driver is None:
            room.driver = asyncio.create_task(self._drive(turns, room, pace))
        try:
            await mine
        finally:
            room.waiting.pop(mine, None)
            self._waiting.pop(mine, None)

    async def _drive(self, turns: str, room: _Room, pace: AttemptRate) -> None:
        """Give the turns of one gate to those who wait here, for as long as somebody does."""
        newest = True
        try:
            while room.waiting:
                wait_ms = await self._turn(keys=[turns], args=[int(pace.every * 1000)])
                if wait_ms:
                    await asyncio.sleep(wait_ms / 1000)
                    continue
                waiting = [one for one in room.waiting if not one.done()]
                if waiting:
                    next_one = waiting[-1] if newest else waiting[0]
                    newest = not newest
                    next_one.set_result(None)
                    room.waiting.pop(next_one, None)
        except RedisError as error:
            for one in room.waiting:
                if not one.done():
                    one.set_exception(error)
        finally:
            self._rooms.pop(turns, None)

    async def _quietly(self, calls: list[tuple[Any, str]]) -> None:
        try:
            for script, key in calls:
                await script(keys=[key])
        except RedisError as error:
            _log.warning("attempts can't be forgiven: %s", type(error).__name__)

    def _fail(self, error: RedisError) -> None:
        _log.warning("attempts can't be counted: %s", type(error).__name__)
        if not self._fail_open:
            raise ServiceUnavailable("nobody can sign in at the moment", retry_after=1) from error


def _too_many(seconds: float) -> TooManyAttempts:
    return TooManyAttempts("too many attempts; try again later", retry_after=seconds)


def _key(kind: str, name: str) -> str:
    """Digests, because an email is nobody's business who reads Valkey. Of one gate the keys lie on one
    node of a cluster."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    return f"moyin:attempts:{{{digest}}}:{kind}"
