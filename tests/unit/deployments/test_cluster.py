"""Tests that cluster.yaml is valid, and gives every node the variables of `moyin ray-env`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from actors.placement import NON_RENDER_NODES
from moyin.stack.ray import build_ray_environ

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config() -> Any:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_the_file(config: Any) -> None:
    validate_config(prepare_config(config))


def test_cluster_has_a_head_and_workers_of_both_kinds(config: Any) -> None:
    assert config["available_node_types"].keys() == {"head", "cpu", "gpu"}
    assert config["head_node_type"] == "head"


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_node_starts_with_the_ray_environment(
    config: Any, commands: str, tmp_path: Path
) -> None:
    """The start commands give Ray all variables of `build_ray_environ`.

    A fake `ray` prints its environment.
    """
    [start_command] = [line for line in config[commands] if "ray start" in line]
    home = tmp_path
    (home / "moyin").mkdir()
    (home / "moyin" / "cluster.env").write_text("MOYIN_REDIS_URL=redis://there\n")
    (home / "venv" / "bin").mkdir(parents=True)
    (home / "venv" / "bin" / "moyin").symlink_to(Path(sys.executable).with_name("moyin"))
    fake_ray = home / "venv" / "bin" / "ray"
    fake_ray.write_text("#!/bin/sh\nenv\n")
    fake_ray.chmod(0o700)
    environ = {"HOME": str(home), "PATH": os.environ["PATH"], "RAY_HEAD_IP": "10.0.0.7"}
    process = subprocess.run(
        ["bash", "-ec", start_command], env=environ, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    environment = dict(line.split("=", 1) for line in process.stdout.splitlines() if "=" in line)
    assert environment.items() >= build_ray_environ().items()
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["MOYIN_REDIS_URL"] == "redis://there"
    assert environment["MOYIN_DOOR"].endswith(":8000")
    assert os.access(environment["RAY_SERVE_HAPROXY_BINARY_PATH"], os.X_OK)


def test_every_node_has_the_token_and_a_recent_image(config: Any) -> None:
    assert "~/.ray/auth_token" in config["file_mounts"]
    images = {
        name: kind["node_config"]["ImageId"] for name, kind in _get_node_types(config).items()
    }
    # The Python of Ray's default image is too old.
    assert all("24.04" in image for image in images.values())
    assert "nvidia" in images["gpu"]


def _get_node_types(config: Any) -> Any:
    return config["available_node_types"]


def test_every_node_installs_the_locked_requirements(config: Any) -> None:
    assert any("requirements.lock" in line for line in config["setup_commands"])


def test_only_renders_run_on_autoscaled_gpu_nodes(config: Any) -> None:
    [(label, refused_value)] = NON_RENDER_NODES.items()
    node_types = _get_node_types(config)
    node_labels = {
        name: kind["labels"][label] for name, kind in node_types.items() if "labels" in kind
    }
    assert {name: f"!{value}" for name, value in node_labels.items()} == {"gpu": refused_value}
    applications = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"]
    configured_deployments = [d for app in applications for d in app.get("deployments", ())]
    assert [d["name"] for d in configured_deployments] == [
        "Gateway",
        "Accounts",
        "JobWorker",
        "Models",
    ]
    for deployment in configured_deployments:
        assert deployment["ray_actor_options"]["label_selector"] == NON_RENDER_NODES
