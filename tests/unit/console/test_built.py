"""Tests that the committed files of the console were built from its current sources."""

from __future__ import annotations

import re

from moyin.console import BUILT_FOLDER
from scripts.console_sources import DIGEST, compute_digest

_MANTINE = re.compile(r"\bm_[0-9a-f]{6,8}\b")


def test_the_built_files_are_those_of_the_sources() -> None:
    assert DIGEST.read_text().strip() == compute_digest(), "run scripts/console.sh"


def test_the_page_has_a_place_for_its_nonce_and_names_no_other_host() -> None:
    page = (BUILT_FOLDER / "index.html").read_text()
    assert '<meta name="csp-nonce" content="__CSP_NONCE__">' in page
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(addresses) >= 2
    assert all(address.startswith("/console/") for address in addresses)


def test_the_files_that_the_page_names_are_built() -> None:
    page = (BUILT_FOLDER / "index.html").read_text()
    names = re.findall(r'(?:src|href)="/console/([^"]*)"', page)
    assert [name for name in names if not (BUILT_FOLDER / name).is_file()] == []


def test_components_in_use_have_their_styles() -> None:
    # Mantine's classes are digests of its components' names; only the styles of those in use are built in.
    script_classes, style_classes = (
        {
            name
            for file in BUILT_FOLDER.rglob(pattern)
            for name in _MANTINE.findall(file.read_text())
        }
        for pattern in ("*.js", "*.css")
    )
    assert len(script_classes) > 100
    assert script_classes - style_classes == set(), (
        "a component's styles are missing in console/src/mantine.ts"
    )
