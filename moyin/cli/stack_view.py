"""Displays the state of the stack while it starts and while it runs."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from moyin.cli.screen import errors, format_count, out, print_pairs
from moyin.stack.doctor.result import CheckResult, CheckVerdict
from moyin.stack.options import Options
from moyin.stack.profile import read_profile
from moyin.stack.state import PartState, PartStatus, Phase, StackState
from moyin.system.memory_kills import describe_kill, get_kills_folder, list_recent_kills

_PART_NAMES = {"valkey": "Valkey", "temporal": "Temporal", "ray": "Ray", "apps": "apps"}
_STATUS_COLOURS = {
    PartStatus.UP: "green",
    PartStatus.FAILED: "red",
    PartStatus.BACKING_OFF: "yellow",
    PartStatus.STARTING: "cyan",
}
_PHASE_COLOURS = {Phase.READY: "green", Phase.FAILED: "red", Phase.DEGRADED: "yellow"}


# Below this width of a terminal, text beside a name would be a column of single words.
_MIN_TEXT_WIDTH = 20
_VERDICT_COLOURS = {CheckVerdict.OK: "green", CheckVerdict.WARN: "yellow", CheckVerdict.FAIL: "red"}


class StartProgress:
    """Shows the start of the stack: live on a terminal, or as one line per change in a pipe."""

    def __init__(self) -> None:
        self._live = Live(console=errors, refresh_per_second=10, transient=True)
        self._spinner = Spinner("dots", style="cyan")
        self._last_status: dict[str, tuple[PartStatus, str]] = {}
        self._started: dict[str, float] = {}

    def __enter__(self) -> Self:
        if errors.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def update(self, state: StackState) -> None:
        if errors.is_terminal:
            self._live.update(self._render_table(state))
            return
        for name, part in state.parts.items():
            if self._last_status.get(name) != (part.status, part.detail):
                self._last_status[name] = (part.status, part.detail)
                if part.status not in (PartStatus.WAITING, PartStatus.STOPPED):
                    detail = f": {part.detail}" if part.detail else ""
                    errors.print(
                        f"{_PART_NAMES.get(name, name)} {part.status}{detail}", markup=False
                    )

    def _render_table(self, state: StackState) -> RenderableType:
        table = Table(box=None, pad_edge=False, show_header=False)
        for name, part in state.parts.items():
            table.add_row(
                "",
                self._build_status_mark(part),
                _PART_NAMES.get(name, name),
                Text(_describe_part(part)),
            )
        seconds = time.time() - state.started_at
        return Group(Text(f"Moyin is starting … {seconds:.0f} s", style="bold"), table)

    def _build_status_mark(self, part: PartState) -> RenderableType:
        if part.status == PartStatus.STARTING:
            return self._spinner
        marks = {PartStatus.UP: "✓", PartStatus.FAILED: "✗", PartStatus.BACKING_OFF: "↻"}
        return Text(marks.get(part.status, "·"), style=_STATUS_COLOURS.get(part.status, "dim"))


def build_stop_command() -> str:
    """Return the command that stops the stack, with a full path if `moyin` is not on `PATH`."""
    if shutil.which("moyin"):
        return "moyin down"
    typed_path = Path(sys.argv[0])
    # With `python -m`, the first argument is a source file.
    return f"{typed_path if typed_path.name == 'moyin' else Path(sys.executable).with_name('moyin')} down"


def print_ready(options: Options, state: StackState) -> None:
    """Print the addresses of the running stack, and after its first start also the API key."""
    duration_note = f" after {state.ready_after:.1f} s" if state.ready_after is not None else ""
    out.print(f"[bold green]Moyin is up[/]{duration_note}")
    pairs = list(state.addresses.items())
    if not options.layout.key_shown_marker.exists():
        options.layout.key_shown_marker.touch()
        pairs.append(("api key", read_profile(options.layout.profile, {}).api_key))
        pairs.append(("", f"shown once; the command line stores it in {options.layout.profile}"))
    print_pairs([*pairs, *_list_notes(options, state), ("stop", build_stop_command())])


def print_state(options: Options, state: StackState) -> None:
    """Print the status of each part of the stack, the stack's addresses, and notes."""
    colour = _PHASE_COLOURS.get(state.phase, "cyan")
    out.print(f"[bold {colour}]{state.phase}[/]  (supervisor {state.pid})")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "part", "status", "for", "pid", "restarts", ""):
        justify: Literal["left", "right"] = "right" if column in ("for", "pid") else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for name, part in state.parts.items():
        table.add_row(
            "",
            _PART_NAMES.get(name, name),
            Text(part.status, style=_STATUS_COLOURS.get(part.status, "dim")),
            _format_duration(time.time() - part.since),
            str(part.pid or ""),
            str(part.restarts or ""),
            part.detail,
        )
    out.print(table)
    print_pairs([*state.addresses.items(), *_list_notes(options, state)])


def print_checks(checks: Sequence[CheckResult]) -> None:
    """Print the results of `moyin doctor`, with the advice below each problem."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        label = Text.assemble(
            (f"{check.verdict:<4}", _VERDICT_COLOURS[check.verdict]), f"  {check.name:<{width}}  "
        )
        text_width = max(out.width - len(label), _MIN_TEXT_WIDTH)
        finding = f"{check.found} (mended)" if check.fixed else check.found
        # Long paths are folded beside their label; `--json` prints them whole.
        lines = list(Text(finding).wrap(out, text_width))
        if check.verdict is not CheckVerdict.OK:
            lines += Text(f"→ {check.advice}", style="bold").wrap(out, text_width)
        for line in lines:
            out.print(label + line)
            label = Text(" " * len(label))
    counts = Counter(check.verdict for check in checks)
    out.print(
        f"\n{format_count(counts[CheckVerdict.FAIL], 'problem')}, "
        f"{format_count(counts[CheckVerdict.WARN], 'warning')}"
    )
    if mendable_checks := [f"{check.name} ({check.fix})" for check in checks if check.fix]:
        out.print("`moyin doctor --fix` mends:")
        for text in mendable_checks:
            out.print(f"  {text}", markup=False)


def _list_notes(options: Options, state: StackState) -> list[tuple[str, str]]:
    token_note = ("ray token", f"in {options.layout.ray_token} (the dashboard requires it)")
    kills = list_recent_kills(get_kills_folder(options.layout.data))
    return [
        token_note,
        *(("note", note) for note in state.notes),
        *(("memory", describe_kill(kill)) for kill in kills),
    ]


def _describe_part(part: PartState) -> str:
    return part.detail or ("" if part.status == PartStatus.UP else str(part.status))


def _format_duration(seconds: float) -> str:
    for unit, unit_seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= unit_seconds:
            return f"{seconds / unit_seconds:.0f} {unit}"
    return f"{seconds:.0f} s"
