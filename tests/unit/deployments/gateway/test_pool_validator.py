from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayError

from deployments.gateway.pools import PoolValidator
from moyin.errors import InvalidGraph, ServiceUnavailable
from moyin.render.comfyui.tenant import make_tenant_id

ANN = make_tenant_id("ann")
BODY = {"error": {"type": "invalid_prompt", "message": "no"}, "node_errors": {"1": {}}}


class FakeRemoteMethod:
    """A fake method of a handle; ``outcome`` is a response, an error, or ``hang``."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.calls: list[Any] = []

    async def remote(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if self.outcome == "hang":
            await asyncio.sleep(60)
        return self.outcome


class FakePool:
    """A fake pool and its renderer actors."""

    def __init__(self, outcome: Any, names: Any = ("a", "b")) -> None:
        self.list_renderers = FakeRemoteMethod(list(names))
        self.actors = {name: SimpleNamespace(validate=FakeRemoteMethod(outcome)) for name in names}

    @property
    def calls(self) -> list[list[Any]]:
        return [actor.validate.calls for actor in self.actors.values()]


@pytest.fixture
def serve_pool(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install_pool(pool: FakePool) -> FakePool:
        def get_handle(name: str, *, app_name: str) -> FakePool:
            assert (name, app_name) == ("RenderPool", "render-fast")
            return pool

        def get_actor(name: str, namespace: str) -> Any:
            if name not in pool.actors:
                raise ValueError(f"no actor {name}")
            return pool.actors[name]

        monkeypatch.setattr("ray.serve.get_deployment_handle", get_handle)
        monkeypatch.setattr("deployments.gateway.pools.ray.get_actor", get_actor)
        return pool

    return install_pool


@pytest.mark.parametrize("outcome", [{}, {"outputs": ["1"], "node_errors": {}}])
async def test_a_valid_graph_is_accepted(serve_pool: Any, outcome: Any) -> None:
    pool = serve_pool(FakePool(outcome))
    assert await PoolValidator().validate("fast", {"1": {}}, ["1"], owner="ann") == outcome
    assert pool.calls == [[({"1": {}}, ["1"], ANN)], []]


async def test_renderers_take_turns_and_their_list_is_cached(serve_pool: Any) -> None:
    pool = serve_pool(FakePool({}))
    validator = PoolValidator()
    for _ in range(4):
        await validator.validate("fast", {}, owner="ann")
    assert ([len(calls) for calls in pool.calls], len(pool.list_renderers.calls)) == ([2, 2], 1)


async def test_graphs_that_differ_in_unchecked_inputs_are_validated_once(serve_pool: Any) -> None:
    def make_graph(seed: int) -> dict[str, Any]:
        return {"1": {"class_type": "K", "inputs": {"seed": seed}}}

    body = {"outputs": ["1"], "node_errors": {}}
    pool = serve_pool(FakePool({**body, "free": {"1": {"seed": ["INT", 0, 99]}}}, names="a"))
    validator = PoolValidator()
    for seed in (1, 2, 99):
        assert await validator.validate("fast", make_graph(seed), owner="ann") == body
    assert pool.calls == [[(make_graph(1), None, ANN)]]
    await validator.validate("fast", make_graph(100), owner="ann")
    await validator.validate("fast", make_graph(3), ["1"], owner="ann")
    assert pool.calls == [
        [(make_graph(1), None, ANN), (make_graph(100), None, ANN), (make_graph(3), ["1"], ANN)]
    ]


async def test_comfyuis_rejection_is_forwarded(serve_pool: Any) -> None:
    serve_pool(FakePool(BODY))
    with pytest.raises(InvalidGraph) as exc_info:
        await PoolValidator().validate("fast", {"1": {}}, owner="ann")
    assert (exc_info.value.message, exc_info.value.details) == ("no", BODY)


@pytest.mark.parametrize(
    "outcome",
    [RayError("dead"), KeyError("not deployed"), ServiceUnavailable("starting"), "hang"],
)
async def test_an_unavailable_pool_accepts_graphs_and_is_paused(
    serve_pool: Any, outcome: Any
) -> None:
    pool = serve_pool(FakePool(outcome))
    validator = PoolValidator(timeout_seconds=1.0, pause_seconds=60)
    await validator.validate("fast", {}, owner="ann")
    await validator.validate("fast", {}, owner="ann")
    assert (len(pool.list_renderers.calls), sum(map(len, pool.calls))) == (1, 1)


@pytest.mark.parametrize(
    "renderers_response",
    [[], ["gone"], KeyError("not deployed"), ServiceUnavailable("starting"), "hang"],
)
async def test_a_pool_without_renderers_accepts_graphs_and_is_paused(
    serve_pool: Any, renderers_response: Any
) -> None:
    pool = serve_pool(FakePool({}))
    pool.list_renderers.outcome = renderers_response
    validator = PoolValidator(timeout_seconds=1.0, pause_seconds=60)
    await validator.validate("fast", {}, owner="ann")
    await validator.validate("fast", {}, owner="ann")
    assert (len(pool.list_renderers.calls), pool.calls) == (1, [[], []])


async def test_after_the_pause_the_pool_is_called_again(serve_pool: Any) -> None:
    pool = serve_pool(FakePool(RayError("dead")))
    validator = PoolValidator(pause_seconds=0)
    await validator.validate("fast", {}, owner="ann")
    await validator.validate("fast", {}, owner="ann")
    assert (len(pool.list_renderers.calls), sum(map(len, pool.calls))) == (2, 2)


async def test_nobody_gets_the_cached_result_of_another_tenants_graph(serve_pool: Any) -> None:
    pool = serve_pool(FakePool({"outputs": ["1"], "node_errors": {}, "free": {}}, names="a"))
    validator = PoolValidator()
    for owner in ("ann", "ann", "bob"):
        await validator.validate("fast", {"1": {"class_type": "K", "inputs": {}}}, owner=owner)
    assert [tenant for *_, tenant in pool.calls[0]] == [ANN, make_tenant_id("bob")]
    assert pool.list_renderers.calls == [(ANN,), (make_tenant_id("bob"),)]
