from __future__ import annotations

from pathlib import Path

from moyin.stack.state import Part, PartStatus, Phase, StackState, read, write


def test_a_state_comes_back(tmp_path: Path) -> None:
    state = StackState(
        pid=7,
        phase=Phase.DEGRADED,
        parts={"ray": Part(status=PartStatus.BACKING_OFF, restarts=2, detail="was ended")},
        addresses={"gateway": "http://127.0.0.1:8000"},
    )
    write(tmp_path / "state.json", state)
    assert read(tmp_path / "state.json") == state
    assert [item.name for item in tmp_path.iterdir()] == ["state.json"]


def test_no_file_is_no_state(tmp_path: Path) -> None:
    assert read(tmp_path / "state.json") is None
