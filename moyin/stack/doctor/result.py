"""Defines the result of a check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from moyin.errors import StackError

# Is called with a line of text before or after each step of a fix.
OnStep = Callable[[str], None]


class CheckVerdict(StrEnum):
    """The verdict of a check; with ``fail`` the stack will not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """The result of a check.

    Attributes:
        name: name of the check, such as ``memory``.
        found: the result in words, such as ``8 GiB available``.
        advice: what to do if the verdict is not ``ok``.
        fix: what `moyin doctor --fix` does about it; empty if only a person can mend it.
        fixed: whether `moyin doctor --fix` has just mended it.
    """

    name: str
    verdict: CheckVerdict
    found: str
    advice: str = ""
    fix: str = ""
    fixed: bool = False


def ok(name: str, found: str) -> CheckResult:
    return CheckResult(name=name, verdict=CheckVerdict.OK, found=found)


def warn(name: str, found: str, advice: str, *, fix: str = "") -> CheckResult:
    return CheckResult(name=name, verdict=CheckVerdict.WARN, found=found, advice=advice, fix=fix)


def fail(name: str, found: str, advice: str, *, fix: str = "") -> CheckResult:
    return CheckResult(name=name, verdict=CheckVerdict.FAIL, found=found, advice=advice, fix=fix)


def warn_if(is_bad: bool, name: str, found: str, advice: str) -> CheckResult:
    return warn(name, found, advice) if is_bad else ok(name, found)


def check_call(name: str, work: Callable[[], object], found: str = "") -> CheckResult:
    """Call ``work`` and return the result of the check: failed if ``work`` raises `StackError`.

    Args:
        found: the result in words if ``work`` succeeds.
    """
    try:
        result = work()
    except StackError as error:
        problem, _, advice = error.message.partition(": ")
        return fail(name, problem, advice)
    return ok(name, found or str(result))
