"""The types of the TypeScript client are made from what the apps describe now."""

from __future__ import annotations

import re
from pathlib import Path

from scripts.client_openapi import FILE, GENERATED, ROUTES, digest, render

SOURCES = Path(__file__).parents[4] / "clients" / "typescript" / "src"
STALE = "run `scripts/typescript_client.sh generate`"


def test_the_document_is_what_the_apps_describe() -> None:
    assert FILE.read_text() == render(), STALE


def test_the_types_are_made_from_the_document() -> None:
    assert GENERATED.read_text().startswith(f"// openapi.json: {digest()}\n"), STALE


def test_the_client_calls_the_routes_of_the_document() -> None:
    source = (SOURCES / "client.ts").read_text()
    # Paths of one job or file are made by two functions, and two actions have a path in common.
    source = source.replace("${jobPath(job)}", "/jobs/{job_id}")
    source = source.replace("${artifactPath(artifact)}", "/artifacts/{artifact_id}")
    called = set(re.findall(r'["`](/(?:jobs|artifacts)(?:/[\w{}-]+)*)["`]', source))
    called |= {"/jobs/{job_id}", "/artifacts/{artifact_id}"}
    called |= {
        f"/jobs/{{job_id}}/{action}" for action in re.findall(r'#change\(job, "(\w+)"', source)
    }
    assert called == set(ROUTES)
