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


class Healthy(BaseHTTPRequestHandler):
    """Answers everything with an empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """What a test has deployed.

    Attributes:
        up, down, failing: the addresses of upstreams; two of them have no server.
        stream: the stream of Valkey from which the intake reads.
    """

    up: str
    down: str
    failing: str
    stream: str


@pytest.fixture
def deployed(gateway: RunningStack, tmp_path: Path) -> Iterator[Deployed]:
    """Deploy two routes and an intake with two sources, and restore the configuration afterwards."""
    original_config_path = Path(gateway.env["MOYIN_SERVE_CONFIG"])
    config = yaml.safe_load(original_config_path.read_text())
    with ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        names = Deployed(
            up=f"http://127.0.0.1:{server.server_port}",
            down=f"http://127.0.0.1:{free_port()}",
            failing=f"http://127.0.0.1:{free_port()}",
            stream=f"console-{secrets.token_hex(4)}",
        )
        add_apps(config, names)
        changed_config_path = tmp_path / "serve_config.yaml"
        changed_config_path.write_text(yaml.safe_dump(config))
        gateway.run("deploy", "--config", str(changed_config_path))
        yield names
        gateway.run("deploy", "--config", str(original_config_path))
        server.shutdown()
    with connect_valkey(gateway) as valkey:
        valkey.delete(names.stream, f"{names.stream}-results", f"{names.stream}-dead")


def add_apps(config: dict[str, Any], names: Deployed) -> None:
    apps = {app["name"]: app for app in config["applications"]}
    routes = apps["gateway"]["deployments"][0]["user_config"]["routes"]
    health = {"path": "/health", "interval": 0.5, "timeout": 0.5}
    routes += [
        {
            "name": "studio-wiki",
            "prefix": "/studio-wiki",
            "upstreams": [names.up, names.down],
            "health": health,
        },
        {
            "name": "studio-shop",
            "prefix": "/studio-shop",
            "upstreams": [names.failing],
            "retries": 0,
        },
    ]
    stream = {
        "type": "redis", "url_env": "MOYIN_REDIS_URL", "owner": "console-intake",
        "stream": names.stream, "results": f"{names.stream}-results",
        "dead_letters": f"{names.stream}-dead",
    }  # fmt: skip
    # No server has the address of this variable.
    queue = {"type": "rabbitmq", "url_env": "STUDIO_RABBITMQ_URL", "owner": "console-intake"}
    options = {"num_cpus": 0.1, "label_selector": {"moyin-use": "!render"}}
    config["applications"].append(
        {
            "name": "intake", "route_prefix": None, "import_path": "deployments.intake.builder:build",
            "args": {"sources": [stream, queue]},
            "deployments": [{"name": "Intake", "num_replicas": 1, "ray_actor_options": options}],
        }
    )  # fmt: skip


def connect_valkey(gateway: RunningStack) -> redis.Redis:
    return redis.Redis.from_url(gateway.settings.redis_url)


def test_an_operator_sees_upstreams_changes_and_intake_sources(
    console: ConsoleBrowser, gateway: RunningStack, deployed: Deployed
) -> None:
    api = Api(gateway)
    page = console.sign_in_with_key(gateway.api_key).open("/operate").page

    def fails() -> bool:
        """Return True when the breaker of the upstream without a server is open."""
        api.send("GET", "/studio-shop/")
        [route] = [
            one for one in api.get("/cluster/routes")["routes"] if one["name"] == "studio-shop"
        ]
        return bool(route["upstreams"][0]["breaker"] != "closed")

    eventually_blocking(fails)
    wiki = page.get_by_role("region", name="studio-wiki", exact=True).get_by_role("row")
    wiki.filter(has_text=deployed.up).get_by_text("up", exact=True).wait_for()
    wiki.filter(has_text=deployed.down).get_by_text("down", exact=True).wait_for()
    shop = page.get_by_role("region", name="studio-shop", exact=True).get_by_role("row")
    # A breaker that has been open for a while lets one request through.
    shop.filter(has_text=deployed.failing).get_by_text(
        re.compile("breaker open|probing")
    ).wait_for()

    changes = page.get_by_role("region", name="Last changes of the configuration", exact=True)
    newest = changes.get_by_role("table").first.get_by_role("row")
    expect(newest.filter(has_text="routes.studio-wiki")).to_contain_text(deployed.up)

    sources = page.get_by_role("region", name="Intake sources", exact=True).get_by_role("row")
    stream = sources.filter(has_text=deployed.stream)
    stream.get_by_text("connected", exact=True).wait_for()
    expect(stream).to_contain_text(f"127.0.0.1:{gateway.ports.valkey}")
    expect(stream).to_contain_text("none yet")
    queue = sources.filter(has_text="rabbitmq-moyin.jobs")
    queue.get_by_text("not connected", exact=True).wait_for()
    with connect_valkey(gateway) as valkey:
        valkey.xadd(deployed.stream, {"id": "bad", "body": "{"})
        job = {"kind": "http", "request": {"path": "/studio-wiki/"}}
        valkey.xadd(deployed.stream, {"id": "good", "body": json.dumps(job)})
    expect(stream.get_by_role("cell").nth(2)).to_have_text("1")
    expect(stream.get_by_role("cell").nth(3)).to_have_text("1")
    assert stream.get_by_text("none yet").count() == 0
    for secret in (gateway.valkey_password, gateway.env["STUDIO_RABBITMQ_URL"].split("@")[0]):
        assert secret not in page.content()
    console.check_accessibility()
    stream.scroll_into_view_if_needed()
    console.screenshot("operate-intake")
    page.set_viewport_size({"width": 390, "height": 844})
    console.choose_language("ja").page.get_by_role("heading", name="メッセージキュー").wait_for()
    page.get_by_role("heading", name="ゲートウェイのマシン").wait_for()
    console.check_accessibility()
