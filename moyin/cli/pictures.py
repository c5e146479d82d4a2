"""Shows pictures in terminals that support kitty's protocol, iTerm2's protocol or sixels."""

from __future__ import annotations

import base64
import io
import os
import re
import select
import sys
import termios
import time
import tty
import warnings
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from moyin.cli.sixels import encode_sixels

if TYPE_CHECKING:
    from PIL.Image import Image

_MAX_SIZE = (640, 480)
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_KITTY_CHUNK = 4096
# Queries whether the terminal supports kitty's protocol, then its attributes (DA1). Every terminal
# replies to the second query, so there is no wait for a timeout if it ignores the first.
_QUERY = b"\x1b_Gi=1,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[c"
_ATTRIBUTES = re.compile(rb"\x1b\[\?([\d;]*)c")
_SIXEL_ATTRIBUTE = b"4"
_REPLY_SECONDS = 1.0
_MAX_REPLY = 1024


class PictureProtocol(StrEnum):
    """A protocol that terminals use to show pictures."""

    KITTY = "kitty"
    ITERM = "iterm"
    SIXEL = "sixel"


def detect_protocol(environ: Mapping[str, str] = os.environ) -> PictureProtocol | None:
    """Return how the terminal shows pictures; None if it can't, or if output goes to a pipe."""
    if not sys.stdout.isatty() or environ.get("TERM", "dumb") == "dumb":
        return None
    # tmux and screen keep the environment variables of the outer terminal, but can't show its
    # pictures.
    if not environ.get("TMUX") and not environ.get("STY"):
        if environ["TERM"] in ("xterm-kitty", "xterm-ghostty") or environ.get("KITTY_WINDOW_ID"):
            return PictureProtocol.KITTY
        program = environ.get("TERM_PROGRAM")
        if program in ("iTerm.app", "WezTerm") or environ.get("LC_TERMINAL") == "iTerm2":
            return PictureProtocol.ITERM
    return _parse_reply(_query_terminal())


def show_picture(path: Path, protocol: PictureProtocol) -> bool:
    """Show a picture file in the terminal; return False if its format is not supported."""
    picture = _load_thumbnail(path)
    if picture is None:
        return False
    sys.stdout.flush()
    for control_sequence in encode_picture(picture, protocol):
        sys.stdout.write(control_sequence)
    sys.stdout.write("\n")
    sys.stdout.flush()
    return True


def encode_picture(picture: Image, protocol: PictureProtocol) -> Iterator[str]:
    """Yield the control sequences that show a picture at the cursor."""
    if protocol is PictureProtocol.SIXEL:
        yield from encode_sixels(picture)
        return
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    encoded_picture = base64.b64encode(buffer.getvalue()).decode()
    if protocol is PictureProtocol.ITERM:
        yield f"\x1b]1337;File=inline=1;size={buffer.tell()}:{encoded_picture}\x07"
        return
    for start in range(0, len(encoded_picture), _KITTY_CHUNK):
        # q=2 disables replies, because nothing would read them. m=1 means that more chunks follow.
        options = "a=T,f=100,q=2," if start == 0 else ""
        has_more = int(start + _KITTY_CHUNK < len(encoded_picture))
        yield f"\x1b_G{options}m={has_more};{encoded_picture[start : start + _KITTY_CHUNK]}\x1b\\"


def _load_thumbnail(path: Path) -> Image | None:
    """Return the picture of a file, scaled down to 640 x 480; None if it can't be decoded."""
    # Imported here, because it takes as long to import as most commands to run.
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=_FORMATS) as source:
                picture = source.convert("RGBA")
        except (OSError, SyntaxError, ValueError):
            return None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return None
    picture.thumbnail(_MAX_SIZE)
    return picture


def _query_terminal() -> bytes:
    """Ask the terminal what it supports, and return its reply; empty if it can't be asked."""
    input_fd, output_fd = sys.stdin.fileno(), sys.stdout.fileno()
    # A background process would be suspended if it changed the terminal's settings.
    if not os.isatty(input_fd) or os.tcgetpgrp(input_fd) != os.getpgrp():
        return b""
    saved_attributes = termios.tcgetattr(input_fd)
    reply = b""
    try:
        tty.setcbreak(input_fd, termios.TCSADRAIN)
        os.write(output_fd, _QUERY)
        deadline = time.monotonic() + _REPLY_SECONDS
        while not _ATTRIBUTES.search(reply) and len(reply) < _MAX_REPLY:
            if not select.select([input_fd], [], [], max(0, deadline - time.monotonic()))[0]:
                break
            if not (reply_part := os.read(input_fd, _MAX_REPLY)):
                break
            reply += reply_part
    finally:
        termios.tcsetattr(input_fd, termios.TCSADRAIN, saved_attributes)
    return reply


def _parse_reply(reply: bytes) -> PictureProtocol | None:
    if b"\x1b_Gi=1;OK" in reply:
        return PictureProtocol.KITTY
    attributes = _ATTRIBUTES.search(reply)
    if attributes is not None and _SIXEL_ATTRIBUTE in attributes[1].split(b";")[1:]:
        return PictureProtocol.SIXEL
    return None
