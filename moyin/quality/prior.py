"""Difficulty of each kind of request before any signal was seen, in logits.

Written by ``python -m benchmarks.quality.prior`` from the tables that RouteLLM publishes (Apache
License 2.0, commit 0b64fdafe049); not to be edited. The scale is that of abilities.
"""

from __future__ import annotations

__all__ = ["KIND_DIFFICULTY", "KIND_SPREAD"]

KIND_DIFFICULTY: dict[str, float] = {
    "greeting": -6.50,  # by hand
    "writing": -0.52,  # 32 answers
    "extraction": -0.43,  # 20 answers
    "summary": -0.30,  # by hand
    "chat": -0.20,  # by hand
    "translation": 0.40,  # by hand
    "knowledge": 0.43,  # 2040 answers
    "medicine": 1.17,  # 1246 answers
    "code": 1.43,  # 18 answers
    "finance": 1.53,  # 1018 answers
    "mathematics": 1.91,  # 1922 answers
    "reasoning": 2.08,  # 982 answers
    "law": 2.09,  # 1394 answers
}

# Requests of one kind differ by about this much.
KIND_SPREAD: dict[str, float] = {
    "greeting": 0.8,
    "writing": 0.8,
    "extraction": 0.8,
    "summary": 0.8,
    "chat": 1.0,
    "translation": 0.8,
    "knowledge": 1.0,
    "medicine": 1.0,
    "code": 1.0,
    "finance": 1.0,
    "mathematics": 1.0,
    "reasoning": 1.0,
    "law": 1.0,
}
