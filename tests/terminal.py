"""Runs a program in a pseudo-terminal of a given size, and renders its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import pyte

_LEAKING = (
    "TMUX", "STY", "KITTY_WINDOW_ID", "TERM_PROGRAM", "LC_TERMINAL", "NO_COLOR", "FORCE_COLOR",
    "COLUMNS", "LINES",
)  # fmt: skip
_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[_P^].*?\x1b\\)", re.DOTALL
)
# Commands to the terminal's program, such as kitty's for pictures: terminals show nothing of them,
# but pyte does.
_COMMAND = re.compile(rb"\x1b[_P^].*?\x1b\\", re.DOTALL)
# Asks for the attributes of the terminal; every real one replies.
_QUERY_END = b"\x1b[c"
# Lines that have left the screen at its top.
_HISTORY = 10_000


@dataclass(frozen=True, kw_only=True)
class Screen:
    """The output of a program in a terminal.

    Attributes:
        output: the bytes, with control sequences.
        columns: the terminal's width, or 0 if the output went to a pipe.
        status: the program's exit status.
    """

    output: bytes
    columns: int
    rows: int
    status: int

    @cached_property
    def lines(self) -> list[str]:
        """The lines as the terminal shows them, including those that have scrolled out of view."""
        if not self.columns:
            return self.output.decode().splitlines()
        screen = pyte.HistoryScreen(self.columns, self.rows, history=_HISTORY)
        pyte.ByteStream(screen).feed(_COMMAND.sub(b"", self.output))
        scrolled_lines = [
            "".join(row[x].data for x in range(self.columns)) for row in screen.history.top
        ]
        lines = [line.rstrip() for line in (*scrolled_lines, *screen.display)]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def written_lines(self) -> list[str]:
        """The lines that the program wrote, without control sequences.

        The terminal may break a line that is longer than its width at any character.
        """
        plain_output = _SEQUENCE.sub("", self.output.decode()).replace("\r\n", "\n")
        return [line.rpartition("\r")[2] for line in plain_output.split("\n")]

    @property
    def has_colours(self) -> bool:
        return any(
            number in range(30, 38) or number in range(90, 98)
            for sequence in re.findall(rb"\x1b\[([0-9;]*)m", self.output)
            for number in map(int, filter(None, sequence.split(b";")))
        )


def run_in_terminal(
    program: str,
    *arguments: str,
    reply: bytes = b"",
    typed_inputs: Mapping[bytes, bytes] | None = None,
    columns: int = 100,
    rows: int = 30,
    variables: Mapping[str, str] | None = None,
) -> Screen:
    """Run the Python code ``program`` in a terminal until it ends.

    Args:
        reply: the terminal's answer to each control sequence that queries its properties.
        typed_inputs: maps a text to the input that is typed once when the text appears on the
            screen.
        variables: further environment variables.
    """
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in _LEAKING}
    environment |= {"TERM": "xterm-256color", **(variables or {})}
    # Callers may pass on all variables of another process. These would override the terminal's size.
    for name in ("COLUMNS", "LINES"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(terminal)
    pending_inputs = dict(typed_inputs or {})
    output = b""
    reply_count = 0
    while True:
        try:
            chunk = os.read(controller, 65536)
        except OSError:  # Linux reports so that the program has ended.
            break
        output += chunk
        for _ in range(output.count(_QUERY_END) - reply_count):
            os.write(controller, reply)
            reply_count += 1
        for screen_text in [screen_text for screen_text in pending_inputs if screen_text in output]:
            os.write(controller, pending_inputs.pop(screen_text))
    os.close(controller)
    return Screen(output=output, columns=columns, rows=rows, status=process.wait())


def _take_terminal() -> None:
    """Make the pseudo-terminal the controlling terminal of the process, as a shell does."""
    # Tests that run in the background of a shell inherit that Ctrl+C is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.close(os.open(os.ttyname(0), os.O_RDWR))
