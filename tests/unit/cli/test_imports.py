from __future__ import annotations

import subprocess
import sys


def test_a_command_does_not_wait_for_libraries_that_it_does_not_need() -> None:
    code = (
        "import sys, moyin.cli.main; print([name for name in "
        "('sqlalchemy', 'redis', 'jwt', 'fsspec', 'ray', 'temporalio') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"
