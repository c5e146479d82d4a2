"""A router with three models, one of which judges, over fakes; Valkey is a dictionary."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from moyin.domain.backend import ApiFormat
from moyin.domain.money import FREE_TARIFF
from moyin.errors import BudgetExceeded, ServiceUnavailable
from moyin.store.comparisons import StoredComparison
from moyin.testing.backends import FakeBackend, text_answer
from moyin.text.judging.judge import Judge
from moyin.text.judging.outcomes import Outcome
from moyin.text.judging.rules import JUDGE_OWNER, JudgeRules
from moyin.text.judging.sampling import AnswerSampler, ComparisonStarter
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.quality.estimator import Estimator
from moyin.text.routing.answer import Answer, RoutingContext
from moyin.text.routing.catalog import Alias, Catalog
from moyin.text.routing.claude_prices import CLAUDE
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.policy import UNRESTRICTED
from moyin.text.routing.router import Router
from tests.unit.text.routing.dispatching import Books
from tests.unit.text.routing.rig import runtime
from tests.unit.text.routing.test_request_quality import known

SMALL, HAIKU, OPUS = "smollm2-135m", "claude-haiku-5-5", "claude-opus-5-5"
RULES = JudgeRules(share=1.0, model=OPUS, usd_per_month=Decimal(100))


class Money:
    """The operator's budget; also the purse of each call."""

    limits_spending = True

    def __init__(self) -> None:
        self.left = Decimal(1_000)
        self.reserved: list[Decimal] = []
        self.booked = Decimal(0)
        self.released = 0
        self.away = False

    async def spent(self) -> Decimal:
        if self.away:
            raise ServiceUnavailable("Valkey is away")
        return self.booked

    def for_call(self, rules: JudgeRules) -> Money:
        return self

    async def reserve(self, usd: Decimal, tokens: int) -> None:
        if usd > self.left:
            raise BudgetExceeded("the budget of the month does not cover it")
        self.reserved.append(usd)

    def record(self, usd: Decimal, tokens: int) -> None:
        self.booked += usd

    def release(self) -> None:
        self.released += 1


class Shelf:
    """What `ComparisonStore` keeps, in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.seconds: dict[str, str] = {}
        self.room = True

    async def has_room(self, owner: str) -> bool:
        return self.room

    async def add(self, comparison_id: str, owner: str, comparison: bytes) -> bool:
        if comparison_id in self.kept:
            return False
        self.kept[comparison_id] = comparison
        return True

    async def get(self, comparison_id: str) -> StoredComparison | None:
        if comparison_id not in self.kept:
            return None
        second = self.seconds.get(comparison_id)
        return StoredComparison(comparison=self.kept[comparison_id], second=second)

    async def add_second_answer(self, comparison_id: str, text: str) -> None:
        self.seconds[comparison_id] = text

    async def remove(self, comparison_id: str) -> None:
        self.kept.pop(comparison_id, None)
        self.seconds.pop(comparison_id, None)


class Signals:
    """The log of signals: one for each request and source."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, str], Any] = {}

    async def write(self, decisions: Any, signals: Any) -> None:
        for row in signals:
            self.rows.setdefault((row.owner, row.request_id, row.source), row)


class Queue:
    def __init__(self) -> None:
        self.started: list[str] = []
        self.away = False

    async def start(self, comparison_id: str, owner: str) -> bool:
        if self.away:
            raise ServiceUnavailable("Temporal is away")
        if comparison_id in self.started:
            return False
        self.started.append(comparison_id)
        return True


class Court:
    """The small model answers, as a useless answer costs next to nothing here; Haiku is better, Opus
    judges. Back ends speak a format that no client here speaks, so that all is translated."""

    def __init__(self, verdict: str = "", *, rules: JudgeRules = RULES, **fleet: Any) -> None:
        self.backends = {
            SMALL: FakeBackend(text_answer("mine", model=SMALL), api_format=ApiFormat.OLLAMA),
            HAIKU: FakeBackend(
                text_answer("a better one", model=HAIKU), api_format=ApiFormat.OLLAMA
            ),
            OPUS: FakeBackend(text_answer(verdict, model=OPUS), api_format=ApiFormat.OLLAMA),
        }
        deployments = (
            known(SMALL, "local", tariff=FREE_TARIFF, residency="on-premises"),
            known(HAIKU, "haiku", tariff=CLAUDE[HAIKU]),
            known(OPUS, "opus", tariff=CLAUDE[OPUS]),
        )
        runtimes = {
            backend: runtime(backend, self.backends[model])
            for backend, model in (("local", SMALL), ("haiku", HAIKU), ("opus", OPUS))
        }
        for one in runtimes.values():
            one.pass_through = None
        self.runtimes = runtimes
        # Opus only judges here.
        aliases = {"any": Alias(), "work": Alias(models=(SMALL, HAIKU)), **fleet.pop("aliases", {})}
        self.policies = {JUDGE_OWNER: UNRESTRICTED, **fleet.pop("policies", {})}
        self.books, self.counted = Books(), list[Outcome]()
        self.estimator = Estimator()
        self.router = Router(
            Fleet(
                catalog=Catalog(deployments=deployments, aliases=aliases),
                runtimes=runtimes,
                policies=self.policies,
                usd_per_bad_answer=1e-9,
                **fleet,
            ),
            self.books,
            estimator=self.estimator,
        )
        self.money, self.shelf, self.signals, self.queue = Money(), Shelf(), Signals(), Queue()
        count = self.counted.append
        self.draws: list[float] = []
        self.sampler = AnswerSampler(count, draw=lambda: self.draws.pop(0) if self.draws else 0.0)
        parts: dict[str, Any] = {"store": self.shelf, "budget": self.money}
        self.desk = ComparisonStarter(
            self.sampler,
            fleet=lambda: self.router.fleet,
            estimator=self.estimator,
            queue=self.queue,
            count=count,
            **parts,
        )
        signals: Any = self.signals
        self.judge = Judge(self.router, signals=signals, **parts)
        self.judge.rules = self.sampler.rules = rules
        self.router.sampler = self.sampler

    async def ask(
        self,
        dialect: ProtocolCodec | None = None,
        *headers: tuple[bytes, bytes],
        owner: str = "ada",
        request_id: str = "r1",
        **changes: Any,
    ) -> Answer:
        """Ask as a client does; a stream is read to its end."""
        dialect = dialect or OpenAICodec()
        messages = [{"role": "user", "content": "Write merge sort in Go"}]
        body = {"model": "work", "max_tokens": 50, "messages": messages, **changes}
        body = {name: value for name, value in body.items() if value is not None}
        call = dialect.parse(json.dumps(body).encode())
        context = RoutingContext(request_id=request_id, owner=owner, headers=headers)
        answer = await self.router.answer(dialect, call, context)
        if answer.stream is not None:
            async for _ in answer.stream:
                pass
        return answer

    async def begin(self) -> Outcome:
        """Start the comparison of the answer that was sampled last."""
        return await self.desk.start(self.sampler.samples.get_nowait())

    async def sampled(self, *args: Any, **more: Any) -> Outcome:
        """Ask, and start the comparison of the answer."""
        await self.ask(*args, **more)
        return self.counted.pop() if self.sampler.samples.empty() else await self.begin()

    async def started(self, **more: Any) -> str:
        """Return the id of a comparison that was just started."""
        assert await self.sampled(**more) is Outcome.STARTED
        return self.queue.started[-1]
