"""Tests that all replicas learn from the signals in SQL, in the same order."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from moyin.domain.needs import Needs
from moyin.errors import FeedbackAlreadyGiven, RateLimited, RequestNotFound
from moyin.store.quality import QualityStore, SignalRow
from moyin.store.sql import Database
from moyin.store.usage import UsageEntry, UsageLedger
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.quality.estimator import Estimate, Estimator
from moyin.text.quality.question import build_question
from moyin.text.routing import learning as learning_module
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.catalog import ModelDeployment
from moyin.text.routing.decision import rank_candidates
from moyin.text.routing.feedback import FeedbackService
from moyin.text.routing.followups import FollowUpDetector
from moyin.text.routing.learning import QualityLearner
from moyin.text.routing.request_quality import RequestQuality, question_from_json
from moyin.text.routing.router import Router
from moyin.text.routing.usage_history import UsageHistory
from tests.unit.text.routing.factories import make_route
from tests.unit.text.routing.router_rig import RecordedLedger
from tests.unit.text.routing.test_request_quality import HAIKU, SMALL, SORT, make_router

NOW = 1_795_000_000.0


class FakeParsedRequest:
    """A minimal parsed request."""

    def select_recent_turns(self) -> tuple[tuple[str, str], ...]:
        return (("user", SORT),)


class Replica:
    """A replica of the router with its own estimator and the shared database."""

    def __init__(self, database: Database) -> None:
        self.now = NOW
        self.estimator = Estimator()
        self.store = QualityStore(database)
        self.learning = QualityLearner(self.estimator, self.store, clock=lambda: self.now)
        self.ledger = UsageLedger(database)
        self.feedback = FeedbackService(
            self.store, self.learning, self.ledger, clock=lambda: self.now
        )

    async def record_answer(
        self, request_id: str, owner: str = "ada", deployment: ModelDeployment = SMALL
    ) -> None:
        """Record a routing decision, as if the deployment had answered the request."""
        await self.learning.load_tenant(owner)
        needs = Needs(prompt_tokens=20)
        parsed_request: Any = FakeParsedRequest()
        quality = RequestQuality(
            self.estimator, owner, parsed_request, needs, usd_per_bad_answer=0.003, floor=0.0
        )
        fleet = make_router(SMALL, HAIKU).fleet
        candidates = rank_candidates(make_route(fleet), needs, UsageHistory(), quality=quality)
        (chosen_candidate,) = (
            candidate for candidate in candidates if candidate.deployment is deployment
        )
        self.learning.record_decision(
            owner, request_id, quality, candidates, chosen_candidate, self.now
        )

    async def rate(self, request_id: str, score: float, **caller: str) -> Any:
        return await self.feedback.submit(
            caller.get("owner", "ada"),
            caller.get("key", "key_1"),
            request_id,
            score=score,
            better_request_id=None,
            comment=None,
        )

    def estimate(self, owner: str = "ada", model: str = "smollm2-135m") -> Estimate:
        question = build_question(
            [("user", SORT)],
            tools=False,
            schema=False,
            pictures=False,
            thinking=False,
            prompt_tokens=20,
        )
        deployment = SMALL if model == "smollm2-135m" else HAIKU
        return self.estimator.estimate(owner, model, deployment.ability, question)


def are_alike(first_estimate: Estimate, second_estimate: Estimate) -> bool:
    """Return True if two estimates differ only by rounding."""
    return (first_estimate.signals, first_estimate.basis) == (
        second_estimate.signals,
        second_estimate.basis,
    ) and first_estimate.p == pytest.approx(second_estimate.p, abs=1e-6)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    yield database
    await database.close()


async def test_feedback_moves_the_next_estimate(database: Database) -> None:
    replica = Replica(database)
    await replica.record_answer("r1")
    estimate_before = replica.estimate()
    assert await replica.rate("r1", 1.0) == {"r1": 1.0}
    estimate_after = replica.estimate()
    assert estimate_after.p > estimate_before.p
    assert (estimate_after.signals, estimate_after.basis) == (1, "learned")
    assert replica.estimate("bob") == estimate_before


async def test_a_rating_goes_to_the_model_whose_answer_the_client_got(database: Database) -> None:
    """A rescued request has two routing decisions; the later one counts, even if not yet stored."""
    replica = Replica(database)
    await replica.record_answer("r1")
    await replica.learning.flush()
    replica.now += 1
    await replica.record_answer("r1", deployment=HAIKU)
    await replica.rate("r1", 1.0)
    (row,) = await replica.store.list_latest_signals("ada", 10)
    assert row.model == "claude-haiku-5-5"


async def test_learned_state_survives_a_restart(database: Database) -> None:
    first_replica = Replica(database)
    for number in range(3):
        await first_replica.record_answer(f"r{number}")
        await first_replica.rate(f"r{number}", 1.0)
    # Once from the log alone, once from a saved state; nothing is counted twice.
    for closes_first in (False, True):
        if closes_first:
            await first_replica.learning.close()
        second_replica = Replica(database)
        await second_replica.learning.load_tenant("ada")
        assert are_alike(second_replica.estimate(), first_replica.estimate())
        assert second_replica.estimate().signals == 3


async def test_replicas_agree_after_reading_the_same_signals(database: Database) -> None:
    first_replica, second_replica = Replica(database), Replica(database)
    for replica in (first_replica, second_replica):
        await replica.learning.load_tenant("ada")
    await first_replica.record_answer("r1")
    await first_replica.rate("r1", 1.0)
    await second_replica.record_answer("r2")
    await second_replica.rate("r2", 0.5, key="key_2")
    await first_replica.learning.learn_new_signals()
    assert first_replica.estimate() == second_replica.estimate()
    assert first_replica.estimate().signals == 2


async def test_repeated_rating_changes_nothing_and_another_score_is_rejected(
    database: Database,
) -> None:
    replica = Replica(database)
    await replica.record_answer("r1")
    await replica.rate("r1", 1.0)
    estimate_of_one_rating = replica.estimate()
    await replica.rate("r1", 1.0)
    assert replica.estimate() == estimate_of_one_rating
    with pytest.raises(FeedbackAlreadyGiven) as exc_info:
        await replica.rate("r1", 0.0)
    assert exc_info.value.field == "score"
    assert replica.estimate() == estimate_of_one_rating
    await replica.rate("r1", 0.0, key="key_2")
    assert replica.estimate() != estimate_of_one_rating


async def test_unknown_requests_and_those_of_others_are_not_found(database: Database) -> None:
    replica = Replica(database)
    await replica.record_answer("r1")
    for request_id, owner in (("r2", "ada"), ("r1", "bob")):
        with pytest.raises(RequestNotFound):
            await replica.rate(request_id, 1.0, owner=owner)


def make_entry(request_id: str, model: str = "smollm2-135m", **members: Any) -> UsageEntry:
    entry = UsageEntry(
        request_id=request_id,
        owner="ada",
        backend="local",
        model=model,
        input_tokens=9,
        cached_tokens=0,
        output_tokens=4,
        cost_usd=Decimal(0),
        complete=True,
    )
    return replace(entry, **members)


async def add_to_ledger(replica: Replica, request_id: str, model: str = "smollm2-135m") -> None:
    """Add a request without a routing decision to the ledger."""
    await replica.ledger.start()
    replica.ledger.record(make_entry(request_id, model))
    await replica.ledger.close()


async def test_a_rating_may_come_before_the_ledger_has_written(database: Database) -> None:
    replica = Replica(database)
    replica.ledger.record(make_entry("r1", complete=False, model="claude-haiku-5-5"))
    replica.ledger.record(make_entry("r1"))
    assert await replica.rate("r1", 1.0) == {"r1": 1.0}
    (row,) = await replica.store.list_latest_signals("ada", 10)
    assert row.model == "smollm2-135m", "not the one that lost the race"
    with pytest.raises(RequestNotFound):
        await replica.rate("r1", 1.0, owner="bob")


async def test_requests_without_output_cannot_be_rated(database: Database) -> None:
    replica = Replica(database)
    replica.ledger.record(make_entry("left", complete=False, output_tokens=0))
    replica.ledger.record(make_entry("vectors", output_tokens=0))
    for request_id in ("left", "vectors"):
        with pytest.raises(RequestNotFound):
            await replica.rate(request_id, 0.0)


async def test_ledger_names_the_model_of_a_request_without_a_decision(
    database: Database,
) -> None:
    replica = Replica(database)
    replica.now = time.time()  # when the ledger writes
    await add_to_ledger(replica, "r1")
    await replica.learning.load_tenant("ada")
    estimate_before, haiku_estimate = replica.estimate(), replica.estimate(model="claude-haiku-5-5")
    assert await replica.rate("r1", 0.0) == {"r1": 0.0}
    estimate_after = replica.estimate()
    assert estimate_before.p - 0.05 < estimate_after.p < estimate_before.p, (
        "a little, as nothing is known of what was asked"
    )
    assert estimate_after.signals == estimate_before.signals, "it is none of this kind"
    assert replica.estimate(model="claude-haiku-5-5") == haiku_estimate
    (row,) = await replica.store.list_latest_signals("ada", 10)
    assert row.question is not None
    assert (row.question["kind"], row.p_good) == ("unknown", None)
    for request_id, owner in (("r2", "ada"), ("r1", "bob")):
        with pytest.raises(RequestNotFound):
            await replica.rate(request_id, 1.0, owner=owner)
    replica.now += 31 * 86_400
    with pytest.raises(RequestNotFound):
        await replica.rate("r1", 0.0, key="key_2")


async def test_compared_requests_may_be_known_to_the_ledger_only(
    database: Database,
) -> None:
    replica = Replica(database)
    replica.now = time.time()
    await replica.record_answer("decided")
    await add_to_ledger(replica, "named", model="claude-haiku-5-5")
    scores = await replica.feedback.submit(
        "ada", "key_1", "decided", score=None, better_request_id="named", comment=None
    )
    assert scores == {"decided": 0.2, "named": 0.8}
    rows = {row.request_id: row for row in await replica.store.list_latest_signals("ada", 10)}
    assert rows["named"].model == "claude-haiku-5-5"
    kinds = {name: (row.question or {})["kind"] for name, row in rows.items()}
    assert kinds == {"decided": "code", "named": "unknown"}
    with pytest.raises(RequestNotFound):
        await replica.feedback.submit(
            "ada", "key_1", "decided", score=None, better_request_id="nobody's", comment=None
        )


async def test_a_comparison_counts_for_both_requests(database: Database) -> None:
    replica = Replica(database)
    await replica.record_answer("bad")
    await replica.record_answer("good")
    scores = await replica.feedback.submit(
        "ada", "key_1", "bad", score=None, better_request_id="good", comment="clearer"
    )
    assert scores == {"bad": 0.2, "good": 0.8}
    rows = {row.request_id: row for row in await replica.store.list_latest_signals("ada", 10)}
    assert (rows["bad"].comment, rows["good"].comment) == ("clearer", None)
    assert {row.weight for row in rows.values()} == {0.5}


async def test_feedback_of_one_key_is_rate_limited(database: Database) -> None:
    replica = Replica(database)
    await replica.record_answer("r1")
    for _ in range(60):
        await replica.rate("r1", 1.0)
    with pytest.raises(RateLimited) as exc_info:
        await replica.rate("r1", 1.0)
    assert exc_info.value.retry_after == pytest.approx(1.0)
    await replica.rate("r1", 1.0, key="key_2")
    replica.now += 1.0
    await replica.rate("r1", 1.0)


async def test_a_reset_and_a_freeze_reach_every_replica(database: Database) -> None:
    first_replica, second_replica = Replica(database), Replica(database)
    for replica in (first_replica, second_replica):
        await replica.learning.load_tenant("ada")
    untaught_estimate = first_replica.estimate()
    await first_replica.record_answer("r1")
    await first_replica.rate("r1", 1.0)
    await second_replica.learning.learn_new_signals()
    await second_replica.learning.apply_owner_action("ada", "reset")
    await first_replica.learning.learn_new_signals()
    assert first_replica.estimate() == second_replica.estimate() == untaught_estimate
    await first_replica.learning.apply_owner_action("ada", "freeze")
    await second_replica.record_answer("r2")
    await second_replica.rate("r2", 1.0)
    assert second_replica.estimate() == untaught_estimate
    later_replica = Replica(database)
    await later_replica.learning.load_tenant("ada")
    assert later_replica.estimate() == untaught_estimate
    await later_replica.learning.apply_owner_action("ada", "thaw")
    await second_replica.learning.learn_new_signals()
    await second_replica.record_answer("r3")
    await second_replica.rate("r3", 1.0)
    assert second_replica.estimate() != untaught_estimate


async def test_evicted_tenant_is_reloaded_with_its_learned_state(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning_module, "_MAX_TENANTS", 1)
    replica = Replica(database)
    await replica.record_answer("r1")
    await replica.rate("r1", 1.0)
    learned_estimate = replica.estimate()
    await replica.learning.load_tenant("bob")
    assert replica.estimate() != learned_estimate
    await replica.learning.load_tenant("ada")
    assert are_alike(replica.estimate(), learned_estimate)


async def create_learned_tenants(database: Database, tenant_count: int, score: float = 0.0) -> None:
    """Create tenants that have each learned from several signals, all with this score."""
    for number in range(tenant_count):
        owner, replica = f"studio-{number}", Replica(database)
        await replica.record_answer("r", owner)
        await replica.learning.flush()
        row = await replica.store.get_decision(owner, "r")
        assert row is not None
        signals = [
            SignalRow(
                owner=owner,
                request_id=f"r{count}",
                key_id=f"key-{count % 8}",
                source="feedback",
                model=row.model,
                question=row.question,
                score=score,
                weight=1.0,
                p_good=row.p_good,
                created_at=datetime.fromtimestamp(NOW, UTC),
            )
            for count in range(30)
        ]
        await replica.store.write((), signals)
        await replica.learning.learn_new_signals()
        await replica.learning.close()


async def test_new_tenant_starts_with_shared_levels(
    database: Database,
) -> None:
    await create_learned_tenants(database, 5)
    first_replica, second_replica = Replica(database), Replica(database)
    estimate_before = first_replica.estimate("newcomer")
    for replica in (first_replica, second_replica):
        await replica.learning.refresh_shared_levels()
    assert first_replica.estimate("newcomer").p < estimate_before.p
    assert first_replica.estimate("newcomer") == second_replica.estimate("newcomer")
    assert first_replica.estimate("newcomer").basis == "shared"
    assert first_replica.learning.get_levels_from_others("newcomer", "smollm2-135m")["code"] < 0
    # The switch holds at once, and when a refresh is under way.
    first_replica.learning.set_sharing(False)
    await first_replica.learning.refresh_shared_levels()
    assert first_replica.estimate("newcomer") == estimate_before


async def test_four_tenants_are_too_few_to_share_levels(database: Database) -> None:
    await create_learned_tenants(database, 4)
    replica = Replica(database)
    estimate_before = replica.estimate("newcomer")
    await replica.learning.refresh_shared_levels()
    assert replica.estimate("newcomer") == estimate_before


async def test_poisoned_tenant_does_not_change_estimates_of_others(database: Database) -> None:
    await create_learned_tenants(database, 6, score=1.0)
    replica = Replica(database)
    await replica.learning.refresh_shared_levels()
    estimate_before = replica.estimate("newcomer")
    assert estimate_before.basis == "shared"
    await replica.learning.load_tenant("studio-0")
    await replica.record_answer("flood", "studio-0")
    for number in range(50):
        await replica.rate("flood", 0.0, owner="studio-0", key=f"bot-{number}")
    await replica.learning.close()
    await replica.learning.refresh_shared_levels()
    assert replica.estimate("newcomer").p == pytest.approx(estimate_before.p, abs=0.01)


async def test_frozen_tenant_withdraws_its_levels(database: Database) -> None:
    await create_learned_tenants(database, 5)
    replica = Replica(database)
    estimate_before = replica.estimate("newcomer")
    await replica.learning.apply_owner_action("studio-0", "freeze")
    await replica.learning.close()
    await replica.learning.refresh_shared_levels()
    assert replica.estimate("newcomer") == estimate_before


async def test_outdated_levels_are_ignored(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_learned_tenants(database, 5)
    store = Replica(database).store
    assert len(await store.list_levels()) == 5
    monkeypatch.setattr("moyin.store.quality._MAX_LEVELS", 4)
    monkeypatch.setattr("moyin.store.quality._PAGE", 2)
    assert len(await store.list_levels()) == 4
    monkeypatch.setattr("moyin.store.quality._LEVEL_LIFETIME", timedelta(0))
    assert await store.list_levels() == []


async def test_estimates_continue_without_the_database(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replica = Replica(database)

    async def fail(*_: object) -> None:
        raise OSError("refused")

    monkeypatch.setattr(replica.store, "get_state", fail)
    await replica.learning.load_tenant("ada")
    assert "could not be read" in caplog.text
    assert replica.estimate().basis == "table"
    assert not replica.learning.needs_load("ada"), "it is not tried again at once"
    monkeypatch.undo()
    replica.now += 60
    await replica.record_answer("r1")
    await replica.rate("r1", 1.0)
    assert replica.estimate().basis == "learned"


async def test_dropped_records_are_counted_and_logged(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(learning_module, "_MAX_QUEUED", 1)
    replica = Replica(database)
    await replica.record_answer("r1")
    await replica.record_answer("r2")
    await replica.learning.flush()
    assert "1 quality records were dropped" in caplog.text
    assert await replica.store.get_decision("ada", "r1") is not None
    assert await replica.store.get_decision("ada", "r2") is None


async def test_stored_decisions_contain_no_text(database: Database) -> None:
    replica = Replica(database)
    await replica.record_answer("r1")
    await replica.learning.flush()
    row = await replica.store.get_decision("ada", "r1")
    assert row is not None
    assert set(row.question) == {"kind", "language", "difficulty", "spread", "features"}
    assert all(isinstance(number, int) for number in question_from_json(row.question).features)
    assert {option[0] for option in row.options} == {"smollm2-135m", "claude-haiku-5-5"}


async def test_router_records_decisions_and_follow_ups(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moyin.text.routing.followups.MIN_SECONDS", 0.0)
    replica = Replica(database)
    follow_ups = FollowUpDetector(replica.learning)
    router = Router(
        make_router(SMALL, HAIKU).fleet,
        RecordedLedger(),
        estimator=replica.estimator,
        learning=replica.learning,
        follow_ups=follow_ups,
    )
    codec = OpenAICodec()
    prompt = f"{SORT}, with tests for empty lists"
    body = {"model": "auto", "messages": [{"role": "user", "content": prompt}]}
    for request_id in ("r1", "r2"):
        context = RoutingContext(request_id=request_id, owner="ada", headers=(), key_id="key_1")
        await router.answer(codec, codec.parse(json.dumps(body).encode()), context)
    await follow_ups.close()
    await replica.learning.flush()
    row = await replica.store.get_decision("ada", "r1")
    assert row is not None
    assert row.model == "claude-haiku-5-5"
    (signal,) = await replica.store.list_latest_signals("ada", 10)
    assert (signal.request_id, signal.source, signal.key_id) == ("r1", "regenerated", "key_1")


async def test_loading_shared_levels_blocks_no_request(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning_module, "_TICK_SECONDS", 0.0)
    replica, threads = Replica(database), list[threading.Thread]()
    is_reading, may_read, has_shared_levels = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def list_levels() -> list[Any]:
        is_reading.set()
        await may_read.wait()
        return []

    def compute_levels(contributions: Any) -> dict[str, Any]:
        threads.append(threading.current_thread())
        return {}

    monkeypatch.setattr(replica.store, "list_levels", list_levels)
    monkeypatch.setattr(learning_module, "compute_shared_levels", compute_levels)
    monkeypatch.setattr(replica.estimator, "set_shared_levels", lambda _: has_shared_levels.set())
    await replica.learning.start()
    await is_reading.wait()
    async with asyncio.timeout(30):
        await replica.learning.get_tenant_state("ada")
    may_read.set()
    await has_shared_levels.wait()
    assert threads != [threading.current_thread()]
    await replica.learning.close()
