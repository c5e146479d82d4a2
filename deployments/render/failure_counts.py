"""`FailureCounts`: what a render has cost so far, over all attempts of its activity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from sqlalchemy.exc import SQLAlchemyError

from moyin.errors import MoyinError, RenderPoisoned, ServiceUnavailable, WorkerLost

__all__ = ["FailureCounts"]

# So many ComfyUIs may end under a render before it is taken for the cause. Losses of actors, and of
# processes that somebody has killed, have other causes, though hardly so often.
_MAX_DIED = 2
_MAX_LOST = 5
_MAX_FAILED = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureCounts:
    """Travels in the activity's heartbeat, so it outlives the pool's replicas.

    Their own deaths are not in it: whatever waits in a pool that dies would have to pay for it.

    Attributes:
        died: ComfyUI processes that ended by themselves under the render.
        lost: processes that were killed under it, and actors.
        failed: other failures of our own making that another try may mend.
    """

    died: int = 0
    lost: int = 0
    failed: int = 0

    @classmethod
    def read(cls, details: Sequence[Any]) -> Self:
        """From `temporalio.activity.Info.heartbeat_details`."""
        found = details[0] if details else None
        return cls(**found) if isinstance(found, Mapping) else cls()

    def write(self) -> dict[str, int]:
        return asdict(self)

    def after(self, error: Exception) -> Self:
        """With what ``error`` adds."""
        if isinstance(error, WorkerLost):
            if error.details.get("ended") == "comfyui":
                return replace(self, died=self.died + 1)
            return replace(self, lost=self.lost + 1)
        if isinstance(error, ServiceUnavailable | SQLAlchemyError | OSError):
            return self  # somebody is away; that costs nothing but time
        return replace(self, failed=self.failed + 1)

    def poisoned(self, error: Exception) -> RenderPoisoned | None:
        """What to raise for the loss ``error`` when it was one too many."""
        lost = self.died + self.lost
        if not isinstance(error, WorkerLost) or (self.died < _MAX_DIED and lost < _MAX_LOST):
            return None
        return RenderPoisoned(
            f"ComfyUI was lost under the render {lost} times, which is taken for its fault: "
            f"{error.message}",
            details={"lost": lost},
        )

    def exhausted(self, error: Exception) -> bool:
        """Whether ``error`` is not worth another try, although it is of a kind that may be."""
        return (isinstance(error, MoyinError) and not error.retryable) or (
            self.failed >= _MAX_FAILED
        )
