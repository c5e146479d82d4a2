"""Tests posters of videos, in this process and in picture processes with limits."""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from moyin.errors import InvalidRequest, PictureTooLarge
from moyin.render.imaging import worker
from moyin.render.imaging.processes import PictureLimits, PictureProcesses
from tests.videos import BLUE, RED, make_sound, make_video, make_video_with_false_size

LIMITS = {"pixels": 100_000, "preview_pixels": 100_000}
# The start of a WebM's first frames; all before is headers.
_CLUSTER = b"\x1fC\xb6u"
_SOI = b"\xff\xd8\xff"


def make_poster_task(folder: Path, video: bytes, width: int = 100) -> dict[str, Any]:
    source = folder / "source"
    source.write_bytes(video)
    return {
        "action": "poster",
        "format": "webp",
        "quality": 80,
        "channels": "",
        "width": width,
        "source": str(source),
        "target": str(folder / "target"),
    }


def read_target(folder: Path) -> Image.Image:
    with Image.open(folder / "target") as picture:
        picture.load()
    return picture


def convert_to_poster(folder: Path, video: bytes, width: int = 100) -> Image.Image:
    worker.convert(make_poster_task(folder, video, width), LIMITS)
    return read_target(folder)


@pytest.fixture
async def processes() -> AsyncIterator[PictureProcesses]:
    processes = PictureProcesses()
    yield processes
    await processes.close()


@pytest.mark.parametrize(
    ("container", "codec", "pixel_format"),
    [
        ("mp4", "h264", "yuv420p"),
        ("mp4", "mpeg4", "yuv420p"),
        ("mov", "mjpeg", "yuvj420p"),
        ("mov", "prores_ks", "yuv422p10le"),
        ("webm", "libvpx-vp9", "yuv420p"),
        ("webm", "libvpx", "yuv420p"),
        ("matroska", "ffv1", "yuv444p"),
    ],
)
def test_poster_is_the_first_frame(
    tmp_path: Path, container: str, codec: str, pixel_format: str
) -> None:
    poster = convert_to_poster(tmp_path, make_video(container, codec, pixel_format=pixel_format))
    assert (poster.format, poster.mode, poster.size) == ("WEBP", "RGB", (100, 50))
    assert poster.getpixel((50, 25)) == pytest.approx(RED, abs=6)


@pytest.mark.parametrize(("width", "size"), [(64, (64, 32)), (1024, (320, 160))])
def test_poster_is_no_wider_than_requested(
    tmp_path: Path, width: int, size: tuple[int, int]
) -> None:
    assert convert_to_poster(tmp_path, make_video(), width).size == size


def test_poster_of_a_large_video_is_scaled_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS, "preview_pixels", 5_000)
    assert convert_to_poster(tmp_path, make_video(), 320).size == (100, 50)


def damage_first_frame(video: bytes) -> bytes:
    start = video.index(_SOI)
    end = video.index(_SOI, start + 1)
    return video[:start] + bytes(end - start) + video[end:]


def test_damaged_first_frame_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = make_video("mov", "mjpeg", pixel_format="yuvj420p", colors=(RED, BLUE))
    poster = convert_to_poster(tmp_path, damage_first_frame(video))
    assert poster.getpixel((50, 25)) == pytest.approx(BLUE, abs=6)
    # Only a limited number of packets is read.
    monkeypatch.setattr(worker, "_MAX_PACKETS", 1)
    with pytest.raises(worker.ConversionError, match="not a readable video"):
        convert_to_poster(tmp_path, damage_first_frame(video))


def test_truncated_video_has_a_poster_if_its_first_frame_is_complete(tmp_path: Path) -> None:
    video = make_video("matroska", "ffv1", pixel_format="yuv444p", colors=(RED, *[BLUE] * 20))
    poster = convert_to_poster(tmp_path, video[: len(video) * 2 // 3])
    assert poster.getpixel((50, 25)) == pytest.approx(RED, abs=6)


@pytest.mark.parametrize(
    "make_file",
    [
        lambda: b"",
        lambda: b"not a video, but a text",
        # The index of an MP4 is at its end.
        lambda: make_video()[:-100],
        lambda: make_video("webm", "libvpx-vp9").partition(_CLUSTER)[0],
        lambda: make_video("webm", "libvpx-vp9")[:40],
        # More pixels than FFmpeg can count.
        lambda: make_video_with_false_size(65_535),
        # Frames without data.
        lambda: make_video_with_false_size(100),
        make_sound,
        # A decoder that is not allowed.
        lambda: make_video("mov", "png", pixel_format="rgb24"),
    ],
    ids=[
        "empty", "text", "no-index", "no-frames", "no-header", "endless", "no-data", "no-video",
        "other-codec",
    ],
)  # fmt: skip
def test_video_without_readable_frame_is_refused(
    tmp_path: Path, make_file: Callable[[], bytes]
) -> None:
    with pytest.raises(worker.ConversionError, match="not a readable video") as exc_info:
        convert_to_poster(tmp_path, make_file())
    assert exc_info.value.kind == "unreadable"
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("prefix", [b"", b"\0\0\0\x08ftyp", b"\x1aE\xdf\xa3"])
@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{}'\n",
        "<?xml version='1.0'?><MPD><Period><BaseURL>{}</BaseURL></Period></MPD>",
        "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=control:{}\n",
    ],
    ids=["hls", "concat", "dash", "sdp"],
)
def test_playlist_opens_no_file_and_no_url(tmp_path: Path, prefix: bytes, playlist: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.mp4"
        for name in (url, "file:///etc/passwd"):
            with pytest.raises(worker.ConversionError, match="not a readable video"):
                convert_to_poster(tmp_path, prefix + playlist.format(name).encode())
        with pytest.raises(BlockingIOError):
            server.accept()


def test_video_cannot_have_other_files_opened() -> None:
    with pytest.raises(PermissionError):
        worker._refuse_to_open("file:///etc/passwd", 1, {})


@pytest.mark.parametrize(("container", "codec"), [("mp4", "h264"), ("webm", "libvpx-vp9")])
def test_video_with_too_many_pixels_is_not_decoded(
    tmp_path: Path, container: str, codec: str
) -> None:
    with pytest.raises(
        worker.ConversionError, match="400 x 320 pixels; only videos of at most 100,000"
    ) as exc_info:
        convert_to_poster(tmp_path, make_video(container, codec, size=(400, 320), colors=(RED,)))
    assert exc_info.value.kind == "large"
    assert exc_info.value.details == {"width": 400, "height": 320, "max_pixels": 100_000}


def test_server_without_a_decoder_refuses_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = make_video()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(worker.ConversionError, match="no video decoder") as exc_info:
        convert_to_poster(tmp_path, video)
    assert exc_info.value.kind == "unfit"


async def test_largest_video_is_converted_within_the_memory_limit(
    processes: PictureProcesses, tmp_path: Path
) -> None:
    video = make_video("matroska", "ffv1", size=(8192, 8192), colors=(RED,))
    async with processes.acquire_process("ada") as process:
        await process.run(make_poster_task(tmp_path, video, 256))
    assert read_target(tmp_path).size == (256, 256)
    assert read_peak_mib(processes.idle_pids[0]) <= PictureLimits().memory_mib
    assert psutil.Process(processes.idle_pids[0]).num_threads() == 1


async def test_too_much_memory_fails_only_one_poster(tmp_path: Path) -> None:
    processes = PictureProcesses(replace(PictureLimits(), memory_mib=250))
    large_video = make_video("matroska", "ffv1", size=(8192, 4096), colors=(RED,))
    async with processes.acquire_process("ada") as process:
        with pytest.raises(PictureTooLarge, match="more than the allowed 250 MiB"):
            await process.run(make_poster_task(tmp_path, large_video))
    async with processes.acquire_process("ada") as process:
        await process.run(make_poster_task(tmp_path, make_video()))
    assert read_target(tmp_path).size == (100, 50)
    await processes.close()


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "h264"), ("webm", "libvpx-vp9"), ("mov", "prores_ks")]
)
async def test_damaged_videos_do_not_exceed_the_limits(
    processes: PictureProcesses, tmp_path: Path, container: str, codec: str
) -> None:
    pixel_format = "yuv422p10le" if codec == "prores_ks" else "yuv420p"
    video = make_video(container, codec, pixel_format=pixel_format)
    generator = random.Random(codec)
    for _ in range(100):
        damaged_video = bytearray(video)
        for _ in range(generator.choice((1, 4, 16))):
            damaged_video[generator.randrange(4, len(damaged_video))] = generator.choice(
                (0, 127, 255)
            )
        async with processes.acquire_process("ada") as process:
            try:
                await process.run(make_poster_task(tmp_path, bytes(damaged_video)))
            except (InvalidRequest, PictureTooLarge):
                continue
            assert read_peak_mib(process.pid) <= PictureLimits().memory_mib
        assert read_target(tmp_path).format == "WEBP"
    async with processes.acquire_process("ada") as process:
        await process.run(make_poster_task(tmp_path, video))
    assert read_target(tmp_path).size == (100, 50)


def read_peak_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmPeak")]
    return int(line.split()[1]) // 1024
