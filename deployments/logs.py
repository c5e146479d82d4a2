"""Where a replica's own logs go: its standard output, as JSON lines, which Ray keeps and rotates."""

from __future__ import annotations

import json
import logging
import sys
import threading
from logging.handlers import MemoryHandler

from ray.serve.schema import LoggingConfig

from moyin.gatekeeper.redaction import redact

__all__ = ["SERVE_LOGGING", "JsonLines", "configure_logs"]

# Serve's line per request is dear on the hot path and says less than our access log.
SERVE_LOGGING = LoggingConfig(log_level="WARNING", enable_access_log=False)
_FLUSH_SECONDS = 0.5
_BUFFERED_LINES = 500


class JsonLines(logging.Formatter):
    """One JSON object per line, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
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
    """Send what ``moyin``, ``deployments`` and ``workflows`` log to standard output.

    Lines are written in batches, off the event loop; from WARNING on at once.
    """
    stream = logging.StreamHandler(sys.stdout)
    stream.setFormatter(JsonLines())
    buffer = MemoryHandler(_BUFFERED_LINES, flushLevel=logging.WARNING, target=stream)
    for name in ("moyin", "deployments", "workflows", "actors"):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        logger.handlers = [buffer]
    threading.Thread(target=_flush_forever, args=(buffer,), daemon=True).start()


def _flush_forever(buffer: MemoryHandler) -> None:
    pause = threading.Event()
    while not pause.wait(_FLUSH_SECONDS):
        buffer.flush()
