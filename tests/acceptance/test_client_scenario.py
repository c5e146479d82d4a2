"""Runs one scenario with the Python and TypeScript clients while the gateway is killed."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.typescript_client import FOLDER, build_typescript_client
from tests.chaos import victims
from tests.chaos.client import StackClient
from tests.stack import ROOT, RunningStack

SCENARIO = Path(__file__).parent / "client_scenario"
GATEWAY = victims.is_replica_of("Gateway")
_SECONDS = 420


def kill_gateways(stack: RunningStack) -> int:
    """Kill every replica of the gateway to break all streams; return the last one's pid."""
    pids = [
        victims.kill_one(stack.data, GATEWAY) for _ in victims.list_processes(stack.data, GATEWAY)
    ]
    return pids[-1]


def run_scenario(command: list[str], stack: RunningStack) -> tuple[list[Any], list[int]]:
    """Run one client, and return its results and the process ids of the killed gateway replicas.

    Args:
        command: the command line of the client's program.
    """
    # ComfyUI keeps results, so that only another duration makes the render take its time again.
    seconds = 10 + secrets.randbelow(1_000_000) / 1e6
    variables = {
        "run": f"run-{secrets.token_hex(6)}",
        "seconds": seconds,
        "media_type": f"text/x-{secrets.token_hex(6)}",
    }
    steps = json.loads((SCENARIO / "scenario.json").read_text())["steps"]
    task = {"url": stack.url, "key": stack.api_key, "steps": steps, "variables": variables}
    runner = subprocess.Popen(
        command,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "clients" / "python")},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert runner.stdin is not None and runner.stdout is not None
    # Reading would wait for a runner that hangs, so a timer ends it.
    timer = threading.Timer(_SECONDS, runner.kill)
    timer.start()
    killed_pids: list[int] = []
    step_results: list[Any] = []
    try:
        runner.stdin.write(json.dumps(task) + "\n")
        runner.stdin.flush()
        for output_line in runner.stdout:
            message = json.loads(output_line)
            if "kill" in message:
                # Otherwise the client might have all events already.
                job = StackClient(stack.url, stack.api_key).job(message["kill"])
                assert job["status"] == "running", (
                    "the render ended before the gateway was killed: choose longer `seconds`"
                )
                killed_pids.append(kill_gateways(stack))
                runner.stdin.write("\n")
                runner.stdin.flush()
            else:
                step_results = message["results"]
        assert runner.wait(60) == 0, f"{command[0]} failed; its error is above"
    finally:
        timer.cancel()
        runner.kill()
        runner.wait()
        runner.stdin.close()
        runner.stdout.close()
    return step_results, killed_pids


@pytest.mark.timeout(1500)
def test_both_clients_get_the_same_results(gateway: RunningStack) -> None:
    build_typescript_client()
    commands = {
        "python": [sys.executable, str(SCENARIO / "runner.py")],
        "typescript": ["node", str(FOLDER / "build" / "test" / "scenario.js")],
    }
    gateway_count = len(victims.list_processes(gateway.data, GATEWAY))
    expected_results = json.loads((SCENARIO / "expected.json").read_text())
    results_by_client = {}
    for name, command in commands.items():
        results_by_client[name], killed_pids = run_scenario(command, gateway)
        assert len(killed_pids) == 1, (
            f"{name}: the gateway was killed {len(killed_pids)} times, not once"
        )
        # The farm is left as it was found.
        victims.wait_for_another(gateway.data, GATEWAY, killed_pids[0], gateway_count, 180)
    differences = [
        (name, *steps)
        for name, client_results in results_by_client.items()
        for steps in zip_longest(client_results, expected_results)
        if steps[0] != steps[1]
    ]
    assert differences == []
    assert results_by_client["typescript"] == results_by_client["python"]
