"""How fast a model answers on one back end, measured on the calls that pass."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from moyin.domain.money import GpuRate, Price, TokenSpeed
from moyin.text.routing.averages import Average, Averages

__all__ = ["DEFAULT_LATENCY", "LatencyEstimator", "LatencyPrior"]

# Old measurements fade, so that a back end which was slow once is tried again.
_HALF_LIFE = 300.0
_RECENT = 100
# Fewer first tokens say nothing about their slowest twentieth.
_ENOUGH = 20
# From the first calls everything is learned; later averages move slowly, and a sample will do.
_LEARN_ALL = 256
_LEARN_ONE_IN = 8
# So long an estimate stands before it is worked out again.
_FRESH_SECONDS = 0.25
# A shorter prompt's first token is waiting, not reading.
_LONG_PROMPT = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyPrior:
    """What to believe before anything was measured.

    Attributes:
        first_token: seconds to the first token of a short prompt.
        speed: of one request that has the machine to itself.
    """

    first_token: float
    speed: TokenSpeed


DEFAULT_LATENCY = LatencyPrior(first_token=0.5, speed=TokenSpeed(prompt=2_000.0, output=50.0))


class LatencyEstimator:
    """Args:
    clock: seconds that never go back, such as ``time.monotonic``.
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
        """Whether the call that just ended is to be noted."""
        self._calls += 1
        return self._calls <= _LEARN_ALL or self._calls % _LEARN_ONE_IN == 0

    def record(
        self,
        *,
        prompt_tokens: int,
        output_tokens: int,
        first_token_seconds: float | None,
        seconds: float,
        concurrency: int,
    ) -> None:
        """A call ended well.

        Args:
            first_token_seconds: seconds to its first token; None: it came as a whole.
            seconds: from its start to its end, without waiting in our own queue.
            concurrency: calls that the back end had of ours, this one included.
        """
        now = self._clock()
        self._concurrency.add(concurrency, now)
        if first_token_seconds is not None:
            self._first_token.add(prompt_tokens.bit_length(), first_token_seconds, now)
            self._remember(first_token_seconds)
            if prompt_tokens >= _LONG_PROMPT:
                self._per_prompt_token.add(first_token_seconds / prompt_tokens, now)
        writing = seconds - (first_token_seconds or 0.0)
        if output_tokens > 1 and writing > 0:
            self._per_token.add(writing / output_tokens, now)

    def expected_first_token(self, prompt_tokens: int) -> float:
        """Seconds to the first token, once the back end has begun."""
        prior = self._prior.first_token + prompt_tokens / self._prior.speed.prompt
        return self._first_token.estimate(prompt_tokens.bit_length(), prior, self._clock())

    def seconds_per_token(self) -> float:
        """Seconds per token of an answer."""
        now = self._clock()
        if now - self._estimated_at > _FRESH_SECONDS:
            self._seconds_per_token = self._per_token.estimate(1 / self._prior.speed.output, now)
            self._estimated_at = now
        return self._seconds_per_token

    def first_token_p95(self) -> float | None:
        """Seconds in which nineteen of twenty recent first tokens came; None: too few did."""
        if len(self._sorted) < _ENOUGH:
            return None
        return self._sorted[len(self._sorted) * 95 // 100]

    def price(self, gpu: GpuRate) -> Price:
        """What tokens cost at the speed and the sharing that were measured."""
        now = self._clock()
        reading = self._per_prompt_token.estimate(1 / self._prior.speed.prompt, now)
        speed = TokenSpeed(
            prompt=1 / max(reading, 1e-6), output=1 / max(self.seconds_per_token(), 1e-6)
        )
        return gpu.price(speed, self._concurrency.estimate(1.0, now))

    def _remember(self, first_token_seconds: float) -> None:
        if len(self._recent) == _RECENT:
            self._sorted.remove(self._recent.popleft())
        self._recent.append(first_token_seconds)
        insort(self._sorted, first_token_seconds)
