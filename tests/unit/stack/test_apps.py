from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from moyin.errors import StackError
from moyin.stack import apps
from moyin.stack.options import Options
from moyin.stack.ports import Ports


class FakeServe:
    """A fake of Serve's REST API for deployments, in which every deployed app runs at once."""

    def __init__(self) -> None:
        self.deployed: list[dict[str, Any]] = []
        self.status = 200
        self.failing_submissions = 0  # number of submissions that Ray's dashboard fails
        self.failure = (500, b"500 Internal Server Error\n\nServer got itself in trouble")
        self.body = b"no such thing"
        self.failing_checks = 0  # number of /readyz responses without Temporal
        self.reasons: list[str] = []  # reported once each, before the apps run

    def __call__(self, method: str, url: str, **kwargs: Any) -> tuple[int, bytes]:
        if method == "PUT":
            if self.failing_submissions:
                self.failing_submissions -= 1
                return self.failure
            if self.status == 200:
                self.deployed.append(json.loads(kwargs["body"]))
            return self.status, self.body
        if url.endswith("/readyz"):
            checks = (
                {"database": "ok", "temporal": "ConnectionError"} if self.failing_checks else {}
            )
            self.failing_checks = max(0, self.failing_checks - 1)
            return (503 if checks else 200), json.dumps({"checks": checks}).encode()
        if self.reasons:
            deployment_status = {"status": "UPDATING", "message": self.reasons.pop(0)}
            app_status = {
                "status": "DEPLOYING",
                "message": "",
                "deployments": {"X": deployment_status},
            }
            return 200, json.dumps({"applications": {"x": app_status}}).encode()
        running_apps = {
            app["name"]: {"status": "RUNNING"} for app in self.deployed[-1]["applications"]
        }
        return 200, json.dumps({"applications": running_apps}).encode()

    @property
    def deployed_labels(self) -> list[str]:
        return [config["applications"][0]["args"]["label"] for config in self.deployed]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeServe:
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("MOYIN_SERVE_CONFIG", raising=False)
    monkeypatch.setattr(apps, "read_api_token", lambda _: "token")
    serve = FakeServe()
    monkeypatch.setattr(apps, "send_request", serve)
    return serve


def _make_options(folder: Path, label: str) -> Options:
    path = folder / f"{label}.yaml"
    path.write_text(yaml.safe_dump({"applications": [{"name": "x", "args": {"label": label}}]}))
    options = Options.read({}, port_base=20_000, serve_config=path)
    options.layout.run.mkdir(parents=True, exist_ok=True)
    return options


async def test_redeploy_uses_the_last_deployed_configuration(
    serve: FakeServe, tmp_path: Path
) -> None:
    first_options, later_options = _make_options(tmp_path, "a"), _make_options(tmp_path, "b")
    await apps.deploy_apps(first_options, lambda _: None)
    await apps.deploy_apps(later_options, lambda _: None)
    later_options.serve_config.write_text("half a file: [")
    await apps.redeploy_apps(first_options, lambda _: None)
    assert serve.deployed_labels == ["a", "b", "b"]
    assert serve.deployed[-1]["http_options"]["port"] == 20_000
    assert apps.read_last_deployed_path(first_options) == later_options.serve_config


async def test_rejected_configuration_is_not_recorded_as_deployed(
    serve: FakeServe, tmp_path: Path
) -> None:
    good_options, bad_options = _make_options(tmp_path, "good"), _make_options(tmp_path, "bad")
    assert apps.read_last_deployed_path(good_options) is None
    await apps.deploy_apps(good_options, lambda _: None)
    serve.status = 400
    with pytest.raises(
        StackError, match=r"Serve rejected the app configuration bad\.yaml: no such thing"
    ):
        await apps.deploy_apps(bad_options, lambda _: None)
    serve.status = 200
    await apps.redeploy_apps(good_options, lambda _: None)
    assert serve.deployed_labels == ["good", "good"]
    assert apps.read_last_deployed_path(bad_options) == good_options.serve_config


@pytest.mark.parametrize(
    ("failure", "reason", "last_line"),
    [
        (
            (500, b"500 Internal Server Error\n\nServer got itself in trouble"),
            "status 500",
            "Server got itself in trouble",
        ),
        ((0, b"timed out"), "timed out", "timed out"),
    ],
)
async def test_failed_submission_is_repeated(
    failure: tuple[int, bytes],
    reason: str,
    last_line: str,
    serve: FakeServe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(apps, "_SUBMIT_PAUSE_SECONDS", 0)
    serve.failure = failure
    serve.failing_submissions = 2
    progress: list[str] = []
    await apps.deploy_apps(_make_options(tmp_path, "a"), progress.append)
    assert serve.deployed_labels == ["a"]
    assert progress[:2] == [f"Ray's dashboard failed ({reason}); trying again"] * 2
    serve.failing_submissions = 100
    with pytest.raises(StackError, match=last_line):
        await apps.deploy_apps(_make_options(tmp_path, "b"), progress.append)
    assert serve.deployed_labels == ["a"]


async def test_each_pending_reason_is_reported_once(
    serve: FakeServe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apps, "_APPS_POLL_SECONDS", 0)
    monkeypatch.setattr(apps, "_GATEWAY_POLL_SECONDS", 0)
    reason = "X has 1 replicas that have taken more than 30s to be scheduled"
    serve.reasons = ["", "", reason, reason]
    serve.failing_checks = 2
    progress_lines: list[str] = []
    await apps.deploy_apps(_make_options(tmp_path, "a"), progress_lines.append)
    assert progress_lines == [
        "waiting for x",
        f"waiting for x: {reason}",
        "waiting for the gateway, which waits for temporal",
        "1 apps",
    ]  # fmt: skip


@pytest.mark.parametrize("prefix", ["/v1", None])
async def test_farm_without_a_gateway_is_ready_when_haproxy_responds(
    prefix: str | None, serve: FakeServe, tmp_path: Path
) -> None:
    """Without a gateway app, the farm counts as ready when HAProxy answers 503 for /readyz."""
    options = _make_options(tmp_path, "a")
    app = {"name": "x", "route_prefix": prefix, "args": {"label": "a"}}
    options.serve_config.write_text(yaml.safe_dump({"applications": [app]}))
    serve.failing_checks = 1_000_000
    async with asyncio.timeout(20):
        await apps.deploy_apps(options, lambda _: None)


async def test_rejection_names_the_field_without_pydantic_link(
    serve: FakeServe, tmp_path: Path
) -> None:
    serve.status = 400
    serve.body = (
        b"pydantic_core._pydantic_core.ValidationError: 1 validation error for RenderArgs\nwindw\n"
        b"  Extra inputs are not permitted [type=extra_forbidden, input_value='secret']\n"
        b"    For further information visit https://errors.pydantic.dev/2.14/v/extra_forbidden\n"
    )
    with pytest.raises(StackError, match=r"windw: Extra inputs are not permitted$"):
        await apps.deploy_apps(_make_options(tmp_path, "a"), lambda _: None)


@pytest.mark.parametrize(
    ("config_text", "message_pattern"),
    [
        ("applications: [{route_prefix: /}]", r"applications\.0\.name must be a string"),
        ("applications: [gateway]", r"applications\.0\.name must be a string"),
        ("http_options: here\napplications: []", "http_options must be a mapping"),
        ("grpc_options: [9000]\napplications: []", "grpc_options must be a mapping"),
        ("", "applications must be a list"),
        ("\tapplications: []", "cannot be read"),
    ],
)
def test_malformed_configuration_is_reported_in_one_line(
    tmp_path: Path, config_text: str, message_pattern: str
) -> None:
    path = tmp_path / "apps.yaml"
    path.write_text(config_text)
    with pytest.raises(StackError, match=message_pattern):
        apps.load_serve_config(path, Ports())


def test_config_problems_are_found_in_a_separate_process(tmp_path: Path) -> None:
    path = tmp_path / "apps.yaml"
    path.write_text("applications:\n\t- x")
    [problem] = apps.find_config_problems(path)
    assert problem.startswith(f"{path} cannot be read: while scanning")
    assert "line 2, column 1" in problem
    path.write_text("colour: red\napplications: []")
    assert apps.find_config_problems(path) == ["colour: unknown key"]
    path.write_text("applications: []")
    assert apps.find_config_problems(path) == []


def test_validation_that_times_out_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_out(*_: object, timeout: float, **__: object) -> None:
        raise subprocess.TimeoutExpired("validate", timeout)

    monkeypatch.setattr("moyin.stack.apps.subprocess.run", time_out)
    [problem] = apps.find_config_problems(tmp_path / "apps.yaml")
    assert (
        problem == f"{tmp_path / 'apps.yaml'} could not be validated within 120 seconds: try again"
    )


def test_pools_with_strict_isolation_are_found(tmp_path: Path) -> None:
    render_builder = "deployments.render.builder:build"
    path = tmp_path / "serve_config.yaml"
    applications = [
        {"import_path": render_builder},
        {
            "import_path": render_builder,
            "args": {"pool": "own", "comfyui": {"isolation": "strict"}},
        },
        {
            "import_path": render_builder,
            "args": {"pool": "open", "comfyui": {"isolation": "files"}},
        },
        {"import_path": render_builder, "args": {"pool": "fast", "comfyui": None}},
        {"import_path": "deployments.gateway.builder:build"},
    ]
    path.write_text(yaml.safe_dump({"applications": applications}))
    assert apps.find_isolated_pools(path) == ["default", "own", "fast"]
    path.write_text("applications: [1]")
    assert apps.find_isolated_pools(path) == []
    assert apps.find_isolated_pools(tmp_path / "absent") == []
