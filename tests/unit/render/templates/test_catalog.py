from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from moyin.errors import InvalidRequest, TemplateNotFound
from moyin.render.templates import catalog
from moyin.render.templates.catalog import SHIPPED_FOLDER, TemplateCatalog, read_templates

ROOT = Path(__file__).parents[4]


def make_template(name: str = "t", **changes: Any) -> dict[str, Any]:
    node = {"class_type": "A", "inputs": {"text": "${inputs.prompt}"}}
    return {
        "name": name,
        "title": "T",
        "inputs": {"prompt": {"type": "string"}},
        "graph": {"1": node},
        **changes,
    }


def write_template(folder: Path, name: str, data: Any) -> Path:
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


@pytest.mark.parametrize("folder", [SHIPPED_FOLDER, ROOT / "examples" / "templates"])
def test_templates_of_the_repository_are_valid(folder: Path) -> None:
    snapshot = read_templates([folder])
    assert snapshot.problems == ()
    assert len(snapshot.templates) == len(list(folder.iterdir()))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"name": "A b"}, "name"),
        ({"title": ""}, "title"),
        ({"inputs": {"prompt": {"type": "array"}}}, "inputs.prompt.type"),
        ({"inputs": {"prompt": {"type": "string", "minimun": 1}}}, "inputs.prompt.minimun"),
        ({"inputs": {"prompt": {"type": "string", "minimum": 1}}}, "inputs.prompt.minimum"),
        ({"inputs": {"prompt": {"type": "integer", "pattern": "a"}}}, "inputs.prompt.pattern"),
        ({"inputs": {"prompt": {"type": "string", "pattern": "("}}}, "inputs.prompt.pattern"),
        ({"inputs": {"prompt": {"type": "integer", "default": "a"}}}, "inputs.prompt.default"),
        ({"inputs": {"prompt": {"type": "integer", "enum": [1, "a"]}}}, "inputs.prompt.enum.1"),
        ({"inputs": {"prompt": {"type": "string", "format": "image", "default": "a"}}},
         "inputs.prompt"),
        ({"inputs": {"prompt": {"type": "string"}, "more": {"type": "string"}}}, "inputs.more"),
        ({"inputs": {}}, "graph.1.inputs.text"),
        ({"graph": {"1": {"class_type": "A", "inputs": {"text": "${steps.0.text}"}}}},
         "graph.1.inputs.text"),
        ({"graph": {"1": {"class_type": "${inputs.prompt}", "inputs": {}}}}, "graph.1"),
        ({"graph": {"nodes": [], "links": []}}, "graph.nodes"),
        ({"graph": {}}, "graph"),
        ({"outputs": ["9"]}, "outputs.0"),
    ],
)  # fmt: skip
def test_invalid_file_is_reported_with_its_field(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    path = write_template(tmp_path, "wrong.json", make_template(**changes))
    write_template(tmp_path, "right.json", make_template("right"))
    snapshot = read_templates([tmp_path])
    [problem] = snapshot.problems
    assert problem.startswith(f"{path}: {field}: ")
    assert list(snapshot.names) == ["right"]


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", "{"), ("a.yaml", "a: [b"), ("a.yml", "- 1"), ("a.json", "[1]")]
)
def test_file_without_an_object_is_refused(tmp_path: Path, name: str, text: str) -> None:
    path = write_template(tmp_path, name, text)
    [problem] = read_templates([tmp_path]).problems
    assert problem.startswith(f"{path}: the file: ")


def test_later_folder_wins_and_names_are_unique(tmp_path: Path) -> None:
    first_folder, second_folder = tmp_path / "a", tmp_path / "b"
    first_folder.mkdir()
    second_folder.mkdir()
    write_template(first_folder, "x.json", make_template("x", title="old", aliases=["other"]))
    write_template(second_folder, "x.yaml", yaml.safe_dump(make_template("x", title="new")))
    write_template(second_folder, "y.json", make_template("y", aliases=["x"]))
    write_template(second_folder, "z.json", make_template("y"))
    snapshot = read_templates([first_folder, second_folder, tmp_path / "none"])
    assert snapshot.names["x"].title == "new"
    assert "other" not in snapshot.names
    assert [problem.rpartition("/")[2] for problem in snapshot.problems] == [
        "z.json: name: y.json also has the name 'y'",
        "y.json: aliases: 'x' already names template 'x'",
    ]


async def test_changed_files_are_read_and_invalid_ones_keep_the_last_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_CHECK_SECONDS", 0)
    templates = TemplateCatalog((tmp_path,))
    with pytest.raises(TemplateNotFound):
        await templates.get("t")
    path = write_template(tmp_path, "t.json", make_template(aliases=["u"]))
    assert (await templates.get("u")).name == "t"
    path.write_text("{")
    assert (await templates.get("u")).name == "t"
    assert len((await templates.get_snapshot()).problems) == 1
    path.unlink()
    with pytest.raises(InvalidRequest, match="there is no template 't'"):
        (await templates.get_snapshot()).find("t", "template")


def test_published_schema_lists_required_inputs() -> None:
    schema = read_templates([SHIPPED_FOLDER]).names["swatch"].schema
    assert schema["required"] == ["prompt"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["width"] == {
        "type": "integer", "minimum": 8, "maximum": 4096, "default": 512,
    }  # fmt: skip
