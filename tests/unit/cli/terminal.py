"""Runs Python in a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

_QUERY_END = b"\x1b[c"
_LEAKING = ("TMUX", "STY", "KITTY_WINDOW_ID", "TERM_PROGRAM", "LC_TERMINAL", "NO_COLOR")


def run_in_terminal(program: str, *arguments: str, reply: bytes = b"", **variables: str) -> bytes:
    """Run a program in a terminal that answers queries with ``reply``, and return its output."""
    controller, terminal = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if name not in _LEAKING}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**inherited, "TERM": "xterm-256color", "COLUMNS": "100", **variables},
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(terminal)
    output, has_replied = b"", False
    while True:
        try:
            piece = os.read(controller, 65536)
        except OSError:  # Linux reports so that the program has ended.
            break
        output += piece
        if _QUERY_END in output and not has_replied:
            os.write(controller, reply)
            has_replied = True
    os.close(controller)
    assert process.wait() == 0, output
    return output


def _take_terminal() -> None:
    """Make the pseudo-terminal the controlling terminal, as for a program started in a shell."""
    os.close(os.open(os.ttyname(0), os.O_RDWR))
