"""Finds the examples in the documents (fenced blocks), and runs the shell examples."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.acceptance.clients_page import list_snippets

ROOT = Path(__file__).parents[1]
DEFAULT_GATEWAY = "http://127.0.0.1:8000"
# Diagrams and output; everything else is an example.
PLAIN = ("mermaid", "text")
_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<mark>tested|not tested): (?P<name>[^\n]+) -->\n\n)?"
    r"^(?P<indent> *)```(?P<language>[a-z]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a document.

    Attributes:
        name: the name by which a test finds the block, or the reason why no test runs it.
    """

    page: str
    language: str
    text: str
    mark: str | None
    name: str | None


def list_pages() -> list[Path]:
    folders = ("*.md", "docs/**/*.md", "clients/*/*.md", "examples/**/*.md")
    return sorted(path for pattern in folders for path in ROOT.glob(pattern))


def list_blocks(page: Path) -> list[Block]:
    return [
        Block(
            page=str(page.relative_to(ROOT)),
            language=match["language"],
            text=match["text"],
            mark=match["mark"],
            name=match["name"],
        )
        for match in _BLOCK.finditer(page.read_text())
    ]


def read_example(page: str, name: str, language: str) -> str:
    example_language, example = list_snippets(ROOT / page)[name]
    assert example_language == language, (
        f"{page}: the example {name!r} is in {example_language}, not in {language}"
    )
    return example


def find_missing_members(page: str, name: str, response_body: Any) -> list[str]:
    """Return the sorted paths of members in a JSON example that a real response lacks.

    The example is shortened: `…` stands for text, and `{…}` for any object.
    """
    example = read_example(page, name, "json").replace("{…}", "{}").strip()
    example_body = json.loads(example if example.startswith("{") else f"{{{example}}}")
    return sorted(_list_members(example_body) - _list_members(response_body))


def _list_members(value: Any, path: str = "") -> set[str]:
    if not isinstance(value, dict):
        return {path}
    return {path}.union(*(_list_members(v, f"{path}/{name}") for name, v in value.items()))


def run_shell_example(
    page: str,
    name: str,
    *,
    url: str,
    folder: Path = ROOT,
    replaced: Mapping[str, str] | None = None,
    next_command: str = "",
    **variables: str,
) -> str:
    """Run an example in bash against the gateway at ``url``, and return its output.

    An HTTP error fails the example, even if its command lacks ``--fail``.

    Args:
        folder: the working directory.
        replaced: replacements for placeholders in the example.
        next_command: shell commands to run after the example.
        variables: the shell variables that the page presumes.
    """
    example = read_example(page, name, "sh").replace(DEFAULT_GATEWAY, url)
    for old_text, new_text in (replaced or {}).items():
        assert old_text in example, f"{page}: the example {name!r} does not contain {old_text!r}"
        example = example.replace(old_text, new_text)
    script = 'curl() { command curl -sS --fail-with-body "$@"; }\n' + example + next_command
    process = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=os.environ | {"GATEWAY": url} | variables,
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 0, (
        f"{page}: the example {name!r} failed: {process.stdout}{process.stderr}"
    )
    return process.stdout
