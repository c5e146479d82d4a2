"""Tests the limit on the priority of jobs, for every way to submit them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moyin.domain.account import ROLE_SCOPES, Role
from moyin.domain.identity import JOBS_WRITE, OPERATOR, TEXT, Identity
from moyin.domain.job import JobSpec, JobStatus, Step, StepKind
from moyin.domain.limits import Limit
from moyin.errors import PriorityNotAllowed
from moyin.jobs.deferred import DeferredCalls
from tests.unit.jobs.test_service import SWATCH, JobSubmitter, jobs

__all__ = ["jobs"]

MEMBER = Identity(owner="ann", key_id="k", scopes=frozenset({JOBS_WRITE, TEXT}))
CHAT: dict[str, Any] = {"kind": "chat", "request": {"model": "auto", "messages": [{"role": "user", "content": "x"}]}}  # fmt: skip
STEP = {"kind": "chat", "request": CHAT["request"]}


def make_identity_with_limits(*best_priorities: int | None) -> Identity:
    limits = (
        Limit(subject=f"key:{number}", best_priority=b) for number, b in enumerate(best_priorities)
    )
    return replace(MEMBER, limits=tuple(limits))


@pytest.mark.parametrize(
    ("identity", "best_priority"),
    [
        (MEMBER, 2),
        (replace(MEMBER, scopes=ROLE_SCOPES[Role.MEMBER]), 2),
        (replace(MEMBER, scopes=ROLE_SCOPES[Role.ADMIN]), 1),
        (replace(MEMBER, scopes=frozenset({OPERATOR})), 1),
        (replace(MEMBER, scopes=frozenset({"*"})), 1),
        (make_identity_with_limits(None), 2),
        (make_identity_with_limits(1), 1),
        (make_identity_with_limits(1, None, 4), 4),
        (replace(make_identity_with_limits(3), scopes=frozenset({"*"})), 3),
    ],
)
def test_the_strictest_limit_gives_the_best_priority(
    identity: Identity, best_priority: int
) -> None:
    assert identity.best_priority == best_priority


@pytest.mark.parametrize(
    "body",
    [
        CHAT,
        SWATCH,
        {**SWATCH, "batch": {"seeds": 2}},
        {"kind": "pipeline", "steps": [STEP, STEP]},
        {"kind": "http", "request": {"path": "/x"}},
    ],
    ids=["chat", "template", "batch", "pipeline", "http"],
)
async def test_a_better_priority_than_allowed_is_refused(
    jobs: JobSubmitter, body: dict[str, Any]
) -> None:
    jobs.caller = MEMBER
    with pytest.raises(PriorityNotAllowed, match="your best priority is 2") as exc_info:
        await jobs.submit({**body, "priority": 1})
    assert (exc_info.value.field, exc_info.value.details["best_priority"]) == ("priority", 2)
    job, _ = await jobs.submit({**body, "priority": 2})
    assert job.priority == 2


async def test_a_job_without_a_priority_gets_the_nearest_allowed_one(jobs: JobSubmitter) -> None:
    jobs.caller = make_identity_with_limits(4)
    job, _ = await jobs.submit(CHAT, key=None)
    assert job.priority == 4
    with pytest.raises(PriorityNotAllowed):
        await jobs.submit({**CHAT, "priority": 3}, key=None)
    jobs.caller = make_identity_with_limits(2)
    assert (await jobs.submit(CHAT, key=None))[0].priority == 3


async def test_a_repeated_key_returns_the_first_job_if_limits_have_changed(
    jobs: JobSubmitter,
) -> None:
    jobs.caller = make_identity_with_limits(1)
    first_job, _ = await jobs.submit({**CHAT, "priority": 1})
    jobs.caller = make_identity_with_limits(5)
    repeated_job, is_new = await jobs.submit({**CHAT, "priority": 1})
    assert (repeated_job.id, is_new) == (first_job.id, False)


async def test_a_refused_prompt_names_the_field_with_its_priority(jobs: JobSubmitter) -> None:
    spec = JobSpec(
        kind="render", steps=(Step(kind=StepKind.RENDER, payload={}, pool="default"),), priority=2
    )
    with pytest.raises(PriorityNotAllowed) as exc_info:
        await jobs.service.submit(
            make_identity_with_limits(3), spec, is_validated=True, priority_field="front"
        )
    assert exc_info.value.field == "front"


async def test_a_deferred_call_gets_a_priority_that_its_caller_may_use(jobs: JobSubmitter) -> None:
    deferred_calls = DeferredCalls(jobs.service, jobs.service._blobs)
    job, _ = await deferred_calls.submit(
        make_identity_with_limits(5),
        method="POST",
        path="/x",
        headers=(),
        body=b"",
        idempotency_key=None,
    )
    assert job.priority == 5


async def test_a_job_with_a_better_priority_than_the_callers_is_not_retried(
    jobs: JobSubmitter,
) -> None:
    jobs.caller = make_identity_with_limits(1)
    job, _ = await jobs.submit({**CHAT, "priority": 1})
    await jobs.store.finish(job.id, 1, JobStatus.CANCELLED, None)
    with pytest.raises(PriorityNotAllowed):
        await jobs.service.retry(MEMBER, job.id)
    assert (await jobs.service.retry(make_identity_with_limits(1), job.id)).priority == 1
