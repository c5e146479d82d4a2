"""Converts pictures in a process of its own, which may hold so much memory and take so much time.

A script that uses nothing but the standard library and Pillow::

    python worker.py PARENT_PID '{"pixels": …, "memory_mib": …, …}'

It reads one order per line from its standard input and answers each with one line, both JSON. The
files that an order names are local.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
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
    from PIL import Image

__all__ = ["Problem", "convert", "main"]

_PR_SET_PDEATHSIG = 1
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_NICENESS = 5
_MIB = 2**20
_FILES = 64
# What libwebp says when it lacks memory.
_WEBP_MEMORY = ("encoding error 1", "encoding error 2")


class Problem(Exception):
    """A picture that is not converted.

    Attributes:
        kind: ``unreadable``: it is no picture; ``large``: it is beyond the bounds; ``unfit``: the
            order can't be carried out with it.
        details: numbers for the client.
    """

    def __init__(
        self, kind: Literal["unreadable", "large", "unfit"], message: str, **details: int
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.details = details


def convert(order: Mapping[str, Any], bounds: Mapping[str, int]) -> None:
    """Carry out one order: write ``target``.

    Args:
        order: ``action``: ``preview`` with ``format``, ``quality`` and ``channels``, ``channel``
            with ``channels``, or ``mask`` with the file ``mask``; the files ``source`` and
            ``target``.
        bounds: ``pixels`` of a picture, and ``preview_pixels``, above which previews are scaled
            down.

    Raises:
        Problem: it can't be done.
        MemoryError
    """
    match order["action"]:
        case "preview":
            _preview(order, bounds)
        case "channel":
            _channel(order, bounds)
        case "mask":
            _mask(order, bounds)


def _preview(order: Mapping[str, Any], bounds: Mapping[str, int]) -> None:
    """A copy for the eye, scaled down where it is large."""
    with _opened(order["source"], bounds) as picture:
        shrink = math.sqrt(bounds["preview_pixels"] / (picture.width * picture.height))
        size = (max(1, int(picture.width * shrink)), max(1, int(picture.height * shrink)))
        if shrink < 1:
            # JPEG decodes at a fraction of its size where that is still large enough.
            picture.draft(None, size)
        _load(picture)
    kind = order["format"]
    wanted = "RGB" if kind == "jpeg" or order["channels"] == "rgb" else picture.mode
    if wanted not in ("RGB", "RGBA"):
        wanted = "RGBA"
    if picture.mode != wanted:
        picture = picture.convert(wanted)
    if shrink < 1:
        picture.thumbnail(size, reducing_gap=2.0)
    _write(picture, order["target"], kind.upper(), quality=order["quality"])


def _channel(order: Mapping[str, Any], bounds: Mapping[str, int]) -> None:
    """A PNG of the colours (``rgb``) or of the transparency (``a``) alone."""
    if order["channels"] == "rgb":
        return _write(_decoded(order["source"], bounds).convert("RGB"), order["target"], "PNG")
    transparency = _transparency(order["source"], bounds)
    _write(_black(transparency), order["target"], "PNG")


def _mask(order: Mapping[str, Any], bounds: Mapping[str, int]) -> None:
    """A PNG of the source with the mask's transparency; what was written into it stays."""
    from PIL.PngImagePlugin import PngInfo

    # One after the other, so that no more than one of them is held in full.
    transparency = _transparency(order["mask"], bounds)
    picture = _decoded(order["source"], bounds)
    if picture.size != transparency.size:
        raise Problem("unfit", "the mask must have the size of its picture")
    kept = PngInfo()
    for name, text in getattr(picture, "text", {}).items():
        kept.add_text(name, text)
    picture = picture.convert("RGBA")
    picture.putalpha(transparency)
    _write(picture, order["target"], "PNG", pnginfo=kept, compress_level=4)


def _transparency(path: str, bounds: Mapping[str, int]) -> Image.Image:
    picture = _decoded(path, bounds)
    if picture.mode != "RGBA":
        picture = picture.convert("RGBA")
    return picture.getchannel("A")


def _black(transparency: Image.Image) -> Image.Image:
    from PIL import Image

    picture = Image.new("RGBA", transparency.size)
    picture.putalpha(transparency)
    return picture


def _decoded(path: str, bounds: Mapping[str, int]) -> Image.Image:
    with _opened(path, bounds) as picture:
        _load(picture)
    return picture


@contextlib.contextmanager
def _opened(path: str, bounds: Mapping[str, int]) -> Iterator[Image.Image]:
    """The picture, of which the header is read and no more; its file is closed in the end."""
    from PIL import Image

    # By `bounds` alone, and before anything is decoded.
    Image.MAX_IMAGE_PIXELS = None
    with contextlib.ExitStack() as files:
        try:
            file = files.enter_context(Path(path).open("rb"))
            # Among them UnidentifiedImageError.
            picture = Image.open(file, formats=_FORMATS)
        except (OSError, ValueError, SyntaxError) as error:
            raise Problem("unreadable", "this is no picture that can be read") from error
        _check(picture, bounds)
        yield picture


def _check(picture: Image.Image, bounds: Mapping[str, int]) -> None:
    if picture.width * picture.height > bounds["pixels"]:
        raise Problem(
            "large",
            f"the picture is {picture.width} x {picture.height} pixels; at most "
            f"{bounds['pixels']:,} pixels are converted",
            width=picture.width,
            height=picture.height,
            max_pixels=bounds["pixels"],
        )


def _load(picture: Image.Image) -> None:
    try:
        picture.load()
    except (OSError, ValueError, SyntaxError, EOFError, IndexError) as error:
        raise Problem("unreadable", "this is no picture that can be read") from error


def _write(picture: Image.Image, target: str, kind: str, **options: Any) -> None:
    try:
        picture.save(target, format=kind, **options)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            raise Problem(
                "large",
                f"the result would be larger than {limit:,} bytes",
                max_bytes=limit,
            ) from error
        if str(error).startswith(_WEBP_MEMORY):
            raise MemoryError from error
        # WebP ends at 16,383 pixels a side, JPEG at 65,500.
        raise Problem("unfit", f"the picture cannot be written as {kind}") from error


def _confine(bounds: Mapping[str, int]) -> None:
    """Bound what this process may hold, and let others have the processors first."""
    memory, size = bounds["memory_mib"] * _MIB, bounds["result_mib"] * _MIB
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    os.nice(_NICENESS)
    # Where the machine itself runs out of memory, this process goes first.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    # The parent may have gone before the line above.
    if os.getppid() != parent:
        os._exit(1)


def _answer(line: bytes, bounds: Mapping[str, int]) -> dict[str, Any]:
    # The limit counts all that this process ever took.
    used = math.ceil(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + bounds["seconds"], resource.RLIM_INFINITY))
    try:
        convert(json.loads(line), bounds)
    except Problem as problem:
        told = {"problem": problem.kind, "message": problem.message, "details": problem.details}
        return told
    except MemoryError:
        return {
            "problem": "large",
            "message": f"converting the picture takes more than {bounds['memory_mib']} MiB of memory",
            "details": {"max_memory_mib": bounds["memory_mib"]},
            # What failed halfway may not have given back all of it.
            "last": True,
        }
    return {}


def main() -> None:
    """Carry out orders until there are no more."""
    _die_with(int(sys.argv[1]))
    bounds: dict[str, int] = json.loads(sys.argv[2])
    _confine(bounds)
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    for line in sys.stdin.buffer:
        answer = _answer(line, bounds)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
        if answer.get("last"):
            return


if __name__ == "__main__":
    main()
