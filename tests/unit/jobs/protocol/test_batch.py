from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from moyin.domain.job import JobSpec, apply_batch_patch
from moyin.errors import InvalidRequest
from moyin.jobs.protocol.request_to_domain import compute_fingerprint, parse_job
from moyin.render.templates.catalog import SHIPPED_FOLDER, read_templates

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SHELF = read_templates([SHIPPED_FOLDER])
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 7, "cfg": 4.5, "model": ["4", 0]}},
    "4": {"class_type": "Loader", "inputs": {"name": "m"}},
}


def parse_batch(batch: Any, **job: Any) -> JobSpec:
    job = job or {"workflow": GRAPH}
    body = {"kind": "render", **job, "batch": batch}
    return parse_job(json.dumps(body).encode(), NOW, SHELF.find)


def build_graphs(spec: JobSpec) -> list[dict[str, Any]]:
    assert spec.base is not None
    return [apply_batch_patch(spec.base, step.payload) for step in spec.steps]


def make_template_job(**inputs: Any) -> dict[str, Any]:
    return {"template": "swatch", "inputs": {"prompt": "x", **inputs}}


def test_seeds_count_up_from_the_seed_of_the_job() -> None:
    spec = parse_batch({"seeds": 3})
    assert [graph["3"]["inputs"]["seed"] for graph in build_graphs(spec)] == [7, 8, 9]
    assert [step.payload for step in spec.steps] == [{}, {"3": {"seed": 8}}, {"3": {"seed": 9}}]
    spec = parse_batch({"seeds": 2}, **make_template_job(seed=5))
    assert [graph["colour"]["inputs"]["color"] for graph in build_graphs(spec)] == [5, 6]
    assert [step.inputs for step in spec.steps] == [{"seed": 5}, {"seed": 6}]
    assert {step.outputs for step in spec.steps} == {("save",)}


def test_a_list_of_seeds_is_used_unchanged() -> None:
    assert [g["3"]["inputs"]["seed"] for g in build_graphs(parse_batch({"seeds": [9, 1]}))] == [
        9,
        1,
    ]


def test_a_sweep_has_every_combination_in_order() -> None:
    spec = parse_batch(
        {"sweep": {"workflow.3.inputs.cfg": [1, 2], "workflow.4.inputs.name": ["a", "b"]}}
    )
    children = [(g["3"]["inputs"]["cfg"], g["4"]["inputs"]["name"]) for g in build_graphs(spec)]
    assert children == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert spec.steps[1].inputs == {"workflow.3.inputs.cfg": 1, "workflow.4.inputs.name": "b"}
    spec = parse_batch({"sweep": {"inputs.width": [8, 16]}}, **make_template_job())
    assert [graph["colour"]["inputs"]["width"] for graph in build_graphs(spec)] == [8, 16]


def test_each_child_has_its_own_inputs() -> None:
    batch = {"inputs": [{"prompt": "a"}, {"prompt": "b ${steps.0.text}", "width": 8}]}
    spec = parse_batch(batch, template="swatch", inputs={"height": 8})
    children = build_graphs(spec)
    assert children[0]["caption"]["inputs"]["source"] == "a"
    assert children[1]["caption"]["inputs"]["source"] == "b $${steps.0.text}"
    assert children[1]["colour"]["inputs"]["height"] == 8
    assert spec.steps[1].inputs == batch["inputs"][1]


def test_a_large_batch_is_stored_as_one_graph_and_small_patches() -> None:
    spec = parse_batch({"seeds": 256})
    assert len(spec.steps) == 256
    assert max(len(json.dumps(step.payload)) for step in spec.steps) < 40
    assert compute_fingerprint(spec) == compute_fingerprint(parse_batch({"seeds": 256}))


@pytest.mark.parametrize(
    ("batch", "job", "field"),
    [
        ({}, {}, "batch"),
        ({"seeds": 2, "sweep": {}}, {}, "batch"),
        ({"seeds": 0}, {}, "batch.seeds"),
        ({"seeds": 257}, {}, "batch.seeds"),
        ({"seeds": []}, {}, "batch.seeds"),
        ({"seeds": list(range(257))}, {}, "batch.seeds"),
        ({"seeds": 2}, {"workflow": {"4": GRAPH["4"]}}, "batch.seeds"),
        ({"seeds": 2}, {"template": "resize", "inputs": {}}, "batch.seeds"),
        ({"seeds": 3}, make_template_job(seed=0xFFFFFE), "batch.seeds"),
        ({"inputs": [{}]}, {}, "batch.inputs"),
        ({"inputs": []}, make_template_job(), "batch.inputs"),
        ({"inputs": [{}, {"width": 1}]}, make_template_job(), "batch.inputs.1.width"),
        ({"inputs": [{"nothing": 1}]}, make_template_job(), "batch.inputs.0.nothing"),
        ({"inputs": [{"width": 8}]}, make_template_job(height=1), "inputs.height"),
        ({"inputs": [{"prompt": {"from": "steps.0.text"}}]}, make_template_job(), "steps.0"),
        ({"sweep": {}}, {}, "batch.sweep"),
        ({"sweep": {"workflow.3.inputs.cfg": []}}, {}, "batch.sweep"),
        ({"sweep": {"workflow.3.inputs.model": ["a"]}}, {}, "batch.sweep.workflow.3.inputs.model"),
        ({"sweep": {"3.cfg": [1]}}, {}, "batch.sweep.3.cfg"),
        ({"sweep": {"workflow.3.inputs.cfg": ["${steps.0.text}"]}}, {}, "steps.0"),
        ({"sweep": {"inputs.nothing": [1]}}, make_template_job(), "batch.sweep.inputs.nothing"),
        ({"sweep": {"inputs.width": [8, "a"]}}, make_template_job(), "batch.sweep.inputs.width"),
        ({"sweep": {"inputs.width": list(range(8, 25)), "inputs.height": list(range(8, 25))}},
         make_template_job(), "batch.sweep"),
    ],
)  # fmt: skip
def test_an_invalid_batch_names_its_field(
    batch: dict[str, Any], job: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        parse_batch(batch, **job)
    assert exc_info.value.field == field, exc_info.value.message
