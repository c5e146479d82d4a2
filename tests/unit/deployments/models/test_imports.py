from __future__ import annotations

import subprocess
import sys


def test_a_replica_without_claude_does_not_import_its_sdk() -> None:
    code = "import sys, deployments.models.deployment; print('anthropic' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "False"


def test_a_replica_without_a_judge_does_not_import_temporals_sdk() -> None:
    code = "import sys, deployments.models.deployment; print('temporalio' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "False"
