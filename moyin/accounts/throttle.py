"""Slows down who guesses passwords: attempts are counted before they are judged."""

from __future__ import annotations

import hashlib
import logging

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
        if not counted:
            return
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                for name in counted.values():
                    pipeline.incr(name)
                    pipeline.expire(name, _WINDOW_SECONDS, nx=True)
                    pipeline.ttl(name)
                answers = await pipeline.execute()
        except RedisError as error:
            _log.warning("attempts can't be counted: %s", type(error).__name__)
            if self._fail_open:
                return
            raise ServiceUnavailable("nobody can sign in at the moment", retry_after=1) from error
        waits = [
            ttl
            for kind, count, ttl in zip(counted, answers[::3], answers[2::3], strict=True)
            if count > (most if kind == "account" and most is not None else _ALLOWED[kind])
        ]
        if waits:
            raise TooManyAttempts("too many attempts; try again later", retry_after=max(waits))

    async def forgive(self, account: str, address: str) -> None:
        """The attempt was right: it and those before it do not count against the account."""
        counted = _names(account, address)
        name = counted.get("pair", counted.get("account"))
        if name is None:
            return
        try:
            await self._redis.delete(name)
        except RedisError as error:
            _log.warning("attempts can't be forgiven: %s", type(error).__name__)

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
