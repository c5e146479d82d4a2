from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayError

from deployments.gateway import validation
from deployments.gateway.pool_validator import PoolValidator
from moyin.errors import InvalidGraph, ServiceUnavailable

BODY = {"error": {"type": "invalid_prompt", "message": "no"}, "node_errors": {"1": {}}}


class Remote:
    """A method of a handle; ``answer`` may be an error, or ``hang``."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[Any] = []

    async def remote(self, *arguments: Any) -> Any:
        self.asked.append(arguments)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer == "hang":
            await asyncio.sleep(60)
        return self.answer


class Pool:
    """A pool and its actors, as far as the validator uses their handles."""

    def __init__(self, answer: Any, names: Any = ("a", "b")) -> None:
        self.renderers = Remote(list(names))
        self.actors = {name: SimpleNamespace(validate=Remote(answer)) for name in names}

    @property
    def asked(self) -> list[list[Any]]:
        return [actor.validate.asked for actor in self.actors.values()]


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(pool: Pool) -> Pool:
        def handle(name: str, *, app_name: str) -> Pool:
            assert (name, app_name) == ("RenderPool", "render-fast")
            return pool

        def actor(name: str, namespace: str) -> Any:
            if name not in pool.actors:
                raise ValueError(f"no actor {name}")
            return pool.actors[name]

        monkeypatch.setattr(validation.serve, "get_deployment_handle", handle)
        monkeypatch.setattr(validation.ray, "get_actor", actor)
        return pool

    return install


@pytest.mark.parametrize("answer", [{}, {"outputs": ["1"], "node_errors": {}}])
async def test_a_good_graph_passes(serving: Any, answer: Any) -> None:
    pool = serving(Pool(answer))
    assert await PoolValidator().validate("fast", {"1": {}}, ["1"]) == answer
    assert pool.asked == [[({"1": {}}, ["1"])], []]


async def test_the_renderers_take_turns_and_the_pool_is_not_asked_for_each(serving: Any) -> None:
    pool = serving(Pool({}))
    validator = PoolValidator()
    for _ in range(4):
        await validator.validate("fast", {})
    assert ([len(asked) for asked in pool.asked], len(pool.renderers.asked)) == ([2, 2], 1)


async def test_a_graph_that_is_valid_like_the_last_one_is_not_asked_about(serving: Any) -> None:
    def graph(seed: int) -> dict[str, Any]:
        return {"1": {"class_type": "K", "inputs": {"seed": seed}}}

    body = {"outputs": ["1"], "node_errors": {}}
    pool = serving(Pool({**body, "free": {"1": {"seed": ["INT", 0, 99]}}}, names="a"))
    validator = PoolValidator()
    for seed in (1, 2, 99):
        assert await validator.validate("fast", graph(seed)) == body
    assert pool.asked == [[(graph(1), None)]]
    await validator.validate("fast", graph(100))
    await validator.validate("fast", graph(3), ["1"])
    assert pool.asked == [[(graph(1), None), (graph(100), None), (graph(3), ["1"])]]


async def test_comfyuis_refusal_is_passed_on(serving: Any) -> None:
    serving(Pool(BODY))
    with pytest.raises(InvalidGraph) as refused:
        await PoolValidator().validate("fast", {"1": {}})
    assert (refused.value.message, refused.value.details) == ("no", BODY)


@pytest.mark.parametrize(
    "answer",
    [RayError("dead"), KeyError("not deployed"), ServiceUnavailable("starting"), "hang"],
)
async def test_an_absent_pool_lets_graphs_through_and_is_not_asked_again(
    serving: Any, answer: Any
) -> None:
    pool = serving(Pool(answer))
    validator = PoolValidator(timeout=1.0, pause=60)
    await validator.validate("fast", {})
    await validator.validate("fast", {})
    assert (len(pool.renderers.asked), sum(map(len, pool.asked))) == (1, 1)


@pytest.mark.parametrize(
    "said", [[], ["gone"], KeyError("not deployed"), ServiceUnavailable("starting"), "hang"]
)
async def test_a_pool_without_renderers_lets_graphs_through_as_well(
    serving: Any, said: Any
) -> None:
    pool = serving(Pool({}))
    pool.renderers.answer = said
    validator = PoolValidator(timeout=1.0, pause=60)
    await validator.validate("fast", {})
    await validator.validate("fast", {})
    assert (len(pool.renderers.asked), pool.asked) == (1, [[], []])


async def test_after_the_pause_it_is_asked_again(serving: Any) -> None:
    pool = serving(Pool(RayError("dead")))
    validator = PoolValidator(pause=0)
    await validator.validate("fast", {})
    await validator.validate("fast", {})
    assert (len(pool.renderers.asked), sum(map(len, pool.asked))) == (2, 2)
