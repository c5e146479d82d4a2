"""Tests the shipped farm by `moyin` commands, and that `serve deploy` takes its configuration."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
import yaml

from tests.examples import run_shell_example
from tests.stack import ROOT, RecordMeasurement, RunningStack
from tests.waiting import eventually_blocking

pytestmark = pytest.mark.timeout(300)
PNG = b"\x89PNG\r\n\x1a\n"


def test_the_demo_succeeds_without_a_terminal(gateway: RunningStack, tmp_path: Path) -> None:
    output = gateway.run("demo", "-o", str(tmp_path)).stdout
    assert "from local, model smollm2-135m, cost $0" in output
    [picture] = tmp_path.glob("*.png")
    assert str(picture) in output
    assert picture.read_bytes().startswith(PNG)
    assert gateway.api_key in output
    assert "moyin down" in output
    assert "\x1b" not in output


@pytest.mark.parametrize("page", ["docs/quickstart.md", "docs/ja/quickstart.md"])
def test_commands_of_the_quickstarts_work(gateway: RunningStack, tmp_path: Path, page: str) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    programs_folder = Path(sys.executable).parent
    variables = {**gateway.env, "PATH": f"{programs_folder}{os.pathsep}{gateway.env['PATH']}"}
    # `make demo`, the page's first command, waits for the model.
    eventually_blocking(lambda: httpx.get(f"{gateway.url}/v1/readyz").is_success)

    def run_example(name: str, replacements: Mapping[str, str] | None = None) -> str:
        return run_shell_example(
            page, name, url=gateway.url, folder=tmp_path, replaced=replacements, **variables
        )

    def ask_model() -> str:
        try:
            return run_example("command-ask", {"moyin chat": "moyin chat --max-tokens 16"})
        except AssertionError as error:
            # Other tests may have stopped the shared model for a moment.
            if "service_unavailable" not in str(error):
                raise
            return ""

    assert eventually_blocking(ask_model).strip()
    newest_job = "$(moyin jobs list | awk 'NR == 1 {print $1}')"
    output = run_example("command-render", {"show ID": f'show "{newest_job}"'})
    assert '"status": "succeeded"' in output
    assert list((tmp_path / "pictures").glob("*.png"))
    # What `doctor` finds on the machine of the tests is not part of the example.
    assert "gateway" in run_example("command-look", {"moyin doctor": "moyin doctor || test $? = 1"})


def test_an_answer_goes_to_standard_output_and_its_cost_to_standard_error(
    gateway: RunningStack,
) -> None:
    process = gateway.run("chat", "Say hello.", "--max-tokens", "8")
    assert process.stdout.strip()
    cost_line, request_line = process.stderr.splitlines()
    assert cost_line == "local · smollm2-135m · $0 · free"
    assert request_line.startswith("request ")


def test_a_render_prints_its_id_and_then_its_pictures(
    gateway: RunningStack, tmp_path: Path
) -> None:
    graph = ROOT / "examples" / "dawn.json"
    lines = gateway.run("render", str(graph), "-o", str(tmp_path)).stdout.splitlines()
    job_id, picture_path = lines
    assert Path(picture_path).read_bytes().startswith(PNG)
    assert json.loads(gateway.run("jobs", "show", job_id).stdout)["status"] == "succeeded"
    listed_lines = gateway.run("jobs", "list", "--status", "succeeded").stdout.splitlines()
    assert job_id in [line.split("\t")[0] for line in listed_lines]
    assert gateway.run("jobs", "watch", job_id).stdout == "succeeded\n"
    refused_process = gateway.run("jobs", "cancel", job_id, check=False)
    assert refused_process.returncode == 1
    assert refused_process.stderr.startswith("error: job_finished: ")


def test_errors_of_a_graph_name_the_node(gateway: RunningStack, tmp_path: Path) -> None:
    graph = tmp_path / "graph.json"
    graph.write_text(json.dumps({"1": {"class_type": "NoSuchNode", "inputs": {}}}))
    refused_process = gateway.run("render", str(graph), check=False)
    assert refused_process.returncode == 1
    assert refused_process.stderr.startswith("error: invalid_graph: ")
    assert "NoSuchNode" in refused_process.stderr


def test_a_job_that_fails_has_an_exit_status_of_its_own(
    gateway: RunningStack, tmp_path: Path
) -> None:
    graph = tmp_path / "graph.json"
    image_inputs = {"width": 8, "height": 8, "batch_size": 1, "color": 1}
    graph.write_text(
        json.dumps(
            {
                "1": {"class_type": "EmptyImage", "inputs": image_inputs},
                "2": {"class_type": "TestSyncError", "inputs": {"value": ["1", 0]}},
                "3": {
                    "class_type": "SaveImage",
                    "inputs": {"images": ["2", 0], "filename_prefix": "x"},
                },
            }
        )
    )
    process = gateway.run("render", str(graph), "-o", str(tmp_path), check=False)
    assert process.returncode == 3
    assert "render_failed: " in process.stderr


def test_only_valid_keys_of_the_command_line_open_the_gateway(gateway: RunningStack) -> None:
    key = gateway.run("keys", "create", "visitor").stdout.strip()
    visitor_stack = RunningStack(gateway.data.parent, {**gateway.env, "MOYIN_API_KEY": key})
    assert visitor_stack.run("jobs", "list").stdout == ""
    keyless_stack = RunningStack(
        gateway.data.parent, {**gateway.env, "MOYIN_API_KEY": "moyin_no_key"}
    )
    refused_process = keyless_stack.run("jobs", "list", check=False)
    assert refused_process.stderr.startswith("error: invalid_api_key: ")


def test_serve_deploy_takes_the_same_file(gateway: RunningStack) -> None:
    """Deploy the stack's own configuration with Ray's `serve deploy`; the farm must still work."""
    gateway.serve_deploy(yaml.safe_load(gateway.layout.serve_config.read_text()))
    assert gateway.run("status").returncode == 0
    assert gateway.run("chat", "Still there?", "--max-tokens", "4").stdout.strip()


def test_memory_is_reported_by_part(
    gateway: RunningStack, record_measurement: RecordMeasurement
) -> None:
    bytes_by_part = json.loads(gateway.run("status", "--json", "--memory").stdout)["memory"]
    assert bytes_by_part.keys() >= {"ray", "apps", "temporal", "valkey", "supervisor", "comfyui"}
    bytes_without_comfyui = sum(size for part, size in bytes_by_part.items() if part != "comfyui")
    record_measurement(f"idle without ComfyUI: {bytes_without_comfyui / 2**20:.0f} MiB")
    assert bytes_without_comfyui < 3 * 2**30
