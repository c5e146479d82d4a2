"""Hashes passwords with Argon2id, and refuses those that are easy to guess."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from zxcvbn import zxcvbn

from moyin.errors import Overloaded, WeakPassword

__all__ = ["Passwords", "check_strength"]

T = TypeVar("T")
# Each hash takes 64 MiB and about 50 ms of a core, so a flood of sign-ins must not run all at once.
_CONCURRENCY = 2
_QUEUE_SIZE = 64
# Trusted attempts, from a device or address that signed in before, have a queue of their own, so
# that a flood of untrusted ones does not delay them.
_TRUSTED_CONCURRENCY = 1
_TRUSTED_QUEUE_SIZE = 32
# Concurrent attempts at one account, so that attempts at one do not fill the queue.
_PER_ACCOUNT = 8
# The number of guesses that a password must withstand. An account can be guessed at most 7,300
# times an hour online (docs/accounts.md), so this many take a year and a half.
_MIN_GUESSES = 10**8
# The estimate takes longer for longer passwords, and a password this long is strong enough.
_MAX_ESTIMATED_LENGTH = 72
_WORD = re.compile(r"[^\W_]{3,}")
# The number of characters that a password must have apart from the account's own words.
_MIN_OTHER_CHARACTERS = 6


class Passwords:
    """Hashes and verifies passwords in threads.

    Only a few run at a time, so that a flood of sign-ins cannot use up the machine's cores or memory.
    """

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._untrusted = _WorkQueue(_CONCURRENCY, _QUEUE_SIZE)
        self._trusted = _WorkQueue(_TRUSTED_CONCURRENCY, _TRUSTED_QUEUE_SIZE)
        # Verified against for accounts without a password, so that the response takes as long.
        self._dummy_hash = self._hasher.hash("nobody's")

    async def hash(self, password: str, *, trusted: bool = False) -> str:
        """Return the hash of a password.

        Args:
            trusted: whether the caller has proven its identity.

        Raises:
            Overloaded: the queue is full.
        """
        return await self._queue(trusted).run(self._hasher.hash, password)

    async def check(
        self, password: str, *, email: str | None, name: str, field: str, trusted: bool = False
    ) -> None:
        """Refuse a weak password; see `check_strength`.

        Args:
            trusted: whether the caller has proven its identity.

        Raises:
            WeakPassword: the password is easy to guess.
            Overloaded: the queue is full.
        """
        await self._queue(trusted).run(
            partial(check_strength, password, email=email, name=name, field=field)
        )

    async def verify(
        self, password_hash: str | None, password: str, *, account: str = "", trusted: bool = False
    ) -> bool:
        """Return whether the hash is that of ``password``; for None, return False after as long.

        Args:
            account: the account, of which only a few attempts are verified at a time.
            trusted: whether the attempt comes from a device or address that the account used before.

        Raises:
            Overloaded: the queue is full.
        """
        queue = self._queue(trusted)
        with queue.limit_account(account):
            matches = await queue.run(self._verify, password_hash or self._dummy_hash, password)
        return matches and password_hash is not None

    def _queue(self, trusted: bool) -> _WorkQueue:
        return self._trusted if trusted else self._untrusted

    def needs_rehash(self, password_hash: str) -> bool:
        """Return whether the hash was made with weaker parameters than the present ones."""
        return self._hasher.check_needs_rehash(password_hash)

    def _verify(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False


class _WorkQueue:
    """Runs blocking work in threads, a few at a time, and refuses it when too much waits."""

    def __init__(self, concurrency: int, queue_size: int) -> None:
        self._slots = asyncio.Semaphore(concurrency)
        self._capacity = concurrency + queue_size
        self._admitted = 0
        self._accounts: Counter[str] = Counter()

    @contextmanager
    def limit_account(self, account: str) -> Iterator[None]:
        """Count the block against the account's concurrency; an empty ``account`` has no limit.

        Raises:
            Overloaded: the account has reached its limit.
        """
        if not account:
            yield
            return
        if self._accounts[account] >= _PER_ACCOUNT:
            raise _overloaded()
        self._accounts[account] += 1
        try:
            yield
        finally:
            self._accounts[account] -= 1
            if not self._accounts[account]:
                del self._accounts[account]

    async def run(self, work: Callable[..., T], *arguments: str) -> T:
        """Run ``work`` in a thread when a slot is free.

        Raises:
            Overloaded: the queue is full.
        """
        if self._admitted >= self._capacity:
            raise _overloaded()
        self._admitted += 1
        try:
            async with self._slots:
                return await _run_in_thread(work, *arguments)
        finally:
            self._admitted -= 1


def _overloaded() -> Overloaded:
    return Overloaded("too many sign-ins at the moment; try again later", retry_after=2)


async def _run_in_thread(work: Callable[..., T], *arguments: str) -> T:
    """Run ``work`` in a thread and delay a cancellation until it ends.

    A thread cannot be stopped. If a cancelled caller freed its slot at once, clients that
    disconnect early could start any number of threads.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        # Marks the exception as retrieved, since no caller is left to receive it.
        running.exception()
        raise cancelled
    return running.result()


def check_strength(password: str, *, email: str | None, name: str, field: str) -> None:
    """Refuse a password that is easy to guess. Takes some milliseconds.

    Raises:
        WeakPassword: the password is in a list of known passwords, follows a pattern, or resembles
            the email or the name; names ``field``.
    """
    words = [word.casefold() for word in _WORD.findall(f"{email or ''} {name}")]
    estimate = zxcvbn(
        password[:_MAX_ESTIMATED_LENGTH], user_inputs=[*words, *([email] if email else [])]
    )
    if _consists_of(words, password):
        reason = "it resembles the email or the name."
    elif estimate["guesses"] < _MIN_GUESSES:
        reason = estimate["feedback"]["warning"] or "it follows a common pattern."
    else:
        return
    raise WeakPassword(
        f"{field} is too easy to guess: {reason} Use several unrelated words.", field=field
    )


def _consists_of(words: list[str], password: str) -> bool:
    """Return whether the password is made of the account's own words and little else."""
    rest = password.casefold()
    for word in sorted(words, key=len, reverse=True):
        rest = rest.replace(word, "")
    return rest != password.casefold() and len(rest) < _MIN_OTHER_CHARACTERS
