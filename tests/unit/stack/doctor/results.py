"""Asserts on results of the doctor's checks, and runs its fixes."""

from __future__ import annotations

from moyin.stack.doctor.checkup import mend_problems
from moyin.stack.doctor.result import CheckResult, CheckVerdict
from moyin.stack.options import Options


def expect_problem(
    result: CheckResult, verdict: CheckVerdict = CheckVerdict.FAIL
) -> tuple[str, str]:
    assert result.verdict == verdict
    return result.found, result.advice


def mend_problem(options: Options, check_name: str) -> CheckResult:
    """Run all checks and fixes up to the check ``check_name``, whose fix must run; return its result."""
    steps: list[str] = []
    result = next(
        result for result in mend_problems(options, steps.append) if result.name == check_name
    )
    assert steps[-1].startswith(f"{check_name}: ")
    return result
