"""Tests of the body of ``GET /cluster/routes``."""

from __future__ import annotations

import pytest

from deployments.gateway.cluster.routes_view import build_links, build_routes
from deployments.gateway.config import GatewayConfig
from deployments.replicas import ReloadableConfig
from moyin.proxy.pool import PoolMember, UpstreamPool
from moyin.settings import Settings


def test_routes_have_the_health_and_load_of_their_upstreams() -> None:
    config = ReloadableConfig(GatewayConfig, lambda _: None)
    config_values = {
        "routes": [{"name": "a", "prefix": "/a", "upstreams": ["http://one", "http://two"]}]
    }
    config.load(config_values)
    config.load({"routes": "none"})
    assert config.current is not None
    [route] = config.current.to_route_table("http://door").routes
    first_member, second_member = members = [PoolMember(upstream) for upstream in route.upstreams]
    first_member.is_up, second_member.active = False, 3
    for _ in range(3):
        second_member.breaker.fail()
    pool = UpstreamPool(route, members)
    with pool.admit():
        body = build_routes([pool], config, {"intake": "RUNNING"})
    [shown_route] = body.routes
    assert (shown_route.name, shown_route.prefix, shown_route.open_requests) == ("a", "/a", 1)
    assert [(u.url, u.is_up, u.breaker, u.open_requests) for u in shown_route.upstreams] == [
        ("http://one", False, "closed", 0),
        ("http://two", True, "open", 3),
    ]
    assert body.applications == {"intake": "RUNNING"}
    assert set(body.versions) == {"moyin", "ray", "temporalio"}
    assert body.config.values["routes"][0]["name"] == "a"
    assert body.config.is_newest_rejected
    assert body.config.applied_at is not None


def test_links_lead_to_configured_web_interfaces_only() -> None:
    links = build_links(Settings(temporal_ui_url="", ray_dashboard_url=""))
    assert (links.temporal, links.ray) == (None, None)
    settings = Settings(
        temporal_ui_url="https://temporal.example.org/ui/",
        temporal_namespace="a/b",
        ray_dashboard_url="http://127.0.0.1:8265",
    )
    links = build_links(settings)
    assert links.temporal == "https://temporal.example.org/ui/namespaces/a%2Fb/workflows"
    assert links.ray == "http://127.0.0.1:8265"


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        "127.0.0.1:8233",
        "http://",
        "http://user:pw@host",
        "http://h/?token=x",
    ],
)
def test_a_page_may_link_to_web_addresses_without_secrets_only(address: str) -> None:
    with pytest.raises(ValueError, match="must"):
        Settings(temporal_ui_url=address)
