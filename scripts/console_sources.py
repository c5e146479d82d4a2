"""Prints the digest of the console's sources, or writes the OpenAPI documents of the apps.

The digest is stored with the built files, so that a test finds stale files without Node.js. With
the argument ``openapi``, the documents are written instead.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from deployments.accounts import app as accounts
from deployments.gateway import app as gateway
from deployments.models import app as models
from scripts.client_openapi import describe_app

_ROOT = Path(__file__).parents[1]
CONSOLE = _ROOT / "console"
BUILT = _ROOT / "moyin" / "console" / "built"
DIGEST = BUILT / "sources.sha256"
# Folders that the build itself writes or installs.
_IGNORED = {"node_modules", "build"}


def compute_digest() -> str:
    """Return the SHA-256 of the paths and contents of all source files."""
    digest = hashlib.sha256()
    for path in sorted(CONSOLE.rglob("*")):
        relative = path.relative_to(CONSOLE)
        if path.is_file() and not _IGNORED & set(relative.parts):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{relative.as_posix()} {content}\n".encode())
    return digest.hexdigest()


def write_documents() -> None:
    """Write the OpenAPI document of each app to ``console/build/api``."""
    folder = CONSOLE / "build" / "api"
    folder.mkdir(parents=True, exist_ok=True)
    for name, app in {"gateway": gateway, "models": models, "accounts": accounts}.items():
        (folder / f"{name}.json").write_text(json.dumps(describe_app(app)))


if __name__ == "__main__":
    if sys.argv[1:] == ["openapi"]:
        write_documents()
    else:
        print(compute_digest())
