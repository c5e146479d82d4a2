"""Runs the checks of ``moyin doctor`` on the machine of this replica."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime

from deployments.gateway.cluster.bodies import CheckBody, DoctorBody
from moyin.errors import StackError
from moyin.stack.doctor.checkup import run_checks
from moyin.stack.doctor.result import CheckResult, build_failure
from moyin.stack.options import Options


async def check_machine() -> DoctorBody:
    """Run all checks, but fix nothing. They run in a thread, because they take seconds."""
    return describe_checks(await asyncio.to_thread(_run_checks))


def describe_checks(results: Iterable[CheckResult]) -> DoctorBody:
    """Return the body of ``GET /cluster/doctor`` for checks that have just run."""
    checks = [
        CheckBody(
            name=result.name,
            verdict=result.verdict,
            found=result.found,
            advice=result.advice,
            fix=result.fix,
        )
        for result in results
    ]
    return DoctorBody(checked_at=datetime.now(UTC), checks=checks)


def _run_checks() -> list[CheckResult]:
    # A replica has the environment in which Ray was started, and so the options of its stack.
    try:
        return list(run_checks(Options.read()))
    except StackError as error:
        return [
            build_failure(
                "options", error.message, "correct the environment in which Moyin was started"
            )
        ]
