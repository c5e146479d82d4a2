"""Tests on a real Valkey that password guessing is slowed down, and locks no user out."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from moyin.access.accounts.throttle import AttemptRate, AttemptRates, Throttle, ThrottleKey
from moyin.errors import TooManyAttempts
from tests.integration.access.fixtures import PASSWORD, AccountsApp, Answer
from tests.integration.servers import ValkeyServer
from tests.stack import Measured
from tests.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
WRONG = "a wrong guess"


def new_address() -> str:
    """Return a client address that no other test uses, because all tests share one Valkey."""
    return f"2001:db8::{secrets.token_hex(2)}:{secrets.token_hex(2)}"


async def login(
    accounts: AccountsApp, email: str, password: str, address: str = "", **body: Any
) -> Answer:
    headers = {"x-forwarded-for": address} if address else {}
    credentials = {"email": email, "password": password, **body}
    return await accounts.call("POST", "/login", None, credentials, **headers)


@asynccontextmanager
async def guessing(
    accounts: AccountsApp, email: str, guessers: int, address: str = ""
) -> AsyncIterator[list[int]]:
    """Guess passwords during the block, and yield the list of the statuses received so far.

    The block begins when at least half of the guessers wait for their turn.

    Args:
        address: the guessers' client address, in which ``{}`` is the number of the guesser; empty
            for an unknown address.
    """
    statuses: list[int] = []

    async def guess(number: int) -> None:
        while True:
            here = address.format(number)
            statuses.append((await login(accounts, email, WRONG, here)).status)

    tasks = [asyncio.create_task(guess(number)) for number in range(guessers)]
    throttle: Throttle = accounts.parts.sign_in._attempt_limits._throttle
    try:
        await eventually(lambda: len(throttle._waiting) >= guessers // 2, seconds=60)
        yield statuses
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_right_password_gets_in_after_any_number_of_wrong_ones(
    accounts: AccountsApp, measured: Measured
) -> None:
    """After 150 wrong guesses, the right password is accepted before all of them are judged.

    The farm has just started: it knows no client address and no earlier sign-in.
    """
    email = (await accounts.player())["user"]["email"]
    throttle: Throttle = accounts.parts.sign_in._attempt_limits._throttle
    guesses = [asyncio.create_task(login(accounts, email, WRONG)) for _ in range(90)]
    assert {(await guess).status for guess in guesses} <= {401, 429}
    more = [asyncio.create_task(login(accounts, email, WRONG)) for _ in range(60)]
    await eventually(
        lambda: len(throttle._waiting) + sum(guess.done() for guess in more) == 60, seconds=60
    )
    began = time.monotonic()
    right = await login(accounts, email, PASSWORD)
    measured(f"after 150 wrong ones a right password is in after {time.monotonic() - began:.1f} s")
    assert right.status == 200
    # It did not have to wait for all of those who came before it.
    assert not all(guess.done() for guess in more)
    for guess in more:
        guess.cancel()
    await asyncio.gather(*more, return_exceptions=True)


async def test_a_right_password_gets_in_while_others_guess(
    accounts: AccountsApp, measured: Measured
) -> None:
    """The user signs in for the first time, while guessers always occupy all slots."""
    email = (await accounts.player())["user"]["email"]
    for _ in range(100 // 5):
        await asyncio.gather(*(login(accounts, email, WRONG) for _ in range(5)))
    async with guessing(accounts, email, 12):
        began = time.monotonic()
        assert (await login(accounts, email, PASSWORD)).status == 200
        took = time.monotonic() - began
    measured(f"while twelve guess, a right password is in after {took:.1f} s")


@pytest.mark.parametrize("way", ["device", "address", "reset"])
async def test_known_address_signs_in_at_once_while_others_guess(
    accounts: AccountsApp, way: str
) -> None:
    email = (await accounts.player())["user"]["email"]
    home = new_address()
    first = await login(accounts, email, PASSWORD, home)
    credentials: dict[str, Any] = {"password": PASSWORD}
    async with guessing(accounts, email, 60, "" if way != "address" else "192.0.2.{}"):
        if way == "device":
            credentials["device_token"] = first.body["device_token"]
        elif way == "address":
            credentials["address"] = home
        else:
            await accounts.ok("POST", "/password/forgot", None, {"email": email})
            credentials["password"] = "a brand new one"
            body = {
                "token": await accounts.outbox.token(email),
                "password": credentials["password"],
            }
            done = await accounts.ok("POST", "/password/reset", None, body)
            credentials["device_token"] = done["device_token"]
        for _ in range(12):
            assert (await login(accounts, email, **credentials)).status == 200


@pytest.mark.parametrize("known", [False, True])
async def test_guesses_are_bounded_at_an_account_and_from_an_address(
    accounts: AccountsApp, monkeypatch: pytest.MonkeyPatch, known: bool, measured: Measured
) -> None:
    """At most the permitted number of guesses is judged, for an account or from a known address.

    The permitted number grows with time, and a slow machine needs more time for the guesses.

    Args:
        known: True to test the limit of an address, False for that of an account.
    """
    throttle: Throttle = accounts.parts.sign_in._attempt_limits._throttle
    address = new_address() if known else ""
    free, every = 6, 0.5
    pace, none = AttemptRate(free, every), AttemptRate(1_000_000, every)
    bounds = {"address": pace, "account": none} if address else {"account": pace}
    monkeypatch.setattr(throttle, "rates", AttemptRates(pair=none, timeout_seconds=3.0, **bounds))
    emails = [f"{secrets.token_hex(6)}@example.com" for _ in range(20 if address else 1)]
    began = time.monotonic()
    answers = await asyncio.gather(
        *(login(accounts, emails[n % len(emails)], WRONG, address) for n in range(60))
    )
    took = time.monotonic() - began
    judged = sum(answer.status == 401 for answer in answers)
    assert free <= judged <= free + took / every + 1
    refused = [answer for answer in answers if answer.status == 429]
    assert {answer.code for answer in refused} == {"too_many_attempts"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    measured(f"{judged} of 60 guesses were judged in {took:.1f} s at {free} and one in {every} s")


async def test_guesses_from_one_address_do_not_lock_accounts(accounts: AccountsApp) -> None:
    email = (await accounts.player())["user"]["email"]
    async with guessing(accounts, email, 40, new_address()):
        for _ in range(3):
            assert (await login(accounts, email, PASSWORD, new_address())).status == 200


async def test_right_password_is_never_throttled(accounts: AccountsApp) -> None:
    email = (await accounts.player())["user"]["email"]
    for address in ("", new_address()):
        answers = [await login(accounts, email, PASSWORD, address) for _ in range(105)]
        assert {answer.status for answer in answers} == {200}


async def test_all_replicas_share_the_rate_of_attempts(valkey_server: ValkeyServer) -> None:
    """Two replicas share one rate; each serves its newest and its oldest waiting caller in turn."""
    rates = AttemptRates(timeout_seconds=3600)
    one, two = (Throttle(valkey_server.url, rates=rates) for _ in "12")
    key = ThrottleKey(f"test {secrets.token_hex(8)}", AttemptRate(1, 0.2))
    await one.acquire(key)
    await two.acquire(key)  # the first turn
    began = time.monotonic()
    await asyncio.gather(*(throttle.acquire(key) for throttle in (one, two) * 3))
    assert time.monotonic() - began >= 5 * 0.2
    order: list[int] = []

    async def wait(number: int) -> None:
        await one.acquire(key)
        order.append(number)

    key = ThrottleKey(f"test {secrets.token_hex(8)}", AttemptRate(1, 2.0))
    await one.acquire(key)
    await one.acquire(key)  # the next turn is two seconds away
    waiting = []
    for number in range(3):
        waiting.append(asyncio.create_task(wait(number)))
        await eventually(lambda: len(one._waiting) == len(waiting))
    await asyncio.gather(*waiting)
    assert order == [2, 0, 1]
    impatient_throttle = Throttle(valkey_server.url, rates=AttemptRates(timeout_seconds=0.0))
    with pytest.raises(TooManyAttempts):
        await impatient_throttle.acquire(key, key)
    for throttle in (one, two, impatient_throttle):
        await throttle.close()


async def test_new_players_are_bounded_from_an_address_and_altogether(
    accounts: AccountsApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def register(address: str = "") -> Answer:
        body = {"email": f"{secrets.token_hex(6)}@example.com", "password": PASSWORD}
        headers = {"x-forwarded-for": address} if address else {}
        return await accounts.call("POST", "/register", None, body, **headers)

    here = new_address()
    assert {(await register(here)).status for _ in range(30)} == {201}
    refused = await register(here)
    assert (refused.status, refused.code) == (429, "too_many_attempts")
    assert (await register(new_address())).status == 201
    few = type(accounts.parts.sign_in.policy)(registrations_per_hour=1)
    monkeypatch.setattr(accounts.parts.sign_in, "policy", few)
    refused = await register()
    assert (refused.status, int(refused.headers["retry-after"]) > 0) == (429, True)


async def test_a_weak_password_is_refused_wherever_one_is_set(accounts: AccountsApp) -> None:
    weak = {"email": "ann.lee@example.com", "password": "password1234", "name": ""}
    refused = await accounts.call("POST", "/register", None, weak)
    assert (refused.status, refused.code, refused.body["field"]) == (
        400, "weak_password", "password",
    )  # fmt: skip
    player = await accounts.player()
    email, token = player["user"]["email"], player["access_token"]
    change = {"current_password": PASSWORD, "new_password": email}
    refused = await accounts.call("POST", "/password", token, change)
    assert (refused.code, refused.body["field"]) == ("weak_password", "new_password")
    await accounts.ok("POST", "/password/forgot", None, {"email": email})
    reset = {"token": await accounts.outbox.token(email), "password": email}
    refused = await accounts.call("POST", "/password/reset", None, reset)
    assert (refused.code, refused.body["field"]) == ("weak_password", "password")
    # Nothing has changed, and the mailed token is still good.
    assert (await login(accounts, email, PASSWORD)).status == 200
    await accounts.ok("POST", "/password/reset", None, {**reset, "password": "a brand new one"})
