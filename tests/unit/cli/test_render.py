from __future__ import annotations

import json
from pathlib import Path

import pytest

from moyin.cli.main import run
from moyin.cli.render import _build_job_source, _parse_input
from moyin.errors import StackError
from tests.editor_graphs import make_simple
from tests.unit.cli.scripted_gateway import ScriptedGateway


def test_inputs_are_parsed_as_json_if_possible() -> None:
    arguments = ["width=512", "prompt=a = b", "on=true", 'text="5"', "empty="]
    assert dict(map(_parse_input, arguments)) == {
        "width": 512, "prompt": "a = b", "on": True, "text": "5", "empty": "",
    }  # fmt: skip
    with pytest.raises(StackError, match="NAME=VALUE"):
        _parse_input("width")


def test_render_needs_either_a_graph_or_a_template() -> None:
    assert _build_job_source(None, "swatch") == {"template": "swatch"}
    for graph, template in ((None, None), (Path("x.json"), "swatch")):
        with pytest.raises(StackError, match="--template"):
            _build_job_source(graph, template)


def test_invalid_output_folder_is_rejected_before_submission(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    existing_file = tmp_path / "file"
    existing_file.touch()
    # No gateway is configured: the folder is checked before any request.
    assert run(["render", "-t", "swatch", "-o", str(existing_file)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "the output folder" in output.err
    assert "unexpected" not in output.err


def test_nodes_that_are_not_rendered_are_printed(
    gateway: ScriptedGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = {"type": "x", "message": "Value not in list", "details": "ckpt_name", "extra_info": {}}
    node_error = {"class_type": "Loader", "errors": [error], "dependent_outputs": ["9"]}
    gateway.routes["POST /jobs"] = {"id": "j", "node_errors": {"4": node_error}}
    # The gateway has no route for the job's events.
    assert run(["render", "-t", "swatch", "--strict", "-o", str(tmp_path)]) == 1
    output = capsys.readouterr().err
    assert "node 4 (Loader) is not rendered: Value not in list: ckpt_name" in output
    assert gateway.requests[0][2]["strict"] is True


def test_a_graph_of_the_editor_is_converted_before_it_is_submitted(
    gateway: ScriptedGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    editor_graph, converted_graph = make_simple(2**60), {"1": {"class_type": "A", "inputs": {}}}
    missing_choice = {
        "node": "1",
        "class_type": "A",
        "input": "ckpt_name",
        "value": "sea.safetensors",
    }
    gateway.routes["POST /graphs/convert"] = {
        "format": "editor", "graph": converted_graph, "pool": "big", "left_out": [],
        "missing": {
            "nodes": [{"class_type": "A", "nodes": ["1"]}], "choices": [missing_choice], "files": [],
        },
    }  # fmt: skip
    graph_file = tmp_path / "editor.json"
    graph_file.write_text(json.dumps(editor_graph))
    # The gateway has no route for the job itself.
    assert run(["render", str(graph_file), "--pool", "big", "-o", str(tmp_path)]) == 1
    assert "pool big lacks: A, sea.safetensors" in capsys.readouterr().err
    (_, path, body, _), (_, jobs_path, job, _) = gateway.requests
    assert (path, body) == ("/graphs/convert", {"graph": editor_graph, "pool": "big"})
    assert (jobs_path, job["workflow"]) == ("/jobs", converted_graph)
