from __future__ import annotations

from pathlib import Path

from moyin.render.comfyui.model_sizes import ModelSizes


async def test_existing_files_are_measured_and_others_guessed(tmp_path: Path) -> None:
    (tmp_path / "models" / "loras").mkdir(parents=True)
    (tmp_path / "models" / "loras" / "ink.safetensors").write_bytes(b"x" * 7)
    (tmp_path / "secret").write_bytes(b"x")
    sizes = ModelSizes(tmp_path / "models")
    measured_sizes = await sizes.measure(
        ["loras/ink.safetensors", "checkpoints/no.safetensors", "vae/../../secret"]
    )
    assert measured_sizes["loras/ink.safetensors"] == 7
    assert measured_sizes["checkpoints/no.safetensors"] > 10**9
    assert measured_sizes["vae/../../secret"] > 1, "a file outside of the folder is not measured"
    guessed_sizes = await ModelSizes(tmp_path / "nowhere").measure(["loras/ink.safetensors"])
    assert guessed_sizes["loras/ink.safetensors"] > 7


async def test_size_of_an_invalid_path_is_guessed(tmp_path: Path) -> None:
    assert await ModelSizes(tmp_path).measure(["loras/" + "x" * 5000])
