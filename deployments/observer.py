"""Writes the access log and the request metrics of a replica.

Passing one value to Ray, or one record to ``logging``, costs as much as routing a request. So requests
are only queued, and a thread processes them once a second.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from ray.util import metrics

from deployments.histogram import Histogram
from deployments.logs import ACCESS
from moyin.access.gatekeeper.observation import Observation, format_access_line

__all__ = ["ServeObserver"]

_log = logging.getLogger(__name__)
_access = logging.getLogger(ACCESS)
_INTERVAL_SECONDS = 1.0
# More requests than a replica can answer in one interval.
_CAPACITY = 50_000
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class ServeObserver:
    """Writes access lines to the replica's log and counts requests in Ray's metrics.

    Args:
        log_level: the access log is written at INFO and DEBUG only.
        also: further work for the thread, called once a second.
    """

    def __init__(self, log_level: str, *, also: Callable[[], None] | None = None) -> None:
        self._also = also
        self._writes = logging.getLevelNamesMapping()[log_level.upper()] <= logging.INFO
        self._requests = metrics.Counter(
            "moyin_requests",
            "Requests by service, method and status.",
            tag_keys=("service", "method", "status"),
        )
        self._seconds = Histogram(
            "moyin_request_seconds",
            "Seconds from a request's arrival to its last byte.",
            _BOUNDS,
            ("service",),
        )
        self._queue: deque[Observation] = deque(maxlen=_CAPACITY)
        threading.Thread(target=self._work_forever, name="observer", daemon=True).start()

    def observe(self, observation: Observation) -> None:
        """Queue one finished request."""
        self._queue.append(observation)

    def _work_forever(self) -> None:
        pause = threading.Event()
        while not pause.wait(_INTERVAL_SECONDS):
            if len(self._queue) == _CAPACITY:
                _log.warning(
                    "too many requests to observe: some are missing from the log and the metrics"
                )
            batch = [self._queue.popleft() for _ in range(len(self._queue))]
            if batch:
                self._count(batch)
                self._write(batch)
            if self._also is not None:
                try:
                    self._also()
                except Exception:
                    _log.exception("writing further metrics failed")

    def _count(self, batch: Sequence[Observation]) -> None:
        totals = Counter((seen.service, seen.method, seen.status) for seen in batch)
        for (service, method, status), count in totals.items():
            self._requests.inc(count, {"service": service, "method": method, "status": str(status)})
        self._seconds.add(((seen.service,), seen.seconds) for seen in batch)

    def _write(self, batch: Iterable[Observation]) -> None:
        if self._writes:
            _access.info("%s", "\n".join(map(format_access_line, batch)))
