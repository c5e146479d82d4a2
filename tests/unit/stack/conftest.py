"""Removes the socket folders, which lie outside the temporary folder of a test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from moyin.stack.layout import Layout


@pytest.fixture(autouse=True)
def _remove_socket_folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folders: list[Path] = []
    prepare = Layout.prepare

    def record(layout: Layout) -> None:
        folders.append(layout.sockets)
        prepare(layout)

    monkeypatch.setattr(Layout, "prepare", record)
    yield
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
