"""Starts other gateways in front of the same mock model server, as their documentation recommends.

Each of them is installed on first use into its own folder, which later runs reuse.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from benchmarks import paced
from benchmarks.farm import Farm
from benchmarks.processes import find_free_port, list_process_tree, running_program, wait_for_port
from moyin.system.processes import find_processes

_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "moyin-bench"
_LITELLM = "litellm[proxy]==1.108.5"
_LITELLM_WORKERS = 2
# Other gateways must not import the packages of this project.
_NO_PYTHONPATH = {"PYTHONPATH": ""}
_TENSORZERO = "tensorzero==2026.6.0"
# TensorZero's wheel contains the gateway as a library, which serves HTTP for the patched client.
_TENSORZERO_PROGRAM = """
import pathlib, signal, sys
from openai import OpenAI
from tensorzero import patch_openai_client
client = patch_openai_client(OpenAI(api_key="x"), config_file=sys.argv[1], async_setup=False)
pathlib.Path(sys.argv[2]).write_text(str(client.base_url))
signal.pause()
"""
_PORTKEY = {
    "dependencies": {"@portkey-ai/gateway": "1.15.2"},
    # With the version that npm would choose, every stream fails with status 500.
    "overrides": {"@hono/node-server": "1.14.0"},
}


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """A server of chat completions that is measured: a gateway, or the mock model server itself.

    Attributes:
        url: URL for ``POST`` requests.
        processes: returns the server's processes, whose memory and processor time are measured.
        prefix: what the server expects in front of the mock's model names.
    """

    name: str
    url: str
    processes: Callable[[], list[psutil.Process]]
    headers: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""

    def adapt_body(self, body: Mapping[str, object]) -> dict[str, object]:
        """Return a request's body in which the model is named as this server expects."""
        return {**body, "model": f"{self.prefix}{body['model']}"}


def new_mock_gateway(mock_url: str, pid: int) -> Gateway:
    """Return the mock model server with this process id, to be measured without a gateway."""
    return Gateway(
        name="direct",
        url=f"{mock_url}/v1/chat/completions",
        processes=lambda: list_process_tree(pid),
    )


def new_moyin_gateway(farm: Farm, name: str) -> Gateway:
    """Return the models app of a running stack, to be measured under this name."""
    return Gateway(
        name=name,
        url=f"{farm.url}/v1/chat/completions",
        processes=lambda: _find_replicas(farm),
        headers={"authorization": f"Bearer {farm.key}"},
    )


@contextmanager
def running_tensorzero(mock_url: str) -> Iterator[Gateway]:
    """Run TensorZero's gateway during the block, configured without a database, and yield it."""
    home = _CACHE / "tensorzero"
    _install(home, f"{_TENSORZERO} openai", _install_with_pip)
    provider = {"type": "openai", "api_base": f"{mock_url}/v1", "api_key_location": "none"}
    config_lines = ["[gateway]", "observability.enabled = false"]
    for name in ("mock", paced.MODEL):
        config_lines += [
            f"[models.{name}]",
            'routing = ["mock"]',
            f"[models.{name}.providers.mock]",
        ]
        config_lines += [
            f'{key} = "{value}"' for key, value in {**provider, "model_name": name}.items()
        ]
    config_path, url_file = home / "config.toml", home / "url"
    config_path.write_text("\n".join(config_lines) + "\n")
    url_file.unlink(missing_ok=True)
    command = [
        str(home / "bin" / "python"),
        "-c",
        _TENSORZERO_PROGRAM,
        str(config_path),
        str(url_file),
    ]
    with running_program(command, _NO_PYTHONPATH, quiet=True) as pid:
        deadline = time.monotonic() + 60
        while not (url_file.exists() and (url := url_file.read_text())):
            if time.monotonic() > deadline:
                raise SystemExit(
                    f"TensorZero did not start within 60 seconds: delete {home} to install it anew"
                )
            time.sleep(0.05)
        yield Gateway(
            name="TensorZero",
            url=f"{url}chat/completions",
            processes=lambda: list_process_tree(pid),
            prefix="tensorzero::model_name::",
        )


@contextmanager
def running_peer_gateways(mock_url: str) -> Iterator[list[Gateway]]:
    """Run TensorZero, LiteLLM and, if npm is installed, Portkey in the block, and yield them."""
    with ExitStack() as stack:
        gateways = [stack.enter_context(running_tensorzero(mock_url))]
        gateways.append(stack.enter_context(_running_litellm(mock_url)))
        if shutil.which("npm") is None:
            print("Portkey is left out: npm is not installed")
        else:
            gateways.append(stack.enter_context(_running_portkey(mock_url)))
        yield gateways


def _find_replicas(farm: Farm) -> list[psutil.Process]:
    return [
        process
        for process in find_processes(str(farm.data))
        if "ServeReplica:models" in _read_command_line(process)
    ]


def _read_command_line(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


@contextmanager
def _running_litellm(mock_url: str) -> Iterator[Gateway]:
    home = _CACHE / "litellm"
    _install(home, _LITELLM, _install_with_pip)
    port, key = find_free_port(), f"sk-{secrets.token_hex(16)}"
    upstream = {"api_base": f"{mock_url}/v1", "api_key": "none"}
    config = {
        "model_list": [
            {"model_name": name, "litellm_params": {"model": f"openai/{name}", **upstream}}
            for name in ("mock", paced.MODEL)
        ]
    }
    (home / "config.yaml").write_text(yaml.safe_dump(config))
    command = [
        *(str(home / "bin" / "litellm"), "--config", str(home / "config.yaml")),
        *("--host", "127.0.0.1", "--port", str(port), "--num_workers", str(_LITELLM_WORKERS)),
    ]
    environ = {
        "LITELLM_MASTER_KEY": key,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        # LiteLLM starts other programs of its environment.
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        **_NO_PYTHONPATH,
    }
    with running_program(command, environ, quiet=True) as pid:
        wait_for_port(port, 300)  # the first start compiles its modules
        yield Gateway(
            name="LiteLLM, 2 workers",
            url=f"http://127.0.0.1:{port}/v1/chat/completions",
            processes=lambda: list_process_tree(pid),
            headers={"authorization": f"Bearer {key}"},
        )


@contextmanager
def _running_portkey(mock_url: str) -> Iterator[Gateway]:
    home = _CACHE / "portkey"
    _install(home, json.dumps(_PORTKEY), _install_with_npm)
    port = find_free_port()
    server_script = home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    command = ["node", str(server_script), "--headless", f"--port={port}"]
    with running_program(command, {"NODE_ENV": "production"}, quiet=True) as pid:
        wait_for_port(port, 60)
        yield Gateway(
            name="Portkey",
            url=f"http://127.0.0.1:{port}/v1/chat/completions",
            processes=lambda: list_process_tree(pid),
            headers={
                "authorization": "Bearer none",
                "x-portkey-provider": "openai",
                "x-portkey-custom-host": f"{mock_url}/v1",
            },
        )


def _install_with_pip(home: Path, requirements: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    pip_command = [
        str(home / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        *requirements.split(),
    ]
    subprocess.run(pip_command, check=True, env={**os.environ, **_NO_PYTHONPATH})


def _install_with_npm(home: Path, _: str) -> None:
    (home / "package.json").write_text(json.dumps(_PORTKEY))
    subprocess.run(["npm", "install", "--silent", "--no-fund", "--no-audit"], cwd=home, check=True)


def _install(home: Path, version: str, install: Callable[[Path, str], None]) -> None:
    """Install a program into ``home``, unless ``home`` already contains that version.

    Args:
        install: called with ``home`` and ``version``; installs the program.
    """
    stamp_file = home / "installed"
    if stamp_file.exists() and stamp_file.read_text() == version:
        return
    print(f"installing {version} into {home}")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    install(home, version)
    stamp_file.write_text(version)
