"""Folders with short names lie outside a test's own folder: they are removed after it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from moyin.stack.layout import Layout


@pytest.fixture(autouse=True)
def _no_sockets_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made: list[Path] = []
    prepare = Layout.prepare

    def record(layout: Layout) -> None:
        made.append(layout.sockets)
        prepare(layout)

    monkeypatch.setattr(Layout, "prepare", record)
    yield
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)
