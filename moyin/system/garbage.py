"""What the garbage collector need not see."""

from __future__ import annotations

import gc

__all__ = ["freeze_startup_objects"]


def freeze_startup_objects() -> None:
    """Take what was imported out of the garbage collector's sight: Ray and the SDKs are hundreds
    of thousands of objects that live for ever, and every full collection would walk them."""
    gc.collect()
    gc.freeze()
