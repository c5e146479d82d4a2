"""Access log and request metrics of a replica.

Handing one value to Ray, or one record to ``logging``, costs as much as routing a request. So
requests are only noted on the way; a thread works on all of a second at once.
"""

from __future__ import annotations

import logging
import sys
import threading
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable

from ray.util import metrics

from moyin.gatekeeper.observation import Observation, access_line

__all__ = ["ServeObserver"]

_log = logging.getLogger(__name__)
_INTERVAL_SECONDS = 1.0
# More than a replica can answer between two turns.
_CAPACITY = 50_000
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_LE = (*(f"{bound:g}" for bound in _BOUNDS), "+Inf")


class ServeObserver:
    """Writes JSON lines to standard output, which Ray keeps and rotates, and counts through Ray.

    The latency histogram is made of counters with the label ``le``, as Prometheus knows it, because
    Ray's own type takes values one by one.

    Args:
        log_level: below INFO's number nothing changes; from WARNING on there is no access log.
    """

    def __init__(self, log_level: str) -> None:
        self._writes = logging.getLevelNamesMapping()[log_level.upper()] <= logging.INFO
        self._requests = metrics.Counter(
            "moyin_requests",
            "Requests by service, method and status.",
            tag_keys=("service", "method", "status"),
        )
        self._buckets = metrics.Counter(
            "moyin_request_seconds_bucket",
            "Requests whose last byte came within 'le' seconds of their arrival.",
            tag_keys=("service", "le"),
        )
        self._seconds = metrics.Counter(
            "moyin_request_seconds_sum", "Seconds that requests took.", tag_keys=("service",)
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

    def _count(self, batch: Iterable[Observation]) -> None:
        alike: Counter[tuple[str, str, int]] = Counter()
        fitting: Counter[tuple[str, int]] = Counter()
        seconds: Counter[str] = Counter()
        for seen in batch:
            alike[seen.service, seen.method, seen.status] += 1
            fitting[seen.service, bisect_left(_BOUNDS, seen.seconds)] += 1
            seconds[seen.service] += seen.seconds  # type: ignore[assignment]
        for (service, method, status), count in alike.items():
            self._requests.inc(count, {"service": service, "method": method, "status": str(status)})
        for (service, smallest), count in fitting.items():
            for le in _LE[smallest:]:
                self._buckets.inc(count, {"service": service, "le": le})
        for service, total in seconds.items():
            self._seconds.inc(total, {"service": service})

    def _write(self, batch: Iterable[Observation]) -> None:
        if self._writes:
            sys.stdout.write("".join(f"{access_line(seen)}\n" for seen in batch))
            sys.stdout.flush()
