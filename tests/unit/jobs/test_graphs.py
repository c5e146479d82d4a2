"""Tests the checks of a job's graphs before the job is accepted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from moyin.domain.artifact import Artifact
from moyin.domain.identity import Identity
from moyin.domain.job import JobSpec, Step, StepKind
from moyin.errors import InputNotFound, InvalidRequest
from moyin.jobs.graphs import GraphChecker
from moyin.render.protocol.graph import make_input_name
from moyin.store.artifacts import ArtifactStore
from moyin.store.sql import Database
from moyin.testing.fakes import PermissiveGraphGuard

ANN, BOB = Identity(owner="ann", key_id="k"), Identity(owner="bob", key_id="k")
MINE = Artifact(id=f"art_{'1' * 32}", name="a.png", media_type="image/png", size=1, sha256="a" * 64)


class Guard(PermissiveGraphGuard):
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


class Bench:
    def __init__(self, artifacts: ArtifactStore) -> None:
        self.guard = Guard("default", "big")
        self.validated: list[tuple[str, Mapping[str, Any]]] = []
        self.checks = GraphChecker(
            artifacts=artifacts, validator=self, guard=self.guard, pools=["default", "big", "gone"]
        )

    async def validate(self, pool: str, graph: Mapping[str, Any], targets: Any = None) -> Any:
        self.validated.append((pool, graph))
        return {}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    artifacts = ArtifactStore(database)
    await artifacts.add(MINE, owner="ann")
    yield Bench(artifacts)
    await database.close()


def graph(image: Any, kind: str = "Load") -> dict[str, Any]:
    return {"1": {"class_type": kind, "inputs": {"image": image}}}


def render(payload: Mapping[str, Any], **members: Any) -> Step:
    return Step(kind=StepKind.RENDER, payload=payload, **members)


def spec(*steps: Step, kind: str = "render", **members: Any) -> JobSpec:
    return JobSpec(kind=kind, steps=steps, **members)


async def test_files_are_checked_under_their_names_on_the_renderer(bench: Bench) -> None:
    await bench.checks.check_new_job(ANN, spec(render(graph(f"artifact:{MINE.id}"))))
    name = make_input_name(MINE)
    assert bench.guard.calls == [("default", graph(name), {name})]
    assert bench.validated == [("default", graph(name))]


@pytest.mark.parametrize("missing", [MINE.id, f"art_{'2' * 32}"])
async def test_an_artifact_of_another_tenant_counts_as_missing(bench: Bench, missing: str) -> None:
    with pytest.raises(InputNotFound, match=r"node '1' .*'image': you have no file") as exc_info:
        await bench.checks.check_new_job(BOB, spec(render(graph(f"artifact:{missing}"))))
    assert exc_info.value.field == "workflow.1.inputs.image"
    assert exc_info.value.details["node_errors"].keys() == {"1"}
    assert missing not in exc_info.value.message
    assert bench.validated == []


@pytest.mark.parametrize(
    ("job", "field"),
    [
        (spec(render(graph("bad"))), "workflow.1.inputs.image"),
        (
            spec(render(graph("good")), render(graph("bad")), kind="pipeline"),
            "steps.1.workflow.1.inputs.image",
        ),
        (spec(render(graph("bad"), template="t", inputs={"photo": "bad"})), "inputs.photo"),
        (spec(render(graph("bad"), template="t", inputs={"size": 5})), "template"),
        (
            spec(render({}), *(render({"1": {"image": f"{n}"}}) for n in range(200)),
                 render({"1": {"image": "bad"}}), base=graph("good")),
            "workflow.1.inputs.image",
        ),
    ],
)  # fmt: skip
async def test_an_error_names_the_field_of_the_request(
    bench: Bench, job: JobSpec, field: str
) -> None:
    with pytest.raises(InputNotFound) as exc_info:
        await bench.checks.check_new_job(ANN, job)
    assert exc_info.value.field == field


async def test_every_child_of_a_batch_is_checked(bench: Bench) -> None:
    children = [render({}), *(render({"1": {"image": f"{n}"}}) for n in range(99))]
    await bench.checks.check_new_job(ANN, spec(*children, base=graph("good")))
    images = [graph["1"]["inputs"]["image"] for _, graph, _ in bench.guard.calls]
    assert images == ["good", *(f"{n}" for n in range(99))]


async def test_the_known_inputs_of_a_later_step_are_checked(bench: Bench) -> None:
    later_graph: dict[str, Any] = {
        "1": {"class_type": "Load", "inputs": {"image": "bad", "text": "${steps.0.text}"}}
    }
    first_step = render(graph("good"))
    with pytest.raises(InputNotFound):
        await bench.checks.check_new_job(
            ANN, spec(first_step, render(later_graph), kind="pipeline")
        )
    later_graph["1"]["inputs"]["image"] = "good"
    await bench.checks.check_new_job(ANN, spec(first_step, render(later_graph), kind="pipeline"))
    assert bench.guard.calls[-1][1] == graph("good")
    assert len(bench.validated) == 2, "the second step is validated when it runs"


async def test_the_class_of_a_node_must_not_be_a_reference(bench: Bench) -> None:
    later_step = render(graph("good", kind="${steps.0.text}"))
    with pytest.raises(InvalidRequest, match="class_type") as exc_info:
        await bench.checks.check_new_job(
            ANN, spec(render(graph("good")), later_step, kind="pipeline")
        )
    assert exc_info.value.field == "steps.1.workflow.1.class_type"


async def test_a_graph_with_unknown_node_classes_is_not_validated(bench: Bench) -> None:
    bench.guard.nodes_are_known = False
    await bench.checks.check_new_job(ANN, spec(render(graph("x"))))
    assert bench.validated == []


async def test_a_pool_that_does_not_run_the_callers_jobs_counts_as_missing(bench: Bench) -> None:
    with pytest.raises(
        InvalidRequest, match="no render pool 'gone'; available pools: default, big"
    ):
        await bench.checks.check_new_job(ANN, spec(render(graph("x"), pool="gone")))
    bench.guard = Guard("big")
    bench.checks._guard = bench.guard
    check_result = await bench.checks.check_new_job(ANN, spec(render(graph("x"))))
    assert [step.pool for step in check_result.steps] == ["big"], (
        "the first allowed pool is the default"
    )
