"""Starts a stack for a benchmark with `moyin up` in a temporary folder, and stops it afterwards."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import paced
from moyin.render.comfyui.install import find_comfyui
from moyin.settings import Settings

# Prefixes of the proxy's routes to the mock and to the service with streams.
MOCK, SERVICE = "/mock", "/service"

_NO_SERVER = "http://127.0.0.1:9"
_ROOT = Path(__file__).parents[1]
# ComfyUI's own test nodes, relative to its folder; one of them sleeps.
_TEST_NODES = "tests/execution/testing_nodes/testing-pack"


@dataclass(frozen=True, kw_only=True)
class Farm:
    """A running stack: its URL, API key, data folder, configuration file and environment."""

    url: str
    key: str
    data: Path
    config: Path
    environ: Mapping[str, str]


def build_configuration(mock_url: str, service_url: str, actors: int = 1) -> dict[str, Any]:
    """Return the shipped serve_config.yaml, changed for the benchmarks.

    The mock model server is added as a back end, and as a service behind the reverse proxy. ComfyUI
    gets the nodes of the tests. If ``actors`` is 0, there is no render pool.
    """
    config: dict[str, Any] = yaml.safe_load((_ROOT / "serve_config.yaml").read_text())
    apps = {app["name"]: app for app in config["applications"]}
    [models_deployment] = apps["models"]["deployments"]
    models_deployment["user_config"]["backends"].append(
        {
            "name": "mock",
            "type": "openai",
            "base_url": f"{mock_url}/v1",
            "connections": 2048,
            "models": [
                {"name": name, "context": 8192, "price": {"input": 0, "output": 0}}
                for name in ("mock", paced.MODEL)
            ],
        }
    )
    [gateway_deployment] = apps["gateway"]["deployments"]
    gateway_deployment["user_config"]["routes"] += [
        {"name": "mock", "prefix": MOCK, "upstreams": [mock_url]},
        {"name": "service", "prefix": SERVICE, "upstreams": [service_url]},
    ]
    apps["render-default"]["args"]["comfyui"]["custom_nodes"] = [_TEST_NODES]
    if not actors:
        config["applications"].remove(apps["render-default"])
    elif actors > 1:
        # All actors share one GPU and all CPUs.
        pool_settings = {"actors": actors, "gpus": 1 / actors, "cpus": 0, "window": 10 * actors}
        apps["render-default"]["args"].update(pool_settings)
    config["applications"].append(
        {
            "name": "bare",
            "route_prefix": "/bare",
            "import_path": "benchmarks.bare:build",
            "args": {"upstream": mock_url},
            "deployments": [{"name": "Bare", "ray_actor_options": {"num_cpus": 0.1}}],
        }
    )
    return config


@contextmanager
def running_farm(mock_url: str, service_url: str = _NO_SERVER, actors: int = 1) -> Iterator[Farm]:
    """Run a stack with ``actors`` ComfyUIs during the block, and yield it.

    Args:
        mock_url: the mock model server, which becomes a back end.
        service_url: the service behind the reverse proxy.
    """
    comfyui = find_comfyui(Settings()) if actors else None
    with tempfile.TemporaryDirectory(prefix="moyin-bench-") as folder:
        data = Path(folder) / "data"
        config_path = Path(folder) / "serve_config.yaml"
        config_path.write_text(yaml.safe_dump(build_configuration(mock_url, service_url, actors)))
        environ = {
            **os.environ,
            "PYTHONPATH": str(_ROOT),
            "MOYIN_DATA": str(data),
            "MOYIN_SERVE_CONFIG": str(config_path),
            "MOYIN_PORT_BASE": str(_find_free_port_base()),
        }
        if comfyui is not None:
            environ["MOYIN_COMFYUI_HOME"] = str(comfyui.home)
            environ["MOYIN_COMFYUI_PYTHON"] = str(comfyui.python)
        _run_moyin("up", environ)
        try:
            profile = tomllib.loads((data / "profile.toml").read_text())
            yield Farm(
                url=profile["url"],
                key=profile["api_key"],
                data=data,
                config=config_path,
                environ=environ,
            )
        finally:
            _run_moyin("down", environ)


def create_key(farm: Farm, owner: str) -> str:
    """Create an API key for the tenant ``owner``, and return it."""
    program = Path(sys.executable).with_name("moyin")
    command = [str(program), "keys", "create", owner, "--json"]
    output = subprocess.run(command, env=dict(farm.environ), check=True, capture_output=True).stdout
    key: str = json.loads(output)["key"]
    return key


def authorize(key: str) -> dict[str, str]:
    """Return the headers of a request with this API key."""
    return {"authorization": f"Bearer {key}"}


def scale_models_app(farm: Farm, replicas: int) -> None:
    """Set the number of replicas of the models app, and deploy the change."""
    config = yaml.safe_load(farm.config.read_text())
    for app in config["applications"]:
        if app["name"] == "models":
            app["deployments"][0]["num_replicas"] = replicas
    farm.config.write_text(yaml.safe_dump(config))
    _run_moyin("deploy", farm.environ)


def _run_moyin(command: str, environ: Mapping[str, str]) -> None:
    program = Path(sys.executable).with_name("moyin")
    subprocess.run([program, command], env=dict(environ), check=True)


def _find_free_port_base() -> int:
    """Return the first port of a range of 500 ports; only this port is checked to be free."""
    for base in range(22000, 32000, 500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", base)) != 0:
                return base
    raise SystemExit("all port ranges from 22000 to 31500 are in use: stop another stack")
