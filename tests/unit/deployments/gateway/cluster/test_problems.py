"""Tests that problems are described in words, with the time at which they began."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deployments.gateway.cluster import problems as module
from deployments.gateway.cluster.bodies import ProblemBody
from deployments.gateway.cluster.problems import ProblemFinder
from deployments.gateway.cluster.snapshot import build_cluster
from deployments.gateway.cluster.sources import ClusterReading
from moyin.domain.cluster import BackendSummary, PoolSummary, RendererState, RendererSummary
from moyin.proxy.pool import PoolMember, UpstreamPool
from moyin.proxy.route import Route, Upstream

RENDERER = RendererSummary(name="comfyui-p-0", state=RendererState.READY, node_id="n")
POOL = PoolSummary(
    name="p", waiting=0, running=0, oldest_wait=None, wait_p50=None, wait_p90=None, minimum=1,
    maximum=2, renderers=(RENDERER,),
)  # fmt: skip
HEALTHY = ClusterReading(
    nodes=[],
    pools={"p": POOL},
    backends=[BackendSummary(name="claude", is_up=True, breaker="closed")],
    checks={"database": True},
    applications={"gateway": "RUNNING"},
    disk_free=10 * 1024**3,
)


def find_problems(
    reading: ClusterReading, finder: ProblemFinder | None = None
) -> list[ProblemBody]:
    return (finder or ProblemFinder()).find(build_cluster(["p"], reading), reading, ())


def make_reading(renderer: RendererSummary = RENDERER, **values: Any) -> ClusterReading:
    pool = replace(POOL, renderers=(renderer,), **values)
    return replace(HEALTHY, pools={"p": pool})


def test_nothing_is_wrong_with_a_healthy_cluster() -> None:
    assert find_problems(HEALTHY) == []


@pytest.mark.parametrize(
    ("reading", "code", "subject"),
    [
        (replace(HEALTHY, checks={"temporal": False}), "service_down", "temporal"),
        (replace(HEALTHY, nodes=None), "ray_not_responding", "ray"),
        (replace(HEALTHY, disk_free=1024**3), "disk_nearly_full", "data"),
        (replace(HEALTHY, applications={"intake": "UNHEALTHY"}), "app_unhealthy", "intake"),
        (replace(HEALTHY, rejected_configs=["models"]), "config_rejected", "models"),
        (replace(HEALTHY, pools={}), "pool_not_responding", "p"),
        (
            replace(HEALTHY, backends=[BackendSummary(name="b", is_up=False, breaker="closed")]),
            "backend_down",
            "b",
        ),
        (
            replace(HEALTHY, backends=[BackendSummary(name="b", is_up=True, breaker="open")]),
            "backend_breaker_open",
            "b",
        ),
        (
            make_reading(replace(RENDERER, state=RendererState.PLACING)),
            "pool_without_renderer",
            "p",
        ),
        (make_reading(replace(RENDERER, losses=3)), "renderer_restarts", "comfyui-p-0"),
        (make_reading(oldest_wait=700.0, waiting=4), "long_wait", "p"),
        (
            replace(HEALTHY, template_problems=["/t/a.yaml: title: is missing", "/t/a.yaml: x"]),
            "template_invalid",
            "/t/a.yaml",
        ),
    ],
)
def test_each_problem_has_a_message_and_advice(
    reading: ClusterReading, code: str, subject: str
) -> None:
    [problem] = find_problems(reading)
    assert (problem.code, problem.subject) == (code, subject)
    assert problem.message.rstrip(".")
    assert problem.advice.endswith(".")


def test_problem_of_a_pool_names_the_error_of_its_renderer_and_its_start() -> None:
    since = time.time() - 90
    failed_renderer = replace(
        RENDERER, state=RendererState.FAILED, error="ComfyUI ended with status -9"
    )
    [problem] = find_problems(make_reading(failed_renderer, unready_since=since))
    assert "status -9" in problem.message
    assert problem.since == datetime.fromtimestamp(int(since), UTC)


def test_values_in_messages_are_parameters_too() -> None:
    """Each value in a problem's message is also a parameter, so that clients can translate it."""
    failed_renderer = replace(RENDERER, state=RendererState.FAILED, error="no memory")
    for reading, parameters in (
        (replace(HEALTHY, disk_free=1024**3), {"free_bytes": 1024**3}),
        (replace(HEALTHY, applications={"intake": "UNHEALTHY"}), {"status": "UNHEALTHY"}),
        (make_reading(failed_renderer), {"error": "no memory", "is_placing": False}),
        (make_reading(replace(RENDERER, losses=3)), {"losses": 3}),
        (replace(HEALTHY, nodes=None), {}),
        (
            replace(HEALTHY, template_problems=["/t/a.yaml: title: is missing"]),
            {"error": "title: is missing"},
        ),
    ):
        [problem] = find_problems(reading)
        assert problem.parameters == parameters
    [problem] = find_problems(make_reading(oldest_wait=700.0, waiting=4))
    assert problem.parameters["queued"] == 4
    since = datetime.fromisoformat(str(problem.parameters["waiting_since"]))
    assert f"{since:%H:%M}" in problem.message


def test_pool_that_needs_no_renderer_is_no_problem() -> None:
    idle_pool = replace(POOL, minimum=0, renderers=(), unready_since=1.0)
    assert find_problems(replace(HEALTHY, pools={"p": idle_pool})) == []
    starting_pool = replace(idle_pool, waiting=1, oldest_wait=20.0)
    assert find_problems(replace(HEALTHY, pools={"p": starting_pool})) == []
    stuck_pool = replace(idle_pool, waiting=1, oldest_wait=300.0)
    [problem] = find_problems(replace(HEALTHY, pools={"p": stuck_pool}))
    assert problem.code == "pool_without_renderer"
    assert datetime.now(UTC) - problem.since < timedelta(minutes=6)


def test_a_failed_renderer_beside_others_is_a_problem_of_its_own() -> None:
    failed_renderer = replace(
        RENDERER, name="comfyui-p-1", state=RendererState.FAILED, error="no memory"
    )
    reading = replace(HEALTHY, pools={"p": replace(POOL, renderers=(RENDERER, failed_renderer))})
    [problem] = find_problems(reading)
    assert (problem.code, problem.subject) == ("renderer_failed", "comfyui-p-1")


def test_start_of_a_problem_stays_until_it_is_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeClock(datetime):
        present = datetime(2026, 11, 28, 12, tzinfo=UTC)

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls.present

    monkeypatch.setattr(module, "datetime", FakeClock)
    finder, unhealthy_reading = ProblemFinder(), replace(HEALTHY, checks={"valkey": False})
    [first_problem] = find_problems(unhealthy_reading, finder)
    FakeClock.present += timedelta(minutes=5)
    assert find_problems(unhealthy_reading, finder)[0].since == first_problem.since
    assert find_problems(HEALTHY, finder) == []
    assert find_problems(unhealthy_reading, finder)[0].since == FakeClock.present


def test_route_without_a_healthy_upstream_is_a_problem() -> None:
    route = Route(name="assets", upstreams=(Upstream(url="http://a"),), prefix="/assets")
    members = [PoolMember(upstream) for upstream in route.upstreams]
    pool, cluster = UpstreamPool(route, members), build_cluster(["p"], HEALTHY)
    assert ProblemFinder().find(cluster, HEALTHY, [pool]) == []
    members[0].is_up = False
    [problem] = ProblemFinder().find(cluster, HEALTHY, [pool])
    assert (problem.code, problem.subject) == ("route_without_upstream", "assets")


def test_many_template_files_with_long_errors_make_a_bounded_list() -> None:
    template_problems = [f"/t/{number}.yaml: {'x' * 9_000}" for number in range(10_000)]
    found_problems = find_problems(replace(HEALTHY, template_problems=template_problems))
    assert len(found_problems) == 20
    assert max(len(problem.message) for problem in found_problems) < 600
