"""A weak model's answer that fails a check is asked anew of the next better model."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from pydantic_core import from_json

from deployments.models.config import ModelsConfig
from moyin.domain.backend import ApiFormat
from moyin.errors import BackendUnavailable
from moyin.testing.backends import FakeBackend, text_answer
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.ollama.codec import OllamaChatCodec, OllamaGenerateCodec
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.quality.estimator import Estimator
from moyin.text.routing.answer import Answer, RoutingContext
from moyin.text.routing.catalog import Alias, Catalog, Rescue
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.router import Router
from tests.unit.text.routing.dispatching import Books
from tests.unit.text.routing.rig import lane
from tests.unit.text.routing.test_quality import HAIKU, SMALL

SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
BAD, GOOD = "Sure! Here it is.", '{"ok": true}'


class Purse:
    spends = True

    def __init__(self) -> None:
        self.reserved, self.spent = Decimal(0), Decimal(0)

    async def take(self, usd: Decimal, tokens: int) -> None:
        self.reserved = usd

    def spend(self, usd: Decimal, tokens: int) -> None:
        self.spent += usd


class Gateway:
    """The small model answers first, as a useless answer costs next to nothing; Claude is better."""

    def __init__(self, first: str = BAD, second: str = GOOD, **rules: Any) -> None:
        # Formats that no client here speaks, so that every answer is translated.
        self.small = FakeBackend(text_answer(first), api_format=ApiFormat.OLLAMA)
        self.claude = FakeBackend(text_answer(second), api_format=ApiFormat.OLLAMA)
        self.books = Books()
        lanes = {"local": lane("local", self.small), "claude": lane("claude", self.claude)}
        for one in lanes.values():
            one.passes = None
        catalog = Catalog(offers=(SMALL, HAIKU), aliases=rules.pop("aliases", {}))
        rules = {"usd_per_bad_answer": 1e-9, "rescue": Rescue.CHECKED, **rules}
        fleet = Fleet(catalog=catalog, lanes=lanes, **rules)
        self.router = Router(fleet, self.books, estimator=Estimator())

    async def ask(
        self, dialect: ProtocolCodec | None = None, purse: Any = None, **changes: Any
    ) -> tuple[str, str, Answer]:
        """The model, the route and the answer."""
        dialect = dialect or OpenAICodec()
        messages = [{"role": "user", "content": "Write merge sort in Go"}]
        body = {"model": "auto", "max_tokens": 50, "messages": messages, **changes}
        body = {name: value for name, value in body.items() if value is not None}
        call = dialect.parse(json.dumps(body).encode())
        asker = RoutingContext(request_id="r1", owner="ada", headers=(), purse=purse)
        answer = await self.router.answer(dialect, call, asker)
        headers = dict(answer.headers)
        return headers[b"x-moyin-model"].decode(), headers[b"x-moyin-route"].decode(), answer


async def test_an_answer_that_breaks_its_schema_is_asked_anew_and_both_are_booked() -> None:
    gateway = Gateway()
    model, route, answer = await gateway.ask(response_format=FORMAT)
    assert model == "claude-haiku-5-5"
    assert route.startswith("rescue after json; claude-haiku-5-5: code, p_good 0.")
    assert route.endswith(" of smollm2-135m")
    assert from_json(answer.body)["choices"][0]["message"]["content"] == GOOD
    assert [(one.model, one.complete) for one in gateway.books] == [
        ("smollm2-135m", True),
        ("claude-haiku-5-5", True),
    ]


async def test_a_good_answer_stays() -> None:
    gateway = Gateway(first=GOOD)
    model, route, _ = await gateway.ask(response_format=FORMAT)
    assert (model, route.partition(";")[0]) == ("smollm2-135m", "free")
    assert gateway.claude.requests == []


@pytest.mark.parametrize(
    ("policy", "format", "first", "rescued"),
    [
        (Rescue.OFF, True, BAD, False),
        (Rescue.SCHEMA, True, BAD, True),
        (Rescue.SCHEMA, False, "", False),
        (Rescue.CHECKED, False, "", True),
        (Rescue.CHECKED, False, BAD, False),
    ],
)
async def test_policies(policy: Rescue, format: bool, first: str, rescued: bool) -> None:
    gateway = Gateway(first=first, rescue=Rescue.OFF, aliases={"own": Alias(rescue=policy)})
    asked: dict[str, Any] = {"response_format": FORMAT} if format else {}
    model, _, _ = await gateway.ask(model="own", **asked)
    assert (model == "claude-haiku-5-5") is rescued


@pytest.mark.parametrize(
    ("dialect", "changes"),
    [
        (
            AnthropicCodec(),
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        ),
        (OllamaChatCodec(), {"max_tokens": None, "stream": False, "format": SCHEMA}),
        (
            OllamaGenerateCodec(),
            {
                "max_tokens": None,
                "messages": None,
                "stream": False,
                "format": "json",
                "prompt": "p",
            },
        ),
    ],
)
async def test_every_protocol(dialect: ProtocolCodec, changes: dict[str, Any]) -> None:
    model, route, _ = await Gateway().ask(dialect, **changes)
    assert (model, route.partition(";")[0]) == ("claude-haiku-5-5", "rescue after json")


async def test_when_the_better_one_fails_the_first_answer_is_given() -> None:
    gateway = Gateway()
    gateway.claude.error = BackendUnavailable("away")
    model, _, answer = await gateway.ask(response_format=FORMAT)
    assert model == "smollm2-135m"
    assert from_json(answer.body)["choices"][0]["message"]["content"] == BAD


async def test_named_models_are_not_rescued() -> None:
    gateway = Gateway()
    model, _, _ = await gateway.ask(response_format=FORMAT, model="smollm2-135m")
    assert model == "smollm2-135m"
    assert gateway.claude.requests == []


async def test_both_answers_stay_within_what_was_reserved() -> None:
    purse = Purse()
    gateway = Gateway()
    assert (await gateway.ask(purse=purse, response_format=FORMAT))[0] == "claude-haiku-5-5"
    assert 0 < purse.spent <= purse.reserved


async def test_nobody_is_asked_without_time_left() -> None:
    gateway = Gateway(timeout=1.0)
    model, _, _ = await gateway.ask(response_format=FORMAT)
    assert model == "smollm2-135m"


def test_off_may_stand_unquoted_in_yaml() -> None:
    config = ModelsConfig.model_validate({"routing": {"rescue": False}, "aliases": {}})
    assert config.routing.rescue is Rescue.OFF
    assert ModelsConfig.model_validate({}).routing.rescue is Rescue.CHECKED
