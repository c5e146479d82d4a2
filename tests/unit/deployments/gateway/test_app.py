from __future__ import annotations

from typing import Any, cast

import pytest

from deployments.gateway.app import ProxyOrApp
from moyin.access.gatekeeper.asgi import Message, Receive, Scope, Send
from moyin.errors import ServiceUnavailable
from moyin.proxy.engine import Proxy


class _FakeProxy:
    def match(self, scope: Scope) -> None:
        return None


class _RecordingApp:
    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])


async def list_forwarded_paths(path: str) -> list[str]:
    """Send a request for ``path``, and return the paths that reached the gateway's own app."""
    app = _RecordingApp()
    proxy_or_app = ProxyOrApp(cast(Proxy, _FakeProxy()), limited_proxy=app, app=app)
    await proxy_or_app({"type": "http", "path": path, "headers": []}, _receive, _send)
    return app.paths


@pytest.mark.parametrize("path", ["/v1", "/v1/models", "/accounts", "/accounts/session"])
async def test_paths_of_other_apps_are_unavailable(path: str) -> None:
    """Paths of other apps get status 503.

    HAProxy sends these paths to the gateway only until their own app is deployed.
    """
    with pytest.raises(ServiceUnavailable) as exc_info:
        await list_forwarded_paths(path)
    assert exc_info.value.retry_after == 5
    assert path.split("/")[1] in exc_info.value.message


@pytest.mark.parametrize("path", ["/v1x", "/accountsx", "/jobs/v1", "/", "/unknown/path"])
async def test_other_paths_are_the_gateways(path: str) -> None:
    assert await list_forwarded_paths(path) == [path]


async def _receive() -> Any:
    raise AssertionError("the request body must not be read")


async def _send(message: Message) -> None:
    raise AssertionError("no response must be sent")
