"""Tests that the TypeScript client has current types, and every method of the Python client."""

from __future__ import annotations

import re
from pathlib import Path

from deployments.gateway.app import _accepts_event_token
from moyin_client import Client, retry
from moyin_client.models import FINAL_STATUSES
from scripts.client_openapi import FILE, GENERATED, ROUTES, compute_digest, render_document

SOURCES = Path(__file__).parents[4] / "clients" / "typescript" / "src"
STALE = "run `scripts/typescript_client.sh generate`"


def test_the_document_matches_the_apps_descriptions() -> None:
    assert FILE.read_text() == render_document(), STALE


def test_the_types_are_made_from_the_document() -> None:
    assert GENERATED.read_text().startswith(f"// openapi.json: {compute_digest()}\n"), STALE


def test_the_client_calls_the_routes_of_the_document() -> None:
    source = (SOURCES / "client.ts").read_text()
    # Paths of one job or file are made by two functions, and two actions have a path in common.
    source = source.replace("${jobPath(job)}", "/jobs/{job_id}")
    source = source.replace("${artifactPath(artifact)}", "/artifacts/{artifact_id}")
    called_routes = set(re.findall(r'["`](/(?:jobs|artifacts)(?:/[\w{}-]+)*)["`]', source))
    called_routes |= {"/jobs/{job_id}", "/artifacts/{artifact_id}"}
    called_routes |= {
        f"/jobs/{{job_id}}/{action}" for action in re.findall(r'#change\(job, "(\w+)"', source)
    }
    assert called_routes == set(ROUTES)


def test_the_client_has_the_methods_of_the_python_client() -> None:
    source = (SOURCES / "client.ts").read_text()
    methods = set(re.findall(r"^  (?:async )?([a-z]\w+)\(", source, re.MULTILINE)) - {"constructor"}
    python_methods = {name for name in vars(Client) if not name.startswith("_")}
    # `fetch` owns the connections.
    assert methods == {_to_camel_case(name) for name in python_methods} - {"close"}


def test_a_page_calls_only_routes_that_accept_event_tokens() -> None:
    method_pattern = r"^  (?:async )?([a-z]\w+)\("
    page_source = (SOURCES / "page.ts").read_text()
    methods = set(re.findall(method_pattern, page_source, re.MULTILINE)) - {"constructor", "url"}
    assert methods == {"events", "preview", "download"}
    assert methods <= set(
        re.findall(method_pattern, (SOURCES / "client.ts").read_text(), re.MULTILINE)
    )
    for path in re.findall(r"`\$\{jobPath\(job\)\}(/\w+)`", page_source):
        assert _accepts_event_token("GET", f"/jobs/j1{path}"), path


def test_the_client_retries_the_same_errors_as_the_python_client() -> None:
    source = (SOURCES / "retry.ts").read_text()
    statuses, codes = (
        re.search(rf"{name} = new Set\(\[(.*?)\]\)", source, re.DOTALL)
        for name in ("STATUSES", "CODES")
    )
    assert statuses is not None and codes is not None
    assert {int(status) for status in statuses[1].split(",")} == retry._STATUSES
    assert {"connection_failed", *re.findall(r'"(\w+)"', codes[1])} == retry._CODES


def test_final_statuses_are_those_of_the_gateway() -> None:
    source = (SOURCES / "types.ts").read_text()
    statuses_match = re.search(r"FINAL.* = new Set\(\[(.*?)\]\)", source)
    assert statuses_match is not None
    assert set(re.findall(r'"(\w+)"', statuses_match[1])) == FINAL_STATUSES


def _to_camel_case(name: str) -> str:
    first_word, *other_words = name.split("_")
    return first_word + "".join(word.title() for word in other_words)
