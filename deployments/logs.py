"""Writes a replica's own logs as JSON lines into a file beside Serve's."""

from __future__ import annotations

import json
import logging
import sys
import threading
from logging.handlers import MemoryHandler, RotatingFileHandler
from pathlib import Path

from ray import serve
from ray.serve._private.logging_utils import get_serve_logs_dir
from ray.serve.exceptions import RayServeException

from moyin.access.gatekeeper.observation import redact

__all__ = ["ACCESS", "JsonLines", "configure_logs"]

# The logger of access lines, which are JSON already and contain no secrets.
ACCESS = "moyin.access"

_FLUSH_SECONDS = 0.5
_BUFFERED_LINES = 500
_FILE_BYTES = 10 * 1024 * 1024
_FILES_KEPT = 2


class JsonLines(logging.Formatter):
    """Formats each record as one JSON object per line, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == ACCESS:
            return record.getMessage()
        line = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(line)


def configure_logs(level: str) -> None:
    """Send logs of ``moyin``, ``deployments`` and ``actors``, and warnings of libraries, to the file.

    Lines are written in batches outside the event loop; warnings and errors at once.
    """
    target = _target()
    target.setFormatter(JsonLines())
    buffer = MemoryHandler(_BUFFERED_LINES, flushLevel=logging.WARNING, target=target)
    others = MemoryHandler(1, flushLevel=logging.WARNING, target=target)
    others.setLevel(logging.WARNING)
    logging.getLogger().addHandler(others)
    for name in ("moyin", "deployments", "actors"):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        logger.handlers = [buffer]
    threading.Thread(target=_flush_forever, args=(buffer,), daemon=True).start()


def _target() -> logging.Handler:
    """Return a handler for the replica's log file; `Layout.list_app_logs` finds the file by its name.

    Standard output cannot be used in a replica: Serve passes it to its own logger, whose level drops
    it.
    """
    try:
        replica = serve.get_replica_context()
    except RayServeException:
        return logging.StreamHandler(sys.stdout)
    name = f"replica_{replica.app_name}_{replica.deployment}_{replica.replica_tag}_moyin.log"
    path = Path(get_serve_logs_dir()) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return RotatingFileHandler(path, maxBytes=_FILE_BYTES, backupCount=_FILES_KEPT)


def _flush_forever(buffer: MemoryHandler) -> None:
    pause = threading.Event()
    while not pause.wait(_FLUSH_SECONDS):
        buffer.flush()
