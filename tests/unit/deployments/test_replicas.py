from __future__ import annotations

import logging

import pytest

from deployments.gateway.config import GatewayConfig
from deployments.replicas import ReloadableConfig
from moyin.proxy import Proxy

GOOD = {"routes": [{"name": "a", "prefix": "/a", "upstreams": ["http://x"]}]}
BAD = {"routes": [{"name": "a", "prefix": "/a", "upstreams": ["http://me:secret@x"]}]}


@pytest.fixture
def proxy() -> Proxy:
    return Proxy(signing_key=b"0" * 32)


@pytest.fixture
def reloadable_config(proxy: Proxy) -> ReloadableConfig[GatewayConfig]:
    return ReloadableConfig(
        GatewayConfig, lambda config: proxy.configure(config.to_route_table("http://door"))
    )


def test_invalid_first_configuration_raises(
    reloadable_config: ReloadableConfig[GatewayConfig],
) -> None:
    with pytest.raises(ValueError, match=r"routes\.0\.upstreams\.0\.url"):
        reloadable_config.load(BAD)


def test_invalid_later_configuration_is_logged_and_changes_nothing(
    reloadable_config: ReloadableConfig[GatewayConfig],
    proxy: Proxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reloadable_config.load(GOOD)
    table_before = proxy.route_table
    with caplog.at_level(logging.ERROR):
        reloadable_config.load(BAD)
    assert proxy.route_table is table_before
    assert "routes.0.upstreams.0.url" in caplog.text
    assert "secret" not in caplog.text
    reloadable_config.load({"routes": []})
    assert proxy.route_table.routes == ()
