"""Estimates how fast a model answers on one back end, from the calls that it served."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from moyin.domain.money import GpuRate, Price, TokenSpeed
from moyin.text.routing.averages import Average, Averages

__all__ = ["DEFAULT_LATENCY", "LatencyEstimator", "LatencyPrior"]

# Measurements fade, so that a back end which was slow once is tried again.
_HALF_LIFE = 300.0
_RECENT = 100
# A 95th percentile needs at least this many samples.
_MIN_SAMPLES = 20
# The first calls are all recorded. Later averages move slowly, so a sample is enough.
_RECORD_ALL = 256
_RECORD_ONE_IN = 8
# How long an estimate is reused before it is computed again.
_FRESH_SECONDS = 0.25
# The first token of a shorter prompt measures waiting, not reading.
_LONG_PROMPT = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyPrior:
    """Holds the latency to assume before anything was measured.

    Attributes:
        first_token: seconds to the first token of a short prompt.
        speed: of a single request on the idle machine.
    """

    first_token: float
    speed: TokenSpeed


DEFAULT_LATENCY = LatencyPrior(first_token=0.5, speed=TokenSpeed(prompt=2_000.0, output=50.0))


class LatencyEstimator:
    """Estimates the latency of one model on one back end.

    Args:
        clock: monotonic seconds, such as ``time.monotonic``.
    """

    def __init__(self, prior: LatencyPrior, clock: Callable[[], float]) -> None:
        self._prior = prior
        self._clock = clock
        self._first_token = Averages(_HALF_LIFE)
        self._per_token = Average(_HALF_LIFE)
        self._per_prompt_token = Average(_HALF_LIFE)
        self._concurrency = Average(_HALF_LIFE)
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._calls = 0
        self._seconds_per_token = 1 / prior.speed.output
        self._estimated_at = float("-inf")

    def should_record(self) -> bool:
        """Count a call that just ended; return whether to record it."""
        self._calls += 1
        return self._calls <= _RECORD_ALL or self._calls % _RECORD_ONE_IN == 0

    def record(
        self,
        *,
        prompt_tokens: int,
        output_tokens: int,
        first_token_seconds: float | None,
        seconds: float,
        concurrency: int,
    ) -> None:
        """Record a call that ended well.

        Args:
            first_token_seconds: time to its first token; None: it was not streamed.
            seconds: from its start to its end, without waiting in our own queue.
            concurrency: our calls at the back end, this one included.
        """
        now = self._clock()
        self._concurrency.add(concurrency, now)
        if first_token_seconds is not None:
            self._first_token.add(prompt_tokens.bit_length(), first_token_seconds, now)
            self._add_recent(first_token_seconds)
            if prompt_tokens >= _LONG_PROMPT:
                self._per_prompt_token.add(first_token_seconds / prompt_tokens, now)
        writing = seconds - (first_token_seconds or 0.0)
        if output_tokens > 1 and writing > 0:
            self._per_token.add(writing / output_tokens, now)

    def expected_first_token(self, prompt_tokens: int) -> float:
        """Return the expected seconds from the start to the first token."""
        prior = self._prior.first_token + prompt_tokens / self._prior.speed.prompt
        return self._first_token.estimate(prompt_tokens.bit_length(), prior, self._clock())

    def seconds_per_token(self) -> float:
        """Return the expected seconds per token of an answer."""
        now = self._clock()
        if now - self._estimated_at > _FRESH_SECONDS:
            self._seconds_per_token = self._per_token.estimate(1 / self._prior.speed.output, now)
            self._estimated_at = now
        return self._seconds_per_token

    def first_token_p95(self) -> float | None:
        """Return the 95th percentile of recent first-token times; None if there are too few."""
        if len(self._sorted) < _MIN_SAMPLES:
            return None
        return self._sorted[len(self._sorted) * 95 // 100]

    def price(self, gpu: GpuRate) -> Price:
        """Return the price of tokens at the measured speed and concurrency."""
        now = self._clock()
        seconds_per_prompt_token = self._per_prompt_token.estimate(
            1 / self._prior.speed.prompt, now
        )
        speed = TokenSpeed(
            prompt=1 / max(seconds_per_prompt_token, 1e-6),
            output=1 / max(self.seconds_per_token(), 1e-6),
        )
        return gpu.compute_price(speed, self._concurrency.estimate(1.0, now))

    def _add_recent(self, first_token_seconds: float) -> None:
        if len(self._recent) == _RECENT:
            self._sorted.remove(self._recent.popleft())
        self._recent.append(first_token_seconds)
        insort(self._sorted, first_token_seconds)
