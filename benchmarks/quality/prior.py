"""Generates ``moyin/text/quality/prior.py``: the difficulty of each kind of request.

``python -m benchmarks.quality.prior [SOURCE]``. SOURCE is a folder or a git repository, by default
RouteLLM's public one. Only the folds for development are used, so that the folds that are scored
remain unseen. The difficulty of a kind is such that the expected number of right answers, given the
abilities of two models in the product's table, equals the actual number. For kinds with few or no
answers, a manually chosen difficulty dominates.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from benchmarks.quality.folds import DEVELOPMENT, SEED, build_prompt_question, split_by_row
from benchmarks.quality.tables import COMMIT, PUBLIC, STRONG, WEAK, Row, Tables, read_tables
from moyin.text.quality.abilities import look_up_ability
from moyin.text.quality.prior import KIND_DIFFICULTY

_TARGET = Path(__file__).parents[2] / "moyin/text/quality/prior.py"
_GUESSED = 0.25  # probability to guess right in MMLU, which offers four choices
_ANCHOR_ANSWERS = 40.0  # an anchor has the weight of so many answers
_VARIANCE = 0.5  # of difficulties within a kind, as in moyin.text.quality.estimator

# Set by hand on the scale of abilities: a 135M model has -2.8, an 8B model 1.6 to 2.3, Haiku 4.6. In
# trials the smallest model answered only greetings well.
ANCHORS = {
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
# Spread within a kind: greetings are alike, but "code" may be a line or a compiler.
_NARROW = ("greeting", "extraction", "summary", "writing", "translation")
_SPREADS = {kind: 0.8 if kind in _NARROW else 1.0 for kind in ANCHORS}

_SUBJECTS = {
    "law": "professional_law international_law jurisprudence",
    "medicine": "professional_medicine college_medicine clinical_knowledge anatomy virology"
    " medical_genetics nutrition human_aging",
    "finance": "professional_accounting econometrics high_school_macroeconomics"
    " high_school_microeconomics business_ethics management",
    "mathematics": "abstract_algebra college_mathematics high_school_mathematics"
    " high_school_statistics elementary_mathematics math",
    "reasoning": "formal_logic logical_fallacies moral_scenarios reasoning",
    "knowledge": "miscellaneous global_facts high_school_geography high_school_us_history"
    " high_school_world_history world_religions prehistory sociology us_foreign_policy"
    " astronomy stem humanities",
    "code": "coding",
    "writing": "writing roleplay",
    "extraction": "extraction",
}
_KIND_OF = {subject: kind for kind, names in _SUBJECTS.items() for subject in names.split()}


def fit_difficulties(
    tables: Tables, folds: Iterable[int] = DEVELOPMENT, seed: int = SEED
) -> dict[str, tuple[float, int]]:
    """Return for each kind of request its difficulty, and the number of answers behind it."""
    answers_by_kind: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in ANCHORS}
    for kind, row, guess_chance in _list_development_rows(tables, folds, seed):
        question = build_prompt_question(row.prompt)
        # The product adds this to the kind's level because of the length and other features.
        offset = question.difficulty - KIND_DIFFICULTY[question.kind]
        for model, label in ((WEAK, row.weak), (STRONG, row.strong)):
            ability = look_up_ability(model)
            assert ability is not None
            answers_by_kind[kind].append((ability.mean - offset, label, guess_chance))
    fitted_difficulties = {}
    for kind, kind_answers in answers_by_kind.items():
        data_share = len(kind_answers) / (len(kind_answers) + _ANCHOR_ANSWERS)
        level = _fit_level(kind_answers) if kind_answers else 0.0
        fitted_difficulties[kind] = (
            data_share * level + (1 - data_share) * ANCHORS[kind],
            len(kind_answers),
        )
    return fitted_difficulties


def _list_development_rows(
    tables: Tables, folds: Iterable[int], seed: int
) -> Iterator[tuple[str, Row, float]]:
    for fold in folds:
        for number in split_by_row(tables.mmlu, seed)[fold][1]:
            row = tables.mmlu[number]
            if row.subject in _KIND_OF:
                yield _KIND_OF[row.subject], row, _GUESSED
        for number in split_by_row(tables.gsm8k, seed)[fold][1]:
            yield "mathematics", tables.gsm8k[number], 0.0
    for row in tables.mt_bench:  # this table is not scored
        yield _KIND_OF[row.subject], row, 0.0


def _fit_level(answers: list[tuple[float, float, float]]) -> float:
    """Return the difficulty with which the expected number of good answers equals the true number.

    Args:
        answers: for each answer the model's ability, the answer's quality, and the probability that
            a guess is right.
    """
    scale = 1.0 / math.sqrt(1.0 + math.pi / 8 * _VARIANCE)
    good_answers = sum(score for _, score, _ in answers)

    def surplus(difficulty: float) -> float:
        chances = (
            guess_chance + (1 - guess_chance) / (1 + math.exp((difficulty - ability) * scale))
            for ability, _, guess_chance in answers
        )
        return sum(chances) - good_answers

    return _find_root(surplus, -8.0, 8.0)


def _find_root(decreasing_function: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(60):
        midpoint = (low + high) / 2
        low, high = (midpoint, high) if decreasing_function(midpoint) > 0 else (low, midpoint)
    return (low + high) / 2


def render_module(fitted_difficulties: dict[str, tuple[float, int]]) -> str:
    """Return the Python source of the generated module."""
    rows = sorted(fitted_difficulties.items(), key=lambda item: item[1][0])
    means = "\n".join(
        f'    "{kind}": {level:.2f},  # {f"{count} answers" if count else "by hand"}'
        for kind, (level, count) in rows
    )
    spreads = "\n".join(f'    "{kind}": {_SPREADS[kind]},' for kind, _ in rows)
    return f'''"""Lists the difficulty in logits of each kind of request before any signal.

Generated by ``python -m benchmarks.quality.prior`` from the tables that RouteLLM publishes (Apache
License 2.0, commit {COMMIT[:12]}); do not edit. The scale is that of `moyin.text.quality.abilities`.
"""

from __future__ import annotations

KIND_DIFFICULTY: dict[str, float] = {{
{means}
}}

# The standard deviation of the difficulty within each kind.
KIND_SPREAD: dict[str, float] = {{
{spreads}
}}
'''


def main() -> None:
    """Write the generated module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.prior")
    parser.add_argument("source", nargs="?", default=PUBLIC, help="folder or git repository")
    _TARGET.write_text(render_module(fit_difficulties(read_tables(parser.parse_args().source))))


if __name__ == "__main__":
    main()
