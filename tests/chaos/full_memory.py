"""Fills the memory around a farm while it works, and shows what ends, what is lost and for how long.

``python -m tests.chaos.full_memory`` starts a farm in a memory cgroup of its own, so that the rest of
the machine is spared, sends renders and chats, lets a program in the same cgroup take all memory but
300 MiB for 30 s, and prints the table of docs/operations.md. The exit status is 1 if anything accepted
was lost. It needs the right to create cgroups, as root has it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from moyin.errors import StackError
from moyin.render.comfyui.install import find_comfyui
from moyin.settings import Settings
from moyin.system.memory import MemoryReader
from moyin.system.memory_kills import describe_kill, get_kills_folder, list_recent_kills
from moyin.system.processes import find_processes
from tests.chaos.client import FINAL, StackClient
from tests.chaos.graphs import picture, sleepy
from tests.processes import with_lines
from tests.stack import RunningStack, farm_env

_CGROUPS = Path("/sys/fs/cgroup")
_LEFT_BYTES = 300 * 1024**2
_HOG_SECONDS = 30.0
_RECOVERY_SECONDS = 30.0
_colors = itertools.count(0x507090, 0x010101)
# Takes memory until so little is left, which may take a minute on a busy machine, then keeps to that
# for some seconds: what others free is taken, too.
_HOG = """
import sys, time
from moyin.system.memory import MemoryReader
left, seconds = int(sys.argv[1]), float(sys.argv[2])
reader, blocks, end = MemoryReader(), [], None
while end is None or time.monotonic() < end:
    spare = reader.read().available - left
    if spare > 2**20:
        blocks.append(b"x" * min(spare, 64 * 2**20))
        continue
    if end is None:
        print("full", flush=True)
        end = time.monotonic() + seconds
    time.sleep(0.05)
"""


@contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path]:
    """Create a cgroup (version 1 or 2) with a limit of memory, and remove it after the block.

    Raises:
        OSError: this user may not create cgroups.
    """
    is_first_version = (_CGROUPS / "memory").is_dir()
    folder = (_CGROUPS / "memory" if is_first_version else _CGROUPS) / f"moyin-test-{os.getpid()}"
    folder.mkdir()
    try:
        name = "memory.limit_in_bytes" if is_first_version else "memory.max"
        (folder / name).write_text(str(limit_bytes))
        yield folder
    finally:
        # The processes that were in it may need a moment to end.
        for _ in range(100):
            with suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.1)


def join_cgroup(folder: Path) -> None:
    """Move this process into a cgroup; its later children begin there."""
    (folder / "cgroup.procs").write_text(str(os.getpid()))


class Traffic:
    """Renders and chats that are sent while the memory is full; ``refused`` counts answers by status."""

    def __init__(self, gateway: RunningStack) -> None:
        self._gateway = gateway
        self.refused: Counter[str] = Counter()

    def submit_render(self, seconds: float) -> str:
        """Submit a render, again after each refusal, with one key so that it is accepted once."""
        color = next(_colors)
        key = f"full-memory-{color}"
        while True:
            body = {"kind": "render", "workflow": sleepy(seconds, color)}
            response = self._send("/jobs", body, {"idempotency-key": key})
            if response is not None and response.status_code in (200, 201, 202):
                return str(response.json()["id"])
            time.sleep(1)

    def chat(self, number: int) -> int:
        """Send a chat until it is answered; return how often it was refused before."""
        body = {
            "model": "auto",
            "max_tokens": 8,
            "messages": [{"role": "user", "content": f"Say {number}."}],
        }
        for tries in range(600):
            response = self._send("/v1/chat/completions", body, {})
            if response is not None and response.status_code == 200:
                assert response.json()["choices"]
                return tries
            time.sleep(1)
        raise AssertionError(f"chat {number} was never answered")

    def _send(self, path: str, body: Any, headers: dict[str, str]) -> httpx.Response | None:
        authorization = {"authorization": f"Bearer {self._gateway.api_key}", **headers}
        try:
            response = httpx.post(
                self._gateway.url + path, json=body, headers=authorization, timeout=300
            )
        except httpx.HTTPError as error:
            self.refused[type(error).__name__] += 1
            return None
        if response.status_code >= 400:
            self.refused[f"{path} {response.status_code}"] += 1
        return response


def fill_memory(gateway: RunningStack, *, renders: int, chats: int) -> list[str]:
    """Run the traffic with a full memory; return lines that describe what happened.

    Raises:
        AssertionError: something that was accepted was lost.
    """
    client = StackClient(gateway.url, gateway.api_key)
    assert _render(client)["status"] == "succeeded"
    traffic = Traffic(gateway)
    processes = with_lines(find_processes(str(gateway.data)))
    before = {process.pid: line[:60] for process, line in processes}
    with ThreadPoolExecutor(16) as threads:
        render_ids = threads.map(lambda _: traffic.submit_render(0.5), range(renders))
        chat_results = threads.map(traffic.chat, range(chats))
        time.sleep(3)
        with subprocess.Popen(
            [sys.executable, "-c", _HOG, str(_LEFT_BYTES), str(_HOG_SECONDS)],
            env=gateway.env,
            stdout=subprocess.PIPE,
        ) as hog:
            assert hog.stdout is not None
            assert hog.stdout.readline() == b"full\n", "the program was ended"
            began = time.monotonic()
            assert hog.wait() == 0, "the program was ended"
        ended = time.monotonic()
        _render(client)
        recovery_seconds = time.monotonic() - ended
        jobs = [client.wait(job_id, FINAL, 900) for job_id in render_ids]
        tries = list(chat_results)
    lost = [job["error"] for job in jobs if job["status"] != "succeeded"]
    state = json.loads(gateway.run("status", "--json").stdout)
    kills = list_recent_kills(get_kills_folder(gateway.data))
    gone = Counter(line for pid, line in before.items() if not Path(f"/proc/{pid}").exists())
    return [
        f"renders: {len(jobs)}, lost: {len(lost)} {lost[:3]}",
        f"chats: {len(tries)}, tried again: {sum(map(bool, tries))}",
        f"refused meanwhile: {dict(traffic.refused)}",
        f"the program held the memory for {ended - began:.0f} s",
        f"a render that was submitted at its end took {recovery_seconds:.1f} s",
        f"phase afterwards: {state['phase']}",
        *(describe_kill(kill) for kill in kills),
        f"processes that ended: {dict(gone)}",
    ]


def _render(client: StackClient) -> dict[str, Any]:
    job_id = client.submit({"kind": "render", "workflow": picture(next(_colors))})
    return client.wait(job_id, FINAL, 600)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--renders", type=int, default=100)
    parser.add_argument("--chats", type=int, default=200)
    parser.add_argument("--limit-gib", type=float, default=5.0)
    parsed = parser.parse_args(arguments)
    settings = Settings()
    with memory_cgroup(int(parsed.limit_gib * 1024**3)) as folder:
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        join_cgroup(folder)
        print(f"memory: {MemoryReader().read()}", flush=True)
        with tempfile.TemporaryDirectory(prefix="moyin-memory-") as temporary:
            try:
                home = Path(temporary)
                stack = RunningStack(home, farm_env(find_comfyui(settings), home))
                with stack.running():
                    lines = fill_memory(stack, renders=parsed.renders, chats=parsed.chats)
            except StackError as error:
                lines = [error.message]
        print("\n".join(lines), flush=True)
        os._exit(0 if "lost: 0" in lines[0] else 1)


if __name__ == "__main__":
    sys.exit(main())
