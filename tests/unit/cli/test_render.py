from __future__ import annotations

from pathlib import Path

import pytest

from moyin.cli.main import run
from moyin.cli.render import _asked, _input
from moyin.errors import StackError


def test_inputs_are_json_where_they_can_be() -> None:
    given = ["width=512", "prompt=a = b", "on=true", 'text="5"', "empty="]
    assert dict(map(_input, given)) == {
        "width": 512, "prompt": "a = b", "on": True, "text": "5", "empty": "",
    }  # fmt: skip
    with pytest.raises(StackError, match="NAME=VALUE"):
        _input("width")


def test_a_render_is_of_a_graph_or_of_a_template() -> None:
    assert _asked(None, "swatch") == {"template": "swatch"}
    for graph, template in ((None, None), (Path("x.json"), "swatch")):
        with pytest.raises(StackError, match="--template"):
            _asked(graph, template)


def test_nothing_is_rendered_for_a_folder_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "file"
    taken.touch()
    # No door is named: the folder is looked at before anybody is asked.
    assert run(["render", "-t", "swatch", "-o", str(taken)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "can't be the folder of the pictures" in told.err
    assert "unexpected" not in told.err
