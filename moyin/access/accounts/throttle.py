"""Slows down password guessing without locking accounts.

Attempts are counted before they are verified. Beyond a number per hour they are verified one at a
time at a fixed rate, which bounds the number of guesses; the account's owner waits and gets in. The
newest and the oldest waiting attempt are admitted alternately: an earlier burst does not delay a new
attempt for long, and a lasting flood does not starve an old one.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from dataclasses import dataclass

import redis.asyncio as redis
from redis.exceptions import RedisError

from moyin.errors import ServiceUnavailable, TooManyAttempts
from moyin.store.valkey import connect

__all__ = ["AttemptRate", "AttemptRates", "Throttle", "ThrottleKey"]

_log = logging.getLogger(__name__)
_HOUR_SECONDS = 3600
# Attempts that wait in this process; beyond that, the one that has waited longest is refused.
_MAX_WAITING = 1_000
_REMEMBERED_SECONDS = 30 * 86_400
# Counts an attempt; returns the milliseconds to wait for the next slot, 0 if it is admitted.
_COUNT = """
local count = redis.call('INCR', KEYS[1])
if redis.call('TTL', KEYS[1]) < 0 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
if count <= tonumber(ARGV[2]) then return 0 end
if redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[3]) then return 0 end
return math.max(redis.call('PTTL', KEYS[2]), 1)
"""
_NEXT_SLOT = """
if redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[1]) then return 0 end
return math.max(redis.call('PTTL', KEYS[1]), 1)
"""
_UNCOUNT = """
if tonumber(redis.call('GET', KEYS[1]) or 0) > 0 then redis.call('DECR', KEYS[1]) end
"""


@dataclass(frozen=True, slots=True)
class AttemptRate:
    """Admits ``free`` attempts per hour at once, and further ones every ``every`` seconds."""

    free: int
    every: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptRates:
    """Holds the rates of sign-in attempts. docs/accounts.md has the guesses per hour.

    Attributes:
        device: attempts from one device that has signed in to the account before.
        pair: attempts at one account from one address.
        address: attempts at all accounts from one address.
        account: attempts at one account from all unknown devices and addresses.
        timeout: the seconds that an attempt waits at most.
    """

    device: AttemptRate = AttemptRate(10, 10.0)
    pair: AttemptRate = AttemptRate(10, 10.0)
    address: AttemptRate = AttemptRate(100, 0.5)
    account: AttemptRate = AttemptRate(100, 0.5)
    timeout: float = 20.0


@dataclass(frozen=True, slots=True)
class ThrottleKey:
    """Names a count of attempts and its rate. Valkey stores a digest of ``name``, of any length."""

    name: str
    rate: AttemptRate


class _WaitQueue:
    """Holds the attempts of this process that wait for slots of one key."""

    def __init__(self) -> None:
        self.waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self.dispatcher: asyncio.Task[None] | None = None


class Throttle:
    """Counts attempts in Valkey, for all replicas together.

    Args:
        fail_open: whether attempts are admitted uncounted while Valkey is unavailable.
    """

    def __init__(
        self, redis_url: str, *, fail_open: bool = True, rates: AttemptRates | None = None
    ) -> None:
        self._redis: redis.Redis = connect(redis_url)
        self._count = self._redis.register_script(_COUNT)
        self._next_slot = self._redis.register_script(_NEXT_SLOT)
        self._uncount = self._redis.register_script(_UNCOUNT)
        self._fail_open = fail_open
        self.rates = rates or AttemptRates()
        self._queues: dict[str, _WaitQueue] = {}
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    async def acquire(self, *keys: ThrottleKey) -> None:
        """Count an attempt against each key in order, and wait where the key's rate is exceeded.

        Raises:
            TooManyAttempts: no slot was free in time; with the seconds to wait.
            ServiceUnavailable: Valkey is unavailable and ``fail_open`` is false.
        """
        try:
            async with asyncio.timeout(self.rates.timeout):
                # An attempt that one key refuses is not counted against the next.
                for key in keys:
                    await self._acquire_one(key)
        except TimeoutError:
            raise _too_many(max(key.rate.every for key in keys)) from None
        except RedisError as error:
            self._fail(error)

    async def limit(self, name: str, maximum: int, *, seconds: int = 900) -> None:
        """Count one event and refuse it beyond ``maximum`` in ``seconds``.

        Raises:
            TooManyAttempts, ServiceUnavailable: see `acquire`.
        """
        key = _valkey_key("limit", name)
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.incr(key)
                pipeline.expire(key, seconds, nx=True)
                pipeline.ttl(key)
                count, _, remaining_s = await pipeline.execute()
        except RedisError as error:
            self._fail(error)
            return
        if count > maximum:
            raise _too_many(max(remaining_s, 1))

    async def uncount(self, *keys: ThrottleKey) -> None:
        """Subtract a successful attempt from the counts of the keys."""
        await self._run_uncount([_valkey_key("count", key.name) for key in keys])

    async def uncount_limit(self, name: str) -> None:
        """Subtract a successful event that `limit` counted."""
        await self._run_uncount([_valkey_key("limit", name)])

    async def remember(self, name: str) -> None:
        """Record that ``name``, an account at an address, has signed in."""
        try:
            await self._redis.set(_valkey_key("known", name), "1", ex=_REMEMBERED_SECONDS)
        except RedisError as error:
            _log.warning("could not record the address of a sign-in: %s", type(error).__name__)

    async def is_remembered(self, name: str) -> bool:
        """Return whether `remember` recorded ``name`` in the last thirty days."""
        try:
            return bool(await self._redis.exists(_valkey_key("known", name)))
        except RedisError:
            return False

    async def close(self) -> None:
        dispatchers = [q.dispatcher for q in self._queues.values() if q.dispatcher is not None]
        for dispatcher in dispatchers:
            dispatcher.cancel()
        await asyncio.gather(*dispatchers, return_exceptions=True)
        await self._redis.aclose()

    async def _acquire_one(self, key: ThrottleKey) -> None:
        rate, slot_key = key.rate, _valkey_key("turn", key.name)
        arguments = [_HOUR_SECONDS, rate.free, int(rate.every * 1000)]
        if await self._count(keys=[_valkey_key("count", key.name), slot_key], args=arguments) == 0:
            return
        if len(self._waiting) >= _MAX_WAITING:
            oldest = next(iter(self._waiting))
            if not oldest.done():
                oldest.set_exception(_too_many(rate.every))
        queue = self._queues.setdefault(slot_key, _WaitQueue())
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.waiting[admitted] = None
        self._waiting[admitted] = None
        if queue.dispatcher is None:
            queue.dispatcher = asyncio.create_task(self._dispatch(slot_key, queue, rate))
        try:
            await admitted
        finally:
            queue.waiting.pop(admitted, None)
            self._waiting.pop(admitted, None)

    async def _dispatch(self, slot_key: str, queue: _WaitQueue, rate: AttemptRate) -> None:
        """Give the slots of one key to its waiting attempts until none waits."""
        take_newest = True
        try:
            while queue.waiting:
                wait_ms = await self._next_slot(keys=[slot_key], args=[int(rate.every * 1000)])
                if wait_ms:
                    await asyncio.sleep(wait_ms / 1000)
                    continue
                waiting = [attempt for attempt in queue.waiting if not attempt.done()]
                if waiting:
                    chosen = waiting[-1] if take_newest else waiting[0]
                    take_newest = not take_newest
                    chosen.set_result(None)
                    queue.waiting.pop(chosen, None)
        except RedisError as error:
            for attempt in queue.waiting:
                if not attempt.done():
                    attempt.set_exception(error)
        finally:
            self._queues.pop(slot_key, None)

    async def _run_uncount(self, keys: list[str]) -> None:
        try:
            for key in keys:
                await self._uncount(keys=[key])
        except RedisError as error:
            _log.warning("could not uncount attempts: %s", type(error).__name__)

    def _fail(self, error: RedisError) -> None:
        _log.warning("could not count attempts: %s", type(error).__name__)
        if not self._fail_open:
            raise ServiceUnavailable(
                "signing in is unavailable at the moment; try again", retry_after=1
            ) from error


def _too_many(seconds: float) -> TooManyAttempts:
    return TooManyAttempts("too many attempts; try again later", retry_after=seconds)


def _valkey_key(kind: str, name: str) -> str:
    """Return the key of a count or a slot in Valkey.

    It contains a digest, so that emails cannot be read there. The digest is also the hash tag, so
    that a cluster keeps the keys of one name on one node.
    """
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    return f"moyin:attempts:{{{digest}}}:{kind}"
