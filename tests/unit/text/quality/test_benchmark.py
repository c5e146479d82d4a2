import random
from pathlib import Path

import pytest

from benchmarks.quality.apgr import compute_apgr, compute_recovered
from benchmarks.quality.choice import GRID, HALVES, choose_constants, cross_score
from benchmarks.quality.folds import (
    FOLDS,
    build_prompt_question,
    limit_labels,
    split_by_row,
    split_by_subject,
)
from benchmarks.quality.month import simulate_month
from benchmarks.quality.plots import compute_bins
from benchmarks.quality.prior import ANCHORS
from benchmarks.quality.tables import Row, Tables, read_tables
from moyin.text.quality import learned_weights as memory
from moyin.text.quality.prior import KIND_DIFFICULTY
from moyin.text.quality.question import KINDS


def test_apgr_of_a_perfect_order_is_high_and_of_its_reverse_low() -> None:
    truths = [1.0] * 20 + [0.0] * 80
    assert compute_recovered(truths, truths)[2] == 1.0
    assert compute_apgr(truths, truths) == pytest.approx(0.9)
    assert compute_apgr([-truth for truth in truths], truths) == pytest.approx(0.1)


def test_apgr_by_chance_is_a_half() -> None:
    generator = random.Random(1)
    truths = [generator.choice([0.0, 0.0, 0.0, 1.0, -1.0, 1.0]) for _ in range(20_000)]
    assert compute_apgr([generator.random() for _ in truths], truths) == pytest.approx(
        0.5, abs=0.03
    )


def test_scored_subjects_are_not_in_the_training_set() -> None:
    rows = [Row(prompt=str(n), subject=f"s{n % 11}", weak=0.0, strong=1.0) for n in range(100)]
    splits = split_by_subject(rows)
    for training_rows, held_out_rows in splits:
        assert not {rows[n].subject for n in training_rows} & {
            rows[n].subject for n in held_out_rows
        }
    assert sorted(n for _, held_out_rows in splits for n in held_out_rows) == list(range(100))
    assert [len(training_rows) for training_rows, _ in limit_labels(splits, 3, 2)] == [3] * 10


def test_reliability_bins_keep_every_answer() -> None:
    assert compute_bins([(0.05, 0.0), (0.85, 1.0), (0.86, 0.0), (1.0, 1.0)]) == [
        (0.05, 0.0, 1),
        (pytest.approx(0.855), 0.5, 2),
        (1.0, 1.0, 1),
    ]


def test_every_kind_has_an_anchor() -> None:
    assert set(KINDS) == set(ANCHORS)


def test_changed_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "routellm/evals/mmlu/responses/mmlu_abstract_algebra.csv"
    path.parent.mkdir(parents=True)
    path.write_text("prompt\n")
    with pytest.raises(ValueError, match="differs from the file of commit"):
        read_tables(str(tmp_path))


def test_learning_router_beats_each_single_model() -> None:
    month = simulate_month(3)
    router_total, best_total = month.totals["router"], month.totals["best fixed policy"]
    other_totals = [total for name, total in month.totals.items() if name != "router"]
    assert router_total < min(total for total in other_totals if total != best_total)
    assert router_total < 1.1 * best_total


def test_no_fold_is_scored_with_its_own_constants() -> None:
    assert sorted(fold for scored_folds, _ in HALVES for fold in scored_folds) == list(range(FOLDS))
    for scored_folds, known_folds in HALVES:
        assert not set(scored_folds) & set(known_folds)


def test_scored_fold_does_not_influence_its_constants() -> None:
    def make_rows(swapped_rows: frozenset[int]) -> tuple[Row, ...]:
        generator = random.Random(1)
        rows = []
        for number in range(200):
            verb = generator.choice(("Integrate", "Name"))
            weak_score, strong_score = (
                float(generator.random() < 0.6),
                float(generator.random() < 0.8),
            )
            if number in swapped_rows:
                weak_score, strong_score = 1.0 - weak_score, 1.0 - strong_score
            subject = "college_mathematics" if verb == "Integrate" else "miscellaneous"
            rows.append(
                Row(
                    prompt=f"{verb} {number}", subject=subject, weak=weak_score, strong=strong_score
                )
            )
        return tuple(rows)

    plain_rows = make_rows(frozenset())
    scored_folds = HALVES[0][0]
    held_out_rows = frozenset(
        number for fold in scored_folds for number in split_by_row(plain_rows)[fold][1]
    )
    first_constants, second_constants = (
        choose_constants(Tables(mmlu=table, gsm8k=table, mt_bench=()), seed=0)[0]
        for table in (plain_rows, make_rows(held_out_rows))
    )
    assert first_constants == second_constants
    constants_before = (memory._PRECISION, dict(KIND_DIFFICULTY))
    tables = Tables(mmlu=plain_rows, gsm8k=plain_rows, mt_bench=())
    result = cross_score(
        tables,
        lambda tables, seed: (tables.mmlu, [[split] for split in split_by_row(tables.mmlu, seed)]),
        0,
        [first_constants, (GRID[0], first_constants[1])],
    )
    assert len(result.apgr) == FOLDS
    assert constants_before == (memory._PRECISION, dict(KIND_DIFFICULTY))
    assert build_prompt_question.cache_info().currsize == 0
