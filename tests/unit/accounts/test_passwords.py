from __future__ import annotations

import asyncio
import threading

import pytest
from argon2 import PasswordHasher

from moyin.accounts.passwords import Passwords
from moyin.errors import Overloaded

QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


async def test_a_password_fits_its_hash_only() -> None:
    passwords = Passwords(QUICK)
    known = await passwords.hash("correct horse")
    assert known.startswith("$argon2id$")
    assert await passwords.fits(known, "correct horse")
    assert not await passwords.fits(known, "correct horse ")
    assert not await passwords.fits("not a hash", "correct horse")


async def test_who_has_no_password_is_never_let_in() -> None:
    passwords = Passwords(QUICK)
    assert not await passwords.fits(None, "nobody's")


async def test_a_weaker_hash_is_outdated() -> None:
    known = await Passwords(QUICK).hash("x")
    assert Passwords().is_outdated(known)
    assert not Passwords(QUICK).is_outdated(known)


async def test_a_flood_is_refused() -> None:
    passwords = Passwords(QUICK)
    answers = await asyncio.gather(
        *(passwords.hash("x") for _ in range(80)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, Overloaded)]
    assert len(refused) == 80 - 66
    assert await passwords.hash("x")


async def test_who_leaves_frees_no_place_before_the_thread_ends() -> None:
    inside, most, go_on = 0, 0, threading.Event()
    lock, begun = threading.Lock(), asyncio.Queue[None]()
    loop = asyncio.get_running_loop()

    class Held(PasswordHasher):
        def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
            nonlocal inside, most
            if password != "x":
                return QUICK.hash(password)
            with lock:
                inside += 1
                most = max(most, inside)
            loop.call_soon_threadsafe(begun.put_nowait, None)
            go_on.wait()
            with lock:
                inside -= 1
            return "hashed"

    passwords = Passwords(Held())
    leaving = [asyncio.create_task(passwords.hash("x")) for _ in range(2)]
    for _ in leaving:
        await begun.get()
    staying = [asyncio.create_task(passwords.hash("x")) for _ in range(2)]
    for task in leaving:
        task.cancel()
    # Whatever those who wait could do now, they have done after a few turns of the loop.
    for _ in range(20):
        await asyncio.sleep(0)
    held = begun.qsize()
    go_on.set()
    for task in leaving:
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await asyncio.gather(*staying) == ["hashed"] * 2
    assert (held, most) == (0, 2)
