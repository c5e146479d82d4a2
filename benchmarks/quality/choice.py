"""Chooses the estimator's constants on one part of the data, to score another part with them.

Folds 0 to 2 of the data are scored with constants chosen on folds 3 and 4, and vice versa. The
constants are the spreads of weights and the difficulty of each kind of request. The spreads are the
set in a small grid for which `_compute_merit` is highest; `benchmarks.quality.prior` computes the
difficulties. The product's own code runs with these constants.
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
    build_prompt_question,
    limit_labels,
    score_splits,
    split_by_row,
)
from benchmarks.quality.prior import fit_difficulties
from benchmarks.quality.tables import Row, Tables
from moyin.text.quality.learned_weights import WeightSpreads


@dataclass(frozen=True, kw_only=True, slots=True)
class Constants:
    """One of the sets of arguments for `WeightSpreads` that are tried.

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
    """Make the product use these difficulties of kinds of requests during the block."""
    build_prompt_question.cache_clear()
    try:
        with patch.dict("moyin.text.quality.question.KIND_DIFFICULTY", levels):
            yield
    finally:
        build_prompt_question.cache_clear()


def _use_constants(constants: Constants) -> AbstractContextManager[object]:
    """Make the product's estimator use these spreads of weights during the block."""
    spreads = WeightSpreads(**asdict(constants))
    return patch("moyin.text.quality.learned_weights._PRECISION", spreads.compute_precisions())


def _compute_merit(tables: Tables, folds: Sequence[int], seed: int) -> float:
    """Return the figure by which constants are compared: the mean of two APGR values.

    One value is the APGR (`benchmarks.quality.apgr`) on MMLU with few labels to learn from. The
    other is the APGR on GSM8K. Both depend more on the constants than other scores do.

    Args:
        folds: the only folds that are scored and learned from.
    """
    small_training_splits = limit_labels(
        _limit_to_folds(split_by_row(tables.mmlu, seed), folds), _LABELS, _DRAWS
    )
    gsm8k_splits = _limit_to_folds(split_by_row(tables.gsm8k, seed), folds)
    few_labels_apgr = statistics.mean(score_splits(tables.mmlu, small_training_splits).apgr)
    return (few_labels_apgr + statistics.mean(score_splits(tables.gsm8k, gsm8k_splits).apgr)) / 2


def _limit_to_folds(splits: Sequence[Split], folds: Sequence[int]) -> list[Split]:
    """Return the splits that score ``folds``, without other folds' rows to learn from."""
    known_rows = {number for fold in folds for number in splits[fold][1]}
    return [([n for n in splits[fold][0] if n in known_rows], splits[fold][1]) for fold in folds]


def choose_constants(tables: Tables, seed: int) -> list[Choice]:
    """Choose the constants and difficulties with which each half of the folds is scored.

    For each half, the set that is best on the other half is chosen. The results are in the order of
    `HALVES`.
    """
    choices: list[Choice] = []
    for _, known_folds in HALVES:
        fitted_levels = fit_difficulties(tables, known_folds, seed)
        levels = {kind: round(level, 2) for kind, (level, _) in fitted_levels.items()}
        merits: dict[Constants, float] = {}
        with _use_levels(levels):
            for constants in GRID:
                with _use_constants(constants):
                    merits[constants] = _compute_merit(tables, known_folds, seed)
        # The first in the grid wins a tie.
        best_constants = max(GRID, key=merits.__getitem__)
        choices.append((best_constants, levels))
    return choices


def cross_score(tables: Tables, split_rows: Cut, seed: int, choice: Sequence[Choice]) -> Score:
    """Score all folds, each with the constants that were chosen without it.

    Args:
        split_rows: divides the rows of one table into folds.
        choice: the constants and difficulties for each of the `HALVES`.
    """
    rows, splits = split_rows(tables, seed)
    total_score = Score()
    for (scored_folds, _), (constants, levels) in zip(HALVES, choice, strict=True):
        with _use_levels(levels), _use_constants(constants):
            for fold in scored_folds:
                total_score.add(score_splits(rows, splits[fold]))
    return total_score
