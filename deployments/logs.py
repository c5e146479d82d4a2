"""Configures a replica's logs, which are JSON lines in a file beside Serve's log files."""

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

# The messages of this logger are access lines, which are JSON already and contain no secrets.
ACCESS_LOGGER = "moyin.access"

_FLUSH_INTERVAL_SECONDS = 0.5
_BUFFERED_LINES = 500
_FILE_BYTES = 10 * 1024 * 1024
_MAX_OLD_FILES = 2


class JsonFormatter(logging.Formatter):
    """Formats each log record as one line of JSON and removes secrets from it."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == ACCESS_LOGGER:
            return record.getMessage()
        members = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        if record.exc_info:
            members["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(members)


def configure_logs(level: str) -> None:
    """Write logs of ``moyin``, ``deployments`` and ``actors`` to the replica's log file.

    Warnings and errors, including those of libraries, are written immediately. A thread writes all
    other lines in batches, so that writing does not block the event loop.
    """
    target = _new_log_handler()
    target.setFormatter(JsonFormatter())
    buffer = MemoryHandler(_BUFFERED_LINES, flushLevel=logging.WARNING, target=target)
    library_warnings = MemoryHandler(1, flushLevel=logging.WARNING, target=target)
    library_warnings.setLevel(logging.WARNING)
    logging.getLogger().addHandler(library_warnings)
    for name in ("moyin", "deployments", "actors"):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        logger.handlers = [buffer]
    threading.Thread(target=_flush_forever, args=(buffer,), daemon=True).start()


def _new_log_handler() -> logging.Handler:
    """Return a handler for the replica's log file, or for standard output outside a replica.

    A replica must not log to standard output: Serve sends that output to Serve's own logger, whose
    level (set in `REPLICA_OPTIONS`) hides INFO lines. `moyin.stack.layout.Layout.list_app_logs`
    finds the log file by its name.
    """
    try:
        replica = serve.get_replica_context()
    except RayServeException:
        return logging.StreamHandler(sys.stdout)
    name = f"replica_{replica.app_name}_{replica.deployment}_{replica.replica_tag}_moyin.log"
    path = Path(get_serve_logs_dir()) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return RotatingFileHandler(path, maxBytes=_FILE_BYTES, backupCount=_MAX_OLD_FILES)


def _flush_forever(buffer: MemoryHandler) -> None:
    pause = threading.Event()
    while not pause.wait(_FLUSH_INTERVAL_SECONDS):
        buffer.flush()
