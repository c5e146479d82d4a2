"""Checks the machine: Python, clock, processors, memory and graphics cards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

from moyin.stack.doctor.result import (
    CheckResult,
    build_failure,
    build_ok,
    build_warning,
    build_warning_if,
)
from moyin.stack.options import Options

_GIB = 1024**3
_MAX_CLOCK_SECONDS = 60
_DRIVER_SECONDS = 20
_PCI_DEVICES = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY = "0x10de", "0x03"


def check_python() -> CheckResult:
    finding = ".".join(map(str, sys.version_info[:3]))
    is_untested = not (3, 11) <= sys.version_info[:2] <= (3, 13)
    return build_warning_if(
        is_untested, "python", finding, "use Python 3.11 to 3.13, which are tested"
    )


def check_clock(options: Options) -> CheckResult:
    """Check that the clock is not behind: no file of the last run may have a time in the future."""
    layout = options.layout
    files = [layout.state, layout.temporal_db, *layout.logs.glob("*.log")]
    newest_mtime = max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
    clock_lag = newest_mtime - time.time()
    if clock_lag <= _MAX_CLOCK_SECONDS:
        return build_ok("clock", f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
    return build_failure(
        "clock",
        f"{clock_lag:,.0f} s behind the files of the last run",
        "set the clock (`timedatectl set-ntp true`): tokens, links and timers depend on it",
    )


def check_processors() -> CheckResult:
    processor_count = os.cpu_count() or 1
    advice = "Moyin starts in half the time with two or more"
    return build_warning_if(processor_count < 2, "processors", str(processor_count), advice)


def check_memory() -> CheckResult:
    memory = psutil.virtual_memory()
    finding = f"{memory.available / _GIB:.1f} GiB of {memory.total / _GIB:.1f} GiB available"
    # The stack without ComfyUI takes about 2 GiB; each ComfyUI takes half a GiB and its models.
    advice = "less than 4 GiB: stop other programs, or render elsewhere"
    return build_warning_if(memory.available < 4 * _GIB, "memory", finding, advice)


def check_gpu(options: Options) -> CheckResult:
    if options.gpus:
        return build_ok("gpu", f"{options.gpus} by nvidia-smi")
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        return build_warning(
            "gpu",
            f"nvidia-smi lists none: {_read_driver_message(tool)}",
            "install or load NVIDIA's driver for this kernel (`dmesg | grep -i nvidia` shows what "
            "is wrong), then restart Moyin",
        )
    if has_nvidia_card():
        return build_warning(
            "gpu",
            "an NVIDIA card, but no driver (the program nvidia-smi is missing)",
            "install NVIDIA's driver; a container needs NVIDIA's Container Toolkit and `--gpus all`",
        )
    return build_warning(
        "gpu", "none", "Ray gets one logical GPU and ComfyUI runs on the CPU, slowly"
    )


def has_nvidia_card(devices: Path = _PCI_DEVICES) -> bool:
    """Return True if the kernel lists an NVIDIA graphics card, with or without a driver."""
    for device in devices.glob("*"):
        try:
            vendor, device_class = (
                (device / name).read_text().strip() for name in ("vendor", "class")
            )
        except OSError:
            continue  # It was removed meanwhile.
        if vendor == _NVIDIA and device_class.startswith(_DISPLAY):
            return True
    return False


def _read_driver_message(tool: str) -> str:
    """Return the first line of nvidia-smi's output, which says what is wrong."""
    try:
        process = subprocess.run(
            [tool, "-L"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_DRIVER_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return type(error).__name__
    return next((line.strip() for line in process.stdout.splitlines() if line.strip()), "no output")
