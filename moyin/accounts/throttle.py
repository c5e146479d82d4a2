"""Slows down who guesses passwords: attempts are counted before they are judged."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence

import redis.asyncio as redis
from redis.exceptions import RedisError

from moyin.errors import ServiceUnavailable, TooManyAttempts
from moyin.store.events import connect

__all__ = ["Throttle"]

_log = logging.getLogger(__name__)
_WINDOW_SECONDS = 900
# For one account from one address; for one account from anywhere; from one address.
_ALLOWED = {"pair": 10, "account": 50, "address": 100}


class Throttle:
    """Counts in Valkey, for all replicas together.

    Args:
        fail_open: whether people may sign in while Valkey is away.
    """

    def __init__(self, redis_url: str, *, fail_open: bool = True) -> None:
        self._redis: redis.Redis = connect(redis_url)
        self._fail_open = fail_open

    async def attempt(self, account: str, address: str, *, most: int | None = None) -> None:
        """Count an attempt on ``account``: an email, or whatever else is guessed.

        Either may be empty: then only the other one counts. ``most``: for the account, instead of
        the usual.

        Raises:
            TooManyAttempts: with the seconds to wait.
            ServiceUnavailable: Valkey is away, and nobody may pass then.
        """
        counted = _names(account, address)
        allowed = _ALLOWED if most is None else {**_ALLOWED, "account": most}
        # What comes from an address that may not try any more is no attempt: or one alone could take
        # all of an account's, and lock its owner out.
        of_account = {kind: counted.pop(kind) for kind in ("account",) if kind in counted}
        try:
            waits = await self._count(counted, allowed) or await self._count(of_account, allowed)
        except RedisError as error:
            _log.warning("attempts can't be counted: %s", type(error).__name__)
            if self._fail_open:
                return
            raise ServiceUnavailable("nobody can sign in at the moment", retry_after=1) from error
        if waits:
            raise TooManyAttempts("too many attempts; try again later", retry_after=max(waits))

    async def forgive(self, account: str, address: str) -> None:
        """The attempt was right: it and those before it do not count against the account, but what
        others tried from elsewhere does. Nor does it count against the address. Either may be
        empty."""
        counted = _names(account, address)
        try:
            if "pair" in counted:
                own = int(await self._redis.getdel(counted["pair"]) or 0)
                await self._take_back(counted["account"], own)
            elif "account" in counted:
                await self._redis.delete(counted["account"])
            if "address" in counted:
                await self._take_back(counted["address"], 1)
        except RedisError as error:
            _log.warning("attempts can't be forgiven: %s", type(error).__name__)

    async def _count(self, names: Mapping[str, str], allowed: Mapping[str, int]) -> Sequence[float]:
        """Count one more of each; the seconds to wait where that is too many."""
        if not names:
            return []
        async with self._redis.pipeline(transaction=True) as pipeline:
            for name in names.values():
                pipeline.incr(name)
                pipeline.expire(name, _WINDOW_SECONDS, nx=True)
                pipeline.ttl(name)
            answers = await pipeline.execute()
        found = zip(names, answers[::3], answers[2::3], strict=True)
        return [ttl for kind, count, ttl in found if count > allowed[kind]]

    async def _take_back(self, name: str, attempts: int) -> None:
        if await self._redis.decrby(name, attempts) <= 0:
            # Also one that ran out just now, which would stay for ever.
            await self._redis.delete(name)

    async def close(self) -> None:
        await self._redis.aclose()


def _names(account: str, address: str) -> dict[str, str]:
    """Names by kind. Digests, because an email is nobody's business who reads Valkey."""
    parts = {"account": account, "address": address}
    if account and address:
        parts["pair"] = f"{account}\0{address}"
    return {
        kind: f"moyin:attempts:{kind}:{hashlib.sha256(text.encode()).hexdigest()[:32]}"
        for kind, text in parts.items()
        if text
    }
