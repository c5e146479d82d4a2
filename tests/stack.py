"""Runs a real stack for tests: `moyin up` with its own folder and ports."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import yaml
from temporalio.client import Client

from moyin.render.comfyui.install import ComfyUI
from moyin.settings import Settings
from moyin.stack.layout import Layout
from moyin.stack.ports import Ports
from moyin.stack.profile import read_profile
from moyin.stack.state import find_lock_holder
from moyin.system.processes import find_processes
from tests.nodes import write_nodes
from tests.processes import with_lines

ROOT = Path(__file__).parents[1]
# The fixture ``measured``: takes a sentence with a figure, shown when all tests have run.
RecordMeasurement = Callable[[str], None]
# Whose pages may call a farm of the tests.
PAGE_ORIGIN = "https://play.example"
# Ray gives its workers 15, so that any other work on the machine would starve them.
RAY_NICENESS = {"RAY_worker_niceness": "5"}
_UP_SECONDS = 480
# Below ComfyUI's own folder.
_TEST_NODES = "tests/execution/testing_nodes/testing-pack"


class RunningStack:
    """A stack in its own folder; ``url`` and ``api_key`` are available once it has started."""

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.data = folder / "data"
        self.layout = Layout(self.data)
        self.port_base = free_port_base()
        self.env = {
            **{name: value for name, value in os.environ.items() if not _is_stack_variable(name)},
            "PYTHONPATH": str(ROOT),
            "MOYIN_DATA": str(self.data),
            "MOYIN_PORT_BASE": str(self.port_base),
            **RAY_NICENESS,
            **(env or {}),
        }

    @classmethod
    def attach(cls, data: Path) -> Self:
        """Return the running stack with the data folder ``data`` and the shipped configuration."""
        stack = cls(data.parent, {"MOYIN_SERVE_CONFIG": str(ROOT / "serve_config.yaml")})
        stack.data, stack.layout = data, Layout(data)
        stack.env["MOYIN_DATA"] = str(data)
        del stack.env["MOYIN_PORT_BASE"]
        return stack

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Run the stack during the block, and remove all of it afterwards."""
        try:
            self.run("up")
            yield self
        finally:
            self.run("down", check=False)
        assert self.processes() == []

    @property
    def is_up(self) -> bool:
        """Return True if a supervisor runs."""
        return find_lock_holder(self.layout.lock) is not None

    @property
    def url(self) -> str:
        return read_profile(self.layout.profile, {}).url

    @property
    def api_key(self) -> str:
        return read_profile(self.layout.profile, {}).api_key

    @property
    def valkey_password(self) -> str:
        return self.layout.valkey_password.read_text().strip()

    @property
    def ports(self) -> Ports:
        return Ports.read({}, base=self.port_base)

    @property
    def settings(self) -> Settings:
        """Return the settings of the stack's own processes."""
        return Settings(
            data=self.data,
            gateway=self.url,
            redis_url=f"redis://:{self.valkey_password}@127.0.0.1:{self.ports.valkey}/0",
            temporal_address=f"127.0.0.1:{self.ports.temporal}",
        )

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a `moyin` command without a terminal.

        Args:
            check: True to raise an error if the command fails.
        """
        process = subprocess.run(
            [sys.executable, "-m", "moyin.cli.main", *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=_UP_SECONDS,
            check=False,
        )
        if check and process.returncode != 0:
            raise AssertionError(
                f"moyin {' '.join(arguments)}: status {process.returncode}\n"
                f"{process.stdout}{process.stderr}"
            )
        return process

    def serve_deploy(self, config: Mapping[str, Any]) -> None:
        """Run Ray's own `serve deploy`, which returns before the deployment is complete."""
        path = self.data.parent / "deployed.yaml"
        path.write_text(yaml.safe_dump(config))
        self.serve("deploy", str(path))

    def serve(self, command: str, *arguments: str) -> None:
        """Run one of Ray's own `serve` commands."""
        process = subprocess.run(
            [
                str(Path(sys.executable).with_name("serve")), command,
                "--address", f"http://127.0.0.1:{self.ports.dashboard}", *arguments,
            ],
            env={
                **self.env,
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(self.layout.ray_token),
            },
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr

    def kill_supervisor(self) -> int:
        """Send SIGKILL to the supervisor, which owns all other processes; return its pid."""
        pid = find_lock_holder(self.layout.lock)
        assert pid is not None, f"no supervisor runs in {self.data}: start the stack first"
        os.kill(pid, signal.SIGKILL)
        return pid

    def processes(self) -> list[str]:
        """Return the command lines of all running processes that the stack has started."""
        return [line for _, line in with_lines(find_processes(str(self.data)))]

    def activities(self, job_id: str, name: str) -> list[int]:
        """Return the step indexes of the job's completed Temporal activities ``name``, in order."""
        return asyncio.run(self._list_activities(job_id, name))

    def tries(self, job_id: str, name: str) -> int:
        """Return how many attempts the job's activity ``name`` took; of several, the largest number.

        They must have ended, because Temporal records the attempts of an activity only at its end.
        """
        return asyncio.run(self._count_tries(job_id, name))

    async def _count_tries(self, job_id: str, name: str) -> int:
        client = await Client.connect(
            self.settings.temporal_address, namespace=self.settings.temporal_namespace
        )
        scheduled_event_ids: set[int] = set()
        try_count = 0
        async for event in client.get_workflow_handle(job_id).fetch_history_events():
            if event.HasField("activity_task_scheduled_event_attributes"):
                if event.activity_task_scheduled_event_attributes.activity_type.name == name:
                    scheduled_event_ids.add(event.event_id)
            elif event.HasField("activity_task_started_event_attributes"):
                started_event = event.activity_task_started_event_attributes
                if started_event.scheduled_event_id in scheduled_event_ids:
                    try_count = max(try_count, started_event.attempt)
        return try_count

    async def _list_activities(self, job_id: str, name: str) -> list[int]:
        client = await Client.connect(
            self.settings.temporal_address, namespace=self.settings.temporal_namespace
        )
        steps_by_event_id: dict[int, int] = {}
        finished_steps: list[int] = []
        async for event in client.get_workflow_handle(job_id).fetch_history_events():
            if event.HasField("activity_task_scheduled_event_attributes"):
                attributes = event.activity_task_scheduled_event_attributes
                if attributes.activity_type.name == name:
                    [payload] = await client.data_converter.decode(attributes.input.payloads)
                    steps_by_event_id[event.event_id] = payload["index"]
            elif event.HasField("activity_task_completed_event_attributes"):
                scheduled_event_id = (
                    event.activity_task_completed_event_attributes.scheduled_event_id
                )
                if scheduled_event_id in steps_by_event_id:
                    finished_steps.append(steps_by_event_id[scheduled_event_id])
        return finished_steps


def shipped_config(**changes: Any) -> dict[str, Any]:
    """Return the shipped serve_config.yaml with ComfyUI's own test nodes enabled.

    Args:
        changes: other members of the configuration.
    """
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    for app in config["applications"]:
        if app["name"].startswith("render-"):
            app["args"]["comfyui"]["custom_nodes"] = [_TEST_NODES]
        if app["name"] == "models":
            # There is a key for Claude, and nobody is to be asked with it.
            backends = app["deployments"][0]["user_config"]["backends"]
            [claude] = [backend for backend in backends if backend["name"] == "claude"]
            claude["base_url"] = "http://127.0.0.1:9"
    return {**config, **changes}


def farm_env(comfyui: ComfyUI, folder: Path, **pool_args: Any) -> dict[str, str]:
    """Return the environment of a whole farm: the shipped apps and a real ComfyUI.

    It allows webhooks to loopback addresses, contains secrets that no log may show, and sets a port
    for HAProxy's log, on which a test may listen.

    Args:
        pool_args: further ``args`` of the render pool.
    """
    config_path = folder / "serve_config.yaml"
    config_data, nodes_folder = shipped_config(), str(write_nodes(folder))
    for app in config_data["applications"]:
        if app["name"].startswith("render-"):
            app["args"]["comfyui"]["custom_nodes"].append(nodes_folder)
            app["args"] |= pool_args
    config_path.write_text(yaml.safe_dump(config_data))
    return {
        "MOYIN_SERVE_CONFIG": str(config_path),
        "MOYIN_COMFYUI_HOME": str(comfyui.home),
        "MOYIN_COMFYUI_PYTHON": str(comfyui.python),
        "MOYIN_WEBHOOK_NETWORKS": "127.0.0.0/8",
        "MOYIN_CORS_ORIGINS": PAGE_ORIGIN,
        "ANTHROPIC_API_KEY": f"sk-ant-{secrets.token_hex(20)}",
        "STUDIO_RABBITMQ_URL": f"amqp://moyin:{secrets.token_hex(20)}@127.0.0.1:9/",
        "RAY_SERVE_HAPROXY_LOG_TARGET": f"127.0.0.1:{_free_udp_port()}",
    }


def _free_udp_port() -> int:
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_port_base() -> int:
    """Return a port number such that all ports that a stack uses from there on are free.

    It lies below the ephemeral ports. Test processes that run concurrently use separate ranges.
    """
    offsets = [item.metadata["offset"] for item in fields(Ports)]
    worker_number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for _ in range(200):
        base = random.randrange(20_000, 24_000, 250) + 4_000 * (worker_number % 3)
        if all(_is_free(base + offset) for offset in offsets):
            return base
    raise AssertionError(
        "no free range of ports between 20000 and 32000: stop the stacks of earlier tests"
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _is_stack_variable(name: str) -> bool:
    return name.startswith(("MOYIN_", "RAY_"))
