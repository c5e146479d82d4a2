from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from deployments.gateway.config import GatewayConfig
from moyin.proxy.route import BalancingPolicy


def make_route(**kwargs: Any) -> dict[str, Any]:
    return {"name": "a", "prefix": "/a", "upstreams": ["http://10.0.0.1:9"], **kwargs}


def test_a_route_with_every_setting_is_built() -> None:
    config = GatewayConfig.model_validate(
        {
            "routes": [
                make_route(
                    upstreams=["http://10.0.0.1:9/", {"url": "https://b", "weight": 3}],
                    balance="weighted",
                    sticky="X-Session",
                    scopes=["assets:read"],
                    limits={"requests_per_minute": 60},
                    health={"path": "/health"},
                    **{"async": True},
                )
            ]
        }
    )
    [built_route] = config.to_route_table("http://gateway").routes
    assert [(u.url, u.weight) for u in built_route.upstreams] == [
        ("http://10.0.0.1:9", 1),
        ("https://b", 3),
    ]
    assert (built_route.balance, built_route.sticky, built_route.respond_async) == (
        BalancingPolicy.WEIGHTED, "x-session", True,
    )  # fmt: skip
    assert built_route.limit is not None and built_route.limit.subject == "route:a"
    # Serve stores the configuration as JSON.
    assert GatewayConfig.model_validate(config.model_dump(mode="json", by_alias=True)) == config


def test_scopes_have_the_same_order_in_each_process() -> None:
    """Scopes are sorted, because the order of a set of strings differs from process to process."""
    scopes = ["jobs:write", "text", "jobs:read", "assets:read"]
    config = GatewayConfig.model_validate({"routes": [make_route(scopes=scopes)]})
    assert config.model_dump(mode="json")["routes"][0]["scopes"] == sorted(scopes)


def test_gateway_upstream_gets_the_gateways_address() -> None:
    config = GatewayConfig.model_validate({"routes": [make_route(upstreams=["door/v1/ollama"])]})
    assert config.to_route_table("http://h:1/").routes[0].upstreams[0].url == "http://h:1/v1/ollama"


@pytest.mark.parametrize(
    ("routes", "field"),
    [
        ([make_route(upstream=["http://x"])], "routes.0.upstream"),
        ([make_route(upstreams=[])], "routes.0.upstreams"),
        ([make_route(upstreams=["ftp://x"])], "routes.0.upstreams.0.url"),
        ([make_route(upstreams=["http://user:pw@x"])], "routes.0.upstreams.0.url"),
        ([make_route(upstreams=["http://x:99999"])], "routes.0.upstreams.0.url"),
        ([make_route(), make_route(name="B")], "routes.1.name"),
        ([make_route(balance="random")], "routes.0.balance"),
        ([make_route(timeouts={"connect": 0})], "routes.0.timeouts.connect"),
        ([make_route(rewrite={"match": "(", "to": ""})], "routes.0.rewrite"),
        ([make_route(rewrite={"match": "x", "to": "\\9"})], "routes.0.rewrite"),
        ([make_route(prefix="/jobs")], "routes.0"),
        ([make_route(prefix="/api/x")], "routes.0"),
        ([make_route(prefix="/")], "routes.0"),
        ([make_route(prefix=None)], "routes.0"),
        ([make_route(prefix=None, paths=["/v1/models"])], "routes.0"),
        # HAProxy sends these paths to other apps, whatever the host.
        ([make_route(hosts=["x"], prefix="/v1")], "routes.0"),
        ([make_route(hosts=["x"], prefix=None, paths=["/accounts/login"])], "routes.0"),
        ([make_route(upstreams=["http://x", "http://x/"])], "routes.0"),
        ([make_route(pass_credentials=True)], "routes.0"),
        ([make_route(hosts=["x"], **{"async": True})], "routes.0"),
        ([make_route(), make_route(name="b")], ""),
    ],
)
def test_an_invalid_route_is_rejected_and_its_field_named(
    routes: list[dict[str, Any]], field: str
) -> None:
    with pytest.raises(ValidationError) as exc_info:
        GatewayConfig.model_validate({"routes": routes})
    assert field in {".".join(map(str, error["loc"])) for error in exc_info.value.errors()}
