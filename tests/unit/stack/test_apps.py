from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from moyin.errors import StackError
from moyin.stack import apps
from moyin.stack.options import Options


class Serve:
    """Serve's REST API, as far as deploying goes: every app that it is given runs at once."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []
        self.status = 200

    def __call__(self, method: str, url: str, **more: Any) -> tuple[int, bytes]:
        if method == "PUT":
            if self.status == 200:
                self.given.append(json.loads(more["body"]))
            return self.status, b"no such thing"
        running = {app["name"]: {"status": "RUNNING"} for app in self.given[-1]["applications"]}
        return 200, json.dumps({"applications": running}).encode()

    @property
    def marks(self) -> list[str]:
        return [config["applications"][0]["args"]["mark"] for config in self.given]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("MOYIN_SERVE_CONFIG", raising=False)
    monkeypatch.setattr(apps, "token", lambda _: "token")
    serve = Serve()
    monkeypatch.setattr(apps, "call", serve)
    return serve


def _options(folder: Path, mark: str) -> Options:
    path = folder / f"{mark}.yaml"
    path.write_text(yaml.safe_dump({"applications": [{"name": "x", "args": {"mark": mark}}]}))
    options = Options.read({}, port_base=20_000, serve_config=path)
    options.layout.run.mkdir(parents=True, exist_ok=True)
    return options


async def test_what_was_deployed_last_is_deployed_again(serve: Serve, tmp_path: Path) -> None:
    started_with, later = _options(tmp_path, "a"), _options(tmp_path, "b")
    await apps.deploy(started_with, lambda _: None)
    await apps.deploy(later, lambda _: None)
    later.serve_config.write_text("half a file: [")
    await apps.redeploy(started_with, lambda _: None)
    assert serve.marks == ["a", "b", "b"]
    assert serve.given[-1]["http_options"]["port"] == 20_000
    assert apps.deployed_from(started_with) == later.serve_config


async def test_what_serve_refuses_is_not_what_was_deployed_last(
    serve: Serve, tmp_path: Path
) -> None:
    good, bad = _options(tmp_path, "good"), _options(tmp_path, "bad")
    assert apps.deployed_from(good) is None
    await apps.deploy(good, lambda _: None)
    serve.status = 400
    with pytest.raises(StackError, match=r"Serve refuses bad\.yaml: no such thing"):
        await apps.deploy(bad, lambda _: None)
    serve.status = 200
    await apps.redeploy(good, lambda _: None)
    assert serve.marks == ["good", "good"]
    assert apps.deployed_from(bad) == good.serve_config
