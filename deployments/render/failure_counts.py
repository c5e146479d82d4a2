"""Contains `FailureCounts`, which decides whether a failed render is tried again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from sqlalchemy.exc import SQLAlchemyError

from moyin.errors import MoyinError, RenderPoisoned, ServiceUnavailable, WorkerLost

# After so many crashed ComfyUI processes, the render itself is probably the cause. A lost actor or
# a killed process usually has another cause, so more of those are allowed.
_MAX_DIED = 2
_MAX_LOST = 5
_MAX_FAILED = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureCounts:
    """Counts the failures of a render over all attempts of its Temporal activity.

    The heartbeat details of the activity contain the counts, so that they outlive the replica. The
    crash of a replica does not count, because it affects every render that waits in the replica.

    Attributes:
        died: number of ComfyUI processes that ended by themselves during the render.
        lost: number of ComfyUI processes that were killed, and of actors lost, during the render.
        failed: number of other internal failures, which a retry may avoid.
    """

    died: int = 0
    lost: int = 0
    failed: int = 0

    @classmethod
    def from_heartbeat(cls, details: Sequence[Any]) -> Self:
        """Return the counts in `temporalio.activity.Info.heartbeat_details`, or zeros."""
        counts = details[0] if details else None
        return cls(**counts) if isinstance(counts, Mapping) else cls()

    def to_heartbeat(self) -> dict[str, int]:
        """Return the counts as heartbeat details of the activity."""
        return asdict(self)

    def add(self, error: Exception) -> Self:
        """Return new counts that include ``error``."""
        if isinstance(error, WorkerLost):
            if error.details.get("ended") == "comfyui":
                return replace(self, died=self.died + 1)
            return replace(self, lost=self.lost + 1)
        if isinstance(error, ServiceUnavailable | SQLAlchemyError | OSError):
            return self  # The render waits until the unavailable service is back.
        return replace(self, failed=self.failed + 1)

    def find_final_error(self, error: Exception) -> RenderPoisoned | None:
        """Return the error of a render that has lost too many processes to be tried again.

        Return None if the render has lost fewer processes, or if ``error`` is not a lost process.
        """
        lost_count = self.died + self.lost
        if not isinstance(error, WorkerLost) or (self.died < _MAX_DIED and lost_count < _MAX_LOST):
            return None
        return RenderPoisoned(
            f"ComfyUI was lost {lost_count} times during this render, so the graph is probably the cause and is "
            f"not rendered again; the last loss: {error.message}",
            details={"lost": lost_count},
        )

    def allows_retry(self, error: Exception) -> bool:
        """Return True if the render should be tried again after ``error``."""
        is_final = isinstance(error, MoyinError) and not error.retryable
        return not is_final and self.failed < _MAX_FAILED
