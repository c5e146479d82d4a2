"""What ``GET /v1/quality`` says of the judge, and to whom."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from deployments.models.routes.judged import agreements, judged
from moyin.cli.quality import _judge_summary
from moyin.domain.identity import ALL_SCOPES, TEXT, Identity
from moyin.errors import ServiceUnavailable
from moyin.store.quality import QualityStore, SignalRow
from moyin.store.sql import Database
from moyin.text.judging.comparison import comparison_id
from moyin.text.judging.rules import JudgeRules

RULES = JudgeRules(share=0.1, model="opus", usd_per_month=Decimal(5))
OPERATOR = Identity(owner="ada", key_id="k", scopes=ALL_SCOPES)
CLIENT = replace(OPERATOR, scopes=frozenset({TEXT}))


class Books:
    def __init__(
        self, rules: JudgeRules | None = RULES, spent: Decimal | None = Decimal(2)
    ) -> None:
        self.rules = rules
        self._spent = spent

    async def spent(self) -> Decimal:
        if self._spent is None:
            raise ServiceUnavailable("Valkey is away")
        return self._spent


def row(request_id: str, score: float, **more: Any) -> SignalRow:
    values: dict[str, Any] = {
        "owner": "ada", "request_id": request_id, "key_id": "", "source": "judge", "model": "m",
        "question": None, "score": score, "weight": 0.5, "p_good": 0.5,
        "created_at": datetime.now(UTC),
    }  # fmt: skip
    return SignalRow(**(values | more))


def test_pairs_are_counted_once_and_a_tie_agrees() -> None:
    def other(name: str) -> str:
        return comparison_id("ada", name)

    scores = [("a", 1.0), (other("a"), 0.5), ("b", 0.5), (other("b"), 0.5), ("c", 0.0),
              (other("c"), 1.0), ("lonely", 1.0)]  # fmt: skip
    assert agreements("ada", scores) == (3, 2)
    assert agreements("bob", scores) == (0, 0)


async def test_verdicts_of_this_month_and_the_money_for_operators(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'm.db'}")
    await database.ready()
    store = QualityStore(database)
    assert await judged(store, None, OPERATOR) is None
    assert await judged(store, Books(None), OPERATOR) is None
    long_ago = datetime.now(UTC) - timedelta(days=40)
    rows = [
        row("r1", 1.0), row(comparison_id("ada", "r1"), 0.5),
        row("r2", 0.0), row(comparison_id("ada", "r2"), 0.5),
        row("r0", 1.0, created_at=long_ago),
        row(comparison_id("ada", "r0"), 1.0, created_at=long_ago),
        row("r1", 1.0, source="feedback"), row("b1", 1.0, owner="bob"),
    ]  # fmt: skip
    await store.write((), rows)
    counts = {"share": 0.1, "judged": 2, "agreed": 1}
    assert await judged(store, Books(), CLIENT) == counts
    money = {"spent_usd": 2.0, "usd_per_month": 5.0}
    assert await judged(store, Books(), OPERATOR) == {**counts, **money}
    away = await judged(store, Books(spent=None), OPERATOR)
    assert away == {**counts, **money, "spent_usd": None}
    assert await judged(store, Books(None), OPERATOR) == {**counts, "share": 0.0}
    await database.close()


def test_the_command_line_says_it_in_a_line() -> None:
    counts = {"share": 0.1, "judged": 2, "agreed": 1}
    assert _judge_summary(counts) == "2 judged this month, 1 agreed"
    told = {**counts, "spent_usd": 1.5, "usd_per_month": 20.0}
    assert _judge_summary(told) == "2 judged this month, 1 agreed, $1.5000 of $20 spent"
    assert (
        _judge_summary({**told, "spent_usd": None})
        == "2 judged this month, 1 agreed, ? of $20 spent"
    )
