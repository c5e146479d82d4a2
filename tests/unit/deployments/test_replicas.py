from __future__ import annotations

import logging

import pytest

from deployments.gateway.config import GatewayConfig
from deployments.replicas import ReloadableConfig
from moyin.proxy.engine import Proxy

GOOD = {"routes": [{"name": "a", "prefix": "/a", "upstreams": ["http://x"]}]}
BAD = {"routes": [{"name": "a", "prefix": "/a", "upstreams": ["http://me:secret@x"]}]}


@pytest.fixture
def proxy() -> Proxy:
    return Proxy(signing_key=b"0" * 32)


@pytest.fixture
def hot(proxy: Proxy) -> ReloadableConfig[GatewayConfig]:
    return ReloadableConfig(
        GatewayConfig, lambda config: proxy.configure(config.to_route_table("http://door"))
    )


def test_invalid_first_configuration_raises(hot: ReloadableConfig[GatewayConfig]) -> None:
    with pytest.raises(ValueError, match=r"routes\.0\.upstreams\.0\.url"):
        hot.load(BAD)


def test_invalid_later_configuration_is_logged_and_changes_nothing(
    hot: ReloadableConfig[GatewayConfig], proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    hot.load(GOOD)
    before = proxy.route_table
    with caplog.at_level(logging.ERROR):
        hot.load(BAD)
    assert proxy.route_table is before
    assert "routes.0.upstreams.0.url" in caplog.text
    assert "secret" not in caplog.text
    hot.load({"routes": []})
    assert proxy.route_table.routes == ()
