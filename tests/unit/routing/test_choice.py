from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyin.domain.backend import Wire
from moyin.domain.money import FREE, Tariff, flat
from moyin.domain.needs import Model, Needs, estimate_tokens
from moyin.errors import ContextTooLong, ModelNotFound, ServiceUnavailable, UnsupportedFeature
from moyin.routing.catalog import Alias, Catalog, Offer
from moyin.routing.choice import Decision, Standing, decide
from moyin.routing.history import OutputHistory
from moyin.routing.prices import CHECKED_ON, CLAUDE

HI = Needs(prompt_tokens=100, max_tokens=50)
UP = Standing()


def offer(
    backend: str,
    tariff: Tariff = FREE,
    *,
    context: int = 1000,
    wire: Wire | None = Wire.OPENAI,
    configured: bool = True,
    abilities: tuple[str, ...] = ("tools", "vision", "schema"),
    quality: int = 0,
) -> Offer:
    model = Model(
        name=f"{backend}-model",
        upstream="x",
        context=context,
        tariff=tariff,
        quality=quality,
        **dict.fromkeys(abilities, True),
    )
    return Offer(backend=backend, model=model, wire=wire, configured=configured)


def choose(
    offers: list[Offer], needs: Needs = HI, standings: dict[str, Standing] | None = None
) -> Decision:
    return decide(
        offers,
        needs,
        standing=lambda name: (standings or {}).get(name, UP),
        expected_output=OutputHistory().expect,
        day=CHECKED_ON,
        wire=Wire.OPENAI,
    )


def names(decision: Decision) -> list[str]:
    return [candidate.offer.backend for candidate in decision.candidates]


def test_a_free_local_model_wins() -> None:
    haiku = offer("claude", CLAUDE["claude-haiku-5-5"], context=200_000)
    decision = choose([haiku, offer("local")])
    assert names(decision) == ["local", "claude"]
    assert decision.candidates[0].reason == "free"


def test_what_the_local_model_cannot_do_goes_to_the_cloud() -> None:
    haiku = offer("claude", CLAUDE["claude-haiku-5-5"], context=200_000)
    local = offer("local", abilities=())
    for needs in (
        Needs(prompt_tokens=5000),
        Needs(prompt_tokens=100, max_tokens=5000),
        Needs(prompt_tokens=1, tools=True),
        Needs(prompt_tokens=1, vision=True),
        Needs(prompt_tokens=1, schema=True),
    ):
        assert names(choose([local, haiku], needs)) == ["claude"]


def test_cost_is_weighed_by_token_counts_not_by_the_sum_of_prices() -> None:
    long_in = offer("in", flat(Decimal("0.1"), Decimal(9)))
    long_out = offer("out", flat(Decimal(1), Decimal(1)))
    assert names(choose([long_in, long_out], Needs(prompt_tokens=900, max_tokens=10)))[0] == "in"
    assert names(choose([long_in, long_out], Needs(prompt_tokens=10, max_tokens=900)))[0] == "out"


def test_equal_costs_prefer_passing_bytes_then_the_idle_one_then_the_order() -> None:
    offers = [offer("ollama", wire=None), offer("busy"), offer("idle"), offer("idle2")]
    busy = {"busy": Standing(load=3)}
    assert names(choose(offers, HI, busy)) == ["idle", "idle2", "busy", "ollama"]


def test_who_is_down_is_not_asked_and_the_error_says_when_to_come_back() -> None:
    down = {"a": Standing(up=False, retry_after=9), "b": Standing(up=False, retry_after=4)}
    decision = choose([offer("a"), offer("b")], HI, down)
    error = decision.error(HI)
    assert isinstance(error, ServiceUnavailable)
    assert error.retry_after == 4


def test_without_a_key_a_back_end_is_never_a_candidate() -> None:
    decision = choose([offer("claude", configured=False)])
    assert not decision.candidates
    assert isinstance(decision.error(HI), ServiceUnavailable)


def test_too_long_for_all_is_told_with_counts() -> None:
    needs = Needs(prompt_tokens=5000, max_tokens=50)
    error = choose([offer("a"), offer("cloud", configured=False, context=10**6)], needs).error(
        needs
    )
    assert isinstance(error, ContextTooLong)
    assert error.details == {"prompt_tokens": 5000, "max_tokens": 50, "context": 1000}
    assert error.field == "messages"


def test_too_long_an_answer_names_max_tokens() -> None:
    needs = Needs(prompt_tokens=10, max_tokens=5000)
    assert choose([offer("a")], needs).error(needs).field == "max_tokens"


@pytest.mark.parametrize(
    ("ability", "field"),
    [("tools", "tools"), ("vision", "messages"), ("schema", "response_format")],
)
def test_an_ability_that_nobody_has_is_named(ability: str, field: str) -> None:
    needs = Needs(prompt_tokens=1, **{ability: True})
    error = choose([offer("a", abilities=())], needs).error(needs)
    assert isinstance(error, UnsupportedFeature)
    assert error.field == field


MONEY = st.decimals(0, 100, places=2)
OFFERS = st.lists(
    st.builds(
        lambda i, o, context, configured, tools: offer(
            "b",
            flat(i, o),
            context=context,
            configured=configured,
            abilities=("tools",) if tools else (),
        ),
        MONEY,
        MONEY,
        st.integers(1, 100_000),
        st.booleans(),
        st.booleans(),
    ),
    max_size=8,
)
NEEDS = st.builds(
    Needs,
    prompt_tokens=st.integers(0, 50_000),
    max_tokens=st.none() | st.integers(1, 50_000),
    tools=st.booleans(),
)


@given(OFFERS, NEEDS)
def test_every_offer_is_either_able_or_refused_with_a_reason(
    offers: list[Offer], needs: Needs
) -> None:
    decision = choose(offers, needs)
    assert len(decision.candidates) + len(decision.refusals) == len(offers)
    for candidate in decision.candidates:
        assert candidate.offer.configured
        assert not list(candidate.offer.model.lacks(needs))
    assert all(refusal.reason for refusal in decision.refusals)
    if not decision.candidates:
        assert decision.error(needs).message


@given(OFFERS, NEEDS)
def test_candidates_rise_in_expected_cost(offers: list[Offer], needs: Needs) -> None:
    costs = [candidate.expected_cost for candidate in choose(offers, needs).candidates]
    assert costs == sorted(costs)


def test_expected_output_follows_history_within_the_clients_limit() -> None:
    history = OutputHistory()
    one = offer("a")
    before = history.expect(one, Needs(prompt_tokens=1))
    for _ in range(200):
        history.note("a-model", 2000)
    after = history.expect(one, Needs(prompt_tokens=1))
    assert before < 300 < 1900 < after <= 2000
    assert history.expect(one, Needs(prompt_tokens=1, max_tokens=10)) == 10


CATALOG = Catalog(
    offers=(offer("a", quality=1), offer("b", quality=2), offer("c")),
    aliases={"good": Alias(quality=1), "pair": Alias(models=("a-model", "c-model"))},
)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("auto", "abc"),
        ("good", "ab"),
        ("pair", "ac"),
        ("b-model", "b"),
        ("c/c-model", "c"),
    ],
)
def test_names_of_all_kinds_are_found(name: str, found: str) -> None:
    assert "".join(one.backend for one in CATALOG.find(name)) == found


def test_an_unknown_name_is_not_found() -> None:
    with pytest.raises(ModelNotFound) as caught:
        CATALOG.find("gpt-2")
    assert caught.value.field == "model"


def test_catalog_lists_every_name_once() -> None:
    assert CATALOG.names == ("auto", "good", "pair", "a-model", "b-model", "c-model")


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("abcd", 1), ("abcde", 2), ("墨印", 2)])
def test_tokens_are_estimated_by_bytes(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


def test_the_table_of_prices_is_dated() -> None:
    assert date(2026, 10, 1) < CHECKED_ON
