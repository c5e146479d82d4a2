"""Without Valkey: the counting itself is tested on a real one."""

from __future__ import annotations

import pytest

from moyin.access.accounts.throttle import AttemptRate, Gate, Throttle
from moyin.errors import ServiceUnavailable

NOWHERE = "redis://127.0.0.1:1/0"
GATE = Gate("account ann", AttemptRate(1, 1.0))


async def test_without_valkey_the_setting_decides() -> None:
    open_, closed = Throttle(NOWHERE), Throttle(NOWHERE, fail_open=False)
    await open_.turn(GATE)
    await open_.limit("register", 1)
    await open_.forgive(GATE)
    await open_.forgive_limit("register")
    await open_.remember("ann")
    assert not await open_.is_known("ann")
    with pytest.raises(ServiceUnavailable):
        await closed.turn(GATE)
    with pytest.raises(ServiceUnavailable):
        await closed.limit("register", 1)
    # Nothing is known of the caller: nothing can be counted.
    await closed.turn()
    await open_.close()
    await closed.close()
