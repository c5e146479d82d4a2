"""Measures for how long clients notice the death of each part of a farm.

``python -m tests.chaos.outages`` starts a farm, calls every app in every protocol without a pause,
kills one part after another and prints the table of docs/operations.md. Arguments are the names
of the parts to kill, by default all. The exit status is 1 if a client ever got a wrong response.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moyin.render.comfyui.install import find_comfyui
from moyin.settings import Settings
from tests.chaos import victims
from tests.chaos.client import FINAL, StackClient
from tests.chaos.graphs import picture
from tests.chaos.watch import SERVICES, Call, ResponseWatch
from tests.stack import RunningStack, farm_env

PARTS: dict[str, Callable[[str], bool]] = {
    # Processes of Ray's head. When one ends, either `ray start --block` ends all, or Ray continues.
    "gcs_server": victims.is_program_named("gcs_server"),
    "raylet": victims.is_program_named("raylet"),
    "ray start": lambda line: "ray start --head" in line,
    "dashboard": lambda line: "/dashboard/dashboard.py" in line,
    "dashboard agent": victims.is_actor_named("DashboardAgent"),
    "runtime env agent": victims.is_actor_named("RuntimeEnvAgent"),
    "autoscaler": lambda line: "/_private/monitor.py" in line,
    "Ray client server": lambda line: "ray.util.client.server" in line,
    # Processes of Ray Serve.
    "HAProxy": victims.is_program_named("haproxy"),
    "HAProxyManager": victims.is_actor_named("HAProxyManager"),
    "ServeController": victims.is_actor_named("ServeController"),
    "ProxyActor": victims.is_actor_named("ProxyActor"),
    "all of Serve": victims.is_part_of_serve,
    "gateway replica": victims.is_replica_of("Gateway"),
    "models replica": victims.is_replica_of("Models"),
    "accounts replica": victims.is_replica_of("Accounts"),
    "JobWorker replica": victims.is_replica_of("JobWorker"),
    "RenderPool replica": victims.is_replica_of("RenderPool"),
    # The processes that render pools start, and the servers that all apps need.
    "ComfyUIActor": victims.is_comfyui_actor,
    "ComfyUI": victims.is_comfyui,
    "Temporal": victims.is_temporal,
    "Valkey": victims.is_valkey,
}
# Of these, all processes are killed together, as a full memory may do it; of the others, the oldest.
_KILLED_TOGETHER = frozenset({"all of Serve"})
# Columns of the table.
_COLUMNS = sorted(SERVICES, key=str.lower)
_colors = itertools.count(0x305070, 0x010101)
# A call that takes longer was held until a replica was ready, for example by Serve's proxy.
_SLOW_SECONDS = 1.5
_QUIET_SECONDS = 8.0


@dataclass(frozen=True, kw_only=True)
class Outage:
    """The failures that clients noticed after one kill.

    Attributes:
        killed: time of the kill by `time.monotonic`.
        calls: all calls that ended since the kill.
        render: the duration in seconds of a render that was submitted right after the kill.
    """

    part: str
    killed: float
    calls: Sequence[Call]
    render: float

    def describe_outage(self, service: str) -> str:
        """Return the table's cell for a service: the outage's duration and the kinds of failure."""
        failures = [
            (call.ended - self.killed, "waits" if call.outcome == "ok" else call.outcome)
            for call in self.calls
            if call.service == service
            and (call.outcome != "ok" or call.ended - call.began > _SLOW_SECONDS)
        ]
        if not failures:
            return "-"
        outcomes = dict.fromkeys(outcome for _, outcome in failures)
        return f"{max(failures)[0]:.1f} s ({', '.join(outcomes)})"

    @property
    def row(self) -> str:
        cells = [self.part, *map(self.describe_outage, _COLUMNS), f"{self.render:.1f} s"]
        return f"| {' | '.join(cells)} |"


@contextmanager
def watching_responses(gateway: RunningStack) -> Iterator[ResponseWatch]:
    """Run clients that check every response during the block, once all services respond normally."""
    client = StackClient(gateway.url, gateway.api_key)
    job_id = client.submit({"kind": "render", "workflow": picture(next(_colors))})
    assert client.wait(job_id, FINAL, 300)["status"] == "succeeded"
    watch = ResponseWatch(gateway.url, gateway.ports.grpc, gateway.api_key, job_id)
    with watch.calling():
        watch.wait_until_well(time.monotonic())
        yield watch


def kill_part(gateway: RunningStack, watch: ResponseWatch, part: str) -> Outage:
    """Kill a part with SIGKILL; return once all services respond again."""
    count_before = len(victims.list_processes(gateway.data, PARTS[part]))
    assert count_before >= 1, f"no process of {part} runs, so none can be killed"
    killed_at = time.monotonic()
    kill = victims.kill_all if part in _KILLED_TOGETHER else victims.kill_one
    pid = kill(gateway.data, PARTS[part])
    with ThreadPoolExecutor(1) as pool:
        render_future = pool.submit(_time_render, StackClient(gateway.url, gateway.api_key))
        watch.wait_until_well(killed_at, seconds=_QUIET_SECONDS)
        render_seconds = render_future.result()
    victims.wait_for_another(gateway.data, PARTS[part], pid, count_before, 240)
    return Outage(
        part=part, killed=killed_at, calls=watch.calls_since(killed_at), render=render_seconds
    )


def _time_render(client: StackClient) -> float:
    """Return the seconds until a picture is rendered, with retries."""
    started_at = time.monotonic()
    workflow = picture(next(_colors))
    job_id = client.submit_patiently({"kind": "render", "workflow": workflow}, 240)
    job = client.wait(job_id, FINAL, 300)
    assert job["status"] == "succeeded", job["error"]
    return time.monotonic() - started_at


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of: {', '.join(PARTS)}")
    parts = parser.parse_args().parts or list(PARTS)
    with tempfile.TemporaryDirectory(prefix="moyin-outages-") as folder:
        comfyui = find_comfyui(Settings())
        gateway = RunningStack(Path(folder), farm_env(comfyui, Path(folder)))
        with gateway.running(), watching_responses(gateway) as watch:
            print("| killed | " + " | ".join(_COLUMNS) + " | a render takes |")
            print("|---" * (len(_COLUMNS) + 2) + "|", flush=True)
            for part in parts:
                print(kill_part(gateway, watch, part).row, flush=True)
            for problem in watch.wrong:
                print(f"WRONG: {problem}", file=sys.stderr)
            return 1 if watch.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
