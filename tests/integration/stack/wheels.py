"""Makes wheels, from which packages are installed without a network."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path


def repack_wheel(name: str, folder: Path, *, site_packages: Path | None = None) -> None:
    """Write the wheel of an installed package to ``folder``, without the package's scripts.

    Args:
        site_packages: the folder in which the package is installed, if not one of this Python.
    """
    paths = sys.path if site_packages is None else [str(site_packages)]
    distribution = next(iter(metadata.distributions(name=name, path=paths)))
    info_folder = f"{distribution.name.replace('-', '_')}-{distribution.version}.dist-info"
    wheel_metadata = distribution.read_text("WHEEL")
    assert wheel_metadata is not None
    tag = next(
        line for line in wheel_metadata.splitlines() if line.startswith("Tag: ")
    ).removeprefix("Tag: ")
    path = folder / f"{distribution.name.replace('-', '_')}-{distribution.version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        written_paths = []
        for file in distribution.files or ():
            source_path = Path(str(distribution.locate_file(file)))
            is_of_installation = file.name in (
                "RECORD",
                "INSTALLER",
                "REQUESTED",
                "direct_url.json",
            )
            if ".." in file.parts or is_of_installation or file.suffix == ".pyc":
                continue
            # The installed folder may be spelled otherwise.
            is_info = file.parts[0].endswith(".dist-info")
            path_in_wheel = "/".join([info_folder, *file.parts[1:]]) if is_info else file.as_posix()
            wheel.write(source_path, path_in_wheel)
            written_paths.append(path_in_wheel)
        _write_record(wheel, info_folder, written_paths)


def write_wheel(folder: Path, name: str, version: str, files: Mapping[str, str]) -> None:
    """Write a wheel with these files, by their path in it."""
    normalized_name = name.replace("-", "_").lower()
    info_folder = f"{normalized_name}-{version}.dist-info"
    contents = {
        **files,
        f"{info_folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info_folder}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / f"{normalized_name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in contents.items():
            wheel.writestr(path, text)
        _write_record(wheel, info_folder, list(contents))


def _write_record(wheel: zipfile.ZipFile, info_folder: str, written_paths: Sequence[str]) -> None:
    lines = [f"{path},,\n" for path in (*written_paths, f"{info_folder}/RECORD")]
    wheel.writestr(f"{info_folder}/RECORD", "".join(lines))
