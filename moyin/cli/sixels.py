"""Encodes pictures as sixels, a graphics format that xterm, foot and other terminals support."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_COLOURS = 255
_ROWS = 6


def encode_sixels(picture: Image) -> Iterator[str]:
    """Yield the control sequence that shows a picture as sixels, with at most 255 colours.

    Transparent pixels become black.
    """
    flat_picture = picture.convert("RGBA")
    # Transparent pixels may have any colour, so paint them black.
    flat_picture.paste(
        (0, 0, 0, 255), mask=flat_picture.getchannel("A").point(lambda alpha: 255 - alpha)
    )
    indexed_picture = flat_picture.convert("RGB").quantize(_COLOURS)
    width, height = indexed_picture.size
    palette = indexed_picture.getpalette() or []
    yield f'\x1bPq"1;1;{width};{height}'
    for index in range(len(palette) // 3):
        red, green, blue = (round(value / 2.55) for value in palette[3 * index : 3 * index + 3])
        yield f"#{index};2;{red};{green};{blue}"
    pixels = indexed_picture.tobytes()
    for top in range(0, height, _ROWS):
        yield from _encode_band(pixels, width, top, min(top + _ROWS, height))
    yield "\x1b\\"


def _encode_band(pixels: bytes, width: int, top: int, bottom: int) -> Iterator[str]:
    """Yield the sixels of the rows from ``top`` to before ``bottom``, one colour after the other.

    Args:
        pixels: the pixels of the whole picture, as indexes of colours.
    """
    masks: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for row in range(top, bottom):
        for x, colour in enumerate(pixels[row * width : (row + 1) * width]):
            masks[colour][x] |= 1 << (row - top)
    for colour, columns in masks.items():
        yield f"#{colour}{_encode_columns(columns)}$"
    yield "-"


def _encode_columns(columns: Mapping[int, int]) -> str:
    """Return the run-length encoded characters for one colour's columns of a band.

    Args:
        columns: for each column number, six bits; a bit is set if its pixel has the colour.
    """
    encoded_runs, position = [], 0
    # Adjacent columns with equal masks have the same difference between column and rank.
    ranked_columns = ((x - rank, columns[x], x) for rank, x in enumerate(sorted(columns)))
    for (_, mask), run in groupby(ranked_columns, key=lambda item: item[:2]):
        xs = [x for *_, x in run]
        encoded_runs += [_encode_run("?", xs[0] - position), _encode_run(chr(63 + mask), len(xs))]
        position = xs[-1] + 1
    return "".join(encoded_runs)


def _encode_run(character: str, count: int) -> str:
    return f"!{count}{character}" if count > 3 else character * count
