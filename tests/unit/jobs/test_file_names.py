"""Tests that the names of uploads in new jobs are replaced by the ids of artifacts."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from moyin.domain.artifact import Artifact
from moyin.domain.job import JobSpec, apply_batch_patch
from moyin.errors import InvalidRequest
from moyin.jobs.file_names import FileNameReplacer
from moyin.jobs.protocol.request_to_domain import parse_job_body, to_job_spec
from moyin.render.templates.catalog import SHIPPED_FOLDER, read_templates
from moyin.testing.fakes import InMemoryNamedFiles

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TEMPLATES = read_templates([SHIPPED_FOLDER])


def make_artifact(digit: str) -> Artifact:
    return Artifact(
        id=f"art_{digit * 32}", name="f", media_type="image/png", size=1, sha256=digit * 64
    )


FILES = InMemoryNamedFiles(
    {
        ("ann", "cat.png"): make_artifact("1"),
        ("ann", "sub/dog.png"): make_artifact("2"),
        ("bob", "secret.png"): make_artifact("3"),
        ("ann", "${cat}.png"): make_artifact("4"),
    }
)
CAT, DOG, DOLLAR = (f"artifact:art_{digit * 32}" for digit in "124")


async def replace_file_names(body: Any, owner: str = "ann") -> JobSpec:
    names = FileNameReplacer(FILES)
    request = parse_job_body(json.dumps(body).encode())
    request = await names.replace_in_templates(owner, request, TEMPLATES.find)
    return await names.replace_in_graphs(owner, to_job_spec(request, NOW, TEMPLATES.find))


def make_load_image_graph(image: Any, **inputs: Any) -> dict[str, Any]:
    return {"1": {"class_type": "LoadImage", "inputs": {"image": image, **inputs}}}


def make_resize_job(image: str, **members: Any) -> dict[str, Any]:
    inputs = {"image": image, "width": 8, "height": 8}
    return {"kind": "render", "template": "resize", "inputs": inputs, **members}


def list_images(spec: JobSpec) -> list[Any]:
    graphs = [
        step.payload if spec.base is None else apply_batch_patch(spec.base, step.payload)
        for step in spec.steps
    ]
    return [(graph.get("1") or graph["load"])["inputs"]["image"] for graph in graphs]


@pytest.mark.parametrize(
    ("submitted_name", "stored_name"),
    [
        ("cat.png", CAT),
        ("sub/dog.png", DOG),
        (["sub/dog.png", {"a": "cat.png"}], [DOG, {"a": CAT}]),
        # In a job of several steps, `$${` is written for `${`.
        ("$${cat}.png", DOLLAR),
        ("other.png", "other.png"),
        ("secret.png", "secret.png"),
        (CAT, CAT),
        ("a photo of cat.png", "a photo of cat.png"),
        (["4", 0], ["4", 0]),
    ],
)
async def test_file_names_in_a_graph_are_replaced(submitted_name: Any, stored_name: Any) -> None:
    spec = await replace_file_names(
        {"kind": "render", "workflow": make_load_image_graph(submitted_name, seed=5)}
    )
    assert spec.steps[0].payload == make_load_image_graph(stored_name, seed=5)


async def test_file_names_in_pipelines_are_replaced() -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "cat.png"}]}
    spec = await replace_file_names(
        {
            "kind": "pipeline",
            "steps": [
                {"kind": "chat", "request": chat},
                {
                    "kind": "render",
                    "workflow": make_load_image_graph("cat.png", text="${steps.0.text}"),
                },
                make_resize_job("sub/dog.png"),
            ],
        }
    )
    assert spec.steps[0].payload == chat, "a chat has no files"
    assert spec.steps[1].payload == make_load_image_graph(CAT, text="${steps.0.text}")
    assert spec.steps[2].payload["load"]["inputs"]["image"] == DOG


async def test_file_names_in_batches_of_a_graph_are_replaced() -> None:
    job = {"kind": "render", "workflow": make_load_image_graph("cat.png", seed=5)}
    spec = await replace_file_names({**job, "batch": {"seeds": 2}})
    assert list_images(spec) == [CAT, CAT]
    names_by_field = {"workflow.1.inputs.image": ["cat.png", "sub/dog.png", "other.png"]}
    spec = await replace_file_names({**job, "batch": {"sweep": names_by_field}})
    assert list_images(spec) == [CAT, DOG, "other.png"]


async def test_file_names_in_templates_and_their_batches_are_replaced() -> None:
    assert list_images(await replace_file_names(make_resize_job("cat.png"))) == [CAT]
    inputs = [{"image": "sub/dog.png"}, {"width": 9}]
    assert list_images(
        await replace_file_names(make_resize_job("cat.png", batch={"inputs": inputs}))
    ) == [
        DOG,
        CAT,
    ]
    names_by_field = {"inputs.image": ["sub/dog.png", "cat.png"]}
    assert list_images(
        await replace_file_names(make_resize_job("cat.png", batch={"sweep": names_by_field}))
    ) == [
        DOG,
        CAT,
    ]


async def test_only_image_inputs_of_a_template_are_replaced() -> None:
    body = {"kind": "render", "template": "swatch", "inputs": {"prompt": "cat.png"}}
    spec = await replace_file_names(body)
    assert spec.steps[0].payload["caption"]["inputs"]["source"] == "cat.png"


@pytest.mark.parametrize("name", ["secret.png", "other.png"])
async def test_file_of_another_tenant_is_like_a_missing_one(name: str) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        await replace_file_names(make_resize_job(name))
    assert exc_info.value.field == "inputs.image"
    with pytest.raises(InvalidRequest) as exc_info:
        await replace_file_names(make_resize_job("cat.png", batch={"inputs": [{"image": name}]}))
    assert exc_info.value.field == "batch.inputs.0.image"
