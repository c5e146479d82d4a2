"""Tests that hostile nodes on a farm reach neither its servers nor the other ComfyUIs."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic_core import from_json

from moyin.render.comfyui.install import ComfyUI
from tests.integration.render.cluster import RenderFarm, render_farm
from tests.integration.render.hostile import build_hostile_graph, read_finding, write_hostile_nodes
from tests.integration.servers import TemporalServer, ValkeyServer

_SECRET = "signs the stack's tokens"
pytestmark = pytest.mark.timeout(500)
_CONNECT = """
import socket
found = []
for family, addresses in ((socket.AF_INET, map(tuple, given["tcp"])), (socket.AF_UNIX, given["unix"])):
    for address in addresses:
        with socket.socket(family) as client:
            client.settimeout(2)
            try:
                client.connect(address)
                found.append(address)
            except OSError:
                pass
"""
_LOOK = """
import glob, os
found = {
    "files": [path for path in given["files"] if os.path.exists(path)],
    "texts": [],
}
for path in [*glob.glob("/proc/[0-9]*/environ"), *glob.glob("/proc/[0-9]*/cmdline")]:
    try:
        found["texts"].append(open(path, "rb").read().decode(errors="replace"))
    except OSError:
        pass
"""


async def test_node_reaches_nothing_of_the_farm(
    comfyui: ComfyUI,
    tmp_path: Path,
    temporal_server: TemporalServer,
    valkey_server: ValkeyServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MOYIN_SECRET", _SECRET)
    nodes = [{"num_cpus": 4, "num_gpus": 1}]
    async with render_farm(
        comfyui, tmp_path, temporal_server, valkey_server, monkeypatch, nodes
    ) as (farm, _):
        farm.bad_nodes = write_hostile_nodes(tmp_path)
        pool = await farm.deploy(actors=2, gpus=0.5)
        await farm.wait_until_ready(pool, 2)
        addresses: dict[str, Any] = {"tcp": _list_servers(), "unix": _list_sockets(tmp_path)}
        ports = {port for _, port in addresses["tcp"]}
        assert {valkey_server.port, temporal_server.port} <= ports
        assert sum("comfyui.sock" in path for path in addresses["unix"]) == 2
        assert any("raylet" in path for path in addresses["unix"])
        assert await asyncio.to_thread(_count_reachable, addresses) > 5, (
            "from outside all that can be"
        )
        assert await _run_hostile_code(farm, _CONNECT, addresses) == []

        sha256 = await farm.blobs.put(b"another tenant's")
        private_paths = [
            *tmp_path.rglob(sha256),
            farm.settings.data / "moyin.db",
            valkey_server._folder,
            # Of both ComfyUIs, whichever is asked.
            *tmp_path.rglob("comfyui.log"),
        ]
        assert len(private_paths) == 5
        assert all(path.exists() for path in private_paths)
        findings = await _run_hostile_code(
            farm, _LOOK, {"files": [str(path) for path in private_paths]}
        )
        assert findings["files"] == []
        for secret in (_SECRET, "MOYIN_REDIS_URL", valkey_server.url):
            assert secret not in str(findings["texts"])


async def _run_hostile_code(farm: RenderFarm, code: str, arguments: Any = None) -> Any:
    result = await farm.wait_for_result(await farm.submit_job(build_hostile_graph(code, arguments)))
    return read_finding(from_json(await farm.blobs.get(result.output))["body"]["outputs"])


def _list_servers() -> list[tuple[str, int]]:
    """Return the addresses of all listening servers on this machine."""
    connections = psutil.net_connections("inet4")
    own_addresses = [
        a.address
        for interface_addresses in psutil.net_if_addrs().values()
        for a in interface_addresses
        if a.family == 2
    ]
    return [
        (host, c.laddr.port)
        for c in connections
        if c.status == psutil.CONN_LISTEN and c.laddr
        for host in (own_addresses if c.laddr.ip == "0.0.0.0" else [c.laddr.ip])
    ]


def _list_sockets(folder: Path) -> list[str]:
    """Return the paths of all Unix sockets on this machine, also of the ComfyUIs in ``folder``."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    paths = [line.split(maxsplit=7)[7] for line in lines if len(line.split(maxsplit=7)) == 8]
    socket_paths = {"\0" + path[1:] if path.startswith("@") else path for path in paths}
    return sorted(p for p in socket_paths if "/proc/" not in p) + [
        str(path) for path in folder.rglob("comfyui.sock")
    ]


def _count_reachable(server_addresses: dict[str, Any]) -> int:
    """Return how many of the given servers are reachable."""
    count = 0
    for family, addresses in (
        (socket.AF_INET, server_addresses["tcp"]),
        (socket.AF_UNIX, server_addresses["unix"]),
    ):
        for address in addresses:
            with socket.socket(family) as client:
                client.settimeout(2)
                try:
                    client.connect(address if isinstance(address, str) else tuple(address))
                    count += 1
                except OSError:
                    continue
    return count
