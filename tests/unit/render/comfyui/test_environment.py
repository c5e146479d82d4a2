"""Tests which environment variables ComfyUI receives."""

from __future__ import annotations

from pathlib import Path

import pytest

from moyin.render.comfyui.environment import build_child_environment
from moyin.render.comfyui.options import ComfyOptions, Isolation

SECRETS = {
    "ANTHROPIC_API_KEY": "sk-1",
    "MOYIN_SECRET": "s",
    "MOYIN_REDIS_URL": "redis://:password@host",
    "RAY_AUTH_TOKEN": "t",
    "AWS_SECRET_ACCESS_KEY": "a",
    "HF_TOKEN": "h",
    "NVIDIA_API_KEY": "n",
    "http_proxy": "http://user:password@proxy",
}
NEEDED = {
    "PATH": "/bin",
    "LANG": "C.UTF-8",
    "LC_ALL": "C",
    "CUDA_VISIBLE_DEVICES": "3",
    "HSA_OVERRIDE_GFX_VERSION": "10.3.0",
    "ROCR_VISIBLE_DEVICES": "0",
    "OMP_NUM_THREADS": "4",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "LD_LIBRARY_PATH": "/opt/cuda/lib64",
}
INTERPRETER = {"PYTHONPATH": "/moyin", "PYTHONHOME": "/usr", "VIRTUAL_ENV": "/moyin/.venv"}


def make_options(**changes: object) -> ComfyOptions:
    path = Path("/x")
    settings: dict[str, object] = {"home": path, "python": path, "folder": path, "models": path}
    return ComfyOptions(**(settings | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("isolation", [Isolation.STRICT, Isolation.FILES])
def test_process_gets_needed_variables_and_no_secret(isolation: Isolation) -> None:
    environ = {**SECRETS, **NEEDED, **INTERPRETER, "HOME": "/users/ada", "EDITOR": "vi"}
    env = build_child_environment(
        environ, make_options(isolation=isolation, share=0.5), Path("/scratch")
    )
    assert env == {
        **NEEDED,
        "HOME": "/scratch",
        "TMPDIR": "/scratch",
        "USER": "comfyui",
        "LOGNAME": "comfyui",
        "MOYIN_GPU_SHARE": "0.5",
        "PYTHONUNBUFFERED": "1",
    }


def test_process_gets_variables_that_the_pool_names() -> None:
    comfy_options = make_options(environment=("HF_TOKEN", "NOT_THERE"))
    env = build_child_environment(SECRETS, comfy_options, Path("/scratch"))
    assert env["HF_TOKEN"] == "h"
    assert not {*SECRETS, "NOT_THERE"} - {"HF_TOKEN"} & env.keys()


def test_process_without_isolation_gets_all_but_the_interpreters_variables() -> None:
    environ = {**SECRETS, **INTERPRETER, "HOME": "/users/ada"}
    env = build_child_environment(environ, make_options(isolation=Isolation.OFF), Path("/scratch"))
    assert SECRETS.items() <= env.items()
    assert env["HOME"] == "/users/ada"
    assert not INTERPRETER.keys() & env.keys()
