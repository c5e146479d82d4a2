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
    original_prepare = Layout.prepare

    def record_sockets_folder(layout: Layout) -> None:
        folders.append(layout.sockets)
        original_prepare(layout)

    monkeypatch.setattr(Layout, "prepare", record_sockets_folder)
    yield
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
