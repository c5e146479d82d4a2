"""`FailureCounts`: the failures of a render over all attempts of its activity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from sqlalchemy.exc import SQLAlchemyError

from moyin.errors import MoyinError, RenderPoisoned, ServiceUnavailable, WorkerLost

__all__ = ["FailureCounts"]

# After this many lost ComfyUIs the render itself is taken for the cause. The loss of an actor, or of
# a process that was killed, usually has another cause, so more of these are allowed.
_MAX_DIED = 2
_MAX_LOST = 5
_MAX_FAILED = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureCounts:
    """Counts failures in the activity's heartbeat details, so that they outlive the replica.

    The death of a replica is not counted: every render that waits in it would be blamed for it.

    Attributes:
        died: ComfyUI processes that ended by themselves during the render.
        lost: ComfyUI processes that were killed, and actors that were lost, during the render.
        failed: other internal failures that a retry may not have.
    """

    died: int = 0
    lost: int = 0
    failed: int = 0

    @classmethod
    def read(cls, details: Sequence[Any]) -> Self:
        """Read the counts from `temporalio.activity.Info.heartbeat_details`."""
        counts = details[0] if details else None
        return cls(**counts) if isinstance(counts, Mapping) else cls()

    def write(self) -> dict[str, int]:
        """Return the counts as heartbeat details."""
        return asdict(self)

    def after(self, error: Exception) -> Self:
        """Return the counts with ``error`` added."""
        if isinstance(error, WorkerLost):
            if error.details.get("ended") == "comfyui":
                return replace(self, died=self.died + 1)
            return replace(self, lost=self.lost + 1)
        if isinstance(error, ServiceUnavailable | SQLAlchemyError | OSError):
            return self  # a service is away; the render only has to wait for it
        return replace(self, failed=self.failed + 1)

    def poisoned(self, error: Exception) -> RenderPoisoned | None:
        """Return the error that ends the render if ``error`` is one loss too many."""
        lost = self.died + self.lost
        if not isinstance(error, WorkerLost) or (self.died < _MAX_DIED and lost < _MAX_LOST):
            return None
        return RenderPoisoned(
            f"ComfyUI was lost {lost} times during this render, so the render is taken for the "
            f"cause: {error.message}",
            details={"lost": lost},
        )

    def is_exhausted(self, error: Exception) -> bool:
        """Return whether the render should not be retried after ``error``."""
        return (isinstance(error, MoyinError) and not error.retryable) or (
            self.failed >= _MAX_FAILED
        )
