from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from ray.serve.exceptions import RayServeException

from deployments.gateway.pool_client import ServePoolClient
from moyin.errors import ServiceUnavailable, WorkerLost
from moyin.render.comfyui.pool_client import PoolAnswer


class Handle:
    """`RenderPool` over its handle; what it says next is said once."""

    def __init__(self, *says: Any) -> None:
        self.says = list(says)
        self.asked: list[Any] = []

    def __getattr__(self, method: str) -> Handle:
        return self

    async def remote(self, asked: Any) -> Any:
        self.asked.append(asked)
        said = self.says.pop(0)
        if said is None:
            await asyncio.Event().wait()
        if isinstance(said, Exception):
            raise said
        return said


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> dict[str, Handle]:
    handles: dict[str, Handle] = {}
    monkeypatch.setattr(
        "ray.serve.get_deployment_handle", lambda _, app_name: handles[app_name[len("render-") :]]
    )
    return handles


def as_serve_raises(error: Exception) -> Exception:
    raised: Exception = RayTaskError("ask", "traceback", error).as_instanceof_cause()
    return raised


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        # ComfyUI stumbled over this question, or no renderer is up: the pool itself is there.
        (as_serve_raises(WorkerLost("status 500")), ["/a", "/b"]),
        (as_serve_raises(ServiceUnavailable("none is up")), ["/a", "/b"]),
        (RayServeException("no replica"), ["/a"]),
    ],
)
async def test_only_a_pool_that_is_not_there_is_left_alone_for_a_while(
    pools: dict[str, Handle], error: Exception, asked: list[str]
) -> None:
    pools["default"] = Handle(error, said := PoolAnswer(version="1", state="up"))
    asker = ServePoolClient(["default"])
    with pytest.raises(ServiceUnavailable):
        await asker.ask("default", "/a")
    if len(asked) == 2:
        assert await asker.ask("default", "/b") == said
    else:
        with pytest.raises(ServiceUnavailable):
            await asker.ask("default", "/b")
    assert pools["default"].asked == asked


async def test_what_is_executed_is_asked_of_all_pools_and_waited_for_by_nobody(
    pools: dict[str, Handle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.gateway.pool_client._EXECUTED_SECONDS", 0.05)
    pools |= {"a": Handle(b"", ["p"]), "b": Handle(RayServeException("gone")), "c": Handle(None)}
    asker = ServePoolClient(["a", "b", "c"])
    # From now on its handle is there, and no clock decides what it says.
    await asker.ask("a", "/models")
    assert await asker.executed(["p", "q"]) == {"p"}
    assert pools["a"].asked == ["/models", ["p", "q"]]
