"""Formats probabilities for people."""

from __future__ import annotations

__all__ = ["chance_text"]


def chance_text(chance: float) -> str:
    """Return ``chance`` with two digits; ``>0.99`` and ``<0.01`` near the ends."""
    text = f"{chance:.2f}"
    return {"1.00": ">0.99", "0.00": "<0.01"}.get(text, text)
