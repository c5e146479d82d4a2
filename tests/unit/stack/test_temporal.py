from __future__ import annotations

import os
from pathlib import Path

import pytest

from moyin.stack import temporal
from moyin.stack.options import Options


@pytest.mark.parametrize(("cores", "threads"), [(1, "1"), (2, "1"), (3, "1"), (16, "8")])
def test_temporal_takes_half_of_the_cores(
    cores: int, threads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert _environ(tmp_path)["GOMAXPROCS"] == threads


def test_who_says_how_many_threads_is_heeded(tmp_path: Path) -> None:
    assert _environ(tmp_path, GOMAXPROCS="3")["GOMAXPROCS"] == "3"


def _environ(folder: Path, **given: str) -> dict[str, str]:
    options = Options.read({"MOYIN_DATA": str(folder), **given}, port_base=20_000)
    return dict(temporal.service(options).environ)
