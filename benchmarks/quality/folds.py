"""Scores the product's estimates on answers from which it has not learned.

The data is divided into folds at random. While some folds are scored, the constants are those that
`benchmarks.quality.choice` chose on the other folds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from benchmarks.quality.apgr import compute_apgr, compute_recovered
from benchmarks.quality.tables import STRONG, WEAK, Row
from moyin.text.quality.abilities import look_up_ability
from moyin.text.quality.estimator import Estimator, Signal
from moyin.text.quality.question import Question, build_question

SEED = 0
FOLDS = 5
DEVELOPMENT = (3, 4)  # the shipped constants were chosen on these folds of the seed
_TENANT = "studio"
_MINUTE = 60.0
_KEYS = 40  # simulated people who rate answers
_SIGNALS_PER_DAY = 1_000  # 25 ratings of each person


@dataclass(slots=True)
class Score:
    """The scores of one way of splitting the answers: some are learned, the rest are scored.

    Attributes:
        apgr: for each fold, the APGR (`benchmarks.quality.apgr`) of the router.
        chance: for each fold, the APGR of a random order.
        length: for each fold, the APGR if prompts are ordered by their length.
        curves: for each fold, the parts of the quality gap that `compute_recovered` returns.
        pairs: expected and true quality of every scored answer.
    """

    apgr: list[float] = field(default_factory=list)
    chance: list[float] = field(default_factory=list)
    length: list[float] = field(default_factory=list)
    curves: list[list[float]] = field(default_factory=list)
    pairs: list[tuple[float, float]] = field(default_factory=list)

    def add(self, other_score: Score) -> None:
        """Append the scores in ``other_score`` to these scores."""
        for name in ("apgr", "chance", "length", "curves", "pairs"):
            getattr(self, name).extend(getattr(other_score, name))


Embed = Callable[[str], tuple[int, ...]]  # as `moyin.text.quality.embedder` has it
Split = tuple[list[int], list[int]]  # numbers of rows to learn from, in order, and to score


def split_by_row(rows: Sequence[Row], seed: int = SEED) -> list[Split]:
    """Divide the rows into five random folds, and return a split for each fold.

    A split has the numbers of the rows to learn from, in random order, and those to score: the
    fold.
    """
    shuffled_rows = list(range(len(rows)))
    random.Random(seed).shuffle(shuffled_rows)
    splits = []
    for fold in range(FOLDS):
        training_rows = [
            number
            for other_fold in range(FOLDS)
            if other_fold != fold
            for number in shuffled_rows[other_fold::FOLDS]
        ]
        random.Random(fold + 1_000 * seed).shuffle(training_rows)
        splits.append((training_rows, shuffled_rows[fold::FOLDS]))
    return splits


def split_by_subject(rows: Sequence[Row], seed: int = SEED) -> list[Split]:
    """Divide the subjects into five random folds, and return a split for each fold.

    A split has the numbers of the rows to learn from, and those to score. No subject is in both.
    """
    subjects = sorted({row.subject for row in rows})
    random.Random(seed).shuffle(subjects)
    shuffled_rows = list(range(len(rows)))
    random.Random(seed).shuffle(shuffled_rows)
    splits = []
    for fold in range(FOLDS):
        scored_subjects = set(subjects[fold::FOLDS])
        splits.append(
            (
                [number for number in shuffled_rows if rows[number].subject not in scored_subjects],
                [number for number in shuffled_rows if rows[number].subject in scored_subjects],
            )
        )
    return splits


def limit_labels(splits: Iterable[Split], label_count: int, draw_count: int) -> list[Split]:
    """Return ``draw_count`` smaller splits per split, with only ``label_count`` rows to learn from."""
    return [
        (training_rows[draw * label_count : (draw + 1) * label_count], test_rows)
        for training_rows, test_rows in splits
        for draw in range(draw_count)
    ]


def score_splits(rows: Sequence[Row], splits: Sequence[Split], embed: Embed | None = None) -> Score:
    """Learn from the first rows of each split, one signal at a time, and score the other rows.

    Args:
        embed: computes features of a prompt; None uses only features of words.
    """
    total_score = Score()
    for training_rows, test_rows in splits:
        estimator = _learn(rows, training_rows, embed)
        rng = random.Random(test_rows[0])
        weak_estimates, strong_estimates = (
            [
                _estimate_quality(estimator, model, build_prompt_question(rows[row].prompt, embed))
                for row in test_rows
            ]
            for model in (WEAK, STRONG)
        )
        expected_gains = [s - w for w, s in zip(weak_estimates, strong_estimates, strict=True)]
        true_gains = [rows[row].strong - rows[row].weak for row in test_rows]
        total_score.apgr.append(compute_apgr(expected_gains, true_gains))
        total_score.curves.append(compute_recovered(expected_gains, true_gains))
        total_score.length.append(
            _compute_apgr_by(lambda row: len(rows[row].prompt), test_rows, true_gains)
        )
        total_score.chance.append(compute_apgr([rng.random() for _ in test_rows], true_gains))
        for row, w, s in zip(test_rows, weak_estimates, strong_estimates, strict=True):
            total_score.pairs += [(w, rows[row].weak), (s, rows[row].strong)]
    return total_score


def _learn(rows: Sequence[Row], row_order: Sequence[int], embed: Embed | None) -> Estimator:
    estimator = Estimator()
    for count, row in enumerate(row_order):
        for model, label in ((WEAK, rows[row].weak), (STRONG, rows[row].strong)):
            signal = Signal(
                model=model,
                question=build_prompt_question(rows[row].prompt, embed),
                score=label,
                weight=1.0,
                source="feedback",
                key=f"person-{count % _KEYS}",
                at=count * 86_400.0 / _SIGNALS_PER_DAY,
            )
            if estimator.learn(_TENANT, signal) < 1.0:
                raise RuntimeError(
                    "a key exceeded its limit of signals, so the scores would be too low: raise _KEYS"
                )
    return estimator


def _estimate_quality(estimator: Estimator, model: str, question: Question) -> float:
    return estimator.estimate(_TENANT, model, look_up_ability(model), question).p


def _compute_apgr_by(
    score_row: Callable[[int], float], test_rows: Sequence[int], truths: Sequence[float]
) -> float:
    return compute_apgr([score_row(row) for row in test_rows], truths)


@lru_cache(maxsize=32_768)
def build_prompt_question(prompt: str, embed: Embed | None = None) -> Question:
    """Return the router's features of a chat that consists of this prompt.

    Args:
        embed: computes additional features of the prompt, or None.
    """
    return build_question(
        [("user", prompt)],
        tools=False,
        schema=False,
        pictures=False,
        thinking=False,
        prompt_tokens=len(prompt) // 4,
        embed=embed,
    )
