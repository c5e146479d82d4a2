from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from ray.serve.exceptions import RayServeException

from deployments.gateway.pools import ServePoolClient
from moyin.errors import BackendError, ServiceUnavailable, WorkerLost
from moyin.render.comfyui.pool_client import PoolResponse


class FakeHandle:
    """A fake Serve handle of a `RenderPool`, with a response per call; at None the call hangs."""

    def __init__(self, *responses: Any) -> None:
        self.responses = list(responses)
        self.arguments: list[Any] = []

    def __getattr__(self, method: str) -> FakeHandle:
        return self

    async def remote(self, arguments: Any) -> Any:
        self.arguments.append(arguments)
        response = self.responses.pop(0)
        if response is None:
            await asyncio.Event().wait()
        if isinstance(response, Exception):
            raise response
        return response


@pytest.fixture
def handles_by_pool(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeHandle]:
    handles: dict[str, FakeHandle] = {}
    monkeypatch.setattr(
        "ray.serve.get_deployment_handle", lambda _, app_name: handles[app_name[len("render-") :]]
    )
    return handles


def wrap_like_serve(error: Exception) -> Exception:
    serve_error: Exception = RayTaskError("ask", "traceback", error).as_instanceof_cause()
    return serve_error


@pytest.mark.parametrize(
    ("error", "expected_arguments"),
    [
        # ComfyUI failed on this request, or no renderer is up: the pool itself responds.
        (wrap_like_serve(WorkerLost("status 500")), ["/a", "/b"]),
        (wrap_like_serve(ServiceUnavailable("none is up")), ["/a", "/b"]),
        (RayServeException("no replica"), ["/a"]),
    ],
)
async def test_only_an_unreachable_pool_is_paused(
    handles_by_pool: dict[str, FakeHandle], error: Exception, expected_arguments: list[str]
) -> None:
    handles_by_pool["default"] = FakeHandle(
        error, response := PoolResponse(version="1", state="up")
    )
    pool_client = ServePoolClient(["default"])
    with pytest.raises(ServiceUnavailable):
        await pool_client.get("default", "/a")
    if len(expected_arguments) == 2:
        assert await pool_client.get("default", "/b") == response
    else:
        with pytest.raises(ServiceUnavailable):
            await pool_client.get("default", "/b")
    assert handles_by_pool["default"].arguments == expected_arguments


async def test_response_that_is_too_large_is_no_silence_of_its_pool(
    handles_by_pool: dict[str, FakeHandle],
) -> None:
    error = BackendError("ComfyUI's response exceeds the limit")
    handles_by_pool["default"] = FakeHandle(wrap_like_serve(error))
    with pytest.raises(BackendError) as exc_info:
        await ServePoolClient(["default"]).get("default", "/a")
    assert exc_info.value is error, "without Ray's traceback"


async def test_find_executed_queries_all_pools_and_skips_unresponsive_ones(
    handles_by_pool: dict[str, FakeHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.gateway.pools._EXECUTED_SECONDS", 0.05)
    handles_by_pool |= {
        "a": FakeHandle(b"", ["p"]),
        "b": FakeHandle(RayServeException("gone")),
        "c": FakeHandle(None),
    }
    pool_client = ServePoolClient(["a", "b", "c"])
    # Fetch the handle of pool a now, so that the short timeout below cannot hit it.
    await pool_client.get("a", "/models")
    assert await pool_client.find_executed(["p", "q"]) == {"p"}
    assert handles_by_pool["a"].arguments == ["/models", ["p", "q"]]
