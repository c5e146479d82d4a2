"""Tests the checks with which a pool refuses a prompt just before rendering it."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.render.config import RenderArgs
from deployments.render.guard import RenderGuard
from moyin.domain.limits import DISK_NODES, Limit, PoolRules
from moyin.errors import InputNotFound, NodeNotAllowed, OutOfMemory, PoolNotAllowed
from moyin.render.comfyui.bridge.guard import MOYIN_KEY
from moyin.render.comfyui.bridge.tenants import TENANT_KEY

OWN = f"moyin/{'a' * 64}.png"


class FakeLimits:
    def __init__(self, *pools: str) -> None:
        self._pools = pools

    async def list_for(self, subjects: list[str]) -> tuple[Limit, ...]:
        return tuple(
            Limit(subject=subject, pools=self._pools) for subject in subjects if self._pools
        )


def make_guard(*permitted_pools: str, **rules: Any) -> RenderGuard:
    return RenderGuard("big", PoolRules(**rules), FakeLimits(*permitted_pools))


def make_graph(node_class: str, **inputs: Any) -> dict[str, Any]:
    return {"1": {"class_type": node_class, "inputs": inputs}}


async def test_reserved_pool_renders_only_for_its_tenants() -> None:
    await make_guard(tenants=("ann",)).check_render("ann", "big", make_graph("Load"), ())
    with pytest.raises(PoolNotAllowed, match="big"):
        await make_guard(tenants=("ann",)).check_render("bob", "big", make_graph("Load"), ())


async def test_redirected_render_needs_permission_for_the_larger_pool() -> None:
    await make_guard("small", "big").check_render("ann", "small", make_graph("Load"), ())
    await make_guard().check_render("ann", "small", make_graph("Load"), ())
    for guard in (make_guard("small"), make_guard(tenants=("bob",))):
        with pytest.raises(OutOfMemory, match="pool 'small'") as exc_info:
            await guard.check_render("ann", "small", make_graph("Load"), ())
        assert "big" not in exc_info.value.message
        assert exc_info.value.details == {}, "no pool to which the render would go next"


async def test_denied_node_is_refused() -> None:
    with pytest.raises(NodeNotAllowed, match="node '1'"):
        await make_guard().check_render("ann", "big", make_graph("SaveLoRA"), ())
    await make_guard(deny=()).check_render("ann", "big", make_graph("SaveLoRA"), ())


async def test_input_file_of_another_prompt_is_refused() -> None:
    await make_guard().check_render(
        "ann", "big", make_graph("Load", image=OWN, more={"deep": [OWN]}), {OWN}
    )
    for image in (OWN, f"{OWN} [input]", {"deep": [OWN]}):
        with pytest.raises(InputNotFound, match="you have no file"):
            await make_guard().check_render("ann", "big", make_graph("Load", image=image), ())


def test_client_cannot_override_the_rules_in_extra_data() -> None:
    client_data = {"extra_pnginfo": {"a": 1}, MOYIN_KEY: {"deny": []}}
    extra_data = make_guard(unchecked=("A.b",)).add_pool_rules("ann", client_data)
    tenant = extra_data[MOYIN_KEY].pop(TENANT_KEY)
    assert extra_data == {
        "extra_pnginfo": {"a": 1},
        MOYIN_KEY: {"allow": ["*"], "deny": list(DISK_NODES), "unchecked": ["A.b"]},
    }
    assert "ann" not in tenant
    assert make_guard().add_pool_rules("bob", client_data)[MOYIN_KEY][TENANT_KEY] != tenant


def test_rules_come_from_the_configuration() -> None:
    assert RenderArgs().to_rules() == PoolRules()
    args = RenderArgs.model_validate({"tenants": ["ann"], "nodes": {"allow": ["A*"], "deny": []}})
    assert args.to_rules() == PoolRules(tenants=("ann",), allow=("A*",), deny=())
