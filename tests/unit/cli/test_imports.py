from __future__ import annotations

import subprocess
import sys


def test_command_line_does_not_import_heavy_libraries() -> None:
    code = (
        "import sys, moyin.cli.main; print([name for name in "
        "('sqlalchemy', 'redis', 'jwt', 'fsspec', 'ray', 'temporalio') if name in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert process.stdout.strip() == "[]"
