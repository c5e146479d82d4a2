from __future__ import annotations

import subprocess
import sys


def test_models_deployment_does_not_import_anthropics_sdk() -> None:
    code = "import sys, deployments.models.deployment; print('anthropic' in sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert process.stdout.strip() == "False"


def test_models_deployment_does_not_import_temporals_sdk() -> None:
    code = "import sys, deployments.models.deployment; print('temporalio' in sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert process.stdout.strip() == "False"
