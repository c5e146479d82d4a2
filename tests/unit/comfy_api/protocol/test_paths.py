from __future__ import annotations

import pytest

from moyin.comfy_api.protocol.paths import is_comfyui_path, is_page_file, to_server_path


@pytest.mark.parametrize(
    ("path", "served_path"),
    [
        ("/comfy/api/prompt", "/api/prompt"),
        ("/comfy/api/userdata/a%2Fb", "/api/userdata/a%2Fb"),
        ("/comfy/ws", "/ws"),
        ("/comfy/internal/logs", "/internal/logs"),
        ("/comfy/extensions/pack/x.js", "/extensions/pack/x.js"),
        ("/comfy/extensions/core/x.js", None),
        ("/comfy/", None),
        ("/comfy", None),
        ("/comfy/api", None),
        ("/comfy/assets/api/x.js", None),
        ("/comfyx/api/prompt", None),
        ("/api/prompt", None),
    ],
)
def test_api_paths_below_the_page_are_translated(path: str, served_path: str | None) -> None:
    assert to_server_path(path) == served_path
    assert is_page_file(path) == (served_path is None and f"{path}/".startswith("/comfy/"))


@pytest.mark.parametrize(
    ("path", "is_comfy_path"),
    [
        ("/prompt", True),
        ("/api/prompt", True),
        ("/comfy/api/prompt", True),
        ("/view", True),
        ("/ws", True),
        ("/comfy/ws", True),
        ("/history/x", True),
        ("/api/jobs", True),
        ("/api/jobs/x/cancel", True),
        ("/jobs", False),
        ("/jobs/x/events", False),
        ("/api/chat", False),
        ("/comfy/api/chat", False),
        ("/comfy/", False),
        ("/v1/models", False),
        ("/", False),
    ],
)
def test_comfyuis_paths_are_recognized(path: str, is_comfy_path: bool) -> None:
    assert is_comfyui_path(path) is is_comfy_path
