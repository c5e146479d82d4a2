"""Tests the throttle of failed sign-ins without Valkey; integration tests use a real one."""

from __future__ import annotations

import pytest

from moyin.access.accounts.throttle import AttemptRate, Throttle, ThrottleKey
from moyin.errors import ServiceUnavailable

NOWHERE = "redis://127.0.0.1:1/0"
KEY = ThrottleKey("account ann", AttemptRate(1, 1.0))


async def test_without_valkey_the_setting_decides_whether_attempts_pass() -> None:
    open_, closed = Throttle(NOWHERE), Throttle(NOWHERE, fail_open=False)
    await open_.acquire(KEY)
    await open_.count_event("register", 1)
    await open_.subtract(KEY)
    await open_.subtract_event("register")
    await open_.record_known("ann")
    assert not await open_.is_known("ann")
    with pytest.raises(ServiceUnavailable):
        await closed.acquire(KEY)
    with pytest.raises(ServiceUnavailable):
        await closed.count_event("register", 1)
    # Without keys nothing is counted.
    await closed.acquire()
    await open_.close()
    await closed.close()
