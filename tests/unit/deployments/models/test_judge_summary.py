"""Tests the judge's part of ``GET /v1/quality`` for clients and operators."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from deployments.models.routes.judge_summary import count_agreements, summarize_verdicts
from moyin.cli.quality import _describe_judge
from moyin.domain.identity import ALL_SCOPES, TEXT, Identity
from moyin.errors import ServiceUnavailable
from moyin.store.quality import QualityStore, SignalRow
from moyin.store.sql import Database
from moyin.text.judging.comparison import derive_comparison_id
from moyin.text.judging.rules import JudgeRules

RULES = JudgeRules(share=0.1, model="opus", usd_per_month=Decimal(5))
OPERATOR = Identity(owner="ada", key_id="k", scopes=ALL_SCOPES)
CLIENT = replace(OPERATOR, scopes=frozenset({TEXT}))


class FakeJudge:
    def __init__(
        self, rules: JudgeRules | None = RULES, spent_usd: Decimal | None = Decimal(2)
    ) -> None:
        self.rules = rules
        self._spent_usd = spent_usd

    async def get_spending(self) -> Decimal:
        if self._spent_usd is None:
            raise ServiceUnavailable("Valkey is unavailable")
        return self._spent_usd


def make_row(request_id: str, score: float, **kwargs: Any) -> SignalRow:
    values: dict[str, Any] = {
        "owner": "ada", "request_id": request_id, "key_id": "", "source": "judge", "model": "m",
        "question": None, "score": score, "weight": 0.5, "p_good": 0.5,
        "created_at": datetime.now(UTC),
    }  # fmt: skip
    return SignalRow(**(values | kwargs))


def test_pair_of_verdicts_counts_once_and_a_tie_agrees() -> None:
    def derive_second_answer_id(name: str) -> str:
        return derive_comparison_id("ada", name)

    scores = [("a", 1.0), (derive_second_answer_id("a"), 0.5), ("b", 0.5), (derive_second_answer_id("b"), 0.5), ("c", 0.0),
              (derive_second_answer_id("c"), 1.0), ("unpaired", 1.0)]  # fmt: skip
    assert count_agreements("ada", scores) == (3, 2)
    assert count_agreements("bob", scores) == (0, 0)


async def test_verdicts_are_of_this_month_and_only_operators_see_spending(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'm.db'}")
    await database.ensure_schema()
    store = QualityStore(database)
    assert await summarize_verdicts(store, None, OPERATOR) is None
    assert await summarize_verdicts(store, FakeJudge(None), OPERATOR) is None
    long_ago = datetime.now(UTC) - timedelta(days=40)
    rows = [
        make_row("r1", 1.0), make_row(derive_comparison_id("ada", "r1"), 0.5),
        make_row("r2", 0.0), make_row(derive_comparison_id("ada", "r2"), 0.5),
        make_row("r0", 1.0, created_at=long_ago),
        make_row(derive_comparison_id("ada", "r0"), 1.0, created_at=long_ago),
        make_row("r1", 1.0, source="feedback"), make_row("b1", 1.0, owner="bob"),
    ]  # fmt: skip
    await store.write((), rows)
    counts = {"share": 0.1, "judged": 2, "agreed": 1}
    assert await summarize_verdicts(store, FakeJudge(), CLIENT) == counts
    money = {"spent_usd": 2.0, "usd_per_month": 5.0}
    assert await summarize_verdicts(store, FakeJudge(), OPERATOR) == {**counts, **money}
    summary_without_spending = await summarize_verdicts(store, FakeJudge(spent_usd=None), OPERATOR)
    assert summary_without_spending == {**counts, **money, "spent_usd": None}
    assert await summarize_verdicts(store, FakeJudge(None), OPERATOR) == {**counts, "share": 0.0}
    await database.close()


def test_command_line_shows_the_judge_in_one_line() -> None:
    counts = {"share": 0.1, "judged": 2, "agreed": 1}
    assert _describe_judge(counts) == "2 judged this month, 1 agreed"
    all_members = {**counts, "spent_usd": 1.5, "usd_per_month": 20.0}
    assert _describe_judge(all_members) == "2 judged this month, 1 agreed, $1.5000 of $20 spent"
    members_without_spending = {**all_members, "spent_usd": None}
    assert (
        _describe_judge(members_without_spending) == "2 judged this month, 1 agreed, ? of $20 spent"
    )
