"""cluster.yaml holds for `ray up`, and gives every node the switches of `moyin up`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from actors.placement import NOT_FOR_RENDERS
from moyin.stack.ray import SWITCHES

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config() -> Any:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_it(config: Any) -> None:
    validate_config(prepare_config(config))


def test_it_has_a_head_and_workers_of_both_kinds(config: Any) -> None:
    assert config["available_node_types"].keys() == {"head", "cpu", "gpu"}
    assert config["head_node_type"] == "head"


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_node_starts_with_the_switches(config: Any, commands: str) -> None:
    [start] = [line for line in config[commands] if "ray start" in line]
    before, _, _ = start.partition("ray start")
    for name, value in SWITCHES.items():
        assert f"{name}={value}" in before
    assert "RAY_SERVE_HAPROXY_BINARY_PATH=$HOME/moyin/moyin/stack/haproxy.sh" in before
    assert "MOYIN_HAPROXY=" in before


def test_every_node_installs_the_lock(config: Any) -> None:
    assert any("requirements.lock" in line for line in config["setup_commands"])


def test_only_renders_run_on_nodes_that_come_for_them(config: Any) -> None:
    [(label, refused)] = NOT_FOR_RENDERS.items()
    types = config["available_node_types"]
    marked = {name: kind["labels"][label] for name, kind in types.items() if "labels" in kind}
    assert {name: f"!{value}" for name, value in marked.items()} == {"gpu": refused}
    applications = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"]
    tuned = [d for app in applications for d in app.get("deployments", ())]
    assert [d["name"] for d in tuned] == ["Gateway", "Accounts", "JobWorker", "Models"]
    for deployment in tuned:
        assert deployment["ray_actor_options"]["label_selector"] == NOT_FOR_RENDERS
