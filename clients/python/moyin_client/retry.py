"""Decides whether a failed request is sent again, and after which pause."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from moyin_client.errors import CONNECTION_FAILED, MoyinError

_STATUSES = frozenset({408, 429, 502, 503, 504})
# Codes of the event `error`, which has no status.
_CODES = frozenset(
    {CONNECTION_FAILED, "overloaded", "service_unavailable", "slow_consumer", "unavailable"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often failed requests are sent again, and after which pauses.

    With the defaults, the pauses before the last try are at least 27 seconds in total. An outage
    that is shorter causes no error.

    Attributes:
        tries: the maximum number of times that a request is sent. For streams of events, the
            maximum number of connections in a row that bring no event.
        first_pause: the seconds before the second try; every further pause is twice as long.
        longest_pause: the longest pause in seconds that the client chooses itself.
        longest_retry_after: the longest pause in seconds that the gateway may ask for. If it asks
            for a longer one, the error is raised at once.
    """

    tries: int = 10
    first_pause: float = 0.5
    longest_pause: float = 10.0
    longest_retry_after: float = 120.0

    def pause_after(self, error: MoyinError, failures: int) -> float:
        """Return the seconds to wait before the next try.

        Args:
            error: the error of the last try.
            failures: the number of failed tries so far.

        Raises:
            MoyinError: ``error`` itself, if the request must not be sent again.
        """
        requested = error.retry_after or 0.0
        if (
            not is_retryable(error)
            or failures >= self.tries
            or requested > self.longest_retry_after
        ):
            raise error
        # The exponent is bounded, so that the power does not exceed the largest float.
        backoff = min(self.first_pause * 2.0 ** min(failures - 1, 60), self.longest_pause)
        return max(requested, backoff * random.uniform(0.5, 1.0))


class Patience:
    """Bounds how long a client waits for a job while the gateway can't be reached.

    Args:
        longest_outage: the seconds after which an outage is an error.
        clock: returns the present time in seconds.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        longest_outage: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._policy = policy
        self._longest_outage = longest_outage
        self._clock = clock
        self._answered_at = clock()

    def renew(self) -> None:
        """Record that the gateway has answered."""
        self._answered_at = self._clock()

    def pause_after(self, error: MoyinError) -> float:
        """Return the seconds to wait after the tries of the policy, or raise ``error``."""
        requested = error.retry_after or 0.0
        has_ended = self._clock() - self._answered_at > self._longest_outage
        if has_ended or not is_retryable(error) or requested > self._policy.longest_retry_after:
            raise error
        return max(requested, self._policy.longest_pause * random.uniform(0.5, 1.0))


def is_retryable(error: MoyinError) -> bool:
    """Return True if the same request may succeed later."""
    return error.code in _CODES if error.status is None else error.status in _STATUSES
