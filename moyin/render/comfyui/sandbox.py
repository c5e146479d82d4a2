"""The command line by which bubblewrap confines one ComfyUI process.

The process sees a file system of its own: the system's programs and libraries, its interpreter,
ComfyUI, node packages and models to read; its output, temporary and scratch folders to write. All
of it lies at the same paths as outside, so that environments and flags mean the same.
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
from moyin.render.comfyui.bubblewrap import NAMESPACES, user_options
from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.model_paths import extra_model_paths
from moyin.render.comfyui.options import ComfyOptions, Isolation, Network

__all__ = [
    "Mounts",
    "bubblewrap_options",
    "closed_to",
    "device_groups",
    "interpreter_folders",
    "shared_folders",
    "user_of",
]

_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/run/opengl-driver")
# What programs and drivers read at their start, and nothing about this machine's people.
_ETC = (
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "mime.types"),
    *("fonts", "OpenCL", "vulkan", "ImageMagick-6", "ImageMagick-7", "ssl/openssl.cnf"),
)
_ETC_ONLINE = ("resolv.conf", "hosts", "ssl/certs", "ca-certificates", "pki/tls/certs")
_DEVICES = ("nvidia*", "dri", "kfd", "dxg")
_TOPOLOGY = ("/sys/devices/system/cpu", "/sys/devices/system/node")
# Where programs write that know nothing of TMPDIR.
_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")
# Of somebody's own ComfyUI: what it made for him.
_PERSONAL = ("input", "output", "temp", "user", ".git")
_MOST_LINKS = 10_000
_ASK_SECONDS = 30
# No distribution and no container gives these numbers to anybody.
_FIRST_UID = 1_900_000_000
_UIDS = 65_536
_NOBODY = 65_534
_ASK = """
import json, os, site, sys
print(json.dumps([sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, *sys.path]))
"""


@dataclass(kw_only=True)
class Mounts:
    """What lies where: paths outside by path inside."""

    read: dict[Path, Path] = field(default_factory=dict)
    write: dict[Path, Path] = field(default_factory=dict)
    hide: set[Path] = field(default_factory=set)
    devices: list[Path] = field(default_factory=list)
    links: dict[Path, str] = field(default_factory=dict)

    def options(self) -> list[str]:
        """Bubblewrap's options, outer folders before what lies in them."""
        lines: list[tuple[Path, list[str]]] = []
        for path, target in self.links.items():
            lines.append((path, ["--symlink", target, str(path)]))
        for path, source in self.read.items():
            lines.append((path, ["--ro-bind", str(source), str(path)]))
        for path, source in self.write.items():
            lines.append((path, ["--bind", str(source), str(path)]))
        hidden = {path for path in self.hide if self._would_be_seen(path)}
        for path in hidden:
            lines.append((path, ["--perms", "0755", "--tmpfs", str(path)]))
        for path in self.devices:
            lines.append((path, ["--dev-bind", str(path), str(path)]))
        # Else bubblewrap makes these as closed as their likes outside, such as root's home.
        for path in self._outer({line[0] for line in lines} - {*self.links}):
            lines.append((path, ["--perms", "0755", "--dir", str(path)]))
        lines.sort(key=lambda line: line[0].parts)
        return [
            *("--proc", "/proc", "--dev", "/dev"),
            *(word for _, words in lines for word in words),
            *(word for path in sorted(hidden) for word in ("--remount-ro", str(path))),
            *("--remount-ro", "/dev", "--remount-ro", "/"),
        ]

    def _outer(self, paths: Iterable[Path]) -> set[Path]:
        """Folders around these that come from nowhere else."""
        there = {*self.read, *self.write, Path("/dev"), Path("/proc")}
        around = {parent for path in paths for parent in path.parents if parent != Path("/")}
        return {
            path
            for path in around
            if not any(path.is_relative_to(one) for one in there)
            # A folder that hides what lies in it is empty.
            or any(one in path.parents for one in self.hide if self._would_be_seen(one))
        } - there

    def _would_be_seen(self, path: Path) -> bool:
        return path.is_dir() and any(
            path != shown and path.is_relative_to(shown) for shown in self.read
        )


def bubblewrap_options(
    options: ComfyOptions, folder: ProcessFolder, env: Mapping[str, str]
) -> list[str]:
    """Return what confines the process, without the program and the command; blocks.

    Raises:
        StackError: a folder that it has to read is not there, or would show what is hidden.
    """
    sharing = env.get("CUDA_MPS_PIPE_DIRECTORY")
    return [
        *NAMESPACES,
        *user_options(),
        *(("--unshare-net",) if options.network is Network.NONE else ()),
        # CUDA's service for shared cards speaks with its clients through shared memory.
        *(() if sharing else ("--unshare-ipc",)),
        *("--hostname", "comfyui", "--die-with-parent", "--new-session"),
        *_mounts(options, folder, env, sharing).options(),
        *("--chdir", "/"),
    ]


def user_of(options: ComfyOptions, uid_map: Path = Path("/proc/self/uid_map")) -> int | None:
    """Return the user that a confined process becomes; None: it stays who this process is."""
    if options.isolation is not Isolation.STRICT or os.geteuid() != 0:
        return None
    if options.uid is not None:
        return options.uid
    uid = _FIRST_UID + zlib.crc32(str(options.folder).encode()) % _UIDS
    for line in uid_map.read_text().splitlines():
        first, _, count = map(int, line.split())
        if first <= uid < first + count:
            return uid
    return _NOBODY


def device_groups(paths: Iterable[Path]) -> list[int]:
    """Return the groups that may use these devices, where not everybody may."""
    groups = set()
    for path in paths:
        for place in (path, *(path.iterdir() if path.is_dir() else ())):
            found = place.stat()
            if stat.S_ISCHR(found.st_mode) and not found.st_mode & stat.S_IWOTH and found.st_gid:
                groups.add(found.st_gid)
    return sorted(groups)


def graphics_devices(root: Path = Path("/dev")) -> list[Path]:
    """Return the device files of graphics cards."""
    return sorted(path for pattern in _DEVICES for path in root.glob(pattern))


def interpreter_folders(python: Path, env: Mapping[str, str]) -> list[Path]:
    """Return what an interpreter reads: its own folders, those of its packages, and the links to it.

    Raises:
        StackError: it can't be run.
    """
    try:
        # Not isolated from the environment: ComfyUI won't be either.
        asked = subprocess.run(
            [str(python), "-c", _ASK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=dict(env),
            cwd="/",
            timeout=_ASK_SECONDS,
            check=True,
        )
        found = [Path(path) for path in json.loads(asked.stdout) if path]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise StackError(f"ComfyUI's interpreter {python} can't be run: {error}") from error
    return [path for path in [*found, *_link_chain(python)] if path.exists()]


def shared_folders(options: ComfyOptions) -> list[Path]:
    """Return what all processes of a pool read: models and node packages, wherever they are named;
    blocks.

    Raises:
        StackError: a file in which folders of models are named can't be read.
    """
    return [options.models, *options.custom_nodes, *extra_model_paths(options.flags)]


def closed_to(user: int, folders: Iterable[Path]) -> Path | None:
    """Return a file in these that the user may not read; None: as far as looked, there is none.

    Libraries such as safetensors write files that are their owner's alone.
    """
    seen = 0
    for folder in folders:
        for place, _, files in os.walk(folder):
            for name in files:
                seen += 1
                if seen > _MOST_LINKS:
                    return None
                with contextlib.suppress(OSError):
                    found = Path(place, name).stat()
                    if found.st_uid != user and not found.st_mode & stat.S_IROTH:
                        return Path(place, name)
    return None


def _link_chain(path: Path) -> Iterator[Path]:
    """The folders of the files through which a link leads, such as uv's and pyenv's."""
    for _ in range(40):
        if not path.is_symlink():
            return
        path = path.parent / path.readlink()
        yield path.parent


def _mounts(
    options: ComfyOptions, folder: ProcessFolder, env: Mapping[str, str], sharing: str | None
) -> Mounts:
    mounts = Mounts(hide={*options.hidden, folder.path})
    for name in _SYSTEM:
        path = Path(name)
        if path.is_symlink():
            mounts.links[path] = str(path.readlink())
        elif path.exists():
            mounts.read[path] = path
    online = _ETC_ONLINE if options.network is Network.HOST else ()
    for name in (*_ETC, *online):
        path = Path("/etc") / name
        if path.exists():
            # The link of a resolver or a time zone may lead anywhere.
            mounts.read[path] = path.resolve()
    for path in folder.etc.iterdir():
        mounts.read[Path("/etc") / path.name] = path
    _show(mounts, interpreter_folders(options.python, env))
    libraries = [Path(path) for path in env.get("LD_LIBRARY_PATH", "").split(":") if path]
    _show(mounts, [path for path in libraries if path.is_absolute() and path.is_dir()])
    shared = shared_folders(options)
    _show(mounts, [options.home, *shared, *options.readable], required=True)
    mounts.read |= _linked_from(shared, mounts)
    mounts.hide |= {options.home / name for name in _PERSONAL}
    mounts.read[folder.base] = folder.base
    for path in folder.writable:
        mounts.write[path] = path
    _add_devices(mounts, options)
    if sharing:
        mounts.write[Path(sharing)] = Path(sharing)
        mounts.write[Path("/dev/shm")] = Path("/dev/shm")
    taken = [*mounts.read, *mounts.write]
    for name in _TEMPORARY:
        path = Path(name)
        # Nothing can be put into a folder that is a place to write: it would be put there outside.
        if not any(other.is_relative_to(path) for other in taken):
            mounts.write[path] = folder.scratch
    return mounts


def _show(mounts: Mounts, paths: Iterable[Path], *, required: bool = False) -> None:
    for path in paths:
        if required and not path.exists():
            raise StackError(f"there is no {path}, which ComfyUI should read")
        if path in (Path("/"), Path("/etc"), *mounts.hide):
            if required:
                raise StackError(
                    f"ComfyUI may not read all of {path}: name the folder that it needs"
                )
            continue
        if path.is_absolute() and not _is_shown(mounts, path):
            mounts.read[path] = path


def _is_shown(mounts: Mounts, path: Path) -> bool:
    """Whether the path is there by an outer folder, and not hidden in it."""
    if any(path.is_relative_to(hidden) for hidden in mounts.hide):
        return path in mounts.read
    return any(path.is_relative_to(shown) for shown in mounts.read)


def _linked_from(folders: Sequence[Path], mounts: Mounts) -> dict[Path, Path]:
    """Files and folders elsewhere to which links in these lead, and where they really are: models
    often lie on other disks."""
    found: dict[Path, Path] = {}
    seen = 0
    for folder in folders:
        for place, names, files in os.walk(folder):
            for name in (*names, *files):
                seen += 1
                if seen > _MOST_LINKS:
                    return found
                path = Path(place, name)
                if not path.is_symlink() or not path.exists():
                    continue
                target = Path(os.path.normpath(path.parent / path.readlink()))
                hidden = any(target.resolve().is_relative_to(one) for one in mounts.hide)
                if not hidden and not _is_shown(mounts, target):
                    found[target] = target.resolve()
    return found


def _add_devices(mounts: Mounts, options: ComfyOptions) -> None:
    mounts.devices = [] if options.cpu else graphics_devices()
    # Without a card, math libraries look up how many processors there are.
    for name in ("/sys",) if mounts.devices else _TOPOLOGY:
        if Path(name).exists():
            mounts.read[Path(name)] = Path(name)
