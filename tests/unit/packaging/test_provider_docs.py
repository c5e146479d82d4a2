"""Tests that the settings in docs/providers.md are valid, and that its table lists all operations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from deployments.models.config import ModelsConfig
from moyin.domain.operation import UNITS, Operation

_PAGE = (Path(__file__).parents[3] / "docs/providers.md").read_text()
_BACKENDS: list[dict[str, Any]] = [
    backend
    for block in re.findall(r"```yaml\n(.*?)```", _PAGE, re.DOTALL)
    for backend in yaml.safe_load(block)
]


async def test_every_example_is_a_valid_configuration() -> None:
    names = {backend["name"] for backend in _BACKENDS}
    assert names >= {"gemini", "azure", "azure-older", "foundry", "bedrock", "bedrock-claude"}
    for backend in _BACKENDS:
        config = ModelsConfig.model_validate({"backends": [backend]})
        [parsed_backend] = config.backends
        assert parsed_backend.name == backend["name"]


def test_every_ability_is_in_the_table() -> None:
    rows = [line for line in _PAGE.splitlines() if line.startswith("| `POST /v1/")]
    assert len(rows) == len(Operation)
    for row, (operation, unit) in zip(rows, UNITS.items(), strict=True):
        assert f"| `{operation}` |" in row and row.endswith(f"| {unit} |")
