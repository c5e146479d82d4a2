"""Tests third-party clients of ComfyUI, unchanged, on a whole farm.

Clients that cannot send a key connect through `moyin comfyui connect`.
"""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.acceptance.comfyui_clients import (
    HEIGHT,
    WIDTH,
    GraphFiles,
    InstalledClients,
    connected_farm,
    install_clients,
)
from tests.chaos.client import StackClient
from tests.stack import RunningStack

pytestmark = pytest.mark.timeout(400)
_PATIENCE = 120


@pytest.fixture(scope="module")
def farm(gateway: RunningStack) -> StackClient:
    """Return a client of the farm once a ComfyUI is ready, because the clients list its nodes."""
    stack_client = StackClient(gateway.url, gateway.api_key)
    job = stack_client.submit({"kind": "render", "workflow": _make_warm_up_graph()})
    stack_client.wait(job, {"succeeded"}, _PATIENCE)
    return stack_client


@pytest.fixture(scope="module")
def local_url(gateway: RunningStack, farm: StackClient) -> Iterator[str]:
    """Make the farm available as a ComfyUI on this machine, and yield its URL."""
    with connected_farm(gateway) as url:
        yield url


@pytest.fixture
def clients(tmp_path: Path) -> InstalledClients:
    return install_clients(tmp_path)


@pytest.fixture
def graphs(tmp_path: Path) -> GraphFiles:
    return GraphFiles(tmp_path)


def test_comfy_cli_runs_and_reports_progress(
    clients: InstalledClients, graphs: GraphFiles, local_url: str, farm: StackClient, tmp_path: Path
) -> None:
    events = _read_events(
        _run_workflow(clients, graphs.write_graph(tmp_path, "slow"), local_url), 0
    )
    envelope = events[-1]
    assert envelope["ok"]
    assert envelope["data"]["executed_node_ids"] == ["1", "3", "2"]
    completed_steps = [event["completed"] for event in events if event["type"] == "progress"]
    assert completed_steps and completed_steps == sorted(completed_steps)
    [url] = envelope["data"]["outputs"]
    with urllib.request.urlopen(url, timeout=60) as response:
        (tmp_path / "picture.png").write_bytes(response.read())
    _check_picture(tmp_path / "picture.png", graphs.color)
    _check_listed_as_job(farm, envelope["data"]["prompt_id"])


def test_comfy_cli_reports_errors(
    clients: InstalledClients, graphs: GraphFiles, local_url: str, tmp_path: Path
) -> None:
    events = _read_events(
        _run_workflow(clients, graphs.write_graph(tmp_path, "broken"), local_url), 1
    )
    assert events[-1]["error"]["code"] == "execution_error"
    assert events[-1]["error"]["details"]["node_id"] == "3"


def test_comfy_cli_cancels(
    clients: InstalledClients, graphs: GraphFiles, local_url: str, farm: StackClient, tmp_path: Path
) -> None:
    run_process = _run_workflow(clients, graphs.write_graph(tmp_path, "long"), local_url)
    assert run_process.stdout is not None
    printed_events = []
    for line in run_process.stdout:
        printed_events.append(json.loads(line))
        if printed_events[-1]["type"] == "progress":
            break
    job = printed_events[-1]["prompt_id"]
    [cancel_event] = _read_events(
        clients.start_comfy_cli("--json", "jobs", "cancel", job, *_address_options(local_url)), 0
    )
    assert cancel_event["ok"]
    run_events = _read_events(run_process, 130)
    assert run_events[-1]["error"]["code"] == "cancelled"
    farm.wait(job, {"cancelled"}, _PATIENCE)


def test_comfy_api_simplified_renders_and_uploads(
    clients: InstalledClients, graphs: GraphFiles, local_url: str, farm: StackClient, tmp_path: Path
) -> None:
    summary = clients.run_python("simplified.py", local_url, str(tmp_path))
    _check_picture(tmp_path / "picture.png", graphs.color, height=16)
    _check_inverted_picture(tmp_path / "inverted.png", graphs.color, height=16)
    assert summary["kept"].pop("artifact_id").startswith("art_")
    assert summary["kept"] == {"name": "picture.png", "subfolder": "simplified", "type": "input"}
    _check_listed_as_job(farm, summary["job"])


def test_comfy_api_client_renders_uploads_and_interrupts(
    clients: InstalledClients, graphs: GraphFiles, local_url: str, farm: StackClient, tmp_path: Path
) -> None:
    summary = clients.run_python("api_client.py", local_url, str(tmp_path))
    assert summary["page"].startswith("<!doctype html>")
    _check_picture(tmp_path / "picture.png", graphs.color)
    _check_inverted_picture(tmp_path / "inverted.png", graphs.color)
    assert summary["name"].startswith("client_")
    assert summary["devices"]
    assert summary["job"] in summary["completed"]
    assert "execution_error" in summary["error"]
    _check_listed_as_job(farm, summary["job"])
    farm.wait(summary["long"], {"cancelled"}, _PATIENCE)


def test_comfyapi_finds_the_newest_file_of_a_name(
    clients: InstalledClients, graphs: GraphFiles, local_url: str, farm: StackClient, tmp_path: Path
) -> None:
    summary = clients.run_python("api_manager.py", local_url, str(tmp_path))
    _check_picture(tmp_path / "older.png", graphs.color)
    _check_inverted_picture(tmp_path / "newer.png", graphs.color)
    assert set(summary["names"]) == {"client_00001_.png"}, "each prompt numbers its own files"
    assert summary["errors"] == []
    assert "Execution failed" in summary["error"]
    for job in summary["jobs"]:
        _check_listed_as_job(farm, job)


def test_comfyui_xy_renders_uploads_and_interrupts(
    clients: InstalledClients,
    graphs: GraphFiles,
    gateway: RunningStack,
    farm: StackClient,
    tmp_path: Path,
) -> None:
    summary = clients.run_python("xy.py", gateway.url, str(tmp_path), gateway.api_key)
    _check_picture(tmp_path / "picture.png", graphs.color)
    _check_inverted_picture(tmp_path / "inverted.png", graphs.color)
    assert summary["size"] == [WIDTH, HEIGHT]
    assert summary["nodes"] == ["EmptyImage"]
    assert summary["interrupted"] is True
    assert "execution_interrupted" in summary["messages"]
    assert farm.job(summary["long"])["status"] == "cancelled"


def test_comfy_script_renders_and_cancels(
    clients: InstalledClients,
    graphs: GraphFiles,
    gateway: RunningStack,
    farm: StackClient,
    tmp_path: Path,
) -> None:
    summary = clients.run_python("script.py", gateway.url, str(tmp_path), gateway.api_key)
    _check_picture(tmp_path / "picture.png", graphs.color)
    _check_listed_as_job(farm, summary["made"])
    assert summary["outputs"] == []
    assert farm.job(summary["long"])["status"] == "cancelled"


def test_npm_sdk_renders(
    clients: InstalledClients,
    graphs: GraphFiles,
    gateway: RunningStack,
    farm: StackClient,
    tmp_path: Path,
) -> None:
    summary = clients.run_node("sdk.mjs", gateway.url, str(tmp_path), gateway.api_key)
    _check_picture(tmp_path / "picture.png", graphs.color)
    _check_inverted_picture(tmp_path / "inverted.png", graphs.color)
    first_job, _, second_job, long_job = summary["pending"]
    _check_listed_as_job(farm, first_job)
    _check_listed_as_job(farm, second_job)
    assert [value for node, value, _ in summary["progress"] if node == "3"]
    assert summary["again"] == 1
    assert summary["long"] is False
    # It looks at the queue now and then, and may do so just when the job has left it.
    interrupted_error, missing_error = "The execution was interrupted!", "The job went missing!"
    assert set(summary["failed"]) in (
        {interrupted_error},
        {interrupted_error, missing_error},
        {missing_error},
    )
    assert farm.job(long_job)["status"] == "cancelled"
    assert summary["stats"]["system"]["comfyui_version"]


def _run_workflow(clients: InstalledClients, workflow: str, url: str) -> subprocess.Popen[str]:
    return clients.start_comfy_cli(
        "run",
        "--json",
        "--wait",
        "--timeout",
        str(_PATIENCE),
        "--workflow",
        workflow,
        *_address_options(url),
    )


def _address_options(url: str) -> list[str]:
    host, _, port = url.removeprefix("http://").partition(":")
    return ["--host", host, "--port", port]


def _read_events(process: subprocess.Popen[str], status: int) -> list[dict[str, Any]]:
    """Wait until `comfy` has ended with ``status``, and return the events that it printed."""
    stdout, stderr = process.communicate(timeout=_PATIENCE)
    assert process.returncode == status, (
        f"comfy ended with {process.returncode}, not with {status}:\n{stdout}\n{stderr}"
    )
    return [json.loads(line) for line in stdout.splitlines()]


def _check_picture(path: Path, color: int, *, height: int = HEIGHT) -> None:
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", (WIDTH, height))
        assert picture.convert("RGB").getpixel((0, 0)) == _split_color(color)


def _check_inverted_picture(path: Path, color: int, *, height: int = HEIGHT) -> None:
    _check_picture(path, 0xFFFFFF - color, height=height)


def _split_color(color: int) -> tuple[int, int, int]:
    return color >> 16, color >> 8 & 255, color & 255


def _check_listed_as_job(farm: StackClient, job_id: str) -> None:
    """Assert that the prompt of a ComfyUI client is also listed as a job of the farm."""
    job = farm.job(job_id)
    assert (job["status"], len(job["artifacts"])) == ("succeeded", 1)


def _make_warm_up_graph() -> dict[str, Any]:
    size = {"width": 8, "height": 8, "batch_size": 1, "color": 1}
    inputs = {"images": ["1", 0], "filename_prefix": "warm"}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "SaveImage", "inputs": inputs},
    }
