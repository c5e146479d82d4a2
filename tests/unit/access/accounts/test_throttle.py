"""Tests the throttle of failed sign-ins without Valkey; integration tests use a real one."""

from __future__ import annotations

import pytest

from moyin.access.accounts.throttle import AttemptRate, Throttle, ThrottleKey
from moyin.errors import ServiceUnavailable

NOWHERE = "redis://127.0.0.1:1/0"
KEY = ThrottleKey("account ann", AttemptRate(1, 1.0))


async def test_without_valkey_the_setting_decides_whether_attempts_pass() -> None:
    open_throttle, closed_throttle = Throttle(NOWHERE), Throttle(NOWHERE, fail_open=False)
    await open_throttle.acquire(KEY)
    await open_throttle.count_event("register", 1)
    await open_throttle.subtract_attempt(KEY)
    await open_throttle.subtract_event("register")
    await open_throttle.record_known_address("ann")
    assert not await open_throttle.is_known_address("ann")
    with pytest.raises(ServiceUnavailable):
        await closed_throttle.acquire(KEY)
    with pytest.raises(ServiceUnavailable):
        await closed_throttle.count_event("register", 1)
    # Without keys nothing is counted.
    await closed_throttle.acquire()
    await open_throttle.close()
    await closed_throttle.close()
