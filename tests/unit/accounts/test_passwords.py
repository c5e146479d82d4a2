from __future__ import annotations

import asyncio

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
