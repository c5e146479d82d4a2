from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moyin.stack.entrance import check_entrance
from moyin.stack.options import Options
from moyin.stack.state import PartState, PartStatus, Phase, StackState

APPS = b'{"applications": {"gateway": {"status": "RUNNING"}}}'
Answer = tuple[int, bytes]
OK: Answer = (200, APPS)


def _check(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    door: Answer = (200, b""),
    serve: Answer = (200, APPS),
    phase: Phase = Phase.READY,
) -> StackState:
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path))
    options = Options.read()
    options.layout.prepare()
    options.layout.ray_token.write_text("token")

    def send(method: str, url: str, **options: Any) -> Answer:
        assert method == "GET" and options["timeout_seconds"] <= 3
        return door if url.endswith("/healthz") else serve

    parts = {"apps": PartState(status=PartStatus.UP, detail="6 apps")}
    return check_entrance(options, StackState(pid=1, phase=phase, parts=parts), send)


def test_a_stack_that_answers_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = _check(tmp_path, monkeypatch)
    assert (state.phase, state.parts["apps"].status) == (Phase.READY, PartStatus.UP)


@pytest.mark.parametrize(
    ("door", "serve", "reason"),
    [
        ((0, b"Connection refused"), OK, "HAProxy does not answer at http"),
        ((503, b""), OK, "has status 503"),
        ((200, b""), (0, b"timed out"), "Serve's controller does not answer"),
        ((200, b""), (503, b""), "Ray's dashboard: status 503"),
        ((200, b""), (200, b'{"applications": {}}'), "Serve has no running controller"),
        ((200, b""), (200, b"[]"), "Serve has no running controller"),
    ],
)
def test_a_part_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: Answer, serve: Answer, reason: str
) -> None:
    state = _check(tmp_path, monkeypatch, door=door, serve=serve)
    assert (state.phase, state.parts["apps"].status) == (Phase.DEGRADED, PartStatus.FAILED)
    assert reason in state.parts["apps"].detail


def test_no_answer_is_expected_before_the_stack_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = _check(tmp_path, monkeypatch, door=(0, b"refused"), phase=Phase.STARTING)
    assert (state.phase, state.parts["apps"].detail) == (Phase.STARTING, "6 apps")
