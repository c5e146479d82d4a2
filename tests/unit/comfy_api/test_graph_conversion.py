"""Tests that a tenant's conversions of graphs do not keep other tenants' conversions waiting."""

from __future__ import annotations

import asyncio
import math
from typing import Any, cast

from moyin.comfy_api.graph_conversion import GraphConverter
from moyin.domain.limits import PoolRules
from moyin.system.slots import Slots
from tests.unit.comfy_api.test_admission import make_admission, make_caller, make_graph


async def test_a_tenant_converts_one_graph_at_a_time() -> None:
    slots = Slots(2, max_waiting=2, patience=60, reserve_seconds=math.inf)
    converter = GraphConverter(make_admission(a=PoolRules()), cast(Any, None), slots)
    assert slots.try_acquire("ann")
    waiting_conversion = asyncio.create_task(
        converter.convert(make_caller("ann"), make_graph("Load"), "a")
    )
    conversion = await converter.convert(make_caller("bob"), make_graph("Load"), "a")
    assert conversion.graph == make_graph("Load")
    assert not waiting_conversion.done()
    slots.release("ann")
    assert (await waiting_conversion).graph == make_graph("Load")
    assert (slots.taken, slots.waiting) == (0, 0)
