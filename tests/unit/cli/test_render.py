from __future__ import annotations

from pathlib import Path

import pytest

from moyin.cli.main import run
from moyin.cli.render import _build_job_source, _parse_input
from moyin.errors import StackError


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
