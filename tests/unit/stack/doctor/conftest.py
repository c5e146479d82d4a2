"""Gives each test of the doctor a data folder and an app configuration of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from moyin.stack.layout import Layout

CONFIG = """
applications:
  - name: models
    import_path: deployments.models.builder:build
    deployments:
      - name: Models
        user_config:
          backends:
            - {{name: local, type: llamacpp, server: {{gguf: {gguf}}}}}
            - {{name: claude, type: anthropic}}
            - {{name: other, type: openai, api_key_env: OTHER_KEY}}
"""


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "serve_config.yaml"
    path.write_text(CONFIG.format(gguf=tmp_path / "model.gguf"))
    monkeypatch.setenv("MOYIN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MOYIN_SERVE_CONFIG", str(path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in (
        "MOYIN_API_KEY", "MOYIN_DATABASE_URL", "MOYIN_COMFYUI_HOME", "MOYIN_ANTHROPIC_API_KEY",
        "MOYIN_REDIS_URL", "MOYIN_TEMPORAL_ADDRESS", "MOYIN_URL",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    # A fix must not install anything into the environment that runs the tests.
    monkeypatch.setattr("moyin.stack.doctor.packages._find_lock_file", lambda: None)
    yield path
    Layout(tmp_path / "data").remove_runtime_files()
