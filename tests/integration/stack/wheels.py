"""Makes wheels, from which packages are installed without a network."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path


def repack(name: str, folder: Path, *, packages: Path | None = None) -> None:
    """Make the wheel anew from which a package was installed, in ``folder``.

    Its scripts are left out.

    Args:
        packages: the folder in which the package is installed, if not one of this Python.
    """
    paths = sys.path if packages is None else [str(packages)]
    distribution = next(iter(metadata.distributions(name=name, path=paths)))
    info = f"{distribution.name.replace('-', '_')}-{distribution.version}.dist-info"
    text = distribution.read_text("WHEEL")
    assert text is not None
    tag = next(line for line in text.splitlines() if line.startswith("Tag: ")).removeprefix("Tag: ")
    path = folder / f"{distribution.name.replace('-', '_')}-{distribution.version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        names = []
        for file in distribution.files or ():
            source = Path(str(distribution.locate_file(file)))
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
            target = "/".join([info, *file.parts[1:]]) if is_info else file.as_posix()
            wheel.write(source, target)
            names.append(target)
        _write_record(wheel, info, names)


def write_wheel(folder: Path, name: str, version: str, files: Mapping[str, str]) -> None:
    """Write a wheel with these files, by their path in it."""
    spelling = name.replace("-", "_").lower()
    info = f"{spelling}-{version}.dist-info"
    contents = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / f"{spelling}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in contents.items():
            wheel.writestr(path, text)
        _write_record(wheel, info, list(contents))


def _write_record(wheel: zipfile.ZipFile, info: str, names: Sequence[str]) -> None:
    lines = [f"{name},,\n" for name in (*names, f"{info}/RECORD")]
    wheel.writestr(f"{info}/RECORD", "".join(lines))
