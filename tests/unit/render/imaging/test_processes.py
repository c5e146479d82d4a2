"""Tests picture processes with pictures that exceed the limits."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from moyin.errors import InvalidRequest, Overloaded, PictureTooLarge
from moyin.render.imaging.processes import PictureLimits, PictureProcess, PictureProcesses

LIMITS = PictureLimits()


@pytest.fixture
async def processes() -> AsyncIterator[PictureProcesses]:
    processes = PictureProcesses()
    yield processes
    await processes.close()


def make_plain_picture(size: tuple[int, int], file_format: str = "PNG", mode: str = "1") -> bytes:
    """Return a picture of one colour, so that its file is small whatever its dimensions.

    Args:
        file_format: the format's name in Pillow.
        mode: Pillow's pixel format; ``1`` has one bit per pixel.
    """
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, file_format)
    return buffer.getvalue()


def make_chunk(chunk_type: bytes, data: bytes) -> bytes:
    return (
        struct.pack(">I", len(data))
        + chunk_type
        + data
        + struct.pack(">I", zlib.crc32(chunk_type + data))
    )


def make_lying_png(
    width: int, height: int, *, is_interlaced: bool = False, extra_chunks: bytes = b""
) -> bytes:
    """Return a PNG whose header declares a size for which the file contains too little data.

    Args:
        extra_chunks: further PNG chunks before the pixels.
    """
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, int(is_interlaced))
    data = make_chunk(b"IDAT", zlib.compress(bytes(1000)))
    return (
        b"\x89PNG\r\n\x1a\n"
        + make_chunk(b"IHDR", header)
        + extra_chunks
        + data
        + make_chunk(b"IEND", b"")
    )


def make_animation(file_format: str) -> bytes:
    frames = [Image.new("RGB", (400, 400), (n, 0, 0)) for n in range(0, 200, 10)]
    buffer = io.BytesIO()
    frames[0].save(buffer, file_format, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def make_preview_task(folder: Path, picture: bytes, file_format: str = "webp") -> dict[str, Any]:
    source = folder / "source"
    source.write_bytes(picture)
    return {
        "action": "preview",
        "format": file_format,
        "quality": 90,
        "channels": "",
        "source": str(source),
        "target": str(folder / "target"),
    }


async def convert_picture(
    processes: PictureProcesses, folder: Path, picture: bytes, tenant: str = "ada"
) -> Image.Image:
    async with processes.acquire_process(tenant) as process:
        await process.run(make_preview_task(folder, picture))
    with Image.open(folder / "target") as result:
        result.load()
    return result


def read_peak_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmPeak")]
    return int(line.split()[1]) // 1024


async def test_picture_with_too_many_pixels_is_refused(
    processes: PictureProcesses, tmp_path: Path
) -> None:
    with pytest.raises(
        PictureTooLarge, match="9900 x 9900 pixels; only pictures of at most 67,108,864"
    ) as exc_info:
        await convert_picture(processes, tmp_path, make_plain_picture((9900, 9900)))
    assert exc_info.value.details == {"width": 9900, "height": 9900, "max_pixels": 8192 * 8192}
    # The picture was not decoded.
    assert read_peak_mib(processes.idle_pids[0]) < 200


async def test_largest_picture_is_converted_within_the_memory_limit(
    processes: PictureProcesses, tmp_path: Path
) -> None:
    # This mode needs the most memory for a preview.
    picture = await convert_picture(processes, tmp_path, make_plain_picture((8192, 8192), mode="P"))
    assert (picture.format, picture.size) == ("WEBP", (4096, 4096))
    assert read_peak_mib(processes.idle_pids[0]) <= LIMITS.memory_mib


@pytest.mark.parametrize(
    "picture",
    [
        make_lying_png(60_000, 60_000),
        make_lying_png(8000, 8000, is_interlaced=True),
        make_lying_png(8000, 8000, extra_chunks=make_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))),
        make_lying_png(8000, 8000, extra_chunks=make_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100_000_000)))),
        make_plain_picture((9000, 9000), "TIFF", "1"),
        make_plain_picture((9000, 9000), "GIF", "1"),
        make_plain_picture((9000, 9000), "BMP", "1"),
        b"RIFF\xff\xff\xff\x7fWEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0",
        b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02",
        b"II*\0\x08\0\0\0\xff\xff" + bytes(100),
        b"\0\0\0\x1cftypavif" + bytes(100),
        b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x11\0\x02\x11\0\x03\x11\0",
    ],
    ids=[
        "png", "interlaced", "text", "profile", "tiff", "gif", "bmp", "webp-header",
        "gif-header", "tiff-header", "avif-header", "jpeg-header",
    ],
)  # fmt: skip
async def test_malicious_headers_do_not_exceed_the_limits(
    processes: PictureProcesses, tmp_path: Path, picture: bytes
) -> None:
    with pytest.raises((PictureTooLarge, InvalidRequest)):
        await convert_picture(processes, tmp_path, picture)
    # The next picture is converted, by the same process or another.
    assert (await convert_picture(processes, tmp_path, make_plain_picture((8, 8)))).size == (8, 8)
    assert read_peak_mib(processes.idle_pids[0]) <= LIMITS.memory_mib


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
async def test_only_one_frame_of_an_animation_is_decoded(
    processes: PictureProcesses, tmp_path: Path, file_format: str
) -> None:
    picture = await convert_picture(processes, tmp_path, make_animation(file_format))
    assert (picture.size, getattr(picture, "n_frames", 1)) == ((400, 400), 1)


async def test_too_much_memory_fails_only_one_conversion(tmp_path: Path) -> None:
    processes = PictureProcesses(replace(LIMITS, memory_mib=200))
    with pytest.raises(PictureTooLarge, match="more than the allowed 200 MiB"):
        await convert_picture(processes, tmp_path, make_plain_picture((8000, 8000)))
    assert (await convert_picture(processes, tmp_path, make_plain_picture((8, 8)))).size == (8, 8)
    await processes.close()


async def test_too_slow_conversion_is_ended(tmp_path: Path) -> None:
    processes = PictureProcesses(replace(LIMITS, seconds=1))
    async with processes.acquire_process("ada") as process:
        # A stopped process never answers.
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(PictureTooLarge, match="longer than 1 seconds"):
            await process.run(make_preview_task(tmp_path, make_plain_picture((8, 8))))
    assert not processes.idle_pids
    await processes.close()


async def test_each_conversion_has_its_own_processor_time(
    processes: PictureProcesses, tmp_path: Path
) -> None:
    async with processes.acquire_process("ada") as process:
        for _ in range(2):
            await process.run(make_preview_task(tmp_path, make_plain_picture((8, 8))))
            limit, _ = psutil.Process(process.pid).rlimit(psutil.RLIMIT_CPU)
            cpu_times = psutil.Process(process.pid).cpu_times()
            assert limit <= cpu_times.user + cpu_times.system + LIMITS.seconds + 2


async def test_too_large_result_is_refused(tmp_path: Path) -> None:
    processes = PictureProcesses(replace(LIMITS, result_mib=1))
    buffer = io.BytesIO()
    Image.frombytes("RGB", (1000, 1000), os.urandom(3_000_000)).save(buffer, "BMP")
    task = {
        **make_preview_task(tmp_path, buffer.getvalue()),
        "action": "channel",
        "channels": "rgb",
    }
    async with processes.acquire_process("ada") as process:
        with pytest.raises(PictureTooLarge, match="more than the allowed 1,048,576 bytes"):
            await process.run(task)
    await processes.close()


@pytest.mark.parametrize(
    ("signal_number", "error"),
    [
        (signal.SIGSEGV, InvalidRequest),
        (signal.SIGKILL, PictureTooLarge),
        (signal.SIGXCPU, PictureTooLarge),
    ],
)
async def test_dead_process_fails_only_its_own_picture(
    processes: PictureProcesses,
    tmp_path: Path,
    signal_number: signal.Signals,
    error: type[Exception],
) -> None:
    async with processes.acquire_process("ada") as process:
        os.kill(process.pid, signal.SIGSTOP)
        asyncio.get_running_loop().call_soon(os.kill, process.pid, signal_number)
        asyncio.get_running_loop().call_soon(os.kill, process.pid, signal.SIGCONT)
        with pytest.raises(error):
            await process.run(make_preview_task(tmp_path, make_plain_picture((8, 8))))
    assert (await convert_picture(processes, tmp_path, make_plain_picture((8, 8)))).size == (8, 8)


async def test_cancelled_conversion_ends_its_process(
    processes: PictureProcesses, tmp_path: Path
) -> None:
    pids: list[int] = []

    async def convert_forever() -> None:
        async with processes.acquire_process("ada") as process:
            pids.append(process.pid)
            os.kill(process.pid, signal.SIGSTOP)
            await process.run(make_preview_task(tmp_path, make_plain_picture((8, 8))))

    task = asyncio.create_task(convert_forever())
    while not pids:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(pids[0])


async def test_idle_processes_end(tmp_path: Path) -> None:
    processes = PictureProcesses(idle_seconds=0.05)
    await convert_picture(processes, tmp_path, make_plain_picture((8, 8)))
    [pid] = processes.idle_pids
    await asyncio.to_thread(_wait_until_ended, pid)
    assert not processes.idle_pids
    await processes.close()


async def test_no_tenant_gets_every_process(tmp_path: Path) -> None:
    processes = PictureProcesses(max_waiting=0)
    async with processes.acquire_process("ada"):
        with pytest.raises(Overloaded):
            async with processes.acquire_process("ada"):
                pass
        assert (
            await convert_picture(processes, tmp_path, make_plain_picture((8, 8)), tenant="bob")
        ).size == (8, 8)
    await processes.close()


async def test_close_ends_all_processes(tmp_path: Path) -> None:
    processes = PictureProcesses()
    await convert_picture(processes, tmp_path, make_plain_picture((8, 8)))
    [pid] = processes.idle_pids
    await processes.close()
    assert not psutil.pid_exists(pid)


def test_process_ends_with_its_parent() -> None:
    code = (
        "import asyncio\n"
        "from contextlib import suppress\n"
        "from moyin.errors import InvalidRequest\n"
        "from moyin.render.imaging.processes import PictureLimits, PictureProcess\n"
        "async def main():\n"
        "    process = await PictureProcess.start(PictureLimits())\n"
        "    with suppress(InvalidRequest):\n"
        "        await process.run({'action': 'channel', 'channels': 'a', 'source': '/nowhere'})\n"
        "    print(process.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        # A stopped process can't read the end of its input.
        os.kill(pid, signal.SIGSTOP)
        parent.kill()
    _wait_until_ended(pid)


async def test_process_gets_no_secrets_of_the_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MOYIN_SECRET", "s3cret")
    process = await PictureProcess.start(LIMITS)
    assert b"s3cret" not in Path(f"/proc/{process.pid}/environ").read_bytes()
    await process.end()


def _wait_until_ended(pid: int) -> None:
    """Wait until the process has ended; it may remain as a zombie until its parent notices."""
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.02)
