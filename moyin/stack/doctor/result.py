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
        fixed: True if `moyin doctor --fix` has just mended it.
    """

    name: str
    verdict: CheckVerdict
    found: str
    advice: str = ""
    fix: str = ""
    fixed: bool = False


def build_ok(name: str, finding: str) -> CheckResult:
    return CheckResult(name=name, verdict=CheckVerdict.OK, found=finding)


def build_warning(name: str, finding: str, advice: str, *, fix: str = "") -> CheckResult:
    return CheckResult(name=name, verdict=CheckVerdict.WARN, found=finding, advice=advice, fix=fix)


def build_failure(name: str, finding: str, advice: str, *, fix: str = "") -> CheckResult:
    return CheckResult(name=name, verdict=CheckVerdict.FAIL, found=finding, advice=advice, fix=fix)


def build_warning_if(is_bad: bool, name: str, finding: str, advice: str) -> CheckResult:
    return build_warning(name, finding, advice) if is_bad else build_ok(name, finding)


def check_call(name: str, operation: Callable[[], object], finding: str = "") -> CheckResult:
    """Call ``operation`` and return the check's result: failed if it raises `StackError`.

    Args:
        finding: the result in words if ``operation`` succeeds; if empty, its return value is used.
    """
    try:
        result = operation()
    except StackError as error:
        problem, _, advice = error.message.partition(": ")
        return build_failure(name, problem, advice)
    return build_ok(name, finding or str(result))
