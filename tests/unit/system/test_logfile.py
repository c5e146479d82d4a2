from __future__ import annotations

from pathlib import Path

import pytest

from moyin.system.logfile import LogFile, tail


def test_a_log_never_takes_more_than_twice_its_limit(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "x.log", limit=100)
    for number in range(50):
        log.write(f"line {number:04}\n".encode())
    log.close()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == {"x.log", "x.log.1"}
    assert all(size <= 100 for size in sizes.values())
    assert tail(tmp_path / "x.log", 1) == ["line 0049"]


def test_a_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        log = LogFile(tmp_path / "x.log")
        log.write(text)
        log.close()
    assert tail(tmp_path / "x.log", 10) == ["one", "two"]


def test_the_tail_of_a_missing_file_is_empty(tmp_path: Path) -> None:
    assert tail(tmp_path / "x.log", 10) == []


@pytest.mark.parametrize("then", [b"x" * 60, b"short"])
def test_a_log_that_somebody_removed_begins_anew(tmp_path: Path, then: bytes) -> None:
    log = LogFile(tmp_path / "x.log", limit=100)
    log.write(b"a" * 60)
    (tmp_path / "x.log").unlink()
    log.write(b"b" * 60)
    log.write(then)
    log.close()
    assert (tmp_path / "x.log").read_bytes() == b"[60 bytes could not be written]\n" + then


def test_a_full_disk_costs_lines_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.log"
    log = LogFile(path)
    log.write(b"before\n")
    opened = Path.open
    # It fails at a write, as a disk that is full does, and not when it is opened.
    monkeypatch.setattr(
        Path, "open", lambda self, *args, **more: opened(Path("/dev/full"), *args, **more)
    )
    log.close()
    log.write(b"lost\n")
    log.write(b"lost\n")
    monkeypatch.undo()
    log.write(b"after\n")
    log.close()
    assert path.read_text() == "before\n[10 bytes could not be written]\nafter\n"
