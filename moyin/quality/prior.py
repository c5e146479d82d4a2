"""Difficulty of each kind of request before any signal was seen, in logits."""

from __future__ import annotations

__all__ = ["KIND_DIFFICULTY", "KIND_SPREAD"]

# On the scale of abilities: a 135M model has -2.8, an 8B model some 1.6 to 2.3, Haiku 4.6.
KIND_DIFFICULTY: dict[str, float] = {
    "greeting": -6.5,
    "chat": -0.2,
    "extraction": -0.5,
    "summary": -0.3,
    "writing": 0.2,
    "translation": 0.4,
    "knowledge": 0.7,
    "mathematics": 1.0,
    "finance": 1.6,
    "code": 1.6,
    "medicine": 1.9,
    "reasoning": 2.0,
    "law": 2.4,
}

# Requests of one kind differ by about this much.
KIND_SPREAD: dict[str, float] = {
    "greeting": 0.8,
    "chat": 1.0,
    "extraction": 0.8,
    "summary": 0.8,
    "writing": 0.8,
    "translation": 0.8,
    "knowledge": 1.0,
    "mathematics": 1.0,
    "finance": 1.0,
    "code": 1.0,
    "medicine": 1.0,
    "reasoning": 1.0,
    "law": 1.0,
}
