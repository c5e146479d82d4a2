"""Tests the commands that list, cancel and delete jobs against a gateway that records requests."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from moyin.cli import jobs, session
from moyin.cli.main import run

FILTERS = [
    "--status", "failed,cancelled", "--kind", "render", "--pool", "big", "--template", "t",
    "--metadata", "shot=a=b", "--metadata", "x=", "--after", "2026-01-01T00:00:00Z",
    "--before", "2026-02-01T00:00:00Z", "--search", "red fox",
]  # fmt: skip
WHERE = {
    "status": "failed,cancelled",
    "kind": "render",
    "pool": "big",
    "template": "t",
    "metadata": {"shot": "a=b", "x": ""},
    "created_after": "2026-01-01T00:00:00Z",
    "created_before": "2026-02-01T00:00:00Z",
    "search": "red fox",
}
JOB = {
    "id": "j1", "kind": "render", "status": "succeeded", "progress": {}, "steps": 1,
    "created_at": "2026-01-01T00:00:00Z",
}  # fmt: skip


class FakeGateway:
    """Answers requests with the bodies in `responses`, in order, and records the requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.responses: list[Any] = []

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        self.requests.append((method, path, body))
        return self.responses.pop(0)

    def open(self, method: str, path: str, body: Any) -> FakeGateway:
        self.requests.append((method, path, body))
        return self

    async def __aenter__(self) -> None: ...
    async def __aexit__(self, *_: object) -> None: ...


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    fake_gateway = FakeGateway()

    def run_with_fake_gateway(work: Callable[[Any], Any]) -> Any:
        return asyncio.run(work(fake_gateway))

    for module in (jobs, session):
        monkeypatch.setattr(module, "run_with_gateway", run_with_fake_gateway)
    yield fake_gateway
    assert not fake_gateway.responses, "not all prepared responses were requested"


def make_counts(
    matched_count: int, skipped_count: int = 0, next_cursor: str | None = None
) -> dict[str, Any]:
    done_count = matched_count - skipped_count
    return {
        "matched": matched_count,
        "done": done_count,
        "skipped": skipped_count,
        "next_cursor": next_cursor,
    }


def test_all_filters_reach_the_gateway_and_empty_pages_are_skipped(
    gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.responses = [
        {"jobs": [], "next_cursor": "c 1"},
        {"jobs": [JOB], "next_cursor": None},
    ]
    assert run(["jobs", "list", *FILTERS, "--limit", "300", "--json"]) == 0
    assert [job["id"] for job in json.loads(capsys.readouterr().out)] == ["j1"]
    first_path, second_path = (path for _, path, _ in gateway.requests)
    assert first_path == (
        "/jobs?status=failed%2Ccancelled&kind=render&pool=big&template=t"
        "&created_after=2026-01-01T00%3A00%3A00Z&created_before=2026-02-01T00%3A00%3A00Z"
        "&search=red+fox&metadata.shot=a%3Db&metadata.x=&limit=200"
    )
    assert second_path == first_path.replace("&limit=200", "&cursor=c+1&limit=200")


def test_a_list_ends_at_its_limit(gateway: FakeGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.responses = [{"jobs": [JOB, JOB], "next_cursor": "c"}]
    assert run(["jobs", "list", "--limit", "2"]) == 0
    assert capsys.readouterr().out == "j1\trender\tsucceeded\t100%\t2026-01-01T00:00:00Z\n" * 2


@pytest.mark.parametrize("action", ["cancel", "delete"])
def test_all_matching_jobs_are_changed_in_several_requests(
    gateway: FakeGateway, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    gateway.responses = [make_counts(10, next_cursor="c"), make_counts(2)]
    assert run(["jobs", action, *FILTERS, "--yes"]) == 0
    body = {"filter": WHERE, "dry_run": False}
    path = f"/jobs/{action}"
    assert gateway.requests == [("POST", path, body), ("POST", path, {**body, "cursor": "c"})]
    assert "12 of 12 jobs\n" in capsys.readouterr().out


def test_a_dry_run_changes_nothing(
    gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.responses = [{"matched": 7, "done": 0, "skipped": 0, "next_cursor": None}] * 2
    assert run(["jobs", "delete", "--search", "fox", "--dry-run"]) == 0
    assert capsys.readouterr().out == "7 jobs match\n"
    assert run(["jobs", "cancel", "--search", "fox", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["matched"] == 7
    assert all(body["dry_run"] for _, _, body in gateway.requests)


def test_skipped_jobs_exit_with_3(gateway: FakeGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.responses = [make_counts(3, skipped_count=1)] * 2
    assert run(["jobs", "delete", "--kind", "render", "-y"]) == 3
    assert capsys.readouterr().out == "deleted 2 of 3 jobs; 1 were open\n"
    assert run(["jobs", "cancel", "--kind", "render", "-y", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["skipped"] == 1


def test_nothing_is_deleted_without_a_confirmation(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.responses = [make_counts(3)]
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert run(["jobs", "delete", "--kind", "render"]) == 1
    assert [body["dry_run"] for _, _, body in gateway.requests] == [True]


def test_one_job_is_cancelled_or_deleted_by_its_id(
    gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.responses = [{"id": "j1", "status": "running"}]
    assert run(["jobs", "cancel", "j1"]) == 0
    assert run(["jobs", "delete", "a/b"]) == 0
    assert gateway.requests == [
        ("POST", "/jobs/j1/cancel", None),
        ("DELETE", "/jobs/a%2Fb", None),
    ]
    assert capsys.readouterr().out == "j1 running\na/b deleted\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["delete"],
        ["cancel", "--dry-run"],
        ["delete", "j1", "--kind", "chat"],
        ["cancel", "j1", "--dry-run"],
        ["list", "--metadata", "novalue"],
        ["list", "--metadata", "a=1", "--metadata", "a=2"],
        ["list", "--limit", "0"],
    ],
)
def test_wrong_usage_exits_with_2(gateway: FakeGateway, arguments: list[str]) -> None:
    assert run(["jobs", *arguments]) == 2
    assert gateway.requests == []
