"""`MemoryGuard`: which renders are too large for a pool's share of a card."""

from __future__ import annotations

from moyin.domain.renderer import RenderRequest
from moyin.errors import OutOfMemory
from moyin.render.comfyui.prompts import BoundedDict

__all__ = ["MemoryGuard"]

_REMEMBERED = 1024
# ComfyUI loads the largest model whole and takes turns with the others, so only that must fit;
# latents and activations come on top.
_OVERHEAD = 1.2


class MemoryGuard:
    """Sends renders on to a larger pool: those that cannot fit, and those that did not.

    Without a larger pool nothing is held back: ComfyUI may still manage with what there is.

    Args:
        larger: the pool whose actors have a larger share of a card.
    """

    def __init__(self, larger: str | None = None) -> None:
        self._larger = larger
        self._bytes: int | None = None
        self._failed: BoundedDict[frozenset[str], None] = BoundedDict(_REMEMBERED)

    def saw(self, memory: int | None) -> None:
        """An actor of the pool may take ``memory`` bytes of its card; None: it has no card."""
        if memory is not None:
            self._bytes = memory

    def check(self, request: RenderRequest) -> None:
        """
        Raises:
            OutOfMemory: it would not fit here, by its models' sizes or by experience.
        """
        if self._larger is None or not request.models:
            return
        need = max(request.models.values()) * _OVERHEAD
        too_large = self._bytes is not None and need > self._bytes
        if too_large or frozenset(request.models) in self._failed:
            raise OutOfMemory(
                f"the render's models need more memory than this pool's actors have; "
                f"it goes to pool {self._larger!r}",
                details={"pool": self._larger},
            )

    def exceeded(self, request: RenderRequest, error: OutOfMemory) -> OutOfMemory:
        """What to raise for a render that ran out of memory; its models are remembered."""
        if request.models:
            self._failed[frozenset(request.models)] = None
        if self._larger is None:
            return error
        return OutOfMemory(error.message, details={**error.details, "pool": self._larger})
