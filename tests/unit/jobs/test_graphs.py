"""Tests the checks of a job's graphs before the job is accepted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from moyin.domain.artifact import Artifact
from moyin.domain.identity import Identity
from moyin.domain.job import JobSpec, Step, StepKind
from moyin.errors import InputNotFound, InvalidGraph, InvalidRequest
from moyin.jobs.graphs import GraphChecker
from moyin.render.protocol.graph import make_input_name
from moyin.store.artifacts import ArtifactStore
from moyin.store.sql import Database
from moyin.testing.fakes import PermissiveGraphGuard

ANN, BOB = Identity(owner="ann", key_id="k"), Identity(owner="bob", key_id="k")
ANNS_ARTIFACT = Artifact(
    id=f"art_{'1' * 32}", name="a.png", media_type="image/png", size=1, sha256="a" * 64
)


class FakeGuard(PermissiveGraphGuard):
    """A guard that refuses the file name ``bad`` and records its calls."""

    def __init__(self, *pools: str) -> None:
        super().__init__(*pools)
        self.calls: list[tuple[str, Mapping[str, Any], Collection[str]]] = []
        self.nodes_are_known = True

    async def check_graph(
        self, caller: Identity, pool: str, graph: Mapping[str, Any], own_names: Collection[str]
    ) -> bool:
        self.calls.append((pool, graph, own_names))
        for node_id, node in graph.items():
            for name, value in node["inputs"].items():
                if value == "bad":
                    raise InputNotFound("no", field=f"{node_id}.inputs.{name}")
        return self.nodes_are_known


class CheckerHarness:
    def __init__(self, artifacts: ArtifactStore) -> None:
        self.guard = FakeGuard("default", "big")
        self.validated_graphs: list[tuple[str, Mapping[str, Any]]] = []
        self.node_errors: dict[str, Any] = {}
        self.checks = GraphChecker(artifacts=artifacts, validator=self, guard=self.guard)

    async def validate(
        self, pool: str, graph: Mapping[str, Any], targets: Any = None, **_: Any
    ) -> Any:
        self.validated_graphs.append((pool, graph))
        return {"outputs": ["1"], "node_errors": self.node_errors} if self.node_errors else {}


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[CheckerHarness]:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    artifacts = ArtifactStore(database)
    await artifacts.add(ANNS_ARTIFACT, owner="ann")
    yield CheckerHarness(artifacts)
    await database.close()


def make_graph(image: Any, node_class: str = "Load") -> dict[str, Any]:
    return {"1": {"class_type": node_class, "inputs": {"image": image}}}


def make_render_step(payload: Mapping[str, Any], **members: Any) -> Step:
    return Step(kind=StepKind.RENDER, payload=payload, **members)


def make_spec(*steps: Step, kind: str = "render", **members: Any) -> JobSpec:
    return JobSpec(kind=kind, steps=steps, **members)


async def test_files_are_checked_under_their_names_on_the_renderer(harness: CheckerHarness) -> None:
    await harness.checks.check_new_job(
        ANN, make_spec(make_render_step(make_graph(f"artifact:{ANNS_ARTIFACT.id}")))
    )
    name = make_input_name(ANNS_ARTIFACT)
    assert harness.guard.calls == [("default", make_graph(name), {name})]
    assert harness.validated_graphs == [("default", make_graph(name))]


@pytest.mark.parametrize("missing_id", [ANNS_ARTIFACT.id, f"art_{'2' * 32}"])
async def test_an_artifact_of_another_tenant_counts_as_missing(
    harness: CheckerHarness, missing_id: str
) -> None:
    with pytest.raises(InputNotFound, match=r"node '1' .*'image': you have no file") as exc_info:
        await harness.checks.check_new_job(
            BOB, make_spec(make_render_step(make_graph(f"artifact:{missing_id}")))
        )
    assert exc_info.value.field == "workflow.1.inputs.image"
    assert exc_info.value.details["node_errors"].keys() == {"1"}
    assert missing_id not in exc_info.value.message
    assert harness.validated_graphs == []


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (make_spec(make_render_step(make_graph("bad"))), "workflow.1.inputs.image"),
        (
            make_spec(make_render_step(make_graph("good")), make_render_step(make_graph("bad")), kind="pipeline"),
            "steps.1.workflow.1.inputs.image",
        ),
        (make_spec(make_render_step(make_graph("bad"), template="t", inputs={"photo": "bad"})), "inputs.photo"),
        (make_spec(make_render_step(make_graph("bad"), template="t", inputs={"size": 5})), "template"),
        (
            make_spec(make_render_step({}), *(make_render_step({"1": {"image": f"{n}"}}) for n in range(200)),
                 make_render_step({"1": {"image": "bad"}}), base=make_graph("good")),
            "workflow.1.inputs.image",
        ),
    ],
)  # fmt: skip
async def test_an_error_names_the_field_of_the_request(
    harness: CheckerHarness, spec: JobSpec, field: str
) -> None:
    with pytest.raises(InputNotFound) as exc_info:
        await harness.checks.check_new_job(ANN, spec)
    assert exc_info.value.field == field


async def test_every_child_of_a_batch_is_checked(harness: CheckerHarness) -> None:
    children = [
        make_render_step({}),
        *(make_render_step({"1": {"image": f"{n}"}}) for n in range(99)),
    ]
    await harness.checks.check_new_job(ANN, make_spec(*children, base=make_graph("good")))
    images = [checked["1"]["inputs"]["image"] for _, checked, _ in harness.guard.calls]
    assert images == ["good", *(f"{n}" for n in range(99))]


async def test_the_known_inputs_of_a_later_step_are_checked(harness: CheckerHarness) -> None:
    later_graph: dict[str, Any] = {
        "1": {"class_type": "Load", "inputs": {"image": "bad", "text": "${steps.0.text}"}}
    }
    first_step = make_render_step(make_graph("good"))
    with pytest.raises(InputNotFound):
        await harness.checks.check_new_job(
            ANN, make_spec(first_step, make_render_step(later_graph), kind="pipeline")
        )
    later_graph["1"]["inputs"]["image"] = "good"
    await harness.checks.check_new_job(
        ANN, make_spec(first_step, make_render_step(later_graph), kind="pipeline")
    )
    assert harness.guard.calls[-1][1] == make_graph("good")
    assert len(harness.validated_graphs) == 2, "the second step is validated when it runs"


async def test_the_class_of_a_node_must_not_be_a_reference(harness: CheckerHarness) -> None:
    later_step = make_render_step(make_graph("good", node_class="${steps.0.text}"))
    with pytest.raises(InvalidRequest, match="class_type") as exc_info:
        await harness.checks.check_new_job(
            ANN, make_spec(make_render_step(make_graph("good")), later_step, kind="pipeline")
        )
    assert exc_info.value.field == "steps.1.workflow.1.class_type"


async def test_a_graph_with_unknown_node_classes_is_not_validated(harness: CheckerHarness) -> None:
    harness.guard.nodes_are_known = False
    await harness.checks.check_new_job(ANN, make_spec(make_render_step(make_graph("x"))))
    assert harness.validated_graphs == []


async def test_a_pool_that_does_not_run_the_callers_jobs_counts_as_missing(
    harness: CheckerHarness,
) -> None:
    with pytest.raises(
        InvalidRequest, match="no render pool 'gone'; available pools: default, big"
    ):
        await harness.checks.check_new_job(
            ANN, make_spec(make_render_step(make_graph("x"), pool="gone"))
        )
    harness.guard = FakeGuard("big")
    harness.checks._guard = harness.guard
    checked_spec, _ = await harness.checks.check_new_job(
        ANN, make_spec(make_render_step(make_graph("x")))
    )
    assert [step.pool for step in checked_spec.steps] == ["big"], (
        "the first allowed pool is the default"
    )


INVALID_NODE = {
    "class_type": "Loader",
    "errors": [
        {
            "type": "value_not_in_list",
            "message": "Value not in list",
            "details": "ckpt_name: 'gone' not in []",
            "extra_info": {"input_name": "ckpt_name"},
        }
    ],
    "dependent_outputs": ["9"],
}


async def test_invalid_nodes_of_an_accepted_graph_are_reported(harness: CheckerHarness) -> None:
    harness.node_errors = {"4": INVALID_NODE}
    render = make_render_step(make_graph("x"))
    _, node_errors = await harness.checks.check_new_job(ANN, make_spec(render))
    assert node_errors == {"4": INVALID_NODE}
    _, node_errors = await harness.checks.check_new_job(
        ANN, make_spec(render, render, kind="pipeline")
    )
    assert node_errors == {"steps.0.4": INVALID_NODE, "steps.1.4": INVALID_NODE}


async def test_a_strict_job_is_refused_for_an_invalid_node(harness: CheckerHarness) -> None:
    render = make_render_step(make_graph("x"))
    await harness.checks.check_new_job(ANN, make_spec(render), is_strict=True)
    harness.node_errors = {"4": INVALID_NODE}
    with pytest.raises(InvalidGraph, match=r"node '4' \(Loader\): Value not in list") as exc_info:
        await harness.checks.check_new_job(
            ANN, make_spec(render, render, kind="pipeline"), is_strict=True
        )
    assert exc_info.value.field == "steps.0.workflow"
    assert exc_info.value.details["node_errors"] == harness.node_errors
