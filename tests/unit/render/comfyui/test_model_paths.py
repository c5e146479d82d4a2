"""Tests how the model folders in ComfyUI's extra_model_paths.yaml are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from moyin.errors import StackError
from moyin.render.comfyui.model_paths import find_extra_model_paths

FLAG = "--extra-model-paths-config"


def write_config(folder: Path, config: str, *folders: str) -> Path:
    for name in folders:
        (folder / name).mkdir(parents=True, exist_ok=True)
    config_file = folder / "paths.yaml"
    config_file.write_text(config)
    return config_file


def test_folders_are_resolved_as_comfyui_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISK", str(tmp_path / "disk"))
    config = (
        f"a:\n  checkpoints: {tmp_path}/large\n"
        "b:\n  base_path: $DISK\n  is_default: true\n  loras: |\n    loras\n    more/../old\n"
        "c:\n  vae: beside\n"
        "d:\n"
    )
    folders = ["large", "disk/loras", "disk/old", "disk/more", "beside"]
    config_file = write_config(tmp_path, config, *folders)
    paths = find_extra_model_paths(("--fast", FLAG, str(config_file), "--lowvram"))
    assert paths == [
        config_file,
        *(tmp_path / name for name in ("large", "disk/loras", "disk/old", "beside")),
    ]


@pytest.mark.parametrize(
    "flags",
    [
        (FLAG, "{0}", "{1}", "--cpu"),
        (FLAG, "{0}", "--cpu", FLAG, "{1}"),
        (f"{FLAG}={{0}}", f"{FLAG}={{1}}"),
        ("--extra-model", "{0}", "{1}"),
    ],
)
def test_every_form_of_the_flag_is_read(tmp_path: Path, flags: tuple[str, ...]) -> None:
    files = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    for file in files:
        file.write_text("{}")
    assert find_extra_model_paths([flag.format(*files) for flag in flags]) == files


def test_missing_folders_are_left_out(tmp_path: Path) -> None:
    config_file = write_config(tmp_path, "a:\n  vae: nowhere\n  loras: loras\n", "loras")
    assert find_extra_model_paths((FLAG, str(config_file))) == [config_file, tmp_path / "loras"]
    assert find_extra_model_paths(("--cpu", "--reserve-vram", "1")) == []


@pytest.mark.parametrize("config", [None, "- a list", "a: [", "just text"])
def test_invalid_file_is_named(tmp_path: Path, config: str | None) -> None:
    config_file = tmp_path / "paths.yaml"
    if config is not None:
        config_file.write_text(config)
    with pytest.raises(StackError, match=str(config_file)):
        find_extra_model_paths((FLAG, str(config_file)))
