from __future__ import annotations

import asyncio
import threading
from typing import Literal

import pytest
from argon2 import PasswordHasher

from moyin.access.accounts.passwords import PasswordService, require_strong_password
from moyin.errors import Overloaded, WeakPassword

QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


async def test_a_password_matches_only_its_own_hash() -> None:
    passwords = PasswordService(QUICK)
    password_hash = await passwords.hash("correct horse")
    assert password_hash.startswith("$argon2id$")
    assert await passwords.verify(password_hash, "correct horse")
    assert not await passwords.verify(password_hash, "correct horse ")
    assert not await passwords.verify("not a hash", "correct horse")


async def test_an_account_without_password_never_matches() -> None:
    passwords = PasswordService(QUICK)
    assert not await passwords.verify(None, "nobody's")


async def test_a_weaker_hash_needs_a_rehash() -> None:
    weak_hash = await PasswordService(QUICK).hash("x")
    assert PasswordService().needs_rehash(weak_hash)
    assert not PasswordService(QUICK).needs_rehash(weak_hash)


async def test_a_full_password_queue_refuses_work() -> None:
    passwords = PasswordService(QUICK)
    results = await asyncio.gather(
        *(passwords.hash("x") for _ in range(80)), return_exceptions=True
    )
    rejections = [result for result in results if isinstance(result, Overloaded)]
    assert len(rejections) == 80 - 66
    assert await passwords.hash("x")


async def test_a_cancelled_caller_keeps_its_slot_until_the_thread_ends() -> None:
    running_count, peak_count, may_proceed = 0, 0, threading.Event()
    lock, start_signals = threading.Lock(), asyncio.Queue[None]()
    loop = asyncio.get_running_loop()

    class BlockingHasher(PasswordHasher):
        def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
            nonlocal running_count, peak_count
            if password != "x":
                return QUICK.hash(password)
            with lock:
                running_count += 1
                peak_count = max(peak_count, running_count)
            loop.call_soon_threadsafe(start_signals.put_nowait, None)
            may_proceed.wait()
            with lock:
                running_count -= 1
            return "hashed"

    passwords = PasswordService(BlockingHasher())
    cancelled_tasks = [asyncio.create_task(passwords.hash("x")) for _ in range(2)]
    for _ in cancelled_tasks:
        await start_signals.get()
    waiting_tasks = [asyncio.create_task(passwords.hash("x")) for _ in range(2)]
    for task in cancelled_tasks:
        task.cancel()
    # After a few turns of the loop, waiting tasks would have begun if they could.
    for _ in range(20):
        await asyncio.sleep(0)
    further_start_count = start_signals.qsize()
    may_proceed.set()
    for task in cancelled_tasks:
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await asyncio.gather(*waiting_tasks) == ["hashed"] * 2
    assert (further_start_count, peak_count) == (0, 2)


async def test_untrusted_attempts_do_not_delay_trusted_ones() -> None:
    may_proceed, loop, start_signals = (
        threading.Event(),
        asyncio.get_running_loop(),
        asyncio.Queue[None](),
    )

    class BlockingHasher(PasswordHasher):
        def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:
            if password == "slow":
                loop.call_soon_threadsafe(start_signals.put_nowait, None)
                may_proceed.wait()
            return QUICK.verify(hash, password)

    password_hash = QUICK.hash("right")
    passwords = PasswordService(BlockingHasher())
    flood_tasks = [
        asyncio.create_task(passwords.verify(password_hash, "slow", account=str(n)))
        for n in range(66)
    ]
    for _ in range(2):
        await start_signals.get()
    with pytest.raises(Overloaded):
        await passwords.verify(password_hash, "right", account="ann")
    assert await passwords.verify(password_hash, "right", account="ann", is_trusted=True)
    may_proceed.set()
    assert await asyncio.gather(*flood_tasks) == [False] * 66


async def test_one_account_cannot_fill_the_queue() -> None:
    passwords = PasswordService(QUICK)
    password_hash = await passwords.hash("right")
    results = await asyncio.gather(
        *(passwords.verify(password_hash, "wrong", account="ann") for _ in range(20)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, Overloaded) for result in results) == 20 - 8
    assert await passwords.verify(password_hash, "right", account="ann")


def check_strength(
    password: str, *, email: str | None = "ann.lee@example.com", name: str = "Ann Lee"
) -> None:
    require_strong_password(password, email=email, name=name, field="new_password")


@pytest.mark.parametrize(
    "password",
    [
        "password1234", "1234567890", "qwertyuiop", "iloveyou123", "aaaaaaaaaaaaaaaa", "P@ssw0rd123",
        "ann.lee@example.com", "AnnLee2026", "annexample1", "example.com!!", "Lee.Ann.99",
        "abcdefghijkl",
    ],
)  # fmt: skip
def test_weak_passwords_are_refused(password: str) -> None:
    with pytest.raises(WeakPassword) as exc_info:
        check_strength(password)
    assert (exc_info.value.code, exc_info.value.field) == ("weak_password", "new_password")
    assert password.casefold() not in exc_info.value.message.casefold()


@pytest.mark.parametrize(
    "password",
    ["correct horse battery", "a brand new one", "x9$kQ!vv2LpZ", "lee likes long green walks", "画" * 3 + "雨夜山中歌曲", "w" * 3 + "e7 fjord quilt" * 30],
)  # fmt: skip
def test_strong_passwords_are_accepted(password: str) -> None:
    check_strength(password)
    check_strength(password, email=None, name="")
