"""Slows down password guessing without locking accounts.

Attempts are counted before they are verified. Beyond a number per hour they wait and are admitted
at a fixed rate, which limits the number of guesses and still lets the account's owner sign in. The
newest and the oldest waiting attempt are admitted alternately, so that an earlier burst does not
delay a new attempt for long, and a lasting flood does not starve an old one.
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

_log = logging.getLogger(__name__)
_HOUR_SECONDS = 3600
# Maximum number of waiting attempts in this process; one more makes the oldest fail.
_MAX_WAITING = 1_000
_REMEMBERED_SECONDS = 30 * 86_400
# Counts an attempt and returns the milliseconds until the next may be admitted, or 0 if this one is.
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
    """Configures how fast attempts are admitted.

    Attributes:
        burst_per_hour: the number of attempts per hour that do not wait.
        interval_seconds: the interval at which one further attempt is admitted; the others wait.
    """

    burst_per_hour: int
    interval_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptRates:
    """Holds the rates of sign-in attempts; docs/accounts.md derives the guesses per hour.

    Attributes:
        device: the rate of attempts from a device that has signed in to the account before.
        pair: the rate of attempts at one account from one IP address.
        address: the rate of attempts at all accounts from one IP address.
        account: the rate of attempts at one account from all unknown devices and addresses.
        timeout_seconds: the longest time that an attempt waits.
    """

    device: AttemptRate = AttemptRate(10, 10.0)
    pair: AttemptRate = AttemptRate(10, 10.0)
    address: AttemptRate = AttemptRate(100, 0.5)
    account: AttemptRate = AttemptRate(100, 0.5)
    timeout_seconds: float = 20.0


@dataclass(frozen=True, slots=True)
class ThrottleKey:
    """Identifies a counter of attempts and its rate; Valkey stores only a digest of the name."""

    name: str
    rate: AttemptRate


class _WaitQueue:
    """Holds the attempts of this process that wait for one `ThrottleKey`."""

    def __init__(self) -> None:
        self.waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self.dispatcher: asyncio.Task[None] | None = None


class Throttle:
    """Counts attempts, such as sign-ins, and events, such as registrations, for all replicas.

    Valkey stores the counts. The methods that count raise `TooManyAttempts`, with the seconds to
    wait, if a limit is exceeded.

    Args:
        fail_open: If Valkey is unavailable, True admits attempts without counting them, and False
            lets the methods raise `ServiceUnavailable`.
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
        """Count an attempt under each key, one after the other, and return when it is admitted.

        Under a key whose rate is exceeded, the attempt waits until that rate admits it.
        """
        try:
            async with asyncio.timeout(self.rates.timeout_seconds):
                # The keys are checked one after the other, so that an attempt that one key rejects
                # is not counted by the next.
                for key in keys:
                    await self._acquire_key(key)
        except TimeoutError:
            raise _new_too_many_attempts_error(
                max(key.rate.interval_seconds for key in keys)
            ) from None
        except RedisError as error:
            self._raise_if_fail_closed(error)

    async def count_event(self, name: str, max_count: int, *, period_seconds: int = 900) -> None:
        """Count an event such as a registration.

        Args:
            name: identifies the counter, such as a kind of event and the address that caused it.
            max_count: the number of events that are allowed within ``period_seconds``.

        Raises:
            TooManyAttempts: ``max_count`` is exceeded.
        """
        key = _build_valkey_key("limit", name)
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.incr(key)
                pipeline.expire(key, period_seconds, nx=True)
                pipeline.ttl(key)
                count, _, remaining_s = await pipeline.execute()
        except RedisError as error:
            self._raise_if_fail_closed(error)
            return
        if count > max_count:
            raise _new_too_many_attempts_error(max(remaining_s, 1))

    async def subtract_attempt(self, *keys: ThrottleKey) -> None:
        """Subtract a successful attempt from the counters of the keys."""
        await self._decrement_counters([_build_valkey_key("count", key.name) for key in keys])

    async def subtract_event(self, name: str) -> None:
        """Decrement a counter of `count_event`, because one of its events was successful.

        Args:
            name: the name with which the event was counted.
        """
        await self._decrement_counters([_build_valkey_key("limit", name)])

    async def record_known_address(self, name: str) -> None:
        """Record for 30 days that an account has signed in from an IP address.

        Args:
            name: the account's email and the address, joined to one string.
        """
        try:
            await self._redis.set(_build_valkey_key("known", name), "1", ex=_REMEMBERED_SECONDS)
        except RedisError as error:
            _log.warning(
                "could not record the address of a sign-in in Valkey: %s", type(error).__name__
            )

    async def is_known_address(self, name: str) -> bool:
        """Return True if an account has signed in from an IP address in the last 30 days.

        The result is False if Valkey is unavailable.

        Args:
            name: the account's email and the address, joined as for `record_known_address`.
        """
        try:
            return bool(await self._redis.exists(_build_valkey_key("known", name)))
        except RedisError:
            return False

    async def close(self) -> None:
        dispatchers = [q.dispatcher for q in self._queues.values() if q.dispatcher is not None]
        for dispatcher in dispatchers:
            dispatcher.cancel()
        await asyncio.gather(*dispatchers, return_exceptions=True)
        await self._redis.aclose()

    async def _acquire_key(self, key: ThrottleKey) -> None:
        rate, slot_key = key.rate, _build_valkey_key("turn", key.name)
        arguments = [_HOUR_SECONDS, rate.burst_per_hour, int(rate.interval_seconds * 1000)]
        if (
            await self._count(keys=[_build_valkey_key("count", key.name), slot_key], args=arguments)
            == 0
        ):
            return
        if len(self._waiting) >= _MAX_WAITING:
            oldest_attempt = next(iter(self._waiting))
            if not oldest_attempt.done():
                oldest_attempt.set_exception(_new_too_many_attempts_error(rate.interval_seconds))
        queue = self._queues.setdefault(slot_key, _WaitQueue())
        admission_future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.waiting[admission_future] = None
        self._waiting[admission_future] = None
        if queue.dispatcher is None:
            queue.dispatcher = asyncio.create_task(
                self._admit_waiting_attempts(slot_key, queue, rate)
            )
        try:
            await admission_future
        finally:
            queue.waiting.pop(admission_future, None)
            self._waiting.pop(admission_future, None)

    async def _admit_waiting_attempts(
        self, slot_key: str, queue: _WaitQueue, rate: AttemptRate
    ) -> None:
        """Admit the waiting attempts of one key at its rate, until none waits.

        Args:
            slot_key: a Valkey key that expires when the next attempt may be admitted.
        """
        takes_newest = True
        try:
            while queue.waiting:
                wait_ms = await self._next_slot(
                    keys=[slot_key], args=[int(rate.interval_seconds * 1000)]
                )
                if wait_ms:
                    await asyncio.sleep(wait_ms / 1000)
                    continue
                waiting_attempts = [attempt for attempt in queue.waiting if not attempt.done()]
                if waiting_attempts:
                    next_attempt = waiting_attempts[-1] if takes_newest else waiting_attempts[0]
                    takes_newest = not takes_newest
                    next_attempt.set_result(None)
                    queue.waiting.pop(next_attempt, None)
        except RedisError as error:
            for attempt in queue.waiting:
                if not attempt.done():
                    attempt.set_exception(error)
        finally:
            self._queues.pop(slot_key, None)

    async def _decrement_counters(self, keys: list[str]) -> None:
        try:
            for key in keys:
                await self._uncount(keys=[key])
        except RedisError as error:
            _log.warning(
                "could not subtract successful attempts from the counters in Valkey: %s",
                type(error).__name__,
            )

    def _raise_if_fail_closed(self, error: RedisError) -> None:
        _log.warning("could not count attempts in Valkey: %s", type(error).__name__)
        if not self._fail_open:
            raise ServiceUnavailable(
                "sign-in, registration and password changes are not possible at the moment, because their "
                "limits cannot be checked; try again",
                retry_after=1,
            ) from error


def _new_too_many_attempts_error(seconds: float) -> TooManyAttempts:
    return TooManyAttempts(
        f"too many attempts; try again in {seconds:g} seconds", retry_after=seconds
    )


def _build_valkey_key(kind: str, name: str) -> str:
    """Return the Valkey key of an entry; ``name`` is hashed, so that Valkey stores no emails.

    The digest is also the hash tag, so that a Valkey cluster keeps all keys of a name on one node.

    Args:
        kind: the kind of entry: ``count``, ``limit``, ``turn`` or ``known``.
        name: identifies the entry among those of its kind, such as an account's email.
    """
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    return f"moyin:attempts:{{{digest}}}:{kind}"
