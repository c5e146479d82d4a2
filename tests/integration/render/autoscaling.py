"""Runs Ray's autoscaler on this machine; its nodes are processes that pretend to have a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
)

from tests.integration.servers import free_port
from tests.processes import with_lines

_STORE_BYTES = 100 * 1024 * 1024
_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"

_NOTHING = (
    "cluster_synced_files",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


@contextmanager
def provide_fake_gpu_nodes(
    folder: Path, *, max_nodes: int, idle_seconds: float, labels: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Yield the arguments of `run_ray_cluster` for a head whose autoscaler adds nodes with one GPU.

    The autoscaler is the one of `ray up`, with Ray's `fake_multinode` provider: each node that it
    starts is a raylet, a child process of the head's monitor. At the end of the block, the
    remaining raylets are ended.

    Args:
        max_nodes: the largest number of nodes.
        idle_seconds: seconds after which the autoscaler ends an idle node.
        labels: Ray's labels of the nodes.
    """
    # Needed before the head starts, which would choose it.
    address = f"{ray.util.get_node_ip_address()}:{free_port()}"
    config_path = folder / "autoscaling.yaml"
    config_path.write_text(
        yaml.safe_dump(_build_autoscaler_config(address, max_nodes, idle_seconds, labels))
    )
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_enable_autoscaler_v2", "1")
        environment.setenv("RAY_FAKE_CLUSTER", "1")
        environment.setenv("AUTOSCALER_UPDATE_INTERVAL_S", "1")
        try:
            yield {
                "num_cpus": 3,
                "autoscaling_config": str(config_path),
                "gcs_server_port": int(address.rpartition(":")[2]),
                "env_vars": {
                    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
                    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
                    "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
                },
            }
        finally:
            remaining_raylets = find_raylets(address)
            for process in remaining_raylets:
                process.kill()
            psutil.wait_procs(remaining_raylets, timeout=20)


def list_gpu_nodes() -> set[str]:
    """Return the ids of the current nodes that have a GPU."""
    return {n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU")}


def find_raylets(address: str) -> list[psutil.Process]:
    """Return the raylets of the cluster at ``address``; their children end with them."""
    return [
        process
        for process, line in with_lines(psutil.process_iter())
        if line.split()[0].endswith("/raylet") and f"--gcs-address={address}" in line.split()
    ]


def _build_autoscaler_config(
    address: str, max_nodes: int, idle_seconds: float, labels: dict[str, str]
) -> dict[str, Any]:
    return {
        "cluster_name": "test",
        "max_workers": max_nodes,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": idle_seconds / 60,
        "provider": {
            # By its own name, `fake_multinode`, Ray looks for a file that its wheel does not have.
            "type": "external",
            "module": _PROVIDER,
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 3}, "node_config": {}, "max_workers": 0},
            "gpu": {
                "resources": {"CPU": 1, "GPU": 1, "object_store_memory": _STORE_BYTES},
                "labels": labels,
                "node_config": {},
                "min_workers": 0,
                "max_workers": max_nodes,
            },
        },
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        # Nothing is installed, but Ray looks.
        **{key: [] for key in _NOTHING},
    }
