from __future__ import annotations

from pathlib import Path

from moyin.stack.state import Part, PartStatus, Phase, StackState, read_state, write_state


def test_state_round_trips(tmp_path: Path) -> None:
    state = StackState(
        pid=7,
        phase=Phase.DEGRADED,
        parts={"ray": Part(status=PartStatus.BACKING_OFF, restarts=2, detail="was ended")},
        addresses={"gateway": "http://127.0.0.1:8000"},
    )
    write_state(tmp_path / "state.json", state)
    assert read_state(tmp_path / "state.json") == state
    assert [item.name for item in tmp_path.iterdir()] == ["state.json"]


def test_missing_file_reads_as_none(tmp_path: Path) -> None:
    assert read_state(tmp_path / "state.json") is None
