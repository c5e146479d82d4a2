"""Tests that GPUs are read from nvidia-smi's output."""

from __future__ import annotations

from pathlib import Path

import pytest

from moyin.domain.cluster import GpuReading
from moyin.system.gpus import parse_devices, parse_gpus, read_gpus

OUTPUT = """\
0, GPU-aa, NVIDIA H100 80GB HBM3, 5, 81559, 30
1, GPU-bb, NVIDIA A2, [N/A], 15356, [N/A]
No devices were found
"""


def test_only_selected_gpus_are_parsed() -> None:
    assert parse_gpus(OUTPUT, "GPU-aa") == (
        GpuReading(
            index=0,
            name="NVIDIA H100 80GB HBM3",
            memory_used=5 * 1024**2,
            memory_total=81559 * 1024**2,
            temperature=30,
        ),
    )
    [second_gpu] = parse_gpus(OUTPUT, "1")
    assert (second_gpu.memory_used, second_gpu.temperature) == (None, None)
    assert parse_gpus(OUTPUT, "7") == ()


async def test_gpus_are_read_with_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await read_gpus("0") == ()
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{OUTPUT.splitlines()[0]}'\n")
    program.chmod(0o700)
    assert [gpu.index for gpu in await read_gpus("0")] == [0]
    assert await read_gpus(None) == ()


def test_only_numeric_devices_are_parsed() -> None:
    assert parse_devices("0,2") == (0, 2)
    assert parse_devices("GPU-aa") == ()
    assert parse_devices(None) == ()
