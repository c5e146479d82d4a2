"""What a pool refuses when a render's turn has come."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.render.config import RenderArgs
from deployments.render.guard import RenderGuard
from moyin.domain.limits import Limit
from moyin.domain.pools import DISK_NODES, PoolRules
from moyin.errors import InputNotFound, NodeNotAllowed, PoolNotAllowed
from moyin.render.comfyui.bridge.guard import KEY
from moyin.render.comfyui.bridge.tenants import TENANT

OWN = f"moyin/{'a' * 64}.png"


class Limits:
    def __init__(self, *pools: str) -> None:
        self._pools = pools

    async def list_for(self, subjects: list[str]) -> tuple[Limit, ...]:
        return tuple(Limit(subject=one, pools=self._pools) for one in subjects if self._pools)


def guard(*bound: str, **rules: Any) -> RenderGuard:
    return RenderGuard("big", PoolRules(**rules), Limits(*bound))


def graph(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"1": {"class_type": kind, "inputs": inputs}}


async def test_a_reserved_pool_renders_for_its_tenants_alone() -> None:
    await guard(tenants=("ann",)).check("ann", "big", graph("Load"), ())
    with pytest.raises(PoolNotAllowed, match="big"):
        await guard(tenants=("ann",)).check("bob", "big", graph("Load"), ())


async def test_a_render_that_was_too_large_for_its_pool_goes_to_none_that_is_not_its_owners() -> (
    None
):
    await guard("small", "big").check("ann", "small", graph("Load"), ())
    await guard().check("ann", "small", graph("Load"), ())
    with pytest.raises(PoolNotAllowed):
        await guard("small").check("ann", "small", graph("Load"), ())


async def test_a_node_that_the_pool_denies_is_refused_whoever_let_it_in() -> None:
    with pytest.raises(NodeNotAllowed, match="node '1'"):
        await guard().check("ann", "big", graph("SaveLoRA"), ())
    await guard(deny=()).check("ann", "big", graph("SaveLoRA"), ())


async def test_an_input_file_of_another_prompt_is_refused() -> None:
    await guard().check("ann", "big", graph("Load", image=OWN, more={"deep": [OWN]}), {OWN})
    for image in (OWN, f"{OWN} [input]", {"deep": [OWN]}):
        with pytest.raises(InputNotFound, match="no file of yours"):
            await guard().check("ann", "big", graph("Load", image=image), ())


def test_a_client_does_not_choose_what_holds_inside_comfyui() -> None:
    given = {"extra_pnginfo": {"a": 1}, KEY: {"deny": []}}
    made = guard(unchecked=("A.b",)).extra_data("ann", given)
    tenant = made[KEY].pop(TENANT)
    assert made == {
        "extra_pnginfo": {"a": 1},
        KEY: {"allow": ["*"], "deny": list(DISK_NODES), "unchecked": ["A.b"]},
    }
    assert "ann" not in tenant
    assert guard().extra_data("bob", given)[KEY][TENANT] != tenant


def test_the_rules_are_those_of_the_configuration() -> None:
    assert RenderArgs().rules() == PoolRules()
    args = RenderArgs.model_validate({"tenants": ["ann"], "nodes": {"allow": ["A*"], "deny": []}})
    assert args.rules() == PoolRules(tenants=("ann",), allow=("A*",), deny=())
