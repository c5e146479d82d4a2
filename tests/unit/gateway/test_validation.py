from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import RayError

from deployments.gateway import validation
from deployments.gateway.validation import PoolValidator
from moyin.errors import InvalidGraph, ServiceUnavailable

BODY = {"error": {"type": "invalid_prompt", "message": "no"}, "node_errors": {"1": {}}}


class Pool:
    """A Serve handle, as far as the validator uses one."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self.asked: list[Any] = []
        self.validate = self

    async def remote(self, graph: Any, targets: Any) -> Any:
        self.asked.append((graph, targets))
        if isinstance(self._answer, Exception):
            raise self._answer
        if self._answer == "hang":
            await asyncio.sleep(60)
        return self._answer


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(pool: Pool) -> Pool:
        def handle(name: str, *, app_name: str) -> Pool:
            assert (name, app_name) == ("RenderPool", "render-fast")
            return pool

        monkeypatch.setattr(validation.serve, "get_deployment_handle", handle)
        return pool

    return install


@pytest.mark.parametrize("answer", [{}, {"outputs": ["1"], "node_errors": {}}])
async def test_a_good_graph_passes(serving: Any, answer: Any) -> None:
    pool = serving(Pool(answer))
    assert await PoolValidator().validate("fast", {"1": {}}, ["1"]) == answer
    assert pool.asked == [({"1": {}}, ["1"])]


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
    assert len(pool.asked) == 1


async def test_after_the_pause_it_is_asked_again(serving: Any) -> None:
    pool = serving(Pool(RayError("dead")))
    validator = PoolValidator(pause=0)
    await validator.validate("fast", {})
    await validator.validate("fast", {})
    assert len(pool.asked) == 2
