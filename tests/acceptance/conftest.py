"""Fixtures for third-party test suites; also counts the results of these suites."""

from __future__ import annotations

import inspect
import re
from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.limits import ModelLimit, find_limit
from tests.acceptance.ollama_gateway import (
    ollama_gateway,
    ollama_relay,
    ollama_server,
    small_ollama_server,
)
from tests.acceptance.scores import (
    PAGE,
    Score,
    build_limits_table,
    build_scores_table,
    write_section,
)
from tests.acceptance.text_clients_environment import TextClients, install_text_clients
from tests.acceptance.text_gateway import SCRIPTED, TextGateway, running_text_gateway
from tests.integration.text.fixtures import llama

__all__ = ["llama", "ollama_gateway", "ollama_relay", "ollama_server", "small_ollama_server"]

_LIMIT = pytest.StashKey[ModelLimit]()
_HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def text_gateway(llama: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextGateway]:
    """Run the models app without Ray, with a real llama.cpp and the scripted model as back ends."""
    with running_text_gateway(llama, tmp_path_factory.mktemp("gateway")) as text_gateway:
        yield text_gateway


@pytest.fixture(scope="session")
def text_clients() -> TextClients:
    """Return the installed text clients, each of which has its own environment."""
    return install_text_clients()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--clients-page", action="store_true", help="write docs/clients.md anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not isinstance(item, pytest.Function) or not item.path.is_relative_to(_HERE):
            continue
        # llm-comply reads the vendors' documents with what jsonschema has deprecated.
        item.add_marker(
            pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning")
        )
        # Clients that keep connections from one test to the next need the same loop.
        if inspect.iscoroutinefunction(item.obj):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
        limit = find_limit(item.path.stem, _find_model(item), _name_test(item))
        if limit is not None:
            item.stash[_LIMIT] = limit
            # Half a second each, to show in full what nobody looks at.
            item.repr_failure = _summarise_error  # type: ignore[method-assign]
            item.add_marker(pytest.mark.xfail(reason=limit.reason, strict=limit.certain))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not isinstance(item, pytest.Function) or (suite := _find_suite(item)) is None:
        return report
    _refuse_other_failures(report, item.stash.get(_LIMIT, None), call)
    if report.when == "call" or report.outcome != "passed":
        score = Score(
            suite=suite,
            model=_find_model(item),
            outcome=_find_outcome(report),
            reason=_find_skip_reason(report),
        )
        # A dictionary, which pytest-xdist can send from one process to another.
        report.user_properties.append(("score", asdict(score)))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    scores = [
        Score(**score)
        for outcome in ("passed", "failed", "error", "skipped", "xfailed", "xpassed")
        for report in terminalreporter.stats.get(outcome, [])
        for name, score in report.user_properties
        if name == "score"
    ]
    if not scores:
        return
    terminalreporter.section("scores of the suites of others")
    lines = build_scores_table(scores)
    for line in lines:
        terminalreporter.line(line)
    if terminalreporter.config.getoption("--clients-page", default=False):
        write_section(PAGE, "scores", lines)
        write_section(PAGE, "limits", build_limits_table())


def _refuse_other_failures(
    report: pytest.TestReport, limit: ModelLimit | None, call: pytest.CallInfo[None]
) -> None:
    """Report an expected failure as a real one if its message does not match the limit's regex."""
    if limit is None or call.excinfo is None or not hasattr(report, "wasxfail"):
        return
    if re.search(limit.evidence, str(call.excinfo.value)) is None:
        report.outcome = "failed"
        report.longrepr = call.excinfo.getrepr(style="short")
        del report.wasxfail


def _summarise_error(excinfo: pytest.ExceptionInfo[BaseException]) -> str:
    return excinfo.exconly()


def _find_suite(item: pytest.Function) -> str | None:
    return getattr(item.cls, "SUITE", None) or getattr(item.module, "SUITE", None)


def _find_model(item: pytest.Function) -> str:
    callspec = getattr(item, "callspec", None)
    model_name = callspec.params.get("model") if callspec is not None else None
    if isinstance(model_name, str):
        return model_name
    default_model: str = getattr(item.cls, "MODEL", SCRIPTED)
    return default_model


def _name_test(item: pytest.Function) -> str:
    return f"{item.cls.__name__}.{item.name}" if item.cls is not None else item.name


def _find_outcome(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail") and report.outcome == "skipped":
        return "limit"
    return report.outcome


def _find_skip_reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return ""
