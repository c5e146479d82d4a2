"""Access log and request metrics of a replica.

Handing one value to Ray, or one record to ``logging``, costs as much as routing a request. So
requests are only noted on the way; a thread works on all of a second at once.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from ray.util import metrics

from deployments.histogram import Histogram
from deployments.logs import ACCESS
from moyin.access.gatekeeper.observation import Observation, access_line

__all__ = ["ServeObserver"]

_log = logging.getLogger(__name__)
_access = logging.getLogger(ACCESS)
_INTERVAL_SECONDS = 1.0
# More than a replica can answer between two turns.
_CAPACITY = 50_000
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class ServeObserver:
    """Writes JSON lines to the replica's log, and counts through Ray.

    Args:
        log_level: below INFO's number nothing changes; from WARNING on there is no access log.
        also: more work for the thread, once a second.
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
        self._noted: deque[Observation] = deque(maxlen=_CAPACITY)
        threading.Thread(target=self._work_forever, name="observer", daemon=True).start()

    def observe(self, seen: Observation) -> None:
        self._noted.append(seen)

    def _work_forever(self) -> None:
        pause = threading.Event()
        while not pause.wait(_INTERVAL_SECONDS):
            if len(self._noted) == _CAPACITY:
                _log.warning("more requests than can be observed: some are in no log")
            batch = [self._noted.popleft() for _ in range(len(self._noted))]
            if batch:
                self._count(batch)
                self._write(batch)
            if self._also is not None:
                try:
                    self._also()
                except Exception:
                    _log.exception("what else was observed is lost")

    def _count(self, batch: Sequence[Observation]) -> None:
        alike = Counter((seen.service, seen.method, seen.status) for seen in batch)
        for (service, method, status), count in alike.items():
            self._requests.inc(count, {"service": service, "method": method, "status": str(status)})
        self._seconds.take(((seen.service,), seen.seconds) for seen in batch)

    def _write(self, batch: Iterable[Observation]) -> None:
        if self._writes:
            _access.info("%s", "\n".join(map(access_line, batch)))
