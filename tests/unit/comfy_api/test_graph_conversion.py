"""Tests that conversions of graphs are bounded, and keep no other tenant waiting."""

from __future__ import annotations

import asyncio
import math
from typing import Any, cast

import pytest
from pydantic_core import from_json, to_json

from moyin.comfy_api.graph_conversion import GraphConverter
from moyin.domain.graph_bounds import GraphBounds
from moyin.domain.limits import PoolRules
from moyin.errors import GraphTooLarge
from moyin.system.heavy_work import HeavyWork
from moyin.system.slots import Slots
from tests.unit.comfy_api.test_admission import make_admission, make_caller, make_graph


def make_body() -> bytes:
    return to_json({"graph": make_graph("Load"), "pool": "a"})


async def test_a_tenant_converts_one_graph_at_a_time() -> None:
    slots = Slots(2, max_waiting=2, patience=60, reserve_seconds=math.inf)
    admission = make_admission(a=PoolRules())
    converter = GraphConverter(admission, cast(Any, None), HeavyWork(slots))
    assert slots.try_acquire("ann")
    waiting_conversion = asyncio.create_task(converter.convert(make_caller("ann"), make_body()))
    conversion = await converter.convert(make_caller("bob"), make_body())
    assert from_json(conversion)["graph"] == make_graph("Load")
    assert not waiting_conversion.done()
    slots.release("ann")
    assert from_json(await waiting_conversion)["graph"] == make_graph("Load")


async def test_converted_graphs_are_bounded_like_submitted_ones() -> None:
    """Convert a short graph whose subgraphs have many nodes when they are inlined."""
    admission = make_admission(GraphBounds(nodes=50), a=PoolRules())
    converter = GraphConverter(admission, cast(Any, None), HeavyWork())
    inner = {"id": "inner", "nodes": [{"id": n, "type": "Load"} for n in range(20)], "links": []}
    outer = {
        "nodes": [{"id": n, "type": "inner"} for n in range(3)],
        "links": [],
        "definitions": {"subgraphs": [inner]},
    }
    with pytest.raises(GraphTooLarge) as exc_info:
        await converter.convert(make_caller("ann"), to_json({"graph": outer, "pool": "a"}))
    assert exc_info.value.details == {"bound": "nodes", "max": 50, "actual": 60}
