"""Checks the results of the doctor's checks, and runs its fixes."""

from __future__ import annotations

from moyin.stack.doctor.checkup import mend_problems
from moyin.stack.doctor.result import CheckResult, CheckVerdict
from moyin.stack.options import Options


def expect_problem(
    check: CheckResult, verdict: CheckVerdict = CheckVerdict.FAIL
) -> tuple[str, str]:
    assert check.verdict == verdict
    return check.found, check.advice


def mend_one(options: Options, name: str) -> CheckResult:
    """Run all checks and fixes up to the check ``name``, and return the result of this check."""
    steps: list[str] = []
    result = next(result for result in mend_problems(options, steps.append) if result.name == name)
    assert steps[-1].startswith(f"{name}: ")
    return result
