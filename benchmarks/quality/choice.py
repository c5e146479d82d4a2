"""Chooses the constants that matter for folds that are scored, on folds that are not.

Folds 0 to 2 are scored with what folds 3 and 4 chose, folds 3 and 4 with what folds 0 to 2 chose: the
spreads of weights, from a small grid by the rule of `_merit`, and the levels of kinds, fitted anew by
`benchmarks.quality.prior`. All of it runs the product's own code with other constants in it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from unittest.mock import patch

from benchmarks.quality.folds import DEVELOPMENT, FOLDS, Score, Split, asked, by_row, few, score
from benchmarks.quality.prior import difficulties
from benchmarks.quality.tables import Row, Tables
from moyin.text.quality.learned_weights import Spreads

__all__ = ["GRID", "HALVES", "Constants", "Cut", "chosen", "crossed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Constants:
    """What is chosen.

    Attributes:
        kind, words: spreads of the weights of kinds and of words.
        trust: spread of how often the words count.
    """

    kind: float
    words: float
    trust: float


GRID = tuple(
    Constants(kind=kind, words=words, trust=trust)
    for kind, words, trust in product((0.4, 0.7), (0.5, 0.7), (0.3, 0.5))
)
# Folds that are scored, and those on which is chosen for them.
_OTHERS = tuple(fold for fold in range(FOLDS) if fold not in DEVELOPMENT)
HALVES = ((_OTHERS, DEVELOPMENT), (DEVELOPMENT, _OTHERS))
_LABELS, _DRAWS = 300, 3

Choice = tuple[Constants, dict[str, float]]  # and the levels of kinds
Cut = Callable[[Tables, int], tuple[Sequence[Row], list[list[Split]]]]  # rows, and splits by fold


@contextmanager
def _reading(levels: dict[str, float]) -> Iterator[None]:
    """Read questions with other levels of kinds."""
    asked.cache_clear()
    try:
        with patch.dict("moyin.text.quality.question.KIND_DIFFICULTY", levels):
            yield
    finally:
        asked.cache_clear()


def _weighing(constants: Constants) -> AbstractContextManager[object]:
    """Learn with other spreads of weights."""
    spreads = Spreads(**asdict(constants))
    return patch("moyin.text.quality.learned_weights._PRECISION", spreads.precision())


def _merit(tables: Tables, folds: Sequence[int], seed: int) -> float:
    """The mean of the APGR with few labels and of that of the small table: what spreads decide."""
    labelled = few(_within(by_row(tables.mmlu, seed), folds), _LABELS, _DRAWS)
    small = _within(by_row(tables.gsm8k, seed), folds)
    few_labels = statistics.mean(score(tables.mmlu, labelled).apgr)
    return (few_labels + statistics.mean(score(tables.gsm8k, small).apgr)) / 2


def _within(splits: Sequence[Split], folds: Sequence[int]) -> list[Split]:
    """These folds, each learned from the others of them alone: no answer of another fold is seen."""
    known = {number for fold in folds for number in splits[fold][1]}
    return [([n for n in splits[fold][0] if n in known], splits[fold][1]) for fold in folds]


def chosen(tables: Tables, seed: int) -> list[Choice]:
    """Return for each of `HALVES` the constants and levels with which its first part is scored."""
    found: list[Choice] = []
    for _, known in HALVES:
        fitted = difficulties(tables, known, seed)
        levels = {kind: round(level, 2) for kind, (level, _) in fitted.items()}
        merits: dict[Constants, float] = {}
        with _reading(levels):
            for constants in GRID:
                with _weighing(constants):
                    merits[constants] = _merit(tables, known, seed)
        # Of equals the one that stands first in the grid.
        best = max(GRID, key=merits.__getitem__)
        found.append((best, levels))
    return found


def crossed(tables: Tables, cut: Cut, seed: int, choice: Sequence[Choice]) -> Score:
    """Score all folds in their order, each half with what the other chose."""
    rows, splits = cut(tables, seed)
    result = Score()
    for (scored, _), (constants, levels) in zip(HALVES, choice, strict=True):
        with _reading(levels), _weighing(constants):
            for fold in scored:
                result.add(score(rows, splits[fold]))
    return result
