"""Converts pictures and videos in a process with limited memory and time.

`PictureProcess` runs this file as a script, which imports only the standard library, Pillow and, for
a video, PyAV::

    python worker.py PARENT_PID '{"pixels": …, "memory_mib": …, …}'

The script reads one JSON task per line from its standard input and writes one JSON response per
line to its standard output.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import av
    from PIL import Image

_PR_SET_PDEATHSIG = 1
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_NICENESS = 5
_MIB = 2**20
_UNREADABLE = f"this file is not a readable picture in one of the formats {', '.join(_FORMATS)}"
_UNREADABLE_VIDEO = (
    "this file is not a readable video in the format MP4, QuickTime, WebM or Matroska"
)
_MAX_OPEN_FILES = 64
# The messages of libwebp when memory is exhausted.
_WEBP_MEMORY_ERRORS = ("encoding error 1", "encoding error 2")
# The first boxes of an MP4 or QuickTime file.
_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_MATROSKA_SIGNATURE = b"\x1aE\xdf\xa3"
# Decoders for the videos that ComfyUI and cameras write. FFmpeg has hundreds of others, which are
# used less and may therefore contain more bugs.
_DECODERS = (
    "h264", "hevc", "libdav1d", "vp9", "vp8", "mpeg4", "prores", "ffv1", "mjpeg",
)  # fmt: skip
# How many packets of all streams are read to find the first readable frame.
_MAX_PACKETS = 1000


class ConversionError(Exception):
    """Raised for a picture that can't be converted.

    Attributes:
        kind: ``unreadable`` if the file is not a picture, ``large`` if a limit is exceeded, or
            ``unfit`` if the task can't be done with this picture.
        details: numbers for the client, such as the limit that the picture exceeds.
    """

    def __init__(
        self, kind: Literal["unreadable", "large", "unfit"], message: str, **details: int
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.details = details


def convert(task: Mapping[str, Any], picture_limits: Mapping[str, int]) -> None:
    """Convert the file ``task["source"]`` and write the result to the file ``task["target"]``.

    Args:
        task: the paths and an ``action``, which is ``preview`` (with ``format``, ``quality``,
            ``channels`` and perhaps the largest ``width``), ``poster`` (a preview of a video's
            first frame), ``channel`` (with ``channels``) or ``mask`` (with the path ``mask``).
        picture_limits: the limits ``pixels`` and ``preview_pixels`` of `PictureLimits`.

    Raises:
        ConversionError: The picture can't be converted.
        MemoryError: The conversion exceeds the address space of the process.
    """
    match task["action"]:
        case "preview":
            _write_preview(task, picture_limits)
        case "poster":
            _write_poster(task, picture_limits)
        case "channel":
            _write_channel(task, picture_limits)
        case "mask":
            _write_masked_picture(task, picture_limits)


def _write_preview(task: Mapping[str, Any], picture_limits: Mapping[str, int]) -> None:
    """Do the task ``preview`` of `convert`: write a lossy copy, scaled down if necessary."""
    with _open_picture(task["source"], picture_limits) as picture:
        size = _compute_preview_size(picture.width, picture.height, task, picture_limits)
        is_large = size != picture.size
        if is_large:
            # Pillow can decode a JPEG at a fraction of its size that is still large enough.
            picture.draft(None, size)
        _load_pixels(picture)
    image_format = task["format"]
    mode = "RGB" if image_format == "jpeg" or task["channels"] == "rgb" else picture.mode
    if mode not in ("RGB", "RGBA"):
        mode = "RGBA"
    if picture.mode != mode:
        picture = picture.convert(mode)
    if is_large:
        picture.thumbnail(size, reducing_gap=2.0)
    _write_picture(picture, task["target"], image_format.upper(), quality=task["quality"])


def _compute_preview_size(
    width: int, height: int, task: Mapping[str, Any], picture_limits: Mapping[str, int]
) -> tuple[int, int]:
    """Return the width and height of a preview, which keeps the aspect ratio of its source.

    The preview is as large as the source, unless the task or the limits demand a smaller size.
    """
    scale = min(
        1.0,
        math.sqrt(picture_limits["preview_pixels"] / (width * height)),
        task.get("width", width) / width,
    )
    return max(1, int(width * scale)), max(1, int(height * scale))


def _write_poster(task: Mapping[str, Any], picture_limits: Mapping[str, int]) -> None:
    """Do the task ``poster`` of `convert`: write a video's first readable frame.

    The frame is scaled down if it is large.
    """
    try:
        import av
    except ImportError as error:
        raise ConversionError(
            "unfit",
            "this server can't make thumbnails of videos, because it has no video decoder: install "
            "the Python package av",
        ) from error
    from PIL import Image

    try:
        with Path(task["source"]).open("rb") as file:
            container_format = _detect_container(file.read(8))
            file.seek(0)
            with av.open(
                file,
                "r",
                format=container_format,
                options={"codec_whitelist": ",".join(_DECODERS), "protocol_whitelist": "none"},
                metadata_errors="replace",
                io_open=_refuse_to_open,
            ) as container:
                frame = _decode_first_frame(container, picture_limits)
                width, height = _compute_preview_size(
                    frame.width, frame.height, task, picture_limits
                )
                plane = frame.reformat(width, height, "rgb24", threads=1).planes[0]
    except MemoryError:
        # PyAV's MemoryError is an FFmpegError as well.
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ConversionError("unreadable", _UNREADABLE_VIDEO) from error
    picture = Image.frombytes(
        "RGB", (width, height), bytes(plane), "raw", "RGB", plane.line_size, 1
    )
    _write_picture(picture, task["target"], task["format"].upper(), quality=task["quality"])


def _detect_container(first_bytes: bytes) -> str:
    """Return FFmpeg's name of the video's container format; raise an error for other formats.

    Only formats that hold their streams in the file itself are detected. FFmpeg's own detection
    also accepts playlists, which name other files and URLs.

    Args:
        first_bytes: the first eight bytes of the file.
    """
    if first_bytes.startswith(_MATROSKA_SIGNATURE):
        return "matroska"
    if first_bytes[4:8] in _MOV_BOXES:
        return "mov"
    raise ConversionError("unreadable", _UNREADABLE_VIDEO)


def _refuse_to_open(url: str, _flags: int, _options: Mapping[str, str]) -> None:
    raise PermissionError(errno.EPERM, "the video refers to another file, which is not allowed")


def _decode_first_frame(
    container: av.container.InputContainer, picture_limits: Mapping[str, int]
) -> av.VideoFrame:
    from av.error import InvalidDataError
    from av.stream import Disposition

    # Skip cover pictures, which are also video streams.
    video_streams = (
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    )
    video_stream = next(video_streams, None)
    # The context is None if FFmpeg has no decoder.
    decoder: av.VideoCodecContext | None = (
        None if video_stream is None else video_stream.codec_context
    )
    if video_stream is None or decoder is None or decoder.codec.name not in _DECODERS:
        raise ConversionError("unreadable", _UNREADABLE_VIDEO)
    _check_size(decoder.width, decoder.height, picture_limits, "video")
    decoder.thread_count = 1
    # A frame may be larger than the container states. The decoder's padding counts as well.
    decoder.options = {"max_pixels": str(2 * picture_limits["pixels"])}
    for packet in itertools.islice(container.demux(), _MAX_PACKETS):
        # A damaged packet may precede readable ones.
        with contextlib.suppress(InvalidDataError):
            if packet.stream.index == video_stream.index and (frames := decoder.decode(packet)):
                _check_size(frames[0].width, frames[0].height, picture_limits, "video")
                return frames[0]
    raise ConversionError("unreadable", _UNREADABLE_VIDEO)


def _write_channel(task: Mapping[str, Any], picture_limits: Mapping[str, int]) -> None:
    """Do the task ``channel`` of `convert`: write a PNG with only colours or transparency."""
    if task["channels"] == "rgb":
        return _write_picture(
            _decode_picture(task["source"], picture_limits).convert("RGB"), task["target"], "PNG"
        )
    transparency = _decode_transparency(task["source"], picture_limits)
    _write_picture(_make_black_picture(transparency), task["target"], "PNG")


def _write_masked_picture(task: Mapping[str, Any], picture_limits: Mapping[str, int]) -> None:
    """Do the task ``mask`` of `convert`: write a PNG of the source with the mask's transparency.

    The text chunks of the source are kept.
    """
    from PIL.PngImagePlugin import PngInfo

    # Decode one picture after the other, so that only one decoded picture at a time is in memory.
    transparency = _decode_transparency(task["mask"], picture_limits)
    picture = _decode_picture(task["source"], picture_limits)
    if picture.size != transparency.size:
        raise ConversionError(
            "unfit",
            f"the mask has {transparency.width} x {transparency.height} pixels; it must have the "
            f"size of its picture, {picture.width} x {picture.height}",
        )
    metadata = PngInfo()
    for name, text in getattr(picture, "text", {}).items():
        metadata.add_text(name, text)
    picture = picture.convert("RGBA")
    picture.putalpha(transparency)
    _write_picture(picture, task["target"], "PNG", pnginfo=metadata, compress_level=4)


def _decode_transparency(path: str, picture_limits: Mapping[str, int]) -> Image.Image:
    picture = _decode_picture(path, picture_limits)
    if picture.mode != "RGBA":
        picture = picture.convert("RGBA")
    return picture.getchannel("A")


def _make_black_picture(transparency: Image.Image) -> Image.Image:
    from PIL import Image

    picture = Image.new("RGBA", transparency.size)
    picture.putalpha(transparency)
    return picture


def _decode_picture(path: str, picture_limits: Mapping[str, int]) -> Image.Image:
    with _open_picture(path, picture_limits) as picture:
        _load_pixels(picture)
    return picture


@contextlib.contextmanager
def _open_picture(path: str, picture_limits: Mapping[str, int]) -> Iterator[Image.Image]:
    """Open a picture until the block ends; only its header is read.

    Raises `ConversionError` if the file is not a picture or exceeds the limits.
    """
    from PIL import Image

    # `_check_size` applies the limit before the picture is decoded.
    Image.MAX_IMAGE_PIXELS = None
    with contextlib.ExitStack() as open_files:
        try:
            file = open_files.enter_context(Path(path).open("rb"))
            # May raise UnidentifiedImageError, which is an OSError.
            picture = Image.open(file, formats=_FORMATS)
        except (OSError, ValueError, SyntaxError) as error:
            raise ConversionError("unreadable", _UNREADABLE) from error
        _check_size(picture.width, picture.height, picture_limits)
        yield picture


def _check_size(
    width: int, height: int, picture_limits: Mapping[str, int], kind: str = "picture"
) -> None:
    if width * height > picture_limits["pixels"]:
        raise ConversionError(
            "large",
            f"the {kind} is {width} x {height} pixels; only {kind}s of at most "
            f"{picture_limits['pixels']:,} pixels are converted",
            width=width,
            height=height,
            max_pixels=picture_limits["pixels"],
        )


def _load_pixels(picture: Image.Image) -> None:
    try:
        picture.load()
    except (OSError, ValueError, SyntaxError, EOFError, IndexError) as error:
        raise ConversionError("unreadable", _UNREADABLE) from error


def _write_picture(picture: Image.Image, target: str, image_format: str, **options: Any) -> None:
    try:
        picture.save(target, format=image_format, **options)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            raise ConversionError(
                "large",
                f"the converted picture has more than the allowed {limit:,} bytes; use a smaller "
                "picture",
                max_bytes=limit,
            ) from error
        if str(error).startswith(_WEBP_MEMORY_ERRORS):
            raise MemoryError from error
        message = (
            f"a picture of this size or kind cannot be written as {image_format}; WebP allows at "
            "most 16,383 pixels per side, JPEG 65,500"
        )
        raise ConversionError("unfit", message) from error


def _limit_resources(picture_limits: Mapping[str, int]) -> None:
    memory_bytes, result_bytes = (
        picture_limits["memory_mib"] * _MIB,
        picture_limits["result_mib"] * _MIB,
    )
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (result_bytes, result_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_OPEN_FILES, _MAX_OPEN_FILES))
    os.nice(_NICENESS)
    # If the machine runs out of memory, the kernel kills this process first.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _die_with_parent(parent_pid: int) -> None:
    """Make the kernel kill this process when its parent ends."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have ended before the line above.
    if os.getppid() != parent_pid:
        os._exit(1)


def _run_task(line: bytes, picture_limits: Mapping[str, int]) -> dict[str, Any]:
    # Raise the limit for each task, because the kernel counts the processor time of all tasks.
    used_seconds = math.ceil(time.process_time())
    resource.setrlimit(
        resource.RLIMIT_CPU, (used_seconds + picture_limits["seconds"], resource.RLIM_INFINITY)
    )
    try:
        convert(json.loads(line), picture_limits)
    except ConversionError as problem:
        return {"problem": problem.kind, "message": problem.message, "details": problem.details}
    except MemoryError:
        return {
            "problem": "large",
            "message": "converting the picture takes more than the allowed "
            f"{picture_limits['memory_mib']} MiB of memory; use a smaller picture",
            "details": {"max_memory_mib": picture_limits["memory_mib"]},
            # Let this process end, because the failed conversion may not have freed all of its
            # memory.
            "last": True,
        }
    return {}


def main() -> None:
    _die_with_parent(int(sys.argv[1]))
    picture_limits: dict[str, int] = json.loads(sys.argv[2])
    _limit_resources(picture_limits)
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    for line in sys.stdin.buffer:
        response = _run_task(line, picture_limits)
        sys.stdout.write(json.dumps(response) + "\n")
        sys.stdout.flush()
        if response.get("last"):
            return


if __name__ == "__main__":
    main()
