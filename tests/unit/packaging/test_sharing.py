"""Tests that pytest-xdist runs all tests that share a farm in one process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
CONFTEST = """
import pytest
from tests.sharing import FarmSharing

def pytest_configure(config):
    config.pluginmanager.register(FarmSharing())

@pytest.fixture(scope="session")
def gateway():
    return "a farm"

@pytest.fixture
def client(gateway):
    return gateway
"""
FARM = """
def test_first(gateway): pass
def test_second(): pass
"""
INDIRECT = """
def test_first(client): pass
"""
OTHER = """
def test_first(): pass
"""


def test_one_process_runs_all_files_that_share_the_farm(tmp_path: Path) -> None:
    files = {
        "conftest": CONFTEST, "test_a": OTHER, "test_b": FARM, "test_c": OTHER, "test_d": INDIRECT,
        "test_e": OTHER, "test_f": FARM,
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    # The environment of a worker of pytest-xdist names that worker.
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    process = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-v", "-n", "2", "--no-loadscope-reorder",
            "-p", "no:cacheprovider", "-p", "no:schemathesis", "-p", "no:langsmith_plugin",
            "-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path),
        ],
        env={**environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    passed_tests = re.findall(r"\[(gw\d)\].* PASSED (\w+)\.py::", process.stdout)
    assert len(passed_tests) == 8, process.stdout + process.stderr
    workers = {
        file: {worker for worker, name in passed_tests if name == file} for _, file in passed_tests
    }
    assert len(workers["test_b"] | workers["test_d"] | workers["test_f"]) == 1
    assert {worker for worker, _ in passed_tests} == {"gw0", "gw1"}
