"""Formats probabilities as text for people, in a module that is fast to import."""

from __future__ import annotations


def format_probability(probability: float) -> str:
    """Format a probability with two decimals, or as ``>0.99`` or ``<0.01`` near 1 or 0."""
    text = f"{probability:.2f}"
    return {"1.00": ">0.99", "0.00": "<0.01"}.get(text, text)
