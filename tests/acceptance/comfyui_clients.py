"""Runs third-party clients of ComfyUI and provides the graphs that they render."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.stack import ROOT, RunningStack

_SCRIPTS = Path(__file__).parent / "clients"
_SECONDS = 180
_INSTALL_SECONDS = 280
_colors = itertools.count(0x240000)
WIDTH, HEIGHT = 40, 24


@dataclass(frozen=True)
class InstalledClients:
    """The environment that ``scripts/comfyui_clients.sh`` has installed.

    Attributes:
        home: a folder to use as the clients' home folder, where they store files.
    """

    folder: Path
    home: Path

    @property
    def frontend(self) -> Path:
        return self.folder / "frontend" / "comfyui_frontend_package" / "static"

    def run_python(self, script: str, *arguments: str) -> Any:
        """Run the Python program ``clients/<script>``; return the JSON in its last line of output."""
        return self._run_script(
            [str(self.folder / "bin" / "python"), str(_SCRIPTS / script), *arguments]
        )

    def run_node(self, script: str, *arguments: str) -> Any:
        """Run a Node.js script in the folder of its packages; return the JSON in its last line."""
        shutil.copy(_SCRIPTS / script, self.home)
        modules_link = self.home / "node_modules"
        if not modules_link.exists():
            modules_link.symlink_to(self.folder / "node" / "node_modules")
        return self._run_script(["node", str(self.home / script), *arguments])

    def start_comfy_cli(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `comfy-cli`, which reports its progress as JSON and sends no telemetry."""
        return subprocess.Popen(
            [str(self.folder / "bin" / "comfy"), *arguments],
            env=self.env, cwd=self.home, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    @property
    def env(self) -> Mapping[str, str]:
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("MOYIN_", "PYTHON"))},
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "DO_NOT_TRACK": "1",
            "COMFY_NO_TELEMETRY": "1",
        }

    def _run_script(self, command: list[str]) -> Any:
        process = subprocess.Popen(
            command, env=self.env, cwd=self.home, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            stdout, stderr = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
        assert process.returncode == 0, f"{command[1]} failed:\n{stdout}\n{stderr}"
        return json.loads(stdout.splitlines()[-1])


class GraphFiles:
    """Writes graphs to ``graphs.json`` in ``folder``, with new colours, so that no result is cached."""

    def __init__(self, folder: Path) -> None:
        self.color = next(_colors)
        self.all = {
            "picture": _make_graph(self.color),
            "slow": _make_graph(self.color, sleep=1.0),
            "long": _make_graph(next(_colors), sleep=60.0),
            "inverted": _make_inverting_graph(),
            "broken": _make_graph(next(_colors), error=True),
        }
        (folder / "graphs.json").write_text(json.dumps(self.all))

    def write_graph(self, folder: Path, name: str) -> str:
        path = folder / f"{name}.json"
        path.write_text(json.dumps(self.all[name]))
        return str(path)


@contextmanager
def connected_farm(gateway: RunningStack, key: str = "") -> Iterator[str]:
    """Run `moyin comfyui connect`, so that the farm looks like a local ComfyUI, and yield its URL.

    Args:
        key: an API key to use; empty for the key of the stored profile.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "moyin.cli.main", "comfyui", "connect", "--port", "0"],
        env={**gateway.env, **({"MOYIN_API_KEY": key, "MOYIN_URL": gateway.url} if key else {})},
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    first_line = process.stdout.readline()
    try:
        yield first_line.split(" at ")[1].split()[0]
    finally:
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")


def install_clients(home: Path) -> InstalledClients:
    process = subprocess.run(
        [str(ROOT / "scripts" / "comfyui_clients.sh")],
        env={**os.environ, "PYTHON": sys.executable},
        text=True, capture_output=True, timeout=_INSTALL_SECONDS, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return InstalledClients(folder=Path(process.stdout.strip()), home=home)


def _make_graph(color: int, *, sleep: float = 0.0, error: bool = False) -> dict[str, Any]:
    size = {"width": WIDTH, "height": HEIGHT, "batch_size": 1, "color": color}
    graph: dict[str, Any] = {
        "1": _make_titled_node("Plain", "EmptyImage", size),
        "2": _make_save_node(["1", 0]),
    }
    if sleep:
        inputs = {"value": ["1", 0], "seconds": sleep}
        graph["3"] = _make_titled_node("Sleep", "TestSleep", inputs)
    if error:
        graph["3"] = _make_titled_node("Break", "TestSyncError", {"value": ["1", 0]})
    if "3" in graph:
        graph["2"]["inputs"]["images"] = ["3", 0]
    return graph


def _make_inverting_graph() -> dict[str, Any]:
    return {
        "1": _make_titled_node("Load", "LoadImage", {"image": ""}),
        "2": _make_save_node(["3", 0]),
        "3": _make_titled_node("Invert", "ImageInvert", {"image": ["1", 0]}),
    }


def _make_save_node(images: list[Any]) -> dict[str, Any]:
    return _make_titled_node("Save", "SaveImage", {"images": images, "filename_prefix": "client"})


def _make_titled_node(title: str, class_type: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return a node with a title, by which some clients find it."""
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title}}
