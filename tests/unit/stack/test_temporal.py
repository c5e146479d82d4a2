from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from moyin.stack import temporal
from moyin.stack.options import Options


@pytest.mark.parametrize(("cores", "threads"), [(1, "1"), (2, "1"), (3, "1"), (16, "8")])
def test_temporal_uses_half_of_the_cores(
    cores: int, threads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert _build_environ(tmp_path)["GOMAXPROCS"] == threads


def test_gomaxprocs_of_the_environment_wins(tmp_path: Path) -> None:
    assert _build_environ(tmp_path, GOMAXPROCS="3")["GOMAXPROCS"] == "3"


def _build_environ(folder: Path, **variables: str) -> dict[str, str]:
    options = Options.read({"MOYIN_DATA": str(folder), **variables}, port_base=20_000)
    return dict(temporal.create_service(options).environ)


def test_unused_indexes_are_dropped(tmp_path: Path) -> None:
    kept_indexes = ["by_status", "by_workflow_id", "by_temporal_namespace_division", "default_idx"]
    unused_indexes = ["by_keyword_01", "by_bool_03", "by_temporal_keyword_02", "by_batcher_user"]
    path = tmp_path / "temporal.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE executions_visibility (a)")
        database.execute("CREATE TABLE executions (a)")
        database.execute("CREATE INDEX by_int_01 ON executions (a)")
        for name in (*kept_indexes, *unused_indexes):
            database.execute(f"CREATE INDEX {name} ON executions_visibility (a)")
        database.commit()
    temporal.drop_unused_indexes(path)
    temporal.drop_unused_indexes(path)
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'index'")
        assert {name for (name,) in rows} == {*kept_indexes, "by_int_01"}


def test_unreadable_database_is_logged_and_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "temporal.db").write_text("not a database")
    temporal.drop_unused_indexes(tmp_path / "temporal.db")
    assert "cannot drop Temporal's unused indexes" in caplog.text
