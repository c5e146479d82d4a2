"""Reads the memory and temperature of graphics cards with ``nvidia-smi``."""

from __future__ import annotations

import asyncio
import shutil

from moyin.domain.cluster import GpuReading

_FIELDS = "index,uuid,name,memory.used,memory.total,temperature.gpu"
_TIMEOUT_SECONDS = 5.0
_MIB = 1024 * 1024


async def read_gpus(devices: str | None) -> tuple[GpuReading, ...]:
    """Return the measurements of the cards in ``devices``; empty without an NVIDIA driver.

    Args:
        devices: comma-separated numbers or UUIDs, as in ``CUDA_VISIBLE_DEVICES``.
    """
    program = shutil.which("nvidia-smi")
    if program is None or not devices:
        return ()
    process = await asyncio.create_subprocess_exec(
        program,
        f"--query-gpu={_FIELDS}",
        "--format=csv,noheader,nounits",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        return ()  # A driver that hangs must not hold up the state of everything else.
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return parse_gpus(output.decode(errors="replace"), devices)


def parse_gpus(output: str, devices: str) -> tuple[GpuReading, ...]:
    """Parse nvidia-smi's lines of comma-separated values; return the cards in ``devices``."""
    wanted_devices = {device.strip() for device in devices.split(",")}
    readings = []
    for line in output.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) != len(_FIELDS.split(",")) or not values[0].isdecimal():
            continue
        index, uuid, name, used_memory, total_memory, temperature = values
        if index in wanted_devices or uuid in wanted_devices:
            readings.append(
                GpuReading(
                    index=int(index),
                    name=name,
                    memory_used=_parse_number(used_memory, _MIB),
                    memory_total=_parse_number(total_memory, _MIB),
                    temperature=_parse_number(temperature),
                )
            )
    return tuple(readings)


def _parse_number(value: str, factor: int = 1) -> int | None:
    # Cards report `[N/A]` for what they do not measure.
    return int(value) * factor if value.isdecimal() else None


def parse_devices(devices: str | None) -> tuple[int, ...]:
    """Return the numbers in ``CUDA_VISIBLE_DEVICES``; empty for other names, such as UUIDs."""
    values = [] if devices is None else [device.strip() for device in devices.split(",")]
    return tuple(int(value) for value in values if value.isdecimal())
