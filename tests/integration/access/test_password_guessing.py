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
from tests.integration.access.fixtures import PASSWORD, AccountsApp, AppResponse
from tests.integration.servers import ValkeyServer
from tests.stack import RecordMeasurement
from tests.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
WRONG = "a wrong guess"


def generate_address() -> str:
    """Return a client address that no other test uses, because all tests share one Valkey."""
    return f"2001:db8::{secrets.token_hex(2)}:{secrets.token_hex(2)}"


async def login(
    accounts: AccountsApp, email: str, password: str, address: str = "", **body: Any
) -> AppResponse:
    headers = {"x-forwarded-for": address} if address else {}
    credentials = {"email": email, "password": password, **body}
    return await accounts.call("POST", "/login", None, credentials, **headers)


@asynccontextmanager
async def guessing_passwords(
    accounts: AccountsApp, email: str, guesser_count: int, address: str = ""
) -> AsyncIterator[list[int]]:
    """Guess passwords during the block, and yield the list of the statuses received so far.

    The block begins when at least half of the guessers wait for their turn.

    Args:
        address: the guessers' client address, in which ``{}`` is the number of the guesser; empty
            for an unknown address.
    """
    statuses: list[int] = []

    async def guess_passwords(number: int) -> None:
        while True:
            client_address = address.format(number)
            statuses.append((await login(accounts, email, WRONG, client_address)).status)

    tasks = [asyncio.create_task(guess_passwords(number)) for number in range(guesser_count)]
    throttle: Throttle = accounts.services.sign_in._attempt_limits._throttle
    try:
        await eventually(lambda: len(throttle._waiting) >= guesser_count // 2, seconds=60)
        yield statuses
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_right_password_signs_in_after_any_number_of_wrong_ones(
    accounts: AccountsApp, record_measurement: RecordMeasurement
) -> None:
    """The right password is accepted while many of 150 wrong guesses still wait to be verified.

    The farm has just started: it knows no client address and no earlier sign-in.
    """
    email = (await accounts.register_player())["user"]["email"]
    throttle: Throttle = accounts.services.sign_in._attempt_limits._throttle
    guesses = [asyncio.create_task(login(accounts, email, WRONG)) for _ in range(90)]
    assert {(await guess).status for guess in guesses} <= {401, 429}
    guess_tasks = [asyncio.create_task(login(accounts, email, WRONG)) for _ in range(60)]
    await eventually(
        lambda: len(throttle._waiting) + sum(guess.done() for guess in guess_tasks) == 60,
        seconds=60,
    )
    started_at = time.monotonic()
    login_response = await login(accounts, email, PASSWORD)
    record_measurement(
        f"after 150 wrong ones a right password is in after {time.monotonic() - started_at:.1f} s"
    )
    assert login_response.status == 200
    # It did not have to wait for all of those who came before it.
    assert not all(guess.done() for guess in guess_tasks)
    for guess in guess_tasks:
        guess.cancel()
    await asyncio.gather(*guess_tasks, return_exceptions=True)


async def test_right_password_signs_in_while_others_guess(
    accounts: AccountsApp, record_measurement: RecordMeasurement
) -> None:
    """A user of an unknown client signs in while guessers keep every check of passwords busy."""
    email = (await accounts.register_player())["user"]["email"]
    for _ in range(100 // 5):
        await asyncio.gather(*(login(accounts, email, WRONG) for _ in range(5)))
    async with guessing_passwords(accounts, email, 12):
        started_at = time.monotonic()
        assert (await login(accounts, email, PASSWORD)).status == 200
        login_seconds = time.monotonic() - started_at
    record_measurement(f"while twelve guess, a right password is in after {login_seconds:.1f} s")


@pytest.mark.parametrize("evidence", ["device", "address", "reset"])
async def test_known_clients_sign_in_at_once_while_others_guess(
    accounts: AccountsApp, evidence: str
) -> None:
    email = (await accounts.register_player())["user"]["email"]
    home_address = generate_address()
    first_login = await login(accounts, email, PASSWORD, home_address)
    credentials: dict[str, Any] = {"password": PASSWORD}
    async with guessing_passwords(
        accounts, email, 60, "" if evidence != "address" else "192.0.2.{}"
    ):
        if evidence == "device":
            credentials["device_token"] = first_login.body["device_token"]
        elif evidence == "address":
            credentials["address"] = home_address
        else:
            await accounts.expect_ok("POST", "/password/forgot", None, {"email": email})
            credentials["password"] = "a brand new one"
            body = {
                "token": await accounts.outbox.take_token(email),
                "password": credentials["password"],
            }
            reset_response = await accounts.expect_ok("POST", "/password/reset", None, body)
            credentials["device_token"] = reset_response["device_token"]
        for _ in range(12):
            assert (await login(accounts, email, **credentials)).status == 200


@pytest.mark.parametrize("from_known_address", [False, True])
async def test_guesses_are_limited_per_account_and_per_address(
    accounts: AccountsApp,
    monkeypatch: pytest.MonkeyPatch,
    from_known_address: bool,
    record_measurement: RecordMeasurement,
) -> None:
    """At most the permitted number of guesses is verified, for an account or from a known address.

    The permitted number grows with time, and a slow machine needs more time for the guesses.

    Args:
        from_known_address: True to test the limit of an address, False for that of an account.
    """
    throttle: Throttle = accounts.services.sign_in._attempt_limits._throttle
    address = generate_address() if from_known_address else ""
    free_attempts, seconds_per_attempt = 6, 0.5
    limited_rate, unlimited_rate = (
        AttemptRate(free_attempts, seconds_per_attempt),
        AttemptRate(1_000_000, seconds_per_attempt),
    )
    rates_by_kind = (
        {"address": limited_rate, "account": unlimited_rate}
        if address
        else {"account": limited_rate}
    )
    monkeypatch.setattr(
        throttle, "rates", AttemptRates(pair=unlimited_rate, timeout_seconds=3.0, **rates_by_kind)
    )
    emails = [f"{secrets.token_hex(6)}@example.com" for _ in range(20 if address else 1)]
    started_at = time.monotonic()
    responses = await asyncio.gather(
        *(login(accounts, emails[n % len(emails)], WRONG, address) for n in range(60))
    )
    elapsed_seconds = time.monotonic() - started_at
    verified_count = sum(response.status == 401 for response in responses)
    assert (
        free_attempts <= verified_count <= free_attempts + elapsed_seconds / seconds_per_attempt + 1
    )
    refused_responses = [response for response in responses if response.status == 429]
    assert {response.code for response in refused_responses} == {"too_many_attempts"}
    assert all(int(response.headers["retry-after"]) >= 1 for response in refused_responses)
    record_measurement(
        f"{verified_count} of 60 guesses were verified in {elapsed_seconds:.1f} s "
        f"at {free_attempts} and one in {seconds_per_attempt} s"
    )


async def test_guesses_from_one_address_do_not_lock_accounts(accounts: AccountsApp) -> None:
    email = (await accounts.register_player())["user"]["email"]
    async with guessing_passwords(accounts, email, 40, generate_address()):
        for _ in range(3):
            assert (await login(accounts, email, PASSWORD, generate_address())).status == 200


async def test_right_password_is_never_throttled(accounts: AccountsApp) -> None:
    email = (await accounts.register_player())["user"]["email"]
    for address in ("", generate_address()):
        responses = [await login(accounts, email, PASSWORD, address) for _ in range(105)]
        assert {answer.status for answer in responses} == {200}


async def test_all_replicas_share_the_rate_of_attempts(valkey_server: ValkeyServer) -> None:
    """Two replicas share one rate; each serves its newest and its oldest waiting caller in turn."""
    rates = AttemptRates(timeout_seconds=3600)
    first_throttle, second_throttle = (Throttle(valkey_server.url, rates=rates) for _ in "12")
    key = ThrottleKey(f"test {secrets.token_hex(8)}", AttemptRate(1, 0.2))
    await first_throttle.acquire(key)
    await second_throttle.acquire(key)  # the first turn
    started_at = time.monotonic()
    await asyncio.gather(
        *(throttle.acquire(key) for throttle in (first_throttle, second_throttle) * 3)
    )
    assert time.monotonic() - started_at >= 5 * 0.2
    acquired_order: list[int] = []

    async def wait_for_turn(number: int) -> None:
        await first_throttle.acquire(key)
        acquired_order.append(number)

    key = ThrottleKey(f"test {secrets.token_hex(8)}", AttemptRate(1, 2.0))
    await first_throttle.acquire(key)
    await first_throttle.acquire(key)  # the next turn is two seconds away
    wait_tasks = []
    for number in range(3):
        wait_tasks.append(asyncio.create_task(wait_for_turn(number)))
        await eventually(lambda: len(first_throttle._waiting) == len(wait_tasks))
    await asyncio.gather(*wait_tasks)
    assert acquired_order == [2, 0, 1]
    impatient_throttle = Throttle(valkey_server.url, rates=AttemptRates(timeout_seconds=0.0))
    with pytest.raises(TooManyAttempts):
        await impatient_throttle.acquire(key, key)
    for throttle in (first_throttle, second_throttle, impatient_throttle):
        await throttle.close()


async def test_registrations_are_limited_per_address_and_in_total(
    accounts: AccountsApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def register(address: str = "") -> AppResponse:
        body = {"email": f"{secrets.token_hex(6)}@example.com", "password": PASSWORD}
        headers = {"x-forwarded-for": address} if address else {}
        return await accounts.call("POST", "/register", None, body, **headers)

    home_address = generate_address()
    assert {(await register(home_address)).status for _ in range(30)} == {201}
    refused_response = await register(home_address)
    assert (refused_response.status, refused_response.code) == (429, "too_many_attempts")
    assert (await register(generate_address())).status == 201
    strict_policy = type(accounts.services.sign_in.policy)(registrations_per_hour=1)
    monkeypatch.setattr(accounts.services.sign_in, "policy", strict_policy)
    refused_response = await register()
    assert (refused_response.status, int(refused_response.headers["retry-after"]) > 0) == (
        429,
        True,
    )


async def test_a_weak_password_is_refused_wherever_one_is_set(accounts: AccountsApp) -> None:
    weak_registration = {"email": "ann.lee@example.com", "password": "password1234", "name": ""}
    refused_response = await accounts.call("POST", "/register", None, weak_registration)
    assert (refused_response.status, refused_response.code, refused_response.body["field"]) == (
        400, "weak_password", "password",
    )  # fmt: skip
    player = await accounts.register_player()
    email, token = player["user"]["email"], player["access_token"]
    change = {"current_password": PASSWORD, "new_password": email}
    refused_response = await accounts.call("POST", "/password", token, change)
    assert (refused_response.code, refused_response.body["field"]) == (
        "weak_password",
        "new_password",
    )
    await accounts.expect_ok("POST", "/password/forgot", None, {"email": email})
    reset = {"token": await accounts.outbox.take_token(email), "password": email}
    refused_response = await accounts.call("POST", "/password/reset", None, reset)
    assert (refused_response.code, refused_response.body["field"]) == ("weak_password", "password")
    # Nothing has changed, and the mailed token is still good.
    assert (await login(accounts, email, PASSWORD)).status == 200
    await accounts.expect_ok(
        "POST", "/password/reset", None, {**reset, "password": "a brand new one"}
    )
