"""Who may use which class of jobs: a limit like the others, wherever jobs come from."""

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
from tests.unit.jobs.test_service import SWATCH, Door, door

__all__ = ["door"]

MEMBER = Identity(owner="ann", key_id="k", scopes=frozenset({JOBS_WRITE, TEXT}))
CHAT: dict[str, Any] = {"kind": "chat", "request": {"model": "auto", "messages": [{"role": "user", "content": "x"}]}}  # fmt: skip
STEP = {"kind": "chat", "request": CHAT["request"]}


def limited(*best: int | None) -> Identity:
    limits = (Limit(subject=f"key:{number}", best_priority=b) for number, b in enumerate(best))
    return replace(MEMBER, limits=tuple(limits))


@pytest.mark.parametrize(
    ("who", "best"),
    [
        (MEMBER, 2),
        (replace(MEMBER, scopes=ROLE_SCOPES[Role.MEMBER]), 2),
        (replace(MEMBER, scopes=ROLE_SCOPES[Role.ADMIN]), 1),
        (replace(MEMBER, scopes=frozenset({OPERATOR})), 1),
        (replace(MEMBER, scopes=frozenset({"*"})), 1),
        (limited(None), 2),
        (limited(1), 1),
        (limited(1, None, 4), 4),
        (replace(limited(3), scopes=frozenset({"*"})), 3),
    ],
)
def test_the_strictest_limit_says_the_best_class(who: Identity, best: int) -> None:
    assert who.best_priority == best


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
async def test_a_better_class_than_allowed_is_refused_by_name(
    door: Door, body: dict[str, Any]
) -> None:
    door.who = MEMBER
    with pytest.raises(PriorityNotAllowed, match="class 2 is the best") as caught:
        await door.ask({**body, "priority": 1})
    assert (caught.value.field, caught.value.details["best_priority"]) == ("priority", 2)
    job, _ = await door.ask({**body, "priority": 2})
    assert job.priority == 2


async def test_who_names_no_class_gets_the_nearest(door: Door) -> None:
    door.who = limited(4)
    job, _ = await door.ask(CHAT, key=None)
    assert job.priority == 4
    with pytest.raises(PriorityNotAllowed):
        await door.ask({**CHAT, "priority": 3}, key=None)
    door.who = limited(2)
    assert (await door.ask(CHAT, key=None))[0].priority == 3


async def test_a_repeat_is_the_first_job_whatever_its_class_is_worth_now(door: Door) -> None:
    door.who = limited(1)
    first, _ = await door.ask({**CHAT, "priority": 1})
    door.who = limited(5)
    again, created = await door.ask({**CHAT, "priority": 1})
    assert (again.id, created) == (first.id, False)


async def test_a_prompt_at_the_front_names_what_put_it_there(door: Door) -> None:
    spec = JobSpec(
        kind="render", steps=(Step(kind=StepKind.RENDER, payload={}, pool="default"),), priority=2
    )
    with pytest.raises(PriorityNotAllowed) as caught:
        await door.service.submit(limited(3), spec, validated=True, priority_field="front")
    assert caught.value.field == "front"


async def test_a_deferred_call_is_of_a_class_that_its_caller_may_use(door: Door) -> None:
    calls = DeferredCalls(door.service, door.service._blobs)
    job, _ = await calls.submit(
        limited(5), method="POST", path="/x", headers=(), body=b"", idempotency_key=None
    )
    assert job.priority == 5


async def test_another_s_job_of_a_better_class_is_not_retried(door: Door) -> None:
    door.who = limited(1)
    job, _ = await door.ask({**CHAT, "priority": 1})
    await door.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)
    with pytest.raises(PriorityNotAllowed):
        await door.service.retry(MEMBER, job.id)
    assert (await door.service.retry(limited(1), job.id)).priority == 1
