"""Difficulty of each kind of request before any signal was seen, in logits.

Written by ``python -m benchmarks.quality.prior`` from the tables that RouteLLM publishes (Apache
License 2.0, commit 0b64fdafe049); not to be edited. The scale is that of abilities.
"""

from __future__ import annotations

__all__ = ["KIND_DIFFICULTY", "KIND_SPREAD"]

KIND_DIFFICULTY: dict[str, float] = {
    "greeting": -6.50,  # by hand
    "extraction": -0.91,  # 20 answers
    "writing": -0.86,  # 32 answers
    "summary": -0.30,  # by hand
    "knowledge": -0.27,  # 2040 answers
    "chat": -0.20,  # by hand
    "translation": 0.40,  # by hand
    "medicine": 0.50,  # 1246 answers
    "law": 0.76,  # 1394 answers
    "finance": 0.86,  # 1018 answers
    "reasoning": 1.17,  # 982 answers
    "code": 1.22,  # 18 answers
    "mathematics": 1.25,  # 1922 answers
}

# Requests of one kind differ by about this much.
KIND_SPREAD: dict[str, float] = {
    "greeting": 0.8,
    "extraction": 0.8,
    "writing": 0.8,
    "summary": 0.8,
    "knowledge": 1.0,
    "chat": 1.0,
    "translation": 0.8,
    "medicine": 1.0,
    "law": 1.0,
    "finance": 1.0,
    "reasoning": 1.0,
    "code": 1.0,
    "mathematics": 1.0,
}
