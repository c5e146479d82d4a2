"""Passwords, hashed with Argon2id."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from moyin.errors import Overloaded

__all__ = ["Passwords"]

T = TypeVar("T")
# Hashing takes 64 MiB and some 50 ms of a core each: a flood of sign-ins must not take the machine.
_AT_A_TIME = 2
_WAITING = 64


class Passwords:
    """Hashes and verifies in threads, a few at a time."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._slots = asyncio.Semaphore(_AT_A_TIME)
        self._inside = 0
        # What somebody is held against who has no password, so that the answer takes as long.
        self._nobody = self._hasher.hash("nobody's")

    async def hash(self, password: str) -> str:
        """
        Raises:
            Overloaded: too many wait already.
        """
        return await self._run(self._hasher.hash, password)

    async def fits(self, known: str | None, password: str) -> bool:
        """Whether ``password`` is the one that was hashed; None takes as long and never fits.

        Raises:
            Overloaded: too many wait already.
        """
        return await self._run(self._verify, known or self._nobody, password) and known is not None

    def is_outdated(self, known: str) -> bool:
        """Whether the hash was made with weaker parameters than are used now."""
        return self._hasher.check_needs_rehash(known)

    def _verify(self, known: str, password: str) -> bool:
        try:
            return self._hasher.verify(known, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[..., T], *arguments: str) -> T:
        if self._inside >= _AT_A_TIME + _WAITING:
            raise Overloaded("too many sign-ins at the moment", retry_after=2)
        self._inside += 1
        try:
            async with self._slots:
                return await _to_its_end(work, *arguments)
        finally:
            self._inside -= 1


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
