"""Tests that a real Prometheus reads the farm with the shipped configuration, alerts and dashboard."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stack import ROOT, RunningStack
from tests.waiting import eventually_blocking

FOLDER = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "moyin.json"
MONITORING_PAGE = ROOT / "docs" / "monitoring.md"
# Ray passes metrics on every ten seconds.
_METRICS_SECONDS = 90
_OWN_METRIC = re.compile(r"\b(?:ray_)?(?:moyin|gen_ai)_[a-z_]+")

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="there is no Prometheus here: see scripts/prometheus.sh",
)


def test_alerts_fire_for_what_they_name_and_for_nothing_else() -> None:
    run_promtool("test", "rules", "moyin.rules.test.yml")


def test_every_alert_has_a_test() -> None:
    rules = (FOLDER / "moyin.rules.yml").read_text()
    alerts = set(re.findall(r"- alert: (\w+)", rules))
    tested_alerts = set(
        re.findall(r"alertname: (\w+)", (FOLDER / "moyin.rules.test.yml").read_text())
    )
    assert len(alerts) == rules.count("- alert:") > 0
    assert alerts == tested_alerts


def test_prometheus_reads_the_gateway_and_every_node(gateway: RunningStack, tmp_path: Path) -> None:
    key = gateway.run("keys", "create", "monitoring", "--scope", "metrics").stdout
    response = httpx.post(
        f"{gateway.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {gateway.api_key}"},
        json={
            "model": "smollm2-135m",
            "max_tokens": 2,
            "stream": True,
            "messages": [{"role": "user", "content": "Hello"}],
        },
        timeout=120,
    )
    assert response.status_code == 200, response.text
    gateway.run("render", str(ROOT / "examples" / "dawn.json"), "-o", str(tmp_path / "pictures"))
    with run_prometheus(gateway, key, tmp_path) as query:

        def has_all_metrics() -> bool:
            targets = query("targets")["activeTargets"]
            health = {target["labels"]["job"]: target["health"] for target in targets}
            jobs = query("query", query="sum(ray_moyin_jobs_ended_total{kind='render'})")
            calls = query("query", query="sum(ray_gen_ai_client_token_usage_sum_total)")
            return health == {"moyin": "up", "moyin-nodes": "up"} and all(
                answer["result"] for answer in (jobs, calls)
            )

        eventually_blocking(has_all_metrics, _METRICS_SECONDS)
        ready = query("query", query='moyin_pool_renderers{pool="default", state="ready"}')
        assert [int(series["value"][1]) > 0 for series in ready["result"]] == [True]

        groups = query("rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert {rule["health"] for rule in rules} == {"ok"}, rules
        expressions = read_dashboard_expressions()
        for expression in expressions:
            query("query", query=expression)

        names = {name for name in query("label/__name__/values") if _OWN_METRIC.fullmatch(name)}
        documented_names = set(_OWN_METRIC.findall(MONITORING_PAGE.read_text()))
        assert names <= documented_names
        used_names = {name for text in expressions for name in _OWN_METRIC.findall(text)}
        used_names |= {name for rule in rules for name in _OWN_METRIC.findall(rule["query"])}
        assert used_names <= documented_names


def test_a_key_for_metrics_reads_nothing_else(gateway: RunningStack) -> None:
    key = gateway.run("keys", "create", "monitoring", "--scope", "metrics").stdout.strip()
    headers = {"authorization": f"Bearer {key}"}
    statuses = {
        path: httpx.get(f"{gateway.url}{path}", headers=headers, timeout=60).status_code
        for path in (
            "/cluster/metrics", "/cluster/metrics/targets", "/cluster", "/cluster/problems", "/jobs",
            "/artifacts", "/object_info", "/v1/models", "/v1/usage", "/v1/backends",
            "/accounts/organisations", "/accounts/keys",
        )
    }  # fmt: skip
    assert [path for path, status in statuses.items() if status == 200] == [
        "/cluster/metrics",
        "/cluster/metrics/targets",
    ]
    assert set(statuses.values()) == {200, 403}


def read_dashboard_expressions() -> list[str]:
    """Return the queries of all panels, with Grafana's own variable filled in."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    return [
        target["expr"].replace("$__rate_interval", "1m")
        for panel in panels
        for target in panel.get("targets", [])
    ]


@contextmanager
def run_prometheus(gateway: RunningStack, key: str, folder: Path) -> Iterator[Callable[..., Any]]:
    """Run Prometheus with the shipped files; yield a function that reads its API.

    The only changes are the gateway's address and shorter intervals.
    """
    (folder / "prometheus").mkdir()
    for path in FOLDER.glob("*.yml"):
        shutil.copy(path, folder / "prometheus")
    config = folder / "prometheus" / "prometheus.yml"
    text = config.read_text()
    assert text.count("127.0.0.1:8000") == 3
    address = gateway.url.removeprefix("http://")
    config.write_text(
        text.replace("127.0.0.1:8000", address).replace("15s", "2s").replace("30s", "2s")
    )
    key_file = config.with_name("moyin-key")
    key_file.write_text(key)
    run_promtool("check", "config", str(config))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'series'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}/api/v1/",
            transport=httpx.HTTPTransport(retries=5),
            timeout=30,
        ) as client:

            def query(path: str, **parameters: str) -> Any:
                response = client.get(path, params=parameters)
                assert response.status_code == 200, (path, parameters, response.text)
                return response.json()["data"]

            yield query
    finally:
        process.terminate()
        process.wait(30)


def run_promtool(*arguments: str) -> None:
    """Run promtool in the folder of the shipped files, and fail with its output if it fails."""
    result = subprocess.run(
        ["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
