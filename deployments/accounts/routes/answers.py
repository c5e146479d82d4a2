"""What answers of several routes have in common."""

from __future__ import annotations

__all__ = ["SECRET"]

# Answers that hold a secret belong into no cache.
SECRET = {"cache-control": "no-store"}
