"""Passwords, hashed with Argon2id."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from moyin.access.accounts.strength import check_strength
from moyin.errors import Overloaded

__all__ = ["Passwords"]

T = TypeVar("T")
# Hashing takes 64 MiB and some 50 ms of a core each: a flood of sign-ins must not take the machine.
_AT_A_TIME = 2
_WAITING = 64
# The same for those who come from a device or an address where they signed in before: a flood of
# strangers does not keep them waiting.
_KNOWN_AT_A_TIME = 1
_KNOWN_WAITING = 32
# Attempts at one account at a time: whoever floods one fills no lane.
_OF_ONE = 8


class Passwords:
    """Hashes and verifies in threads, a few at a time, so that a flood takes neither the cores nor the
    memory of the machine."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._strangers = _Lane(_AT_A_TIME, _WAITING)
        self._known = _Lane(_KNOWN_AT_A_TIME, _KNOWN_WAITING)
        # What somebody is held against who has no password, so that the answer takes as long.
        self._nobody = self._hasher.hash("nobody's")

    async def hash(self, password: str, *, trusted: bool = False) -> str:
        """
        Args:
            trusted: whoever sets it has proven who they are.

        Raises:
            Overloaded: too many wait already.
        """
        return await self._lane(trusted).run(self._hasher.hash, password)

    async def check(
        self, password: str, *, email: str | None, name: str, field: str, trusted: bool = False
    ) -> None:
        """
        Args:
            trusted: whoever sets it has proven who they are.

        Raises:
            WeakPassword: see `check_strength`.
            Overloaded: too many wait already.
        """
        await self._lane(trusted).run(
            partial(check_strength, password, email=email, name=name, field=field)
        )

    async def fits(
        self, known: str | None, password: str, *, account: str = "", trusted: bool = False
    ) -> bool:
        """Whether ``password`` is the one that was hashed; None takes as long and never fits.

        Args:
            account: whose password it would be; a few attempts at one are judged at a time.
            trusted: it comes from where its account was used before.

        Raises:
            Overloaded: too many wait already.
        """
        lane = self._lane(trusted)
        with lane.place_of(account):
            fits = await lane.run(self._verify, known or self._nobody, password)
        return fits and known is not None

    def _lane(self, trusted: bool) -> _Lane:
        return self._known if trusted else self._strangers

    def is_outdated(self, known: str) -> bool:
        """Whether the hash was made with weaker parameters than are used now."""
        return self._hasher.check_needs_rehash(known)

    def _verify(self, known: str, password: str) -> bool:
        try:
            return self._hasher.verify(known, password)
        except (VerificationError, InvalidHashError):
            return False


class _Lane:
    """Work of which a few run at a time, and not many wait."""

    def __init__(self, at_a_time: int, waiting: int) -> None:
        self._slots = asyncio.Semaphore(at_a_time)
        self._most = at_a_time + waiting
        self._inside = 0
        self._accounts: Counter[str] = Counter()

    @contextmanager
    def place_of(self, account: str) -> Iterator[None]:
        """One of the few places of an account in this lane; there are any number of the empty one's.

        Raises:
            Overloaded: all are taken.
        """
        if not account:
            yield
            return
        if self._accounts[account] >= _OF_ONE:
            raise _overloaded()
        self._accounts[account] += 1
        try:
            yield
        finally:
            self._accounts[account] -= 1
            if not self._accounts[account]:
                del self._accounts[account]

    async def run(self, work: Callable[..., T], *arguments: str) -> T:
        if self._inside >= self._most:
            raise _overloaded()
        self._inside += 1
        try:
            async with self._slots:
                return await _to_its_end(work, *arguments)
        finally:
            self._inside -= 1


def _overloaded() -> Overloaded:
    return Overloaded("too many sign-ins at the moment", retry_after=2)


async def _to_its_end(work: Callable[..., T], *arguments: str) -> T:
    """``work`` in a thread. Nobody can stop one: who leaves meanwhile keeps the place until it ends,
    or a flood of clients that do not wait would have any number of them run."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        # Retrieved, whatever it is: nobody is there to hear of it.
        running.exception()
        raise cancelled
    return running.result()
