from __future__ import annotations

import subprocess
import sys


def test_models_deployment_imports_neither_anthropics_nor_temporals_sdk() -> None:
    code = (
        "import sys, deployments.models.deployment; "
        "print([name for name in ('anthropic', 'temporalio') if name in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert process.stdout.strip() == "[]"
