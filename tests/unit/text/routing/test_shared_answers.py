"""Tests that a replica detects follow-ups to an answer that another replica has given."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, patch

import pytest

from moyin.store.sql import Database
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.routing import shared_answers as shared_answers_module
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.conversation import Conversation
from moyin.text.routing.decision import rank_candidates
from moyin.text.routing.followup_evidence import FollowUpQuery
from moyin.text.routing.followups import FollowUpDetector
from moyin.text.routing.request_quality import RequestQuality
from moyin.text.routing.shared_answers import SharedAnswers
from moyin.text.routing.usage_history import UsageHistory
from tests.unit.text.routing.factories import make_route
from tests.unit.text.routing.test_followups import ASK
from tests.unit.text.routing.test_learning import Replica
from tests.unit.text.routing.test_request_quality import HAIKU, SMALL, make_router


class FakeValkey(dict[bytes, bytes]):
    """A Valkey in memory."""

    is_unavailable = False

    async def get(self, names: Sequence[bytes]) -> list[bytes | None] | None:  # type: ignore[override]
        return None if self.is_unavailable else [dict.get(self, name) for name in names]

    async def pop(self, names: Sequence[bytes]) -> list[bytes | None] | None:  # type: ignore[override]
        return None if self.is_unavailable else [dict.pop(self, name, None) for name in names]

    async def put(self, values: Mapping[bytes, bytes], lifetime_seconds: int) -> None:
        assert lifetime_seconds == 300
        self.update(values)

    async def close(self) -> None: ...


class SharingReplica(Replica):
    """A replica of the router with shared answers and follow-ups."""

    def __init__(self, database: Database, valkey: Any, secret: bytes = b"s") -> None:
        super().__init__(database)
        self.valkey = valkey
        self.shared_answers = SharedAnswers(valkey, self.learning, clock=lambda: self.now)
        # `ask` calls `process_batch` itself.
        self.shared_answers._wake_up = lambda: None  # type: ignore[method-assign]
        self.follow_ups = FollowUpDetector(
            self.learning,
            shared_answers=self.shared_answers,
            secret=secret,
            clock=lambda: self.now,
        )
        self.fleet = make_router(SMALL, HAIKU).fleet

    async def ask(
        self, request_id: str, *texts: str, model: str = "auto", key: str = "k"
    ) -> list[tuple[str, str]]:
        """Send a conversation whose turns are ``texts``, the user's first.

        Returns request id and source of each signal that it causes.
        """
        roles = ["user", "assistant"] * len(texts)
        messages = [
            {"role": speaker, "content": text} for speaker, text in zip(roles, texts, strict=False)
        ]
        parsed_request = OpenAICodec().parse(
            json.dumps({"model": model, "messages": messages}).encode()
        )
        context = RoutingContext(request_id=request_id, owner="ada", headers=(), key_id=key)
        compiled_route, signals_before = make_route(self.fleet, model), len(self.learning._signals)
        self.follow_ups.detect(Conversation(context, parsed_request), compiled_route, self.now)
        if model == "auto":
            needs = parsed_request.derive_needs()
            quality = RequestQuality(
                self.estimator, "ada", parsed_request, needs, usd_per_bad_answer=0.01, floor=0.0
            )
            candidates = rank_candidates(
                compiled_route, needs, UsageHistory(), always_weigh=True, quality=quality
            )
            (small_candidate,) = (
                candidate for candidate in candidates if candidate.deployment is SMALL
            )
            self.learning.record_decision(
                "ada", request_id, quality, candidates, small_candidate, self.now
            )
            self.follow_ups.remember_answer(
                Conversation(context, parsed_request), quality, small_candidate, self.now
            )
        await self.shared_answers.process_batch()
        new_signals = list(self.learning._signals)[signals_before:]
        # The decisions are stored; the signals stay in the queue, where tests read them.
        while self.learning._decisions:
            row = self.learning._decisions.popleft()
            await self.store.write([row.to_row()], ())  # type: ignore[union-attr]
        return [(row.request_id, row.source) for row in new_signals]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/moyin.db")
    await database.ensure_schema()
    yield database
    await database.close()


async def advance_clocks(*replicas: SharingReplica) -> None:
    for replica in replicas:
        replica.now += 20


async def test_a_follow_up_reaches_the_other_replica(database: Database) -> None:
    valkey = FakeValkey()
    first_replica, second_replica = (
        SharingReplica(database, valkey),
        SharingReplica(database, valkey),
    )
    assert await first_replica.ask("r1", ASK) == []
    await advance_clocks(first_replica, second_replica)
    assert await second_replica.ask("r2", ASK) == [("r1", "regenerated")]
    await advance_clocks(first_replica, second_replica)
    # The first replica still remembers r1, but the shared answers take precedence.
    assert await first_replica.ask("r3", ASK, "func", "That's wrong") == [("r2", "corrected")]
    await advance_clocks(first_replica, second_replica)
    assert await second_replica.ask("r4", ASK, "func", "Add table tests") == [("r3", "edited")]
    await advance_clocks(first_replica, second_replica)
    assert await first_replica.ask(
        "r5", ASK, "func", "Add table tests", "done", "Thanks a lot"
    ) == [("r4", "continued")]
    (signal, *_) = second_replica.learning._signals
    assert (signal.model, signal.key_id, signal.source) == ("smollm2-135m", "k", "regenerated")
    assert signal.question is not None
    assert 0 < (signal.p_good or 0) < 1


async def test_pending_answers_are_shared_on_close(database: Database) -> None:
    valkey = FakeValkey()
    first_replica, second_replica = (
        SharingReplica(database, valkey),
        SharingReplica(database, valkey),
    )
    with patch.object(first_replica.shared_answers, "process_batch", AsyncMock()):
        await first_replica.ask("r1", ASK)
        assert valkey == {}
    await first_replica.follow_ups.close()
    await advance_clocks(second_replica)
    assert await second_replica.ask("r2", ASK) == [("r1", "regenerated")]


async def test_switch_to_a_better_model_is_detected_across_replicas(
    database: Database,
) -> None:
    valkey = FakeValkey()
    first_replica, second_replica = (
        SharingReplica(database, valkey),
        SharingReplica(database, valkey),
    )
    await first_replica.ask("r1", ASK)
    await advance_clocks(first_replica, second_replica)
    assert await second_replica.ask("r2", ASK, model="claude-haiku-5-5") == [("r1", "switched")]


async def test_follow_up_needs_the_same_tenant_and_the_time_window(
    database: Database,
) -> None:
    valkey = FakeValkey()
    first_replica, second_replica = (
        SharingReplica(database, valkey),
        SharingReplica(database, valkey),
    )
    await first_replica.ask("r1", ASK)
    second_replica.now += 1
    assert await second_replica.ask("r2", ASK, model="claude-haiku-5-5") == []
    second_replica.now += 20
    assert await second_replica.ask("r3", ASK, key="other") == []
    second_replica.now += 300
    assert await second_replica.ask("r4", ASK) == []


async def test_follow_up_is_recorded_by_one_replica_only(database: Database) -> None:
    valkey = FakeValkey()
    first_replica, second_replica = (
        SharingReplica(database, valkey),
        SharingReplica(database, valkey),
    )

    class SharedValkey(FakeValkey):
        async def pop(self, names: Sequence[bytes]) -> list[bytes | None] | None:  # type: ignore[override]
            return await valkey.pop(names)

    third_replica = SharingReplica(database, SharedValkey())
    await first_replica.ask("r1", ASK)
    await advance_clocks(first_replica, second_replica, third_replica)
    body = json.dumps({"model": "claude-haiku-5-5", "messages": [{"role": "user", "content": ASK}]})
    parsed_request = OpenAICodec().parse(body.encode())
    context = RoutingContext(request_id="r", owner="ada", headers=(), key_id="k")
    for replica in (second_replica, third_replica):
        compiled_route = make_route(replica.fleet, "claude-haiku-5-5")
        replica.follow_ups.detect(
            Conversation(context, parsed_request), compiled_route, replica.now
        )
    # Both read before either takes.
    earlier_values = FakeValkey(valkey)
    third_replica.valkey.get = earlier_values.get
    await second_replica.shared_answers.process_batch()
    await third_replica.shared_answers.process_batch()
    assert len(second_replica.learning._signals) + len(third_replica.learning._signals) == 1


async def test_replica_matches_its_own_answers_without_valkey(database: Database) -> None:
    valkey = FakeValkey()
    first_replica, second_replica = (
        SharingReplica(database, valkey),
        SharingReplica(database, valkey),
    )
    await first_replica.ask("r1", ASK)
    await advance_clocks(first_replica, second_replica)
    valkey.is_unavailable = True
    assert await second_replica.ask("r2", ASK) == []
    assert await first_replica.ask("r3", ASK) == [("r1", "regenerated")]


async def test_outage_between_read_and_take_falls_back_to_own_answers(database: Database) -> None:
    class FailingValkey(FakeValkey):
        async def get(self, names: Sequence[bytes]) -> list[bytes | None] | None:  # type: ignore[override]
            return None

    replica = SharingReplica(database, FailingValkey())
    await replica.ask("r1", ASK)
    await advance_clocks(replica)
    assert await replica.ask("r2", ASK) == [("r1", "regenerated")]


async def test_pending_work_is_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_answers_module, "_MAX_QUERIES", 2)
    replica = SharingReplica(database, FakeValkey())
    queue_results = [
        replica.shared_answers.queue_query(make_query(), lambda: None) for _ in range(3)
    ]
    assert queue_results == [True, True, False]
    for number in range(9):
        replica.shared_answers.queue_answer(bytes([number]), None, "r", 0.0, replica.now)
    assert len(replica.shared_answers._answers) == 4


def make_query() -> Any:
    return FollowUpQuery(
        owner="ada", key_id="k", fingerprint=b"p", previous=None, opening="", ability=None, at=0.0
    )


async def test_fingerprints_differ_without_the_secret(database: Database) -> None:
    valkey = FakeValkey()
    first_replica, foreign_replica = (
        SharingReplica(database, valkey),
        SharingReplica(database, valkey, secret=b"another"),
    )
    await first_replica.ask("r1", ASK)
    keys_before = set(valkey)
    await foreign_replica.ask("r2", ASK)
    assert len(set(valkey) - keys_before) == 1
    assert all(ASK.encode() not in name + value for name, value in valkey.items())


@pytest.mark.parametrize("value", [b"", b"[]", b'["r", 1, 2, "zz"]', b"{}", b'["r", "x", 1, ""]'])
async def test_stored_value_of_another_version_is_ignored(database: Database, value: bytes) -> None:
    valkey = FakeValkey()
    replica = SharingReplica(database, valkey)
    await replica.ask("r1", ASK)
    valkey.update(dict.fromkeys(valkey, value))
    await advance_clocks(replica)
    assert await replica.ask("r2", ASK) == []


async def test_time_window_uses_the_arrival_of_the_request(
    database: Database,
) -> None:
    valkey = FakeValkey()
    first_replica, second_replica = (
        SharingReplica(database, valkey),
        SharingReplica(database, valkey),
    )
    await first_replica.ask("r1", ASK)
    arrival_time = second_replica.now + 1.9
    body = json.dumps({"model": "claude-haiku-5-5", "messages": [{"role": "user", "content": ASK}]})
    parsed_request = OpenAICodec().parse(body.encode())
    context = RoutingContext(request_id="r", owner="ada", headers=(), key_id="k")
    second_replica.now += 60
    compiled_route = make_route(second_replica.fleet, "claude-haiku-5-5")
    second_replica.follow_ups.detect(
        Conversation(context, parsed_request), compiled_route, arrival_time
    )
    await second_replica.shared_answers.process_batch()
    assert not second_replica.learning._signals


async def test_unshared_answer_is_matched_by_its_own_replica(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = SharingReplica(database, FakeValkey())
    monkeypatch.setattr(shared_answers_module, "_MAX_QUERIES", 0)
    await replica.ask("r1", ASK)
    monkeypatch.undo()
    await advance_clocks(replica)
    assert await replica.ask("r2", ASK) == [("r1", "regenerated")]


async def test_answers_are_shared_during_a_database_outage(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    valkey = FakeValkey()
    first_replica, second_replica = (
        SharingReplica(database, valkey),
        SharingReplica(database, valkey),
    )
    await first_replica.ask("r1", ASK)
    await advance_clocks(first_replica, second_replica)

    async def fail(owner: str, request_id: str) -> None:
        raise OSError("away")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="away"):
        patch.setattr(second_replica.learning, "find_decision", fail)
        await second_replica.ask("r2", ASK)
    row = second_replica.learning._decisions.popleft()
    await second_replica.store.write([row.to_row()], ())  # type: ignore[union-attr]
    await advance_clocks(first_replica, second_replica)
    assert await first_replica.ask("r3", ASK) == [("r2", "regenerated")]


async def test_answers_are_not_looked_up_where_quality_does_not_count(database: Database) -> None:
    replica = SharingReplica(database, FakeValkey())
    replica.fleet = make_router(SMALL, HAIKU, usd_per_bad_answer=0.0).fleet
    parsed_request = OpenAICodec().parse(
        json.dumps({"model": "auto", "messages": [{"role": "user", "content": ASK}]}).encode()
    )
    context = RoutingContext(request_id="r", owner="ada", headers=(), key_id="k")
    compiled_route = make_route(replica.fleet)
    assert not replica.follow_ups.may_match(compiled_route)
    # A request may have named a price of its own.
    await replica.ask("r1", ASK)
    assert replica.follow_ups.may_match(compiled_route)
    replica.follow_ups.detect(Conversation(context, parsed_request), compiled_route, replica.now)
    assert len(replica.shared_answers._queries) == 1
