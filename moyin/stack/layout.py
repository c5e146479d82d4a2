"""Where the stack keeps its files."""

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

__all__ = ["Layout", "explain_os_errors", "private_secret", "replace_file"]

# Below this, Ray's object store, Valkey's log and SQLite fail in ways that nobody can read.
_LEAST_FREE_BYTES = 512 * 1024 * 1024
_ADVICE = {
    errno.EACCES: "no permission to write there: change its owner or set MOYIN_DATA",
    errno.EPERM: "no permission to write there: change its owner or set MOYIN_DATA",
    errno.EROFS: "the file system is read-only: set MOYIN_DATA to a folder that can be written",
    errno.ENOSPC: "the disk is full: free some space or set MOYIN_DATA to another disk",
    errno.EDQUOT: "the disk quota is used up: free some space or set MOYIN_DATA to another disk",
    errno.ENOTDIR: "a part of the path is not a folder: set MOYIN_DATA to another one",
    errno.EEXIST: "something that is not a folder is in its place: set MOYIN_DATA to another one",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below one data folder (absolute)."""

    data: Path

    @property
    def run(self) -> Path:
        return self.data / "run"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def valkey(self) -> Path:
        return self.data / "valkey"

    @property
    def temporal_db(self) -> Path:
        return self.data / "temporal" / "temporal.db"

    @property
    def profile(self) -> Path:
        return self.data / "profile.toml"

    @property
    def ray_token(self) -> Path:
        return self.data / "ray-token"

    @property
    def valkey_password(self) -> Path:
        return self.data / "valkey-password"

    @property
    def valkey_config(self) -> Path:
        """Hands the password to the server: a command line is shown to every user of the machine."""
        return self.run / "valkey.conf"

    @property
    def state(self) -> Path:
        return self.run / "state.json"

    @property
    def lock(self) -> Path:
        return self.run / "supervisor.lock"

    @property
    def serve_config(self) -> Path:
        """A copy of what was deployed last, with this stack's ports."""
        return self.run / "serve_config.yaml"

    @property
    def deployed_from(self) -> Path:
        """Names the file of which `serve_config` is the copy."""
        return self.run / "serve_config.path"

    @property
    def key_shown(self) -> Path:
        """Exists once the first key was shown to a person."""
        return self.run / "key-shown"

    @property
    def haproxy_launcher(self) -> Path:
        return self.run / "haproxy"

    @property
    def sockets(self) -> Path:
        """A folder with a short name, because a Unix socket's path holds 107 bytes only.

        Ray and HAProxy put sockets below folders with long names of their own.
        """
        digest = hashlib.sha256(str(self.data).encode()).hexdigest()[:6]
        return Path("/tmp") / f"moyin-{os.getuid()}-{digest}"

    @property
    def ray(self) -> Path:
        return self.sockets / "r"

    @property
    def haproxy(self) -> Path:
        return self.sockets / "h"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    @property
    def ray_logs(self) -> Path:
        """Ray's own logs, of the stack that runs or of the one that ran last."""
        live = self.ray / "session_latest" / "logs"
        return live if live.is_dir() else self.logs / "ray"

    def app_logs(self, app: str) -> list[Path]:
        """Logs of an app's replicas, of its own the one written last at the end."""
        found = (self.ray_logs / "serve").glob(f"replica_{app}_*.log")
        # Serve keeps one as well, of what it says itself.
        return sorted(found, key=lambda p: (p.stem.endswith("_moyin"), p.stat().st_mtime))

    def logged_apps(self) -> set[str]:
        """Names of the apps that `app_logs` has logs of."""
        # replica_<app>_<deployment>_<id>.log, and the same with _moyin; no name but the app's
        # holds an underscore.
        stems = (p.stem for p in (self.ray_logs / "serve").glob("replica_*.log"))
        return {
            stem.removesuffix("_moyin").removeprefix("replica_").rsplit("_", 2)[0] for stem in stems
        }

    def tidy(self) -> None:
        """Remove what only a running stack needs; Ray's last logs move to the data folder."""
        live, kept = self.ray / "session_latest" / "logs", self.logs / "ray"
        if live.is_dir():
            shutil.rmtree(kept, ignore_errors=True)
            shutil.move(live.resolve(), kept)
        shutil.rmtree(self.sockets, ignore_errors=True)

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            StackError: they can't be made or written, or the disk is all but full.
        """
        if "::" in str(self.data):
            raise StackError(
                f"{self.data}: '::' separates the parts of a chained address for the artifact store: "
                "set MOYIN_DATA to another folder"
            )
        for folder in (self.data, self.run, self.logs, self.valkey, self.temporal_db.parent):
            with explain_os_errors(folder):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with explain_os_errors(self.data):
            with tempfile.TemporaryFile(dir=self.data) as probe:
                probe.write(b"x")
            free = shutil.disk_usage(self.data).free
        if free < _LEAST_FREE_BYTES:
            raise StackError(
                f"{self.data}: only {free >> 20} MB are free, "
                f"{_LEAST_FREE_BYTES >> 20} MB are needed: {_ADVICE[errno.ENOSPC]}"
            )
        self._prepare_sockets()

    def _prepare_sockets(self) -> None:
        with explain_os_errors(self.sockets):
            self.sockets.mkdir(mode=0o700, exist_ok=True)
            found = self.sockets.lstat()
        # The parent is writable for everybody: do not follow what someone else put there.
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise StackError(f"{self.sockets} belongs to someone else: remove it")
        for folder in (self.ray, self.haproxy):
            with explain_os_errors(folder):
                folder.mkdir(mode=0o700, exist_ok=True)


def replace_file(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write the file in one step: nobody sees half of it, and what was there stays where that fails.

    Args:
        mode: permissions of the file from its first moment, less the umask.

    Raises:
        OSError: it can't be written.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.unlink(missing_ok=True)
        scratch.touch(mode=mode, exist_ok=False)
        scratch.write_bytes(data)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def private_secret(path: Path) -> str:
    """Return the secret in ``path``; make one (64 hexadecimal digits, mode 0600) where there is none.

    Only the supervisor calls it, while it holds its lock.

    Raises:
        StackError: the file can't be read or written.
    """
    with explain_os_errors(path):
        try:
            found = path.read_text().strip()
        except FileNotFoundError:
            found = ""
        if not found:
            found = secrets.token_hex(32)
            replace_file(path, found.encode(), mode=0o600)
    return found


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` about ``path`` into one line for a person."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise StackError(f"{path}: {advice}") from error
