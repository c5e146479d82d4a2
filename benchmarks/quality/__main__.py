"""Computes every figure of docs/quality.md with the product's code.

``python -m benchmarks.quality [SOURCE]`` writes ``docs/quality`` and needs about five minutes on
one processor. SOURCE is a folder or a git repository, by default RouteLLM's public one.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.quality import plots
from benchmarks.quality.choice import GRID, HALVES, Cut, choose_constants, cross_score
from benchmarks.quality.cost import measure_decisions
from benchmarks.quality.folds import (
    DEVELOPMENT,
    SEED,
    Score,
    limit_labels,
    score_splits,
    split_by_row,
    split_by_subject,
)
from benchmarks.quality.month import SimulatedMonth, simulate_month
from benchmarks.quality.tables import COMMIT, PUBLIC, Tables, read_tables
from moyin.text.quality.abilities import Ability, look_up_ability
from moyin.text.quality.embedder import load_embedder
from moyin.text.quality.estimator import Estimator
from moyin.text.quality.prior import KIND_DIFFICULTY, KIND_SPREAD
from moyin.text.quality.question import SHAPE_FEATURES, Question

_TARGET = Path(__file__).parents[2] / "docs/quality"
_LABELS, _DRAWS = 300, 8
_NO_SIGNAL = "MMLU, no signal"
_PARTITIONS = range(5)  # seeds; figures are of the first one, next to the means of all
_MONTHS = 20
_LABELLED_MODELS = ("smollm2-135m", "llama-3.2-1b", "llama-3.1-8b", "qwen3-32b", "claude-haiku-5-5")


def _score_with_few_labels(labels: int, draw_count: int) -> Cut:
    return lambda tables, seed: (
        tables.mmlu,
        [limit_labels([split], labels, draw_count) for split in split_by_row(tables.mmlu, seed)],
    )


# Ways to hold answers back. Each returns the rows of a table and the splits of each fold.
_CUTS: dict[str, Cut] = {
    "MMLU": lambda tables, seed: (
        tables.mmlu,
        [[split] for split in split_by_row(tables.mmlu, seed)],
    ),
    "GSM8K": lambda tables, seed: (
        tables.gsm8k,
        [[split] for split in split_by_row(tables.gsm8k, seed)],
    ),
    f"MMLU, {_LABELS} labels": _score_with_few_labels(_LABELS, _DRAWS),
    "MMLU, subjects never seen": lambda tables, seed: (
        tables.mmlu,
        [[split] for split in split_by_subject(tables.mmlu, seed)],
    ),
    _NO_SIGNAL: _score_with_few_labels(0, 1),
}


def score_partition(source: str, seed: int) -> tuple[dict[str, Score], list[dict[str, Any]]]:
    """Divide the data into folds; return the scores by kind of split, and the chosen constants.

    Args:
        seed: determines the random division. The kinds of split are the keys of `_CUTS`.
    """
    tables = read_tables(source)
    choice = choose_constants(tables, seed)
    scores = {
        name: cross_score(tables, split_rows, seed, choice) for name, split_rows in _CUTS.items()
    }
    return scores, [{**asdict(constants), "levels": levels} for constants, levels in choice]


def score_partitions(source: str) -> tuple[dict[str, Score], dict[str, Any]]:
    """Score several partitions of the data into folds.

    Returns:
        The scores of the first partition, and a summary of all partitions.
    """
    mean_apgr: dict[str, list[float]] = {name: [] for name in _CUTS}
    first_scores: dict[str, Score] = {}
    choices = []
    with ProcessPoolExecutor() as pool:
        for scores, choice in pool.map(partial(score_partition, source), _PARTITIONS):
            first_scores = first_scores or scores
            choices.append(choice)
            for name, partition_score in scores.items():
                mean_apgr[name].append(round(statistics.mean(partition_score.apgr), 4))
            print(json.dumps(choice) + "\n" + json.dumps(mean_apgr), flush=True)
    summary = {
        "grid": [asdict(constants) for constants in GRID],
        "scored_folds_and_those_that_chose": HALVES,
        "chosen": choices,
        "apgr_by_partition": mean_apgr,
        "mean": {name: round(statistics.mean(values), 4) for name, values in mean_apgr.items()},
    }
    return first_scores, summary


def compare_embedder(tables: Tables) -> dict[str, dict[str, float]]:
    """Score folds 3 and 4 of every division with word features only, and with the embedder.

    The constants are those of the product. Returns the mean APGR by kind of split and by features
    (``words`` or ``embedder``).
    """
    mean_apgr: dict[str, dict[str, float]] = {}
    for features, embed in (("words", None), ("embedder", load_embedder("wordllama"))):
        for name, split_rows in _CUTS.items():
            apgr_values: list[float] = []
            for seed in _PARTITIONS:
                rows, splits = split_rows(tables, seed)
                development_splits = [split for fold in DEVELOPMENT for split in splits[fold]]
                apgr_values += score_splits(rows, development_splits, embed).apgr
            mean_apgr.setdefault(name, {})[features] = round(statistics.mean(apgr_values), 4)
    print("embedder: " + json.dumps(mean_apgr))
    return mean_apgr


def summarize_score(name: str, result: Score) -> dict[str, Any]:
    """Return the figures of one score, and print them."""
    values_per_fold = len(result.apgr) // 5
    unseen_values = [
        value for i, value in enumerate(result.apgr) if i // values_per_fold not in DEVELOPMENT
    ]
    middle_pairs = [pair for pair in result.pairs if 0.8 <= pair[0] <= 0.9]
    score_summary = {
        "apgr": round(statistics.mean(result.apgr), 4),
        "apgr_of_folds_0_to_2": round(statistics.mean(unseen_values), 4),
        "spread_of_folds": round(statistics.stdev(result.apgr), 4),
        "by_fold": [round(value, 4) for value in result.apgr],
        "by_length": round(statistics.mean(result.length), 4),
        "by_chance": round(statistics.mean(result.chance), 4),
        "answers_with_p_good_in_0.8_to_0.9": len(middle_pairs),
        "of_these_good": round(statistics.mean(pair[1] for pair in middle_pairs), 4),
        "reliability": [
            [round(p, 3), round(is_good_rate, 3), n]
            for p, is_good_rate, n in plots.compute_bins(result.pairs)
        ],
    }
    print(f"{name}: " + json.dumps({k: v for k, v in score_summary.items() if k != "reliability"}))
    return score_summary


def summarize_months(months: list[SimulatedMonth]) -> dict[str, Any]:
    """Return the figures of the simulated months, and print them."""
    names = [name for name in months[0].totals if name not in ("router", "best fixed policy")]
    ratios = [month.totals["router"] / month.totals["best fixed policy"] for month in months]
    single_model_ratios = [
        month.totals["router"] / min(month.totals[name] for name in names) for month in months
    ]
    month_summary = {
        "seeds": len(months),
        "router_to_best_fixed_policy": [round(ratio, 3) for ratio in ratios],
        "mean": round(statistics.mean(ratios), 3),
        "worst": round(max(ratios), 3),
        "within_10_percent": sum(ratio <= 1.1 for ratio in ratios),
        "router_to_best_single_model_mean": round(statistics.mean(single_model_ratios), 3),
        "router_to_best_single_model_worst": round(max(single_model_ratios), 3),
        "mean_totals_usd": {
            name: round(statistics.mean(month.totals[name] for month in months), 2)
            for name in months[0].totals
        },
        "mean_bad_answers": {
            name: round(statistics.mean(month.bad[name] for month in months))
            for name in months[0].bad
        },
    }
    print("months: " + json.dumps(month_summary))
    return month_summary


def compute_chance(level: float, kind: str) -> float:
    """Return p_good of a model with the ability ``level`` for an average request of ``kind``."""
    question = Question(
        kind=kind,
        language="en",
        difficulty=KIND_DIFFICULTY[kind],
        spread=KIND_SPREAD[kind],
        features=(0,) * SHAPE_FEATURES,
    )
    return Estimator().estimate("", "", Ability(mean=level, spread=0.6, source=""), question).p


def main() -> None:
    """Compute and write all figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality")
    parser.add_argument("source", nargs="?", default=PUBLIC, help="folder or git repository")
    parser.add_argument("--embedder", action="store_true", help="measure only the embedder")
    arguments = parser.parse_args()
    if arguments.embedder:
        embedder_gains = compare_embedder(read_tables(arguments.source))
        (_TARGET / "embedder.json").write_text(json.dumps(embedder_gains, indent=1) + "\n")
        return
    scores, partitions = score_partitions(arguments.source)
    months = [simulate_month(seed) for seed in range(_MONTHS)]
    costs = {name: round(microseconds, 1) for name, microseconds in measure_decisions().items()}
    print("microseconds: " + json.dumps(costs))
    results = {
        "tables": {"source": PUBLIC, "commit": COMMIT, "seed": SEED},
        "partitions": partitions,
        "apgr": {
            name: summarize_score(name, score_result) for name, score_result in scores.items()
        },
        "months": summarize_months(months),
        "microseconds_per_decision_of_eight": costs,
    }
    _TARGET.mkdir(exist_ok=True)
    (_TARGET / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    plots.draw_recovered(
        {name: scores[name] for name in scores if name != _NO_SIGNAL},
        _TARGET / "recovered.png",
    )
    calibrated_scores = ("MMLU", "GSM8K", "MMLU, subjects never seen", _NO_SIGNAL)
    plots.draw_reliability(
        {name: scores[name] for name in calibrated_scores}, _TARGET / "reliability.png"
    )
    plots.draw_month(months, _TARGET / "month.png")
    levels = {name: ability.mean for name in _LABELLED_MODELS if (ability := look_up_ability(name))}
    plots.draw_item_curves(KIND_DIFFICULTY, levels, compute_chance, _TARGET / "items.png")


if __name__ == "__main__":
    main()
