"""Estimates the latency of a model on one back end from its earlier calls."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from moyin.domain.money import GpuRate, Price, TokenSpeed
from moyin.text.routing.averages import Average, KeyedAverages

# Measurements lose weight with time, so that a back end is used again after a slow period.
_HALF_LIFE_SECONDS = 300.0
_MAX_RECENT = 100
# A 95th percentile needs at least this many samples.
_MIN_SAMPLES = 20
# The first calls are all recorded; later ones, which change averages little, are sampled.
_RECORD_ALL_UP_TO = 256
_RECORD_ONE_IN = 8
# Seconds for which a computed estimate is reused.
_REUSE_SECONDS = 0.25
# With a shorter prompt, the time to the first token hardly depends on the prompt's length.
_MIN_LONG_PROMPT = 64
_UNSEEN_FACTOR = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyPrior:
    """Latency that is assumed for a model without measurements.

    Attributes:
        first_token: seconds to the first token for a short prompt.
        speed: tokens per second of a single request on an otherwise idle machine.
    """

    first_token: float
    speed: TokenSpeed


DEFAULT_LATENCY = LatencyPrior(first_token=0.5, speed=TokenSpeed(prompt=2_000.0, output=50.0))


class LatencyEstimator:
    """Estimator of the latency of one model on one back end.

    Args:
        prior: latency that is assumed while there are few measurements.
        clock: returns monotonic seconds, such as ``time.monotonic``.
        peers: returns the estimators of the same model on the other hosts of the back end. Until a
            call was measured here, this host is expected to be a little faster than the fastest of
            them, so that it is tried.
    """

    def __init__(
        self,
        prior: LatencyPrior,
        clock: Callable[[], float],
        peers: Callable[[], Iterable[LatencyEstimator]] = tuple,
    ) -> None:
        self._prior = prior
        self._clock = clock
        self._peers = peers
        self._is_measured = False
        self._first_token = KeyedAverages(_HALF_LIFE_SECONDS)
        self._per_token = Average(_HALF_LIFE_SECONDS)
        self._per_prompt_token = Average(_HALF_LIFE_SECONDS)
        self._concurrency = Average(_HALF_LIFE_SECONDS)
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._calls = 0
        self._seconds_per_token = 1 / prior.speed.output
        self._estimated_at = float("-inf")

    def should_record(self) -> bool:
        """Count a call; return True if the caller should measure it and call `record`.

        The first 256 calls are measured, then every eighth.
        """
        self._calls += 1
        return self._calls <= _RECORD_ALL_UP_TO or self._calls % _RECORD_ONE_IN == 0

    def record(
        self,
        *,
        prompt_tokens: int,
        output_tokens: int,
        first_token_seconds: float | None,
        seconds: float,
        concurrency: int,
    ) -> None:
        """Record the measurements of a successful call.

        Args:
            first_token_seconds: time to the first token; None if the answer was not streamed.
            seconds: duration of the call, without the time in this replica's queue.
            concurrency: number of this replica's running calls at the back end, including this one.
        """
        now = self._clock()
        self._is_measured = True
        self._concurrency.add(concurrency, now)
        if first_token_seconds is not None:
            self._first_token.add(prompt_tokens.bit_length(), first_token_seconds, now)
            self._add_recent(first_token_seconds)
            if prompt_tokens >= _MIN_LONG_PROMPT:
                self._per_prompt_token.add(first_token_seconds / prompt_tokens, now)
        writing_seconds = seconds - (first_token_seconds or 0.0)
        if output_tokens > 1 and writing_seconds > 0:
            self._per_token.add(writing_seconds / output_tokens, now)

    def estimate_first_token_seconds(self, prompt_tokens: int) -> float:
        """Return the expected seconds from the start of a call to its first token."""
        if not self._is_measured and (peers := self._list_measured_peers()):
            fastest_seconds = min(
                peer.estimate_first_token_seconds(prompt_tokens) for peer in peers
            )
            return fastest_seconds * _UNSEEN_FACTOR
        prior = self._prior.first_token + prompt_tokens / self._prior.speed.prompt
        return self._first_token.estimate(prompt_tokens.bit_length(), prior, self._clock())

    def estimate_seconds_per_token(self) -> float:
        """Return the expected seconds per output token."""
        if not self._is_measured and (peers := self._list_measured_peers()):
            return min(peer.estimate_seconds_per_token() for peer in peers) * _UNSEEN_FACTOR
        now = self._clock()
        if now - self._estimated_at > _REUSE_SECONDS:
            self._seconds_per_token = self._per_token.estimate(1 / self._prior.speed.output, now)
            self._estimated_at = now
        return self._seconds_per_token

    def get_first_token_p95(self) -> float | None:
        """Return the 95th percentile of the seconds to the first token in recent measured calls.

        The result is None if fewer than 20 calls were measured.
        """
        if len(self._sorted) < _MIN_SAMPLES:
            return None
        return self._sorted[len(self._sorted) * 95 // 100]

    def estimate_price(self, gpu: GpuRate) -> Price:
        """Return the price per token, computed from a GPU's hourly cost and the measured speed."""
        now = self._clock()
        seconds_per_prompt_token = self._per_prompt_token.estimate(
            1 / self._prior.speed.prompt, now
        )
        speed = TokenSpeed(
            prompt=1 / max(seconds_per_prompt_token, 1e-6),
            output=1 / max(self.estimate_seconds_per_token(), 1e-6),
        )
        return gpu.compute_price(speed, self._concurrency.estimate(1.0, now))

    def _list_measured_peers(self) -> list[LatencyEstimator]:
        return [peer for peer in self._peers() if peer is not self and peer._is_measured]

    def _add_recent(self, first_token_seconds: float) -> None:
        if len(self._recent) == _MAX_RECENT:
            self._sorted.remove(self._recent.popleft())
        self._recent.append(first_token_seconds)
        insort(self._sorted, first_token_seconds)
