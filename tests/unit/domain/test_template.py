from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyin.domain import references
from moyin.domain.template import Template, fill_template
from moyin.errors import InvalidRequest
from moyin.render.templates.response import to_template

OUTPUTS: list[dict[str, Any]] = [
    {"text": "said", "artifacts": ["artifact:art_" + "0" * 32], "body": {"n": 3}}
]


def make_template(text: Any = "${inputs.prompt}", **inputs: Any) -> Template:
    declared_inputs = {"prompt": {"type": "string"}, **inputs}
    node = {"class_type": "A", "inputs": {"text": text, "all": "${inputs.prompt}"}}
    other_inputs = {name: f"${{inputs.{name}}}" for name in inputs}
    graph = {"1": node, "2": {"class_type": "B", "inputs": other_inputs}}
    return to_template({"name": "t", "title": "T", "inputs": declared_inputs, "graph": graph})


def test_sole_placeholder_keeps_its_type_and_embedded_one_becomes_text() -> None:
    new_template = make_template(
        "a ${inputs.prompt}, ${inputs.n} ${inputs.on}",
        n={"type": "integer"},
        on={"type": "boolean", "default": True},
    )
    graph = fill_template(new_template, {"prompt": "cat", "n": 3})
    assert graph["1"]["inputs"] == {"text": "a cat, 3 true", "all": "cat"}
    assert graph["2"]["inputs"] == {"n": 3, "on": True}
    assert new_template.graph["2"]["inputs"]["n"] == "${inputs.n}"


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({}, "inputs.prompt"),
        ({"prompt": 5}, "inputs.prompt"),
        ({"prompt": "x", "nothing": 1}, "inputs.nothing"),
        ({"prompt": ["1", 0]}, "inputs.prompt"),
        ({"prompt": {"from": "inputs.x"}}, "inputs.prompt"),
    ],
)
def test_error_names_the_invalid_input(inputs: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        fill_template(make_template(), inputs, "steps.1.")
    assert exc_info.value.field == f"steps.1.{field}"


_NASTY = st.text("${}steps.0txinpu:[]\"'a ", max_size=30) | st.sampled_from(
    ["${steps.0.text}", "$${steps.0.text}", "$$${steps.0.text}", "${inputs.b}", '["1", 0]', "$"]
)


@given(_NASTY, _NASTY)
def test_client_text_is_unchanged_after_resolving(a: str, b: str) -> None:
    new_template = make_template("<${inputs.prompt}${inputs.b}> $${x}", b={"type": "string"})
    graph = fill_template(new_template, {"prompt": a, "b": b})
    assert not references.has_references(graph)
    resolved_graph = references.resolve_references(graph, OUTPUTS)
    assert resolved_graph["1"]["inputs"] == {"text": f"<{a}{b}> ${{x}}", "all": a}
    assert resolved_graph["2"]["inputs"] == {"b": b}


def test_reference_object_resolves_to_typed_output() -> None:
    new_template = make_template(
        "${inputs.n}: ${inputs.prompt}!", n={"type": "integer"},
        image={"type": "string", "format": "image"},
    )  # fmt: skip
    inputs = {
        "prompt": {"from": "steps.0.text"},
        "n": {"from": "steps.0.body.n"},
        "image": {"from": "steps.0.artifacts.0"},
    }
    resolved_graph = references.resolve_references(fill_template(new_template, inputs), OUTPUTS)
    assert resolved_graph["1"]["inputs"]["text"] == "3: said!"
    assert resolved_graph["2"]["inputs"] == {"n": 3, "image": OUTPUTS[0]["artifacts"][0]}


@pytest.mark.parametrize("path", ["steps.0.body", "steps.0.artifacts.0", "steps.0.body.n"])
def test_step_output_of_another_type_is_refused(path: str) -> None:
    graph = fill_template(make_template(), {"prompt": {"from": path}})
    with pytest.raises(InvalidRequest, match="must be of type string"):
        references.resolve_references(graph, OUTPUTS)
