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


class Serve:
    """Serve's REST API, as far as deploying goes: every app that it is given runs at once."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []
        self.status = 200
        self.answer = b"no such thing"
        self.absent = 0  # times that the gateway misses Temporal
        self.waiting: list[str] = []  # what it says of why, once each, before the apps run

    def __call__(self, method: str, url: str, **more: Any) -> tuple[int, bytes]:
        if method == "PUT":
            if self.status == 200:
                self.given.append(json.loads(more["body"]))
            return self.status, self.answer
        if url.endswith("/readyz"):
            checks = {"database": "ok", "temporal": "ConnectionError"} if self.absent else {}
            self.absent = max(0, self.absent - 1)
            return (503 if checks else 200), json.dumps({"checks": checks}).encode()
        if self.waiting:
            part = {"status": "UPDATING", "message": self.waiting.pop(0)}
            found = {"status": "DEPLOYING", "message": "", "deployments": {"X": part}}
            return 200, json.dumps({"applications": {"x": found}}).encode()
        running = {app["name"]: {"status": "RUNNING"} for app in self.given[-1]["applications"]}
        return 200, json.dumps({"applications": running}).encode()

    @property
    def marks(self) -> list[str]:
        return [config["applications"][0]["args"]["mark"] for config in self.given]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("MOYIN_SERVE_CONFIG", raising=False)
    monkeypatch.setattr(apps, "token", lambda _: "token")
    serve = Serve()
    monkeypatch.setattr(apps, "call", serve)
    return serve


def _options(folder: Path, mark: str) -> Options:
    path = folder / f"{mark}.yaml"
    path.write_text(yaml.safe_dump({"applications": [{"name": "x", "args": {"mark": mark}}]}))
    options = Options.read({}, port_base=20_000, serve_config=path)
    options.layout.run.mkdir(parents=True, exist_ok=True)
    return options


async def test_what_was_deployed_last_is_deployed_again(serve: Serve, tmp_path: Path) -> None:
    started_with, later = _options(tmp_path, "a"), _options(tmp_path, "b")
    await apps.deploy(started_with, lambda _: None)
    await apps.deploy(later, lambda _: None)
    later.serve_config.write_text("half a file: [")
    await apps.redeploy(started_with, lambda _: None)
    assert serve.marks == ["a", "b", "b"]
    assert serve.given[-1]["http_options"]["port"] == 20_000
    assert apps.deployed_from(started_with) == later.serve_config


async def test_what_serve_refuses_is_not_what_was_deployed_last(
    serve: Serve, tmp_path: Path
) -> None:
    good, bad = _options(tmp_path, "good"), _options(tmp_path, "bad")
    assert apps.deployed_from(good) is None
    await apps.deploy(good, lambda _: None)
    serve.status = 400
    with pytest.raises(StackError, match=r"Serve refuses bad\.yaml: no such thing"):
        await apps.deploy(bad, lambda _: None)
    serve.status = 200
    await apps.redeploy(good, lambda _: None)
    assert serve.marks == ["good", "good"]
    assert apps.deployed_from(bad) == good.serve_config


async def test_who_waits_hears_once_what_for(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apps, "_POLL_SECONDS", 0)
    room = "X has 1 replicas that have taken more than 30s to be scheduled"
    serve.waiting = ["", "", room, room]
    serve.absent = 2
    told: list[str] = []
    await apps.deploy(_options(tmp_path, "a"), told.append)
    assert told == [
        "waiting for x",
        f"waiting for x: {room}",
        "waiting for the door, which waits for temporal",
        "1 apps",
    ]  # fmt: skip


@pytest.mark.parametrize("prefix", ["/v1", None])
async def test_a_farm_without_a_gateway_is_ready_when_haproxy_answers(
    prefix: str | None, serve: Serve, tmp_path: Path
) -> None:
    """HAProxy answers /readyz with 503 for good: no app has that path."""
    options = _options(tmp_path, "a")
    app = {"name": "x", "route_prefix": prefix, "args": {"mark": "a"}}
    options.serve_config.write_text(yaml.safe_dump({"applications": [app]}))
    serve.absent = 1_000_000
    async with asyncio.timeout(20):
        await apps.deploy(options, lambda _: None)


async def test_a_refusal_names_the_field_and_not_pydantics_address(
    serve: Serve, tmp_path: Path
) -> None:
    serve.status = 400
    serve.answer = (
        b"pydantic_core._pydantic_core.ValidationError: 1 validation error for RenderArgs\nwindw\n"
        b"  Extra inputs are not permitted [type=extra_forbidden, input_value='secret']\n"
        b"    For further information visit https://errors.pydantic.dev/2.14/v/extra_forbidden\n"
    )
    with pytest.raises(StackError, match=r"windw: Extra inputs are not permitted$"):
        await apps.deploy(_options(tmp_path, "a"), lambda _: None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("applications: [{route_prefix: /}]", r"applications\.0\.name is missing"),
        ("applications: [gateway]", r"applications\.0\.name is missing"),
        ("http_options: here\napplications: []", "http_options must be a mapping"),
        ("grpc_options: [9000]\napplications: []", "grpc_options must be a mapping"),
        ("", "no list of applications"),
        ("\tapplications: []", "cannot be read"),
    ],
)
def test_a_file_of_another_shape_is_told_in_a_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "apps.yaml"
    path.write_text(text)
    with pytest.raises(StackError, match=told):
        apps.load_serve_config(path, Ports())


def test_what_is_wrong_is_found_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "apps.yaml"
    path.write_text("applications:\n\t- x")
    [problem] = apps.problems(path)
    assert problem.startswith(f"{path} cannot be read: while scanning")
    assert "line 2, column 1" in problem
    path.write_text("colour: red\napplications: []")
    assert apps.problems(path) == ["colour: unknown key"]
    path.write_text("applications: []")
    assert apps.problems(path) == []


def test_a_check_that_does_not_end_is_told_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(*_: object, timeout: float, **__: object) -> None:
        raise subprocess.TimeoutExpired("validate", timeout)

    monkeypatch.setattr("moyin.stack.apps.subprocess.run", endless)
    [problem] = apps.problems(tmp_path / "apps.yaml")
    assert problem == f"{tmp_path / 'apps.yaml'} could not be checked within 120 seconds"


def test_pools_that_the_kernel_is_to_confine_are_named(tmp_path: Path) -> None:
    render = "deployments.render.builder:build"
    path = tmp_path / "serve_config.yaml"
    found = [
        {"import_path": render},
        {"import_path": render, "args": {"pool": "own", "comfyui": {"isolation": "strict"}}},
        {"import_path": render, "args": {"pool": "open", "comfyui": {"isolation": "files"}}},
        {"import_path": render, "args": {"pool": "fast", "comfyui": None}},
        {"import_path": "deployments.gateway.builder:build"},
    ]
    path.write_text(yaml.safe_dump({"applications": found}))
    assert apps.strict_pools(path) == ["default", "own", "fast"]
    path.write_text("applications: [1]")
    assert apps.strict_pools(path) == []
    assert apps.strict_pools(tmp_path / "absent") == []
