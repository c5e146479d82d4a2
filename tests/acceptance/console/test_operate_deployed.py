"""Tests the page Operate after a real deployment of routes and of an intake."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import redis
import yaml
from playwright.sync_api import expect

from tests.acceptance.console.browser import ConsoleBrowser
from tests.acceptance.console.calls import Api
from tests.integration.servers import free_port
from tests.stack import RunningStack
from tests.waiting import eventually_blocking


class HealthyHandler(BaseHTTPRequestHandler):
    """Answers every GET request with an empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@dataclass(frozen=True, kw_only=True)
class DeployedApps:
    """The routes and the intake that a test has deployed.

    Attributes:
        up: the URL of an upstream that works.
        down, failing: the URLs of two upstreams without a server.
        stream: the name of the Valkey stream from which the intake reads.
    """

    up: str
    down: str
    failing: str
    stream: str


@pytest.fixture
def deployed_apps(gateway: RunningStack, tmp_path: Path) -> Iterator[DeployedApps]:
    """Deploy two routes and an intake with two sources, and restore the configuration afterwards."""
    original_config_path = Path(gateway.env["MOYIN_SERVE_CONFIG"])
    config = yaml.safe_load(original_config_path.read_text())
    with ThreadingHTTPServer(("127.0.0.1", 0), HealthyHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        deployed_apps = DeployedApps(
            up=f"http://127.0.0.1:{server.server_port}",
            down=f"http://127.0.0.1:{free_port()}",
            failing=f"http://127.0.0.1:{free_port()}",
            stream=f"console-{secrets.token_hex(4)}",
        )
        add_apps(config, deployed_apps)
        changed_config_path = tmp_path / "serve_config.yaml"
        changed_config_path.write_text(yaml.safe_dump(config))
        gateway.run("deploy", "--config", str(changed_config_path))
        yield deployed_apps
        gateway.run("deploy", "--config", str(original_config_path))
        server.shutdown()
    with connect_valkey(gateway) as valkey:
        valkey.delete(
            deployed_apps.stream, f"{deployed_apps.stream}-results", f"{deployed_apps.stream}-dead"
        )


def add_apps(config: dict[str, Any], deployed_apps: DeployedApps) -> None:
    apps = {app["name"]: app for app in config["applications"]}
    routes = apps["gateway"]["deployments"][0]["user_config"]["routes"]
    health = {"path": "/health", "interval": 0.5, "timeout": 0.5}
    routes += [
        {
            "name": "studio-wiki",
            "prefix": "/studio-wiki",
            "upstreams": [deployed_apps.up, deployed_apps.down],
            "health": health,
        },
        {
            "name": "studio-shop",
            "prefix": "/studio-shop",
            "upstreams": [deployed_apps.failing],
            "retries": 0,
        },
    ]
    stream_source = {
        "type": "redis", "url_env": "MOYIN_REDIS_URL", "owner": "console-intake",
        "stream": deployed_apps.stream, "results": f"{deployed_apps.stream}-results",
        "dead_letters": f"{deployed_apps.stream}-dead",
    }  # fmt: skip
    # No server has the address of this variable.
    queue_source = {"type": "rabbitmq", "url_env": "STUDIO_RABBITMQ_URL", "owner": "console-intake"}
    options = {"num_cpus": 0.1, "label_selector": {"moyin-use": "!render"}}
    config["applications"].append(
        {
            "name": "intake", "route_prefix": None, "import_path": "deployments.intake.builder:build",
            "args": {"sources": [stream_source, queue_source]},
            "deployments": [{"name": "Intake", "num_replicas": 1, "ray_actor_options": options}],
        }
    )  # fmt: skip


def connect_valkey(gateway: RunningStack) -> redis.Redis:
    return redis.Redis.from_url(gateway.settings.redis_url)


def test_an_operator_sees_upstreams_changes_and_intake_sources(
    console: ConsoleBrowser, gateway: RunningStack, deployed_apps: DeployedApps
) -> None:
    api = Api(gateway)
    page = console.sign_in_with_key(gateway.api_key).open("/operate").page

    def is_breaker_open() -> bool:
        """Return True when the breaker of the upstream without a server is open."""
        api.send("GET", "/studio-shop/")
        [route] = [
            body for body in api.get("/cluster/routes")["routes"] if body["name"] == "studio-shop"
        ]
        return bool(route["upstreams"][0]["breaker"] != "closed")

    eventually_blocking(is_breaker_open)
    wiki_rows = page.get_by_role("region", name="studio-wiki", exact=True).get_by_role("row")
    wiki_rows.filter(has_text=deployed_apps.up).get_by_text("up", exact=True).wait_for()
    wiki_rows.filter(has_text=deployed_apps.down).get_by_text("down", exact=True).wait_for()
    shop_rows = page.get_by_role("region", name="studio-shop", exact=True).get_by_role("row")
    # A breaker that has been open for a while lets one request through.
    shop_rows.filter(has_text=deployed_apps.failing).get_by_text(
        re.compile("breaker open|probing")
    ).wait_for()

    changes_region = page.get_by_role(
        "region", name="Last changes of the configuration", exact=True
    )
    newest_rows = changes_region.get_by_role("table").first.get_by_role("row")
    expect(newest_rows.filter(has_text="routes.studio-wiki")).to_contain_text(deployed_apps.up)

    source_rows = page.get_by_role("region", name="Intake sources", exact=True).get_by_role("row")
    stream_row = source_rows.filter(has_text=deployed_apps.stream)
    stream_row.get_by_text("connected", exact=True).wait_for()
    expect(stream_row).to_contain_text(f"127.0.0.1:{gateway.ports.valkey}")
    expect(stream_row).to_contain_text("none yet")
    queue_row = source_rows.filter(has_text="rabbitmq-moyin.jobs")
    queue_row.get_by_text("not connected", exact=True).wait_for()
    with connect_valkey(gateway) as valkey:
        valkey.xadd(deployed_apps.stream, {"id": "bad", "body": "{"})
        job = {"kind": "http", "request": {"path": "/studio-wiki/"}}
        valkey.xadd(deployed_apps.stream, {"id": "good", "body": json.dumps(job)})
    expect(stream_row.get_by_role("cell").nth(2)).to_have_text("1")
    expect(stream_row.get_by_role("cell").nth(3)).to_have_text("1")
    assert stream_row.get_by_text("none yet").count() == 0
    for secret in (gateway.valkey_password, gateway.env["STUDIO_RABBITMQ_URL"].split("@")[0]):
        assert secret not in page.content()
    console.check_accessibility()
    stream_row.scroll_into_view_if_needed()
    console.screenshot("operate-intake")
    page.set_viewport_size({"width": 390, "height": 844})
    console.choose_language("ja").page.get_by_role("heading", name="メッセージキュー").wait_for()
    page.get_by_role("heading", name="ゲートウェイのマシン").wait_for()
    console.check_accessibility()
