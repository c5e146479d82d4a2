from __future__ import annotations

from pathlib import Path

from moyin.stack.logfile import LogFile, tail


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
