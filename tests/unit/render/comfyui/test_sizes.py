from __future__ import annotations

from pathlib import Path

from moyin.render.comfyui.sizes import ModelSizes


async def test_files_are_measured_and_others_guessed(tmp_path: Path) -> None:
    (tmp_path / "models" / "loras").mkdir(parents=True)
    (tmp_path / "models" / "loras" / "ink.safetensors").write_bytes(b"x" * 7)
    (tmp_path / "secret").write_bytes(b"x")
    sizes = ModelSizes(tmp_path / "models")
    found = await sizes.of(
        ["loras/ink.safetensors", "checkpoints/no.safetensors", "vae/../../secret"]
    )
    assert found["loras/ink.safetensors"] == 7
    assert found["checkpoints/no.safetensors"] > 10**9
    assert found["vae/../../secret"] > 1, "nothing outside of the folder is looked at"
    guessed = await ModelSizes(tmp_path / "nowhere").of(["loras/ink.safetensors"])
    assert guessed["loras/ink.safetensors"] > 7


async def test_a_path_that_is_too_long_is_guessed(tmp_path: Path) -> None:
    assert await ModelSizes(tmp_path).of(["loras/" + "x" * 5000])
