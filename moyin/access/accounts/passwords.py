"""Hashes and verifies passwords with Argon2id, and rejects passwords that are easy to guess."""

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

T = TypeVar("T")
# Each hash takes 64 MiB and about 50 ms of a core, so few may be computed at the same time.
_CONCURRENCY = 2
_QUEUE_SIZE = 64
# Attempts from known devices and addresses have their own queue, which a flood does not delay.
_TRUSTED_CONCURRENCY = 1
_TRUSTED_QUEUE_SIZE = 32
# Maximum number of concurrent attempts at one account, so that they do not fill the queue.
_PER_ACCOUNT = 8
# The number of guesses that a password must withstand. The throttle admits at most 7,300 guesses an
# hour at an account (docs/accounts.md), so they take a year and a half.
_MIN_GUESSES = 10**8
# Number of characters whose strength is estimated: the time grows with the length, and a longer
# password is strong enough.
_MAX_ESTIMATED_LENGTH = 72
_WORD = re.compile(r"[^\W_]{3,}")
# Minimum number of characters besides words of the email and the name.
_MIN_OTHER_CHARACTERS = 6


class PasswordService:
    """Hashes and verifies passwords in threads.

    Only a few threads run at a time, so that a flood of sign-ins cannot exhaust cores or memory.
    Methods raise `Overloaded` if too many calls wait. Calls with ``is_trusted``, for authenticated
    users and known devices, have a separate queue.
    """

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._untrusted = _WorkQueue(_CONCURRENCY, _QUEUE_SIZE)
        self._trusted = _WorkQueue(_TRUSTED_CONCURRENCY, _TRUSTED_QUEUE_SIZE)
        # Verified for accounts without a password, so that the response takes the same time.
        self._dummy_hash = self._hasher.hash("nobody's")

    async def hash(self, password: str, *, is_trusted: bool = False) -> str:
        """Return the Argon2id hash of a password.

        Args:
            is_trusted: True to use the separate queue for authenticated users and known devices.
        """
        return await self._select_queue(is_trusted).run(self._hasher.hash, password)

    async def require_strong(
        self, password: str, *, email: str | None, name: str, field: str, is_trusted: bool = False
    ) -> None:
        """Run `require_strong_password`, which raises `WeakPassword`, in a thread.

        Args:
            field: the name of the request's field with the password, for the error.
            is_trusted: True to use the separate queue for authenticated users.
        """
        await self._select_queue(is_trusted).run(
            partial(require_strong_password, password, email=email, name=name, field=field)
        )

    async def verify(
        self,
        password_hash: str | None,
        password: str,
        *,
        account: str = "",
        is_trusted: bool = False,
    ) -> bool:
        """Return True if ``password_hash`` is the hash of ``password``.

        If ``password_hash`` is None, return False only after the time that a verification takes, so
        that the duration does not reveal whether an account exists. The number of concurrent
        attempts at an ``account`` is limited unless ``account`` is empty.

        Args:
            is_trusted: True to use the separate queue for authenticated users and known devices.
        """
        queue = self._select_queue(is_trusted)
        with queue.limit_account(account):
            is_correct = await queue.run(self._verify, password_hash or self._dummy_hash, password)
        return is_correct and password_hash is not None

    def _select_queue(self, is_trusted: bool) -> _WorkQueue:
        return self._trusted if is_trusted else self._untrusted

    def needs_rehash(self, password_hash: str) -> bool:
        """Return True if the hash was computed with outdated Argon2id parameters."""
        return self._hasher.check_needs_rehash(password_hash)

    def _verify(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False


class _WorkQueue:
    """Runs functions in a limited number of threads, and raises `Overloaded` if too many wait."""

    def __init__(self, concurrency: int, queue_size: int) -> None:
        self._slots = asyncio.Semaphore(concurrency)
        self._capacity = concurrency + queue_size
        self._admitted_count = 0
        self._accounts: Counter[str] = Counter()

    @contextmanager
    def limit_account(self, account: str) -> Iterator[None]:
        """Count a ``with`` block as a running verification of a password of ``account``.

        Raise `Overloaded` if too many such blocks are running for the account. An empty ``account``
        has no limit.
        """
        if not account:
            yield
            return
        if self._accounts[account] >= _PER_ACCOUNT:
            raise _new_overloaded_error()
        self._accounts[account] += 1
        try:
            yield
        finally:
            self._accounts[account] -= 1
            if not self._accounts[account]:
                del self._accounts[account]

    async def run(self, work: Callable[..., T], *arguments: str) -> T:
        """Run ``work`` in a thread if the queue is not full; otherwise raise `Overloaded`."""
        if self._admitted_count >= self._capacity:
            raise _new_overloaded_error()
        self._admitted_count += 1
        try:
            async with self._slots:
                return await _run_in_thread(work, *arguments)
        finally:
            self._admitted_count -= 1


def _new_overloaded_error() -> Overloaded:
    return Overloaded(
        "too many passwords are being verified; try again in 2 seconds", retry_after=2
    )


async def _run_in_thread(work: Callable[..., T], *arguments: str) -> T:
    """Run ``work`` in a thread; if the caller is cancelled, wait for the thread to end first.

    A thread cannot be stopped. If a cancellation ended this call at once, clients that disconnect
    early could start any number of threads.
    """
    thread_task = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    cancellation: asyncio.CancelledError | None = None
    while not thread_task.done():
        try:
            await asyncio.wait([thread_task])
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is not None:
        # Marks the exception as retrieved, since no caller is left to receive it.
        thread_task.exception()
        raise cancellation
    return thread_task.result()


def require_strong_password(password: str, *, email: str | None, name: str, field: str) -> None:
    """Raise `WeakPassword` if a password is easy to guess; the estimate takes milliseconds.

    A password is weak if it is well known, follows a pattern, or resembles the email or the name.

    Args:
        field: the name of the request's field with the password, for the error.
    """
    words = [word.casefold() for word in _WORD.findall(f"{email or ''} {name}")]
    estimate = zxcvbn(
        password[:_MAX_ESTIMATED_LENGTH], user_inputs=[*words, *([email] if email else [])]
    )
    if _consists_mostly_of(words, password):
        reason = "it resembles the email or the name."
    elif estimate["guesses"] < _MIN_GUESSES:
        reason = estimate["feedback"]["warning"] or "it follows a common pattern."
    else:
        return
    raise WeakPassword(
        f"{field} is too easy to guess: {reason} Use several unrelated words.", field=field
    )


def _consists_mostly_of(words: list[str], password: str) -> bool:
    """Return True if the password contains ``words`` and few other characters."""
    other_characters = password.casefold()
    for word in sorted(words, key=len, reverse=True):
        other_characters = other_characters.replace(word, "")
    return other_characters != password.casefold() and len(other_characters) < _MIN_OTHER_CHARACTERS
