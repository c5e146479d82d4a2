"""Without Valkey: the counting itself is tested on a real one."""

from __future__ import annotations

import pytest

from moyin.accounts.throttle import Throttle
from moyin.errors import ServiceUnavailable

NOWHERE = "redis://127.0.0.1:1/0"


async def test_without_valkey_the_setting_decides() -> None:
    open_, closed = Throttle(NOWHERE), Throttle(NOWHERE, fail_open=False)
    await open_.attempt("ann", "203.0.113.1")
    await open_.forgive("ann", "203.0.113.1")
    with pytest.raises(ServiceUnavailable):
        await closed.attempt("ann", "")
    # Nothing is known of the caller: nothing can be counted.
    await closed.attempt("", "")
    await open_.close()
    await closed.close()
