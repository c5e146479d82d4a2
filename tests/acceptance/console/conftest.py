"""Provides a browser for the console of the shared farm."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.acceptance.console.browser import ROOT, ConsoleBrowser, open_browser
from tests.stack import RunningStack

# Playwright's own 5 s are too short on a busy machine.
expect.set_options(timeout=60_000)


@pytest.fixture(scope="session")
def console_tools() -> None:
    """Install the packages of `scripts/console.sh`, such as axe-core."""
    if not (ROOT / "console" / "node_modules" / ".complete").exists():
        subprocess.run([ROOT / "scripts" / "console.sh", "install"], check=True)


@pytest.fixture
def console(gateway: RunningStack, console_tools: None, tmp_path: Path) -> Iterator[ConsoleBrowser]:
    """Provide a browser that is not signed in; fail at the end if a page logged an error."""
    writes_screenshots = os.environ.get("MOYIN_SCREENSHOTS") == "1"
    with open_browser(gateway.url, tmp_path, writes_screenshots=writes_screenshots) as browser:
        yield browser
        browser.check_clean()
