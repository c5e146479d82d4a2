"""Chooses the estimator's constants on folds other than those that are scored.

Folds 0 to 2 are scored with constants chosen on folds 3 and 4, and vice versa. The chosen constants
are the spreads of weights, from a small grid by `_merit`, and the difficulties of kinds, fitted by
`benchmarks.quality.prior`. The product's own code runs with these constants.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from unittest.mock import patch

from benchmarks.quality.folds import (
    DEVELOPMENT,
    FOLDS,
    Score,
    Split,
    by_row,
    limit_labels,
    question_for,
    score,
)
from benchmarks.quality.prior import difficulties
from benchmarks.quality.tables import Row, Tables
from moyin.text.quality.learned_weights import WeightSpreads


@dataclass(frozen=True, kw_only=True, slots=True)
class Constants:
    """One set of the constants of `WeightSpreads` in the search.

    Attributes:
        kind, words: spreads of the weights of kinds and of words.
        trust: spread of the common weight of all words.
    """

    kind: float
    words: float
    trust: float


GRID = tuple(
    Constants(kind=kind, words=words, trust=trust)
    for kind, words, trust in product((0.4, 0.7), (0.5, 0.7), (0.3, 0.5))
)
# Pairs of scored folds and the folds on which their constants are chosen.
_OTHERS = tuple(fold for fold in range(FOLDS) if fold not in DEVELOPMENT)
HALVES = ((_OTHERS, DEVELOPMENT), (DEVELOPMENT, _OTHERS))
_LABELS, _DRAWS = 300, 3

Choice = tuple[Constants, dict[str, float]]  # constants, and difficulties by kind
Cut = Callable[[Tables, int], tuple[Sequence[Row], list[list[Split]]]]  # rows, and splits by fold


@contextmanager
def _use_levels(levels: dict[str, float]) -> Iterator[None]:
    """Analyse questions with these difficulties of kinds during the block."""
    question_for.cache_clear()
    try:
        with patch.dict("moyin.text.quality.question.KIND_DIFFICULTY", levels):
            yield
    finally:
        question_for.cache_clear()


def _use_constants(constants: Constants) -> AbstractContextManager[object]:
    """Learn with these spreads of weights during the block."""
    spreads = WeightSpreads(**asdict(constants))
    return patch("moyin.text.quality.learned_weights._PRECISION", spreads.compute_precisions())


def _merit(tables: Tables, folds: Sequence[int], seed: int) -> float:
    """Return the mean APGR with few labels and on GSM8K, which depend on the spreads most."""
    labelled = limit_labels(_limit_to_folds(by_row(tables.mmlu, seed), folds), _LABELS, _DRAWS)
    small_splits = _limit_to_folds(by_row(tables.gsm8k, seed), folds)
    few_labels = statistics.mean(score(tables.mmlu, labelled).apgr)
    return (few_labels + statistics.mean(score(tables.gsm8k, small_splits).apgr)) / 2


def _limit_to_folds(splits: Sequence[Split], folds: Sequence[int]) -> list[Split]:
    """Return the splits of ``folds``, which learn only from answers in these folds."""
    known_rows = {number for fold in folds for number in splits[fold][1]}
    return [([n for n in splits[fold][0] if n in known_rows], splits[fold][1]) for fold in folds]


def choose_constants(tables: Tables, seed: int) -> list[Choice]:
    """Return, for each of `HALVES`, the constants and levels with which it is scored."""
    choices: list[Choice] = []
    for _, known_folds in HALVES:
        fitted_levels = difficulties(tables, known_folds, seed)
        levels = {kind: round(level, 2) for kind, (level, _) in fitted_levels.items()}
        merits: dict[Constants, float] = {}
        with _use_levels(levels):
            for constants in GRID:
                with _use_constants(constants):
                    merits[constants] = _merit(tables, known_folds, seed)
        # The first in the grid wins a tie.
        best_constants = max(GRID, key=merits.__getitem__)
        choices.append((best_constants, levels))
    return choices


def cross_score(tables: Tables, split_rows: Cut, seed: int, choice: Sequence[Choice]) -> Score:
    """Score all folds in order, each half with the constants chosen on the other half."""
    rows, splits = split_rows(tables, seed)
    result = Score()
    for (scored_folds, _), (constants, levels) in zip(HALVES, choice, strict=True):
        with _use_levels(levels), _use_constants(constants):
            for fold in scored_folds:
                result.add(score(rows, splits[fold]))
    return result
