"""Defines the paths of the stack's files, and creates its folders and secrets."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moyin.errors import StackError

# With less free space, Ray's object store, Valkey's log and SQLite fail with obscure errors.
_MIN_FREE_BYTES = 512 * 1024 * 1024
_ADVICE = {
    errno.EACCES: "no permission to write there: change its owner or set MOYIN_DATA",
    errno.EPERM: "no permission to write there: change its owner or set MOYIN_DATA",
    errno.EROFS: "the file system is read-only: set MOYIN_DATA to a folder that can be written",
    errno.ENOSPC: "the disk is full: free some space or set MOYIN_DATA to another disk",
    errno.EDQUOT: "the disk quota is used up: free some space or set MOYIN_DATA to another disk",
    errno.ENOTDIR: "a part of the path is not a folder: set MOYIN_DATA to another one",
    errno.EEXIST: "something that is not a folder is in its place: set MOYIN_DATA to another one",
}


@dataclass
class Layout:
    """The paths of a stack's files, derived from its data folder, which must be absolute."""

    data: Path

    def __post_init__(self) -> None:
        self.run = self.data / "run"
        self.logs = self.data / "logs"
        self.valkey = self.data / "valkey"
        self.temporal_db = self.data / "temporal" / "temporal.db"
        self.profile = self.data / "profile.toml"
        # Contains the ports that `moyin doctor --fix` has chosen instead of those in use.
        self.ports = self.data / "ports.toml"
        self.ray_token = self.data / "ray-token"
        self.valkey_password = self.data / "valkey-password"
        # Contains Valkey's password, because every user of the machine could read a command line.
        self.valkey_config = self.run / "valkey.conf"
        self.state = self.run / "state.json"
        self.lock = self.run / "supervisor.lock"
        # The copy of the app configuration that was deployed last, with the ports of this stack.
        self.serve_config = self.run / "serve_config.yaml"
        # Contains the path of the app configuration that was deployed last.
        self.deployed_from = self.run / "serve_config.path"
        # Exists when `moyin up` has printed the first key.
        self.key_shown_marker = self.run / "key-shown"
        self.haproxy_launcher = self.run / "haproxy"
        self.stand_in_config = self.run / "stand-in.cfg"
        # Ray and HAProxy create Unix sockets in subfolders with long names, and the path of a
        # socket has at most 107 bytes, so that this path must be short.
        digest = hashlib.sha256(str(self.data).encode()).hexdigest()[:6]
        self.sockets = Path("/tmp") / f"moyin-{os.getuid()}-{digest}"
        self.ray = self.sockets / "r"
        self.haproxy = self.sockets / "h"

    def get_log_path(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    @property
    def ray_logs(self) -> Path:
        """The folder with the logs of Ray: those of the running stack, or else of the last run."""
        live_logs = self.ray / "session_latest" / "logs"
        return live_logs if live_logs.is_dir() else self.logs / "ray"

    def list_app_logs(self, app: str) -> list[Path]:
        """Return the logs of an app's replicas, the most useful last.

        Logs that have only Serve's messages come first, then those of the app itself, newest last.
        """
        paths = (self.ray_logs / "serve").glob(f"replica_{app}_*.log")
        # The logs with the suffix are the app's own; the others contain messages of Serve.
        return sorted(paths, key=lambda p: (p.stem.endswith("_moyin"), p.stat().st_mtime))

    def list_apps_with_logs(self) -> set[str]:
        # A log is named replica_<app>_<deployment>_<id>.log or …_<id>_moyin.log. Of these parts
        # only the name of the app may contain an underscore.
        stems = (p.stem for p in (self.ray_logs / "serve").glob("replica_*.log"))
        return {
            stem.removesuffix("_moyin").removeprefix("replica_").rsplit("_", 2)[0] for stem in stems
        }

    def remove_runtime_files(self) -> None:
        """Move Ray's logs to the data folder, then delete the sockets and Ray's other files."""
        live_logs, saved_logs = self.ray / "session_latest" / "logs", self.logs / "ray"
        if live_logs.is_dir():
            shutil.rmtree(saved_logs, ignore_errors=True)
            shutil.move(live_logs.resolve(), saved_logs)
        shutil.rmtree(self.sockets, ignore_errors=True)

    def prepare(self) -> None:
        """Create the folders; raise `StackError` if that fails or if the disk is nearly full."""
        if "::" in str(self.data):
            raise StackError(
                f"{self.data}: the artifact store cannot use a path that contains '::': "
                "set MOYIN_DATA to another folder"
            )
        for folder in (self.data, self.run, self.logs, self.valkey, self.temporal_db.parent):
            with explain_os_errors(folder):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with explain_os_errors(self.data):
            with tempfile.TemporaryFile(dir=self.data) as probe:
                probe.write(b"x")
            free_bytes = shutil.disk_usage(self.data).free
        if free_bytes < _MIN_FREE_BYTES:
            raise StackError(
                f"{self.data}: {free_bytes >> 20} MB are free, but "
                f"{_MIN_FREE_BYTES >> 20} MB are needed: {_ADVICE[errno.ENOSPC]}"
            )
        self._prepare_sockets()

    def _prepare_sockets(self) -> None:
        with explain_os_errors(self.sockets):
            self.sockets.mkdir(mode=0o700, exist_ok=True)
            file_status = self.sockets.lstat()
        # All users can write to the parent folder, so the path may be another user's link.
        if not stat.S_ISDIR(file_status.st_mode) or file_status.st_uid != os.getuid():
            raise StackError(
                f"{self.sockets} must be a folder of this user: remove the existing one"
            )
        for folder in (self.ray, self.haproxy):
            with explain_os_errors(folder):
                folder.mkdir(mode=0o700, exist_ok=True)


def replace_file(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Replace the content of a file atomically, with the permissions ``mode`` less the umask.

    After an `OSError` the file still has its previous content.
    """
    temporary_path = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary_path.unlink(missing_ok=True)
        temporary_path.touch(mode=mode, exist_ok=False)
        temporary_path.write_bytes(data)
        temporary_path.replace(path)
    finally:
        temporary_path.unlink(missing_ok=True)


def find_aside_path(path: Path) -> Path:
    """Return an unused path beside ``path``, to which a damaged file can be moved or copied."""
    aside_path = path.with_name(f"{path.name}.broken")
    number = 1
    while os.path.lexists(aside_path):
        number += 1
        aside_path = path.with_name(f"{path.name}.broken-{number}")
    return aside_path


def load_or_create_secret(path: Path) -> str:
    """Return the secret in a file, creating it if missing, or raise `StackError`.

    Only the supervisor may call this function, while it holds the lock of the data folder.
    """
    with explain_os_errors(path):
        try:
            secret = path.read_text().strip()
        except FileNotFoundError:
            secret = ""
        if not secret:
            secret = secrets.token_hex(32)
            replace_file(path, secret.encode(), mode=0o600)
    return secret


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Convert an `OSError` in the block to a `StackError` with ``path`` and advice."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise StackError(f"{path}: {advice}") from error
