import random
from pathlib import Path

import pytest

from benchmarks.quality.apgr import apgr, recovered
from benchmarks.quality.folds import by_subject, few
from benchmarks.quality.month import play
from benchmarks.quality.plots import bins
from benchmarks.quality.prior import ANCHORS
from benchmarks.quality.tables import Row, read_tables
from moyin.quality.question import KINDS


def test_apgr_of_a_perfect_order_is_high_and_of_its_reverse_low() -> None:
    truths = [1.0] * 20 + [0.0] * 80
    assert recovered(truths, truths)[2] == 1.0
    assert apgr(truths, truths) == pytest.approx(0.9)
    assert apgr([-truth for truth in truths], truths) == pytest.approx(0.1)


def test_apgr_by_chance_is_a_half() -> None:
    chance = random.Random(1)
    truths = [chance.choice([0.0, 0.0, 0.0, 1.0, -1.0, 1.0]) for _ in range(20_000)]
    assert apgr([chance.random() for _ in truths], truths) == pytest.approx(0.5, abs=0.03)


def test_subjects_that_are_scored_were_not_learned() -> None:
    rows = [Row(prompt=str(n), subject=f"s{n % 11}", weak=0.0, strong=1.0) for n in range(100)]
    splits = by_subject(rows)
    for learned, held in splits:
        assert not {rows[n].subject for n in learned} & {rows[n].subject for n in held}
    assert sorted(n for _, held in splits for n in held) == list(range(100))
    assert [len(learned) for learned, _ in few(splits, 3, 2)] == [3] * 10


def test_reliability_keeps_every_answer() -> None:
    assert bins([(0.05, 0.0), (0.85, 1.0), (0.86, 0.0), (1.0, 1.0)]) == [
        (0.05, 0.0, 1),
        (pytest.approx(0.855), 0.5, 2),
        (1.0, 1.0, 1),
    ]


def test_every_kind_has_an_anchor() -> None:
    assert set(KINDS) == set(ANCHORS)


def test_changed_table_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "routellm/evals/mmlu/responses/mmlu_abstract_algebra.csv"
    file.parent.mkdir(parents=True)
    file.write_text("prompt\n")
    with pytest.raises(ValueError, match="SHA-256"):
        read_tables(str(tmp_path))


def test_router_that_learns_is_ahead_of_each_single_model() -> None:
    month = play(3)
    router, best = month.totals["router"], month.totals["best fixed policy"]
    others = [total for name, total in month.totals.items() if name != "router"]
    assert router < min(total for total in others if total != best)
    assert router < 1.1 * best
