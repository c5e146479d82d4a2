"""Builds bubblewrap's options, which confine a ComfyUI process in a sandbox.

In its mount namespace the process can read the system's programs and libraries, its interpreter,
ComfyUI, node packages and models, and can write to its output, temporary and scratch folders. Paths
inside the sandbox equal those outside, so that environment variables and flags need no translation.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moyin.errors import StackError
from moyin.render.comfyui.bubblewrap import NAMESPACES, build_user_options
from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.model_paths import find_extra_model_paths
from moyin.render.comfyui.options import ComfyOptions, Isolation, Network

_SYSTEM_FOLDERS = (
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/bin",
    "/sbin",
    "/nix/store",
    "/run/opengl-driver",
)
# Files in /etc that programs and drivers read at their start; none contains the names of users.
_ETC_NAMES = (
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "mime.types"),
    *("fonts", "OpenCL", "vulkan", "ImageMagick-6", "ImageMagick-7", "ssl/openssl.cnf"),
)
_ETC_NETWORK_NAMES = ("resolv.conf", "hosts", "ssl/certs", "ca-certificates", "pki/tls/certs")
_DEVICE_PATTERNS = ("nvidia*", "dri", "kfd", "dxg")
_TOPOLOGY_FOLDERS = ("/sys/devices/system/cpu", "/sys/devices/system/node")
# The temporary folders of programs that ignore TMPDIR.
_TEMPORARY_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
# The folders in an operator's own ComfyUI that contain personal files.
_PERSONAL_FOLDERS = ("input", "output", "temp", "user", ".git")
_MAX_FILES = 10_000
_MAX_LINK_CHAIN = 40
_PYTHON_SECONDS = 30
# The range of generated user ids. No distribution and no container assigns ids in this range.
_FIRST_UID = 1_900_000_000
_UID_COUNT = 65_536
_NOBODY_UID = 65_534
_PRINT_FOLDERS = """
import json, os, site, sys
print(json.dumps([sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, *sys.path]))
"""


@dataclass(kw_only=True)
class Mounts:
    """The mounts, device files and links of a sandbox.

    Attributes:
        read: read-only mounts, as a mapping from paths inside the sandbox to paths outside.
        write: writable mounts, as a mapping from paths inside the sandbox to paths outside.
        hide: folders that are empty in the sandbox, even those within a mounted folder.
        devices: device files.
        links: symbolic links to create, as a mapping from paths to targets.
    """

    read: dict[Path, Path] = field(default_factory=dict)
    write: dict[Path, Path] = field(default_factory=dict)
    hide: set[Path] = field(default_factory=set)
    devices: list[Path] = field(default_factory=list)
    links: dict[Path, str] = field(default_factory=dict)

    def to_options(self) -> list[str]:
        """Return bubblewrap's options, sorted so that outer folders precede inner folders."""
        options_by_path: list[tuple[Path, list[str]]] = []
        for path, target in self.links.items():
            options_by_path.append((path, ["--symlink", target, str(path)]))
        for path, source in self.read.items():
            options_by_path.append((path, ["--ro-bind", str(source), str(path)]))
        for path, source in self.write.items():
            options_by_path.append((path, ["--bind", str(source), str(path)]))
        hidden_folders = {path for path in self.hide if self._would_be_visible(path)}
        for path in hidden_folders:
            options_by_path.append((path, ["--perms", "0755", "--tmpfs", str(path)]))
        for path in self.devices:
            options_by_path.append((path, ["--dev-bind", str(path), str(path)]))
        # By default, bubblewrap would copy the permissions of folders outside, such as those of
        # /root.
        for path in self._find_parents_to_create(
            {path for path, _ in options_by_path} - {*self.links}
        ):
            options_by_path.append((path, ["--perms", "0755", "--dir", str(path)]))
        options_by_path.sort(key=lambda path_and_options: path_and_options[0].parts)
        return [
            *("--proc", "/proc", "--dev", "/dev"),
            *(option for _, path_options in options_by_path for option in path_options),
            *(option for path in sorted(hidden_folders) for option in ("--remount-ro", str(path))),
            *("--remount-ro", "/dev", "--remount-ro", "/"),
        ]

    def _find_parents_to_create(self, paths: Iterable[Path]) -> set[Path]:
        """Return the parent folders of ``paths`` that are in no mount, so they must be created."""
        mounted_paths = {*self.read, *self.write, Path("/dev"), Path("/proc")}
        parents = {parent for path in paths for parent in path.parents if parent != Path("/")}
        return {
            path
            for path in parents
            if not any(path.is_relative_to(mount) for mount in mounted_paths)
            # A hidden folder is empty, so the folders within it must be created.
            or any(
                hidden_folder in path.parents
                for hidden_folder in self.hide
                if self._would_be_visible(hidden_folder)
            )
        } - mounted_paths

    def _would_be_visible(self, path: Path) -> bool:
        return path.is_dir() and any(
            path != mounted_path and path.is_relative_to(mounted_path) for mounted_path in self.read
        )


def build_bubblewrap_options(
    options: ComfyOptions, folder: ProcessFolder, env: Mapping[str, str]
) -> list[str]:
    """Return bubblewrap's options, or raise `StackError` if a folder is missing (blocking)."""
    mps_folder = env.get("CUDA_MPS_PIPE_DIRECTORY")
    return [
        *NAMESPACES,
        *build_user_options(),
        *(("--unshare-net",) if options.network is Network.NONE else ()),
        # CUDA's Multi-Process Service communicates with its clients through shared memory.
        *(() if mps_folder else ("--unshare-ipc",)),
        *("--hostname", "comfyui", "--die-with-parent", "--new-session"),
        # The first process of the sandbox is ``sandbox_init.py``.
        "--as-pid-1",
        *_build_mounts(options, folder, env, mps_folder).to_options(),
        *("--chdir", "/"),
    ]


def choose_user_id(options: ComfyOptions, uid_map: Path = Path("/proc/self/uid_map")) -> int | None:
    """Return the user id to which a confined process changes.

    Returns None if Moyin does not run as root, or if ``isolation`` is not strict; then the process
    keeps the user of Moyin.

    Args:
        uid_map: the kernel's file of the user ids that exist in this namespace.
    """
    if options.isolation is not Isolation.STRICT or os.geteuid() != 0:
        return None
    if options.uid is not None:
        return options.uid
    uid = _FIRST_UID + zlib.crc32(str(options.folder).encode()) % _UID_COUNT
    for line in uid_map.read_text().splitlines():
        first_id, _, id_count = map(int, line.split())
        if first_id <= uid < first_id + id_count:
            return uid
    return _NOBODY_UID


def find_device_groups(paths: Iterable[Path]) -> list[int]:
    """Return the ids of the groups that a process needs to write to the device files.

    The groups of device files that every user may write to, and the group of root, are left out.

    Args:
        paths: device files, and folders of device files.
    """
    group_ids = set()
    for path in paths:
        for device in (path, *(path.iterdir() if path.is_dir() else ())):
            device_stat = device.stat()
            if (
                stat.S_ISCHR(device_stat.st_mode)
                and not device_stat.st_mode & stat.S_IWOTH
                and device_stat.st_gid
            ):
                group_ids.add(device_stat.st_gid)
    return sorted(group_ids)


def find_graphics_devices(root: Path = Path("/dev")) -> list[Path]:
    return sorted(path for pattern in _DEVICE_PATTERNS for path in root.glob(pattern))


def find_interpreter_folders(python: Path, env: Mapping[str, str]) -> list[Path]:
    """Return the folders that a Python interpreter reads, such as those of its libraries.

    Raises `StackError` if Python can't be run.
    """
    try:
        # Run with ComfyUI's environment, whose variables may change the folders.
        completed_process = subprocess.run(
            [str(python), "-c", _PRINT_FOLDERS],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=dict(env),
            cwd="/",
            timeout=_PYTHON_SECONDS,
            check=True,
        )
        folders = [Path(path) for path in json.loads(completed_process.stdout) if path]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise StackError(
            f"ComfyUI's interpreter {python} can't be run: {error}; run `moyin comfyui install`, or "
            "correct MOYIN_COMFYUI_PYTHON"
        ) from error
    return [path for path in [*folders, *_follow_links(python)] if path.exists()]


def find_shared_folders(options: ComfyOptions) -> list[Path]:
    """Return the paths of models and node packages, which all processes of a pool read (blocking).

    Raises `StackError` if a file of extra model paths can't be read.
    """
    return [options.models, *options.custom_nodes, *find_extra_model_paths(options.flags)]


def find_unreadable_file(uid: int, folders: Iterable[Path]) -> Path | None:
    """Return the first file in the folders that the user may not read, or None.

    Checks at most 10,000 files. Libraries such as safetensors write files that only their owner may
    read.
    """
    file_count = 0
    for folder in folders:
        for parent, _, files in os.walk(folder):
            for name in files:
                file_count += 1
                if file_count > _MAX_FILES:
                    return None
                with contextlib.suppress(OSError):
                    file_stat = Path(parent, name).stat()
                    if file_stat.st_uid != uid and not file_stat.st_mode & stat.S_IROTH:
                        return Path(parent, name)
    return None


def _follow_links(path: Path) -> Iterator[Path]:
    """Follow a chain of links, as uv and pyenv create it, and yield the folder of each target."""
    for _ in range(_MAX_LINK_CHAIN):
        if not path.is_symlink():
            return
        path = path.parent / path.readlink()
        yield path.parent


def _build_mounts(
    options: ComfyOptions, folder: ProcessFolder, env: Mapping[str, str], mps_folder: str | None
) -> Mounts:
    mounts = Mounts(hide={*options.hidden, folder.path})
    for name in _SYSTEM_FOLDERS:
        path = Path(name)
        if path.is_symlink():
            mounts.links[path] = str(path.readlink())
        elif path.exists():
            mounts.read[path] = path
    network_names = _ETC_NETWORK_NAMES if options.network is Network.HOST else ()
    for name in (*_ETC_NAMES, *network_names):
        path = Path("/etc") / name
        if path.exists():
            # The DNS resolver's file and the time zone's file may be links to any folder.
            mounts.read[path] = path.resolve()
    for path in folder.etc.iterdir():
        mounts.read[Path("/etc") / path.name] = path
    _mount_folders(mounts, find_interpreter_folders(options.python, env))
    library_folders = [Path(path) for path in env.get("LD_LIBRARY_PATH", "").split(":") if path]
    _mount_folders(
        mounts, [path for path in library_folders if path.is_absolute() and path.is_dir()]
    )
    shared_folders = find_shared_folders(options)
    _mount_folders(mounts, [options.home, *shared_folders, *options.readable], must_exist=True)
    mounts.read |= _find_link_targets(shared_folders, mounts)
    mounts.hide |= {options.home / name for name in _PERSONAL_FOLDERS}
    mounts.read[folder.base] = folder.base
    for path in folder.writable:
        mounts.write[path] = path
    _add_devices(mounts, options)
    if mps_folder:
        mounts.write[Path(mps_folder)] = Path(mps_folder)
        mounts.write[Path("/dev/shm")] = Path("/dev/shm")
    mounted_paths = [*mounts.read, *mounts.write]
    for name in _TEMPORARY_FOLDERS:
        path = Path(name)
        # Create no mount point within a writable mount: bubblewrap would create it outside the
        # sandbox, too.
        if not any(mounted_path.is_relative_to(path) for mounted_path in mounted_paths):
            mounts.write[path] = folder.scratch
    return mounts


def _mount_folders(mounts: Mounts, paths: Iterable[Path], *, must_exist: bool = False) -> None:
    for path in paths:
        if must_exist and not path.exists():
            raise StackError(
                f"{path} in the render pool's options does not exist: create it or correct the path"
            )
        if path in (Path("/"), Path("/etc"), *mounts.hide):
            if must_exist:
                raise StackError(
                    f"{path} in the render pool's options is too large to share with "
                    "ComfyUI: name a folder within it"
                )
            continue
        if path.is_absolute() and not _is_visible(mounts, path):
            mounts.read[path] = path


def _is_visible(mounts: Mounts, path: Path) -> bool:
    """Return whether the path is visible in the sandbox through a mount of an outer folder."""
    if any(path.is_relative_to(hidden_folder) for hidden_folder in mounts.hide):
        return path in mounts.read
    return any(path.is_relative_to(mounted_path) for mounted_path in mounts.read)


def _find_link_targets(folders: Sequence[Path], mounts: Mounts) -> dict[Path, Path]:
    """Return the targets of links in ``folders`` that lead out of the mounts.

    Such a target, for example a model on another disk, needs a mount of its own. The result maps
    each target to its path without links.
    """
    targets: dict[Path, Path] = {}
    file_count = 0
    for folder in folders:
        for parent, folder_names, files in os.walk(folder):
            for name in (*folder_names, *files):
                file_count += 1
                if file_count > _MAX_FILES:
                    return targets
                path = Path(parent, name)
                if not path.is_symlink() or not path.exists():
                    continue
                target = Path(os.path.normpath(path.parent / path.readlink()))
                is_hidden = any(
                    target.resolve().is_relative_to(hidden_folder) for hidden_folder in mounts.hide
                )
                if not is_hidden and not _is_visible(mounts, target):
                    targets[target] = target.resolve()
    return targets


def _add_devices(mounts: Mounts, options: ComfyOptions) -> None:
    mounts.devices = [] if options.cpu else find_graphics_devices()
    # Mount /sys, from which math libraries read the number of processors.
    for name in ("/sys",) if mounts.devices else _TOPOLOGY_FOLDERS:
        if Path(name).exists():
            mounts.read[Path(name)] = Path(name)
