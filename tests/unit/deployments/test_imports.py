from __future__ import annotations

import json
import subprocess
import sys

# Serve builds every app in a process of its own and imports the middleware in that of its fallback
# proxy. These libraries took a third of the processor time of each.
_BUILT = (
    "deployments.accounts.builder",
    "deployments.gateway.builder",
    "deployments.intake.builder",
    "deployments.models.builder",
    "deployments.render.builder",
    "deployments.workers.builder",
    "deployments.middleware",
)
_HEAVY = (
    "aiohttp", "argon2", "cryptography", "fsspec", "jwt", "ollama", "opentelemetry", "redis",
    "sqlalchemy", "temporalio", "zxcvbn",
)  # fmt: skip


def test_builders_and_middleware_import_no_heavy_library_of_ours() -> None:
    code = (
        "import importlib, json, sys, ray.serve._private.proxy\n"
        "known, found = set(sys.modules), {}\n"
        f"for module in {_BUILT!r}:\n"
        "    importlib.import_module(module)\n"
        f"    found[module] = [n for n in {_HEAVY!r} if n in sys.modules and n not in known]\n"
        "print(json.dumps(found))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(process.stdout) == {module: [] for module in _BUILT}
