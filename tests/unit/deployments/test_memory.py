from __future__ import annotations

import subprocess
import sys

LEAK = """
import sys, time
from deployments.memory import guard_memory
guard_memory(int(sys.argv[1]))
held = [bytearray(2**20)]
while len(held) < int(sys.argv[2]):
    held.append(bytearray(2**20))
    time.sleep(0.005)
print("survived", flush=True)
"""


def _run(limit_mib: int, leak_mib: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LEAK, str(limit_mib), str(leak_mib)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_leak_above_the_limit_ends_the_process() -> None:
    leaking = _run(200, 2_000)
    assert (leaking.returncode, leaking.stdout) == (70, "")
    assert "this replica uses" in leaking.stderr


def test_process_survives_without_a_limit_and_below_it() -> None:
    assert _run(0, 50).stdout == "survived\n"
    assert _run(1_000, 50).stdout == "survived\n"
