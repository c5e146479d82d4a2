"""Records a replica's requests in its access log and its metrics.

Passing one value to Ray, or one record to ``logging``, costs as much as routing a request. Therefore a
request only adds to a queue, and a thread writes the queue to the log and the metrics every second.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence

from ray.util import metrics

from deployments.logs import ACCESS_LOGGER
from moyin.access.gatekeeper.observation import Observation, format_access_line

_log = logging.getLogger(__name__)
_access_log = logging.getLogger(ACCESS_LOGGER)
_INTERVAL_SECONDS = 1.0
# Bound of the queue: more requests than a replica can answer in one interval.
_QUEUE_CAPACITY = 50_000
_BOUNDS_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    300,
)


class BatchHistogram:
    """Publishes a Prometheus histogram, adding many samples at once.

    Ray's own histogram adds samples one by one, and adding one costs as much as routing a request.
    This class counts a batch of samples first, then adds the counts to counters with the label ``le``.

    Args:
        bounds: upper bounds of the buckets in rising order, without ``+Inf``.
        labels: names of the labels, in the order of the label values of each sample.
    """

    def __init__(
        self, name: str, description: str, bounds: tuple[float, ...], labels: tuple[str, ...]
    ) -> None:
        self._bounds = bounds
        self._le = (*(f"{bound:g}" for bound in bounds), "+Inf")
        self._labels = labels
        self._buckets = metrics.Counter(f"{name}_bucket", description, tag_keys=(*labels, "le"))
        self._sum = metrics.Counter(f"{name}_sum", description, tag_keys=labels)
        self._count = metrics.Counter(f"{name}_count", description, tag_keys=labels)

    def add(self, samples: Iterable[tuple[tuple[str, ...], float]]) -> None:
        """Add samples, which are pairs of label values and a measured value."""
        buckets: Counter[tuple[tuple[str, ...], int]] = Counter()
        sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        sample_counts: Counter[tuple[str, ...]] = Counter()
        for label_values, sample in samples:
            buckets[label_values, bisect_left(self._bounds, sample)] += 1
            sums[label_values] += sample
            sample_counts[label_values] += 1
        for (label_values, bucket), count in buckets.items():
            tags = self._to_tags(label_values)
            for le in self._le[bucket:]:
                self._buckets.inc(count, {**tags, "le": le})
        for label_values, count in sample_counts.items():
            self._count.inc(count, self._to_tags(label_values))
            if sums[label_values] > 0:
                self._sum.inc(sums[label_values], self._to_tags(label_values))

    def _to_tags(self, label_values: tuple[str, ...]) -> dict[str, str]:
        return dict(zip(self._labels, label_values, strict=True))


class RequestObserver:
    """Writes a replica's requests to the access log and counts them in Ray's metrics.

    Args:
        log_level: level of the replica's logs; at a level above INFO, there is no access log.
        export_metrics: publishes other metrics of the app; called every second in a thread.
    """

    def __init__(self, log_level: str, *, export_metrics: Callable[[], None] | None = None) -> None:
        self._export_metrics = export_metrics
        self._is_logging = logging.getLevelNamesMapping()[log_level.upper()] <= logging.INFO
        self._requests = metrics.Counter(
            "moyin_requests",
            "Requests by service, method and status.",
            tag_keys=("service", "method", "status"),
        )
        self._seconds = BatchHistogram(
            "moyin_request_seconds",
            "Seconds from a request's arrival to its last byte.",
            _BOUNDS_SECONDS,
            ("service",),
        )
        self._queue: deque[Observation] = deque(maxlen=_QUEUE_CAPACITY)
        threading.Thread(target=self._process_forever, name="observer", daemon=True).start()

    def observe(self, observation: Observation) -> None:
        """Queue a finished request for the log and the metrics."""
        self._queue.append(observation)

    def _process_forever(self) -> None:
        pause = threading.Event()
        while not pause.wait(_INTERVAL_SECONDS):
            if len(self._queue) == _QUEUE_CAPACITY:
                _log.warning(
                    "more than %d requests in a second: log and metrics lack some", _QUEUE_CAPACITY
                )
            batch = [self._queue.popleft() for _ in range(len(self._queue))]
            if batch:
                self._count_requests(batch)
                self._write_access_lines(batch)
            if self._export_metrics is not None:
                try:
                    self._export_metrics()
                except Exception:
                    _log.exception("publishing the app's metrics failed; trying again in a second")

    def _count_requests(self, batch: Sequence[Observation]) -> None:
        totals = Counter(
            (observation.service, observation.method, observation.status) for observation in batch
        )
        for (service, method, status), count in totals.items():
            self._requests.inc(count, {"service": service, "method": method, "status": str(status)})
        self._seconds.add(((observation.service,), observation.seconds) for observation in batch)

    def _write_access_lines(self, batch: Iterable[Observation]) -> None:
        if self._is_logging:
            _access_log.info("%s", "\n".join(map(format_access_line, batch)))
