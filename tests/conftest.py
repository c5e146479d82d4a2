"""Fixtures of all tests: ``gateway`` is a real farm, and unit tests must not start Ray."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, settings
from temporalio.worker._workflow import _InterruptDeadlockError

from moyin.errors import StackError
from moyin.render.comfyui.install import ComfyUI, find_comfyui
from moyin.settings import Settings
from tests.sharing import FarmSharing, shares_farm
from tests.stack import RAY_NICENESS, RecordMeasurement, RunningStack, farm_env
from tests.watchdog import Watchdog

pytest_plugins = [
    "tests.integration.servers",
    "tests.integration.gateway.fixtures",
    "tests.integration.access.fixtures",
]
# Timing decides no test.
settings.register_profile("moyin", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("moyin")
_UNIT = Path(__file__).parent / "unit"
_FARM = pytest.StashKey[RunningStack]()


def pytest_configure(config: pytest.Config) -> None:
    os.environ.update(RAY_NICENESS)
    config.pluginmanager.register(FarmSharing())
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Watchdog())


@pytest.hookimpl(trylast=True)
def pytest_sessionstart() -> None:
    """Ignore what Temporal's SDK raises in a workflow that gets no processor time for two seconds.

    The SDK runs the workflow's task again. If its exception meets a callback of the garbage
    collector, Python reports it as unraisable, and pytest would blame the present test.
    """
    report_unraisable = sys.unraisablehook

    def report_unless_interrupted(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_type is not _InterruptDeadlockError:
            report_unraisable(unraisable)

    sys.unraisablehook = report_unless_interrupted


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    farm = item.config.stash.get(_FARM, None)
    if farm is not None and not farm.is_up and shares_farm(item):
        farm.run("up")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop the shared farm after the last of consecutive tests that use it."""
    farm = item.config.stash.get(_FARM, None)
    if farm is not None and farm.is_up and not (nextitem and shares_farm(nextitem)):
        farm.run("down", check=False)


@pytest.fixture(autouse=True)
def _prevent_ray_in_unit_tests(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not request.path.is_relative_to(_UNIT):
        return
    # Nobody answers there: an implicit start would try to connect and fail.
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    if "ray" in sys.modules:
        monkeypatch.setattr(sys.modules["ray"], "init", _refuse_ray_start)


@pytest.fixture
def record_measurement(record_property: Callable[[str, object], None]) -> RecordMeasurement:
    """Return a function that adds a sentence with measured figures to the summary of the run."""
    return lambda sentence: record_property("measured", sentence)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures that tests measured, and the seconds of each folder's tests and fixtures."""
    _summarise_times(terminalreporter)
    lines = [
        sentence
        for report in terminalreporter.stats.get("passed", [])
        for name, sentence in report.user_properties
        if name == "measured" and report.when == "call"
    ]
    if lines:
        terminalreporter.section("measured")
        for sentence in lines:
            terminalreporter.line(sentence)


def _summarise_times(terminalreporter: Any) -> None:
    seconds: defaultdict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                folder = "/".join(report.nodeid.split("/")[:2])
                seconds[folder] += report.duration
    # Those of unit tests are shown by pytest's own last line.
    if len(seconds) > 1:
        terminalreporter.section("seconds of tests by folder")
        for folder, folder_seconds in sorted(seconds.items(), key=lambda item: -item[1]):
            terminalreporter.line(f"{folder}: {folder_seconds:.0f}")


@pytest.fixture(scope="session")
def comfyui() -> ComfyUI:
    """Return the real ComfyUI that `make test` installs in the checkout's data folder."""
    try:
        return find_comfyui(Settings())
    except StackError as error:
        pytest.fail(
            f"{error}: run `make comfyui`, or set MOYIN_COMFYUI_HOME and MOYIN_COMFYUI_PYTHON"
        )


@pytest.fixture(scope="session")
def gateway(
    comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[RunningStack]:
    """Run a whole farm that all tests share; each test must leave it unchanged.

    If MOYIN_TESTED_DATA names the data folder of a running stack, that stack is used instead.
    """
    if data_folder := os.environ.get("MOYIN_TESTED_DATA"):
        yield RunningStack.attach(Path(data_folder))
        return
    folder = tmp_path_factory.mktemp("stack")
    # Short, so that a render can outlast it.
    with RunningStack(folder, farm_env(comfyui, folder, drain_timeout=2)).running() as stack:
        pytestconfig.stash[_FARM] = stack
        yield stack


def _refuse_ray_start(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("a unit test must not start Ray: move the test to tests/integration")
