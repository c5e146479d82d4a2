"""Provides a router with three fake models, one of which is the judge; no Valkey is used."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from moyin.domain.backend import ApiFormat
from moyin.domain.money import FREE_TARIFF
from moyin.errors import BudgetExceeded, ServiceUnavailable
from moyin.store.comparisons import StoredComparison
from moyin.testing.backends import FakeBackend, make_text_response
from moyin.text.judging.judge import Judge
from moyin.text.judging.rules import JUDGE_OWNER, JudgeRules
from moyin.text.judging.sampling import AnswerSampler, ComparisonStarter
from moyin.text.judging.verdict import Outcome
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.quality.estimator import Estimator
from moyin.text.routing.answer import Answer, RoutingContext
from moyin.text.routing.catalog import UNRESTRICTED, Alias, Catalog
from moyin.text.routing.claude_prices import CLAUDE_TARIFFS
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.router import Router
from tests.unit.text.routing.factories import make_runtime
from tests.unit.text.routing.router_rig import RecordedLedger
from tests.unit.text.routing.test_request_quality import make_rated_deployment

SMALL, HAIKU, OPUS = "smollm2-135m", "claude-haiku-5-5", "claude-opus-5-5"
RULES = JudgeRules(share=1.0, model=OPUS, usd_per_month=Decimal(100))


class FakeBudget:
    """Replaces the judge's monthly budget, and the reservation of each of its calls."""

    limits_spending = True

    def __init__(self) -> None:
        self.left = Decimal(1_000)
        self.reserved: list[Decimal] = []
        self.booked_usd = Decimal(0)
        self.released = 0
        self.is_unavailable = False

    async def read_spent_usd(self) -> Decimal:
        if self.is_unavailable:
            raise ServiceUnavailable("Valkey is away")
        return self.booked_usd

    def create_admission(self, rules: JudgeRules) -> FakeBudget:
        return self

    async def reserve(self, usd: Decimal, tokens: int) -> None:
        if usd > self.left:
            raise BudgetExceeded("the monthly budget does not cover the call")
        self.reserved.append(usd)

    def record(self, usd: Decimal, tokens: int) -> None:
        self.booked_usd += usd

    def release(self) -> None:
        self.released += 1


class InMemoryComparisons:
    """A `ComparisonStore` in memory."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}
        self.second_answers: dict[str, str] = {}
        self.has_room = True

    async def has_capacity(self, owner: str) -> bool:
        return self.has_room

    async def add(self, comparison_id: str, owner: str, comparison: bytes) -> bool:
        if comparison_id in self.stored:
            return False
        self.stored[comparison_id] = comparison
        return True

    async def get(self, comparison_id: str) -> StoredComparison | None:
        if comparison_id not in self.stored:
            return None
        second_answer = self.second_answers.get(comparison_id)
        return StoredComparison(comparison=self.stored[comparison_id], second=second_answer)

    async def add_second_answer(self, comparison_id: str, answer: str) -> None:
        self.second_answers[comparison_id] = answer

    async def remove(self, comparison_id: str) -> None:
        self.stored.pop(comparison_id, None)
        self.second_answers.pop(comparison_id, None)


class FakeSignalLog:
    """Records signals, one per request and source."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, str], Any] = {}

    async def write(self, decisions: Any, signals: Any) -> None:
        for row in signals:
            self.rows.setdefault((row.owner, row.request_id, row.source), row)


class FakeComparisonQueue:
    def __init__(self) -> None:
        self.started_ids: list[str] = []
        self.is_unavailable = False

    async def start(self, comparison_id: str, owner: str) -> bool:
        if self.is_unavailable:
            raise ServiceUnavailable("Temporal is away")
        if comparison_id in self.started_ids:
            return False
        self.started_ids.append(comparison_id)
        return True


class JudgeRig:
    """A router with three models, which chooses the small one because bad answers cost little here.

    Haiku is the better model, and Opus is the judge. The back ends use an API format that no client
    here uses, so that every request is translated.
    """

    def __init__(
        self, verdict: str = "", *, rules: JudgeRules = RULES, **fleet_settings: Any
    ) -> None:
        self.backends = {
            SMALL: FakeBackend(
                make_text_response("mine", model=SMALL), api_format=ApiFormat.OLLAMA
            ),
            HAIKU: FakeBackend(
                make_text_response("a better one", model=HAIKU), api_format=ApiFormat.OLLAMA
            ),
            OPUS: FakeBackend(make_text_response(verdict, model=OPUS), api_format=ApiFormat.OLLAMA),
        }
        deployments = (
            make_rated_deployment(SMALL, "local", tariff=FREE_TARIFF, residency="on-premises"),
            make_rated_deployment(HAIKU, "haiku", tariff=CLAUDE_TARIFFS[HAIKU]),
            make_rated_deployment(OPUS, "opus", tariff=CLAUDE_TARIFFS[OPUS]),
        )
        runtimes = {
            backend: make_runtime(backend, self.backends[model])
            for backend, model in (("local", SMALL), ("haiku", HAIKU), ("opus", OPUS))
        }
        for backend_runtime in runtimes.values():
            backend_runtime.pass_through = None
        self.runtimes = runtimes
        # Opus only judges here.
        aliases = {
            "any": Alias(),
            "work": Alias(models=(SMALL, HAIKU)),
            **fleet_settings.pop("aliases", {}),
        }
        self.policies = {JUDGE_OWNER: UNRESTRICTED, **fleet_settings.pop("policies", {})}
        self.ledger, self.counted_outcomes = RecordedLedger(), list[Outcome]()
        self.estimator = Estimator()
        self.router = Router(
            Fleet(
                catalog=Catalog(deployments=deployments, aliases=aliases),
                runtimes=runtimes,
                policies=self.policies,
                usd_per_bad_answer=1e-9,
                **fleet_settings,
            ),
            self.ledger,
            estimator=self.estimator,
        )
        self.budget, self.store, self.signals, self.queue = (
            FakeBudget(),
            InMemoryComparisons(),
            FakeSignalLog(),
            FakeComparisonQueue(),
        )
        count_outcome = self.counted_outcomes.append
        self.random_numbers: list[float] = []
        self.sampler = AnswerSampler(
            count_outcome,
            draw_random=lambda: self.random_numbers.pop(0) if self.random_numbers else 0.0,
        )
        shared_parts: dict[str, Any] = {"store": self.store, "budget": self.budget}
        self.starter = ComparisonStarter(
            self.sampler,
            get_fleet=lambda: self.router.fleet,
            estimator=self.estimator,
            queue=self.queue,
            count_outcome=count_outcome,
            **shared_parts,
        )
        signals: Any = self.signals
        self.judge = Judge(self.router, signals=signals, **shared_parts)
        self.judge.rules = self.sampler.rules = rules
        self.router.sampler = self.sampler

    async def ask(
        self,
        codec: ProtocolCodec | None = None,
        *headers: tuple[bytes, bytes],
        owner: str = "ada",
        request_id: str = "r1",
        **changes: Any,
    ) -> Answer:
        """Send a request like a client; if the answer is a stream, read all of it.

        Args:
            codec: the client's protocol, by default OpenAI's.
            changes: other members of the request's body; None removes a member.
        """
        codec = codec or OpenAICodec()
        messages = [{"role": "user", "content": "Write merge sort in Go"}]
        body = {"model": "work", "max_tokens": 50, "messages": messages, **changes}
        body = {name: value for name, value in body.items() if value is not None}
        parsed_request = codec.parse(json.dumps(body).encode())
        context = RoutingContext(request_id=request_id, owner=owner, headers=headers)
        answer = await self.router.answer(codec, parsed_request, context)
        if answer.stream is not None:
            async for _ in answer.stream:
                pass
        return answer

    async def start_comparison(self) -> Outcome:
        """Start the comparison of the next sampled answer; return ``STARTED``, or why it was not started."""
        return await self.starter.start(self.sampler.samples.get_nowait())

    async def ask_and_start(self, *args: Any, **kwargs: Any) -> Outcome:
        """Send a request with the arguments of `ask`, and start the comparison of its answer.

        Returns:
            The comparison's outcome, or why the answer was not sampled.
        """
        await self.ask(*args, **kwargs)
        return (
            self.counted_outcomes.pop()
            if self.sampler.samples.empty()
            else await self.start_comparison()
        )

    async def start_and_get_id(self, **kwargs: Any) -> str:
        """Send a request with the arguments of `ask`, start its comparison, and return the id."""
        assert await self.ask_and_start(**kwargs) is Outcome.STARTED
        return self.queue.started_ids[-1]
