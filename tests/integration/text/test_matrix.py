"""Tests that each cell of the matrix passes, or is refused with the name of the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.text.fixtures import serving
from tests.integration.text.matrix import BACKENDS, FEATURES, PAGE, build_page, run_matrix
from tests.integration.text.matrix_clients import open_clients
from tests.integration.text.matrix_features import Refused, RequestedFeatures
from tests.integration.text.wires.script import PICTURE


async def test_every_cell_passes_or_is_refused_by_name(tmp_path: Path) -> None:
    matrix = await run_matrix(tmp_path)
    assert len(matrix) == 4 * len(BACKENDS)
    for combination, cells in matrix.items():
        # What every protocol can express, every back end does. Responses have no stop sequences.
        for feature_name in list(FEATURES)[:8]:
            can_express = (combination[0], feature_name) != ("Responses", "stop")
            assert cells[feature_name].passed is can_express, (combination, feature_name)
    assert PAGE.read_text() == build_page(matrix), "run `make docs`"


@pytest.mark.parametrize(
    ("protocol", "fields"),
    [
        ("OpenAI", ["tools", "messages", "response_format", "reasoning_effort"]),
        ("Responses", ["tools", "input", "text.format", "reasoning.effort"]),
        ("Anthropic", ["tools", "messages", "output_config.format", "thinking"]),
        ("Ollama", ["tools", "messages", "format", "think"]),
    ],
)
async def test_features_that_the_model_lacks_are_refused_by_name(
    tmp_path: Path, protocol: str, fields: list[str]
) -> None:
    plain_model = {"name": "m", "context": 9000, "price": {"input": 0, "output": 0}}
    backend = {
        "name": "b",
        "type": "ollama",
        "hosts": ["http://127.0.0.1:9"],
        "models": [plain_model],
    }
    requests = [
        RequestedFeatures(tools=True),
        RequestedFeatures(picture=PICTURE),
        RequestedFeatures(has_schema=True),
        RequestedFeatures(thinking=True),
    ]
    async with (
        serving(tmp_path, backend) as models_app,
        open_clients(models_app.url, models_app.api_key) as protocol_clients,
    ):
        for request, field in zip(requests, fields, strict=True):
            with pytest.raises(Refused) as exc_info:
                await protocol_clients[protocol].send_request("m", request, stream=False)
            error = exc_info.value
            assert (error.status, error.code, error.field) == (
                400,
                "unsupported_feature",
                field,
            )
