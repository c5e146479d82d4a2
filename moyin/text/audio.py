"""Reads the duration of audio files from their headers."""

from __future__ import annotations

import asyncio
import math
from typing import BinaryIO

from tinytag import TinyTag, TinyTagException


async def read_duration_seconds(file: BinaryIO, name: str) -> float | None:
    """Return the duration in seconds that an audio file states in its header.

    The value is not verified, so a client may forge it. None means that it cannot be read.

    Args:
        name: the name of the file, whose ending helps if the content does not show the format.
    """
    return await asyncio.to_thread(_read_duration, file, name)


def _read_duration(file: BinaryIO, name: str) -> float | None:
    file.seek(0)
    try:
        seconds = TinyTag.get(name, file_obj=file, tags=False).duration
    except TinyTagException:
        return None
    finally:
        file.seek(0)
    return seconds if seconds is not None and 0 < seconds < math.inf else None
