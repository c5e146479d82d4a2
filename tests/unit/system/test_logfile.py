from __future__ import annotations

from pathlib import Path

import pytest

from moyin.system.logfile import LogFile, read_last_lines


def test_log_takes_at_most_twice_its_limit(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "x.log", max_bytes=100)
    for number in range(50):
        log.write(f"line {number:04}\n".encode())
    log.close()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == {"x.log", "x.log.1"}
    assert all(size <= 100 for size in sizes.values())
    assert read_last_lines(tmp_path / "x.log", 1) == ["line 0049"]


def test_reopened_log_is_appended_to(tmp_path: Path) -> None:
    for line in (b"one\n", b"two\n"):
        log = LogFile(tmp_path / "x.log")
        log.write(line)
        log.close()
    assert read_last_lines(tmp_path / "x.log", 10) == ["one", "two"]


def test_tail_of_a_missing_file_is_empty(tmp_path: Path) -> None:
    assert read_last_lines(tmp_path / "x.log", 10) == []


@pytest.mark.parametrize("last_write", [b"x" * 60, b"short"])
def test_removed_log_is_created_again(tmp_path: Path, last_write: bytes) -> None:
    log = LogFile(tmp_path / "x.log", max_bytes=100)
    log.write(b"a" * 60)
    (tmp_path / "x.log").unlink()
    log.write(b"b" * 60)
    log.write(last_write)
    log.close()
    assert (tmp_path / "x.log").read_bytes() == b"[60 bytes could not be written]\n" + last_write


def test_full_disk_loses_lines_and_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.log"
    log = LogFile(path)
    log.write(b"before\n")
    original_open = Path.open
    # A full disk fails at a write, not when a file is opened.
    monkeypatch.setattr(
        Path,
        "open",
        lambda self, *args, **kwargs: original_open(Path("/dev/full"), *args, **kwargs),
    )
    log.close()
    log.write(b"lost\n")
    log.write(b"lost\n")
    monkeypatch.undo()
    log.write(b"after\n")
    log.close()
    assert path.read_text() == "before\n[10 bytes could not be written]\nafter\n"
