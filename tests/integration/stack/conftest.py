"""Provides each test of the doctor with environment variables of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from moyin.stack.layout import Layout
from tests.stack import ROOT, free_port_base


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Yield environment variables with a new data folder and free ports."""
    inherited_environ = {
        n: v for n, v in os.environ.items() if not n.startswith(("MOYIN_", "RAY_"))
    }
    yield {
        **inherited_environ,
        "PYTHONPATH": str(ROOT),
        "MOYIN_DATA": str(tmp_path / "data"),
        "MOYIN_PORT_BASE": str(free_port_base()),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }
    Layout(tmp_path / "data").remove_runtime_files()
