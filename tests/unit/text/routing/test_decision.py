from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyin.domain.backend import ApiFormat
from moyin.domain.money import FREE_TARIFF, GpuRate, Usage, create_flat_tariff
from moyin.domain.needs import Model, Needs, estimate_tokens
from moyin.errors import (
    ContextTooLong,
    InvalidRequest,
    ModelNotAllowed,
    ModelNotFound,
    ServiceUnavailable,
    UnsupportedFeature,
)
from moyin.text.routing.catalog import Alias, Catalog, ModelDeployment, TenantPolicy
from moyin.text.routing.claude_prices import CLAUDE_TARIFFS, PRICES_CHECKED_ON
from moyin.text.routing.decision import (
    Candidate,
    build_no_candidate_error,
    list_exclusions,
    rank_candidates,
)
from moyin.text.routing.explanation import explain_loss, list_losses
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.loaded_models import LoadedModels, ModelState
from moyin.text.routing.request_preferences import parse_preferences
from moyin.text.routing.usage_history import UsageHistory
from tests.unit.text.routing.factories import Clock, make_deployment, make_fleet, make_route

HI = Needs(prompt_tokens=100, max_tokens=50)
HAIKU = CLAUDE_TARIFFS["claude-haiku-5-5"]


def rank_for_needs(fleet: Fleet, needs: Needs = HI, **route_options: Any) -> list[Candidate]:
    return rank_candidates(
        make_route(fleet, **route_options), needs, UsageHistory(), always_weigh=True
    )


def list_backends(candidates: Sequence[Candidate]) -> list[str]:
    return [candidate.deployment.backend for candidate in candidates]


def test_a_free_local_model_wins() -> None:
    candidates = rank_for_needs(
        make_fleet([make_deployment("claude", HAIKU, context=200_000), make_deployment("local")])
    )
    assert list_backends(candidates) == ["local", "claude"]
    assert candidates[0].reason == "free"


def test_requests_beyond_the_local_model_go_to_the_cloud() -> None:
    local_and_cloud_fleet = make_fleet(
        [make_deployment("local", abilities=()), make_deployment("claude", HAIKU, context=200_000)]
    )
    for needs in (
        Needs(prompt_tokens=5000),
        Needs(prompt_tokens=100, max_tokens=5000),
        Needs(prompt_tokens=1, tools=True),
        Needs(prompt_tokens=1, vision=True),
        Needs(prompt_tokens=1, schema=True),
    ):
        (only_candidate,) = rank_candidates(
            make_route(local_and_cloud_fleet), needs, UsageHistory()
        )
        assert (
            only_candidate.deployment.backend,
            only_candidate.reason,
            only_candidate.forecast,
        ) == ("claude", "only", None)


def test_cost_depends_on_token_counts_not_on_the_sum_of_prices() -> None:
    fleet_of_two = make_fleet(
        [
            make_deployment("in", create_flat_tariff(Decimal("0.1"), Decimal(9))),
            make_deployment("out", create_flat_tariff(Decimal(1), Decimal(1))),
        ]
    )
    assert (
        list_backends(rank_for_needs(fleet_of_two, Needs(prompt_tokens=900, max_tokens=10)))[0]
        == "in"
    )
    assert (
        list_backends(rank_for_needs(fleet_of_two, Needs(prompt_tokens=10, max_tokens=900)))[0]
        == "out"
    )


def test_cached_tokens_are_weighed_at_their_own_price() -> None:
    cheap_cache_deployment = make_deployment(
        "a", create_flat_tariff(Decimal(3), Decimal(0), cache_read=Decimal("0.3")), context=10**6
    )
    plain_deployment = make_deployment(
        "b", create_flat_tariff(Decimal(2), Decimal(0)), context=10**6
    )
    fleet_of_two, history = make_fleet([cheap_cache_deployment, plain_deployment]), UsageHistory()
    needs = Needs(prompt_tokens=50_000, max_tokens=1)
    assert list_backends(rank_candidates(make_route(fleet_of_two), needs, history)) == ["b", "a"]
    for _ in range(20):
        usage = Usage(input_tokens=5_000, cached_tokens=45_000, output_tokens=1)
        history.record("a-model", needs, usage)
    assert list_backends(rank_candidates(make_route(fleet_of_two), needs, history)) == ["a", "b"]
    # A cache marker is trusted before any usage was recorded.
    needs_with_marker = Needs(prompt_tokens=50_000, max_tokens=1, has_cache_markers=True)
    assert list_backends(
        rank_candidates(make_route(fleet_of_two), needs_with_marker, UsageHistory())
    ) == [
        "a",
        "b",
    ]


def test_equal_scores_prefer_pass_through_then_low_load_then_configured_order() -> None:
    fleet_of_four = make_fleet(
        [
            make_deployment("ollama", api_format=None),
            make_deployment("busy"),
            make_deployment("idle"),
            make_deployment("idle2"),
        ]
    )
    for _ in range(3):
        fleet_of_four.runtimes["busy"].slots.try_acquire("ada")
    assert list_backends(rank_for_needs(fleet_of_four)) == ["idle", "idle2", "busy", "ollama"]


def test_waiting_time_is_weighed_at_its_price() -> None:
    deployments = [make_deployment("local"), make_deployment("claude", HAIKU, context=200_000)]
    for usd_per_second, expected_backend in ((0.0, "local"), (0.001, "claude")):
        local_and_cloud_fleet = make_fleet(deployments, limit=1, usd_per_second=usd_per_second)
        local_and_cloud_fleet.runtimes["local"].slots.try_acquire("ada")
        candidates = rank_for_needs(local_and_cloud_fleet, Needs(prompt_tokens=100, max_tokens=500))
        assert list_backends(candidates)[0] == expected_backend
    assert candidates[0].reason == "soonest"
    wait_seconds_by_backend = {
        candidate.deployment.backend: candidate.forecast.waiting_seconds
        for candidate in candidates
        if candidate.forecast
    }
    assert wait_seconds_by_backend["claude"] == 0 < wait_seconds_by_backend["local"]


async def test_a_model_that_must_be_loaded_first_waits_for_it() -> None:
    cold_and_warm_fleet = make_fleet(
        [make_deployment("cold"), make_deployment("warm")], usd_per_second=0.001
    )
    clock = Clock()

    async def list_loaded() -> dict[str, dict[str, str]]:
        return {}

    loaded_models = LoadedModels(list_loaded, load_seconds=lambda _: 20.0, clock=clock)
    cold_and_warm_fleet.runtimes["cold"].loaded = loaded_models
    assert list_backends(rank_for_needs(cold_and_warm_fleet)) == ["cold", "warm"]  # unknown so far
    await loaded_models.refresh()
    assert loaded_models.get_state("x") is ModelState.ABSENT
    assert list_backends(rank_for_needs(cold_and_warm_fleet)) == ["warm", "cold"]
    loaded_models.record_call_start("x")
    clock.now += 15
    assert loaded_models.get_state("x") is ModelState.LOADING
    assert loaded_models.estimate_wait("x") == 5
    assert loaded_models.record_call_answer("x")
    assert loaded_models.get_state("x") is ModelState.RESIDENT
    assert loaded_models.estimate_wait("x") == 0
    assert not loaded_models.record_call_answer("x")


def test_gpu_price_is_spread_over_the_generated_tokens() -> None:
    local_deployment = make_deployment("local", gpu=GpuRate(usd_per_hour=Decimal("3.60")))
    (lone_candidate,) = rank_for_needs(
        make_fleet([local_deployment]), Needs(prompt_tokens=0, max_tokens=50)
    )
    assert lone_candidate.forecast is not None
    assert (
        lone_candidate.forecast.cost_pico == 50 * 10**12 // 1000 // 50
    )  # 50 tokens at 50 a second
    measured_fleet = make_fleet([local_deployment])
    latency_estimator = measured_fleet.runtimes["local"].get_latency_estimator("local-model")
    for _ in range(200):
        latency_estimator.record(
            prompt_tokens=0, output_tokens=1000, first_token_seconds=None, seconds=10, concurrency=4
        )
    (shared_candidate,) = rank_for_needs(measured_fleet, Needs(prompt_tokens=0, max_tokens=50))
    assert shared_candidate.forecast is not None
    # A hundred a second, shared with three others: an eighth of the time; the prior fades.
    assert shared_candidate.forecast.cost_pico == pytest.approx(
        lone_candidate.forecast.cost_pico / 8, rel=0.15
    )


def test_slow_latency_measurements_fade() -> None:
    fleet_of_one = make_fleet([make_deployment("a")])
    runtime = fleet_of_one.runtimes["a"]
    latency_estimator = runtime.get_latency_estimator("a-model")
    seconds_before = latency_estimator.estimate_first_token_seconds(100)
    for _ in range(30):
        latency_estimator.record(
            prompt_tokens=100, output_tokens=2, first_token_seconds=9.0, seconds=9.1, concurrency=1
        )
    assert latency_estimator.estimate_first_token_seconds(100) > 7
    assert latency_estimator.get_first_token_p95() == 9.0
    runtime.clock.now += 3600  # type: ignore[attr-defined]
    assert latency_estimator.estimate_first_token_seconds(100) == pytest.approx(
        seconds_before, rel=0.1
    )


def test_unavailable_back_end_is_skipped_and_the_error_has_retry_after() -> None:
    fleet_of_two = make_fleet([make_deployment("a"), make_deployment("b")])
    fleet_of_two.runtimes["a"].breaker.fail(retry_after=9)
    fleet_of_two.runtimes["b"].breaker.fail(retry_after=4)
    assert not rank_for_needs(fleet_of_two)
    error = build_no_candidate_error(make_route(fleet_of_two), HI)
    assert isinstance(error, ServiceUnavailable)
    assert error.retry_after == 4


def test_back_end_without_a_key_is_never_a_candidate() -> None:
    fleet_without_keys = make_fleet([make_deployment("claude", configured=False)])
    assert not rank_for_needs(fleet_without_keys)
    error = build_no_candidate_error(make_route(fleet_without_keys), HI)
    assert isinstance(error, ServiceUnavailable)
    assert error.message.endswith(" has its API key: set CLAUDE_KEY for 'claude'")


def test_prompt_too_long_for_every_model_reports_token_counts() -> None:
    needs = Needs(prompt_tokens=5000, max_tokens=50)
    fleet = make_fleet(
        [make_deployment("a"), make_deployment("cloud", configured=False, context=10**6)]
    )
    error = build_no_candidate_error(make_route(fleet), needs)
    assert isinstance(error, ContextTooLong)
    assert error.details == {"prompt_tokens": 5000, "max_tokens": 50, "context": 1000}
    assert error.field == "messages"


def test_error_of_too_long_an_answer_names_max_tokens() -> None:
    needs = Needs(prompt_tokens=10, max_tokens=5000)
    assert (
        build_no_candidate_error(make_route(make_fleet([make_deployment("a")])), needs).field
        == "max_tokens"
    )


@pytest.mark.parametrize(
    ("ability", "field"),
    [
        ("tools", "tools"),
        ("vision", "messages"),
        ("schema", "response_format"),
        ("thinking", "reasoning_effort"),
    ],
)
def test_error_names_an_ability_that_no_model_has(ability: str, field: str) -> None:
    needs = Needs(prompt_tokens=1, **{ability: True})
    error = build_no_candidate_error(
        make_route(make_fleet([make_deployment("a", abilities=())])), needs
    )
    assert isinstance(error, UnsupportedFeature)
    assert error.field == field


AT_HOME = make_deployment("local", residency="on-premises", abilities=())
CLOUD = make_deployment("claude", HAIKU, context=200_000)


@pytest.mark.parametrize(
    ("fleet_settings", "route_options"),
    [
        ({"policies": {"ada": TenantPolicy(residency=frozenset({"on-premises"}))}}, {}),
        ({"policies": {"*": TenantPolicy(residency=frozenset({"on-premises"}))}}, {}),
        ({"aliases": {"home": Alias(residency=("on-premises",))}}, {"name": "home"}),
        ({}, {"residency": ("on-premises",)}),
    ],
    ids=["tenant", "everybody", "alias", "header"],
)
def test_residency_rules_exclude_back_ends(
    fleet_settings: dict[str, Any], route_options: dict[str, Any]
) -> None:
    fleet = make_fleet([CLOUD, AT_HOME], **fleet_settings)
    assert list_backends(rank_for_needs(fleet, HI, **route_options)) == ["local"]
    needs = Needs(prompt_tokens=1, vision=True)
    assert not rank_for_needs(fleet, needs, **route_options)
    error = build_no_candidate_error(make_route(fleet, **route_options), needs)
    assert isinstance(error, UnsupportedFeature)
    assert error.field == "messages"


def test_header_never_widens_the_tenants_residency() -> None:
    fleet = make_fleet(
        [CLOUD, AT_HOME], policies={"ada": TenantPolicy(residency=frozenset({"on-premises"}))}
    )
    assert not rank_for_needs(fleet, HI, residency=("cloud",))
    assert isinstance(
        build_no_candidate_error(make_route(fleet, residency=("cloud",)), HI), ModelNotAllowed
    )
    assert list_backends(rank_for_needs(fleet, HI, owner="eve")) == ["local", "claude"]


def test_tenant_may_use_only_its_allowed_names() -> None:
    fleet = make_fleet(
        [AT_HOME, CLOUD], policies={"ada": TenantPolicy(names=frozenset({"local-model"}))}
    )
    assert list_backends(rank_for_needs(fleet, HI, name="local-model")) == ["local"]
    for name in ("auto", "claude-model", "local/local-model"):
        with pytest.raises(ModelNotAllowed):
            rank_for_needs(fleet, HI, name=name)


def test_preferences_are_read_from_headers() -> None:
    known_residencies = frozenset({"cloud", "on-premises", "eu"})
    headers = [(b"x-moyin-residency", b"on-premises, eu"), (b"x-moyin-timeout", b"2.5")]
    preferences = parse_preferences(headers, known_residencies)
    assert (preferences.residency, preferences.timeout, preferences.bypass_cache) == (
        ("eu", "on-premises"),
        2.5,
        False,
    )
    assert parse_preferences([(b"cache-control", b"no-cache")], known_residencies).bypass_cache
    assert parse_preferences([(b"host", b"x")], known_residencies).residency is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x-moyin-residency", b"mars"),
        (b"x-moyin-residency", b""),
        (b"x-moyin-timeout", b"soon"),
        (b"x-moyin-timeout", b"-1"),
        (b"x-moyin-timeout", b"nan"),
        (b"x-moyin-timeout", b"inf"),
    ],
)
def test_invalid_preference_is_rejected(name: bytes, value: bytes) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        parse_preferences([(name, value)], frozenset({"cloud"}))
    assert exc_info.value.field == name.decode()


def test_compiled_route_is_cached_for_the_day() -> None:
    fleet = make_fleet([CLOUD])
    first_route = make_route(fleet)
    assert make_route(fleet) is first_route
    assert make_route(fleet, owner="eve") is first_route
    assert CLOUD.api_format is not None
    assert (
        fleet.get_route("auto", "ada", None, CLOUD.api_format, first_route.day + 1)
        is not first_route
    )


@pytest.mark.parametrize(
    ("deployments", "usd_per_second", "is_busy", "explanation_text", "code"),
    [
        (
            [
                make_deployment("a"),
                make_deployment("b", create_flat_tariff(Decimal(1), Decimal(1))),
            ],
            0.0,
            False,
            "costs 0.00015 USD more",
            "costs_more",
        ),
        ([make_deployment("a"), make_deployment("b")], 0.0, True, "has more load", "more_load"),
        (
            [make_deployment("a"), make_deployment("b")],
            0.0,
            False,
            "comes later in the configuration",
            "later_in_configuration",
        ),
        (
            [make_deployment("a"), make_deployment("b", api_format=None)],
            0.0,
            False,
            "needs a translation of the request",
            "needs_translation",
        ),
    ],
)
def test_explanation_has_the_reason_why_a_candidate_was_not_chosen(
    deployments: list[ModelDeployment],
    usd_per_second: float,
    is_busy: bool,
    explanation_text: str,
    code: str,
) -> None:
    fleet = make_fleet(deployments, usd_per_second=usd_per_second)
    if is_busy:
        fleet.runtimes["b"].slots.try_acquire("ada")
    chosen_candidate, other_candidate = rank_for_needs(fleet)
    assert explain_loss(other_candidate, chosen_candidate, usd_per_second) == explanation_text
    [reason] = list_losses(other_candidate, chosen_candidate, usd_per_second)
    # All numbers of the words are parameters, too.
    assert (
        reason.code,
        [str(value) in explanation_text for value in reason.parameters.values()],
    ) == (
        code,
        [True] * len(reason.parameters),
    )


def test_explanation_of_a_slower_candidate_states_the_seconds() -> None:
    fleet = make_fleet([make_deployment("a"), make_deployment("b")], limit=1, usd_per_second=0.001)
    fleet.runtimes["b"].slots.try_acquire("ada")
    chosen_candidate, other_candidate = rank_for_needs(fleet)
    assert other_candidate.forecast is not None
    assert (
        explain_loss(other_candidate, chosen_candidate, 0.001)
        == f"takes {other_candidate.forecast.waiting_seconds:.2f} s longer"
    )


MONEY = st.decimals(0, 100, places=2)
OFFERS = st.lists(
    st.builds(
        lambda i, o, context, configured, tools, home: (
            create_flat_tariff(i, o),
            context,
            configured,
            ("tools",) if tools else (),
            "on-premises" if home else "cloud",
        ),
        MONEY,
        MONEY,
        st.integers(1, 100_000),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    max_size=8,
).map(
    lambda all_of_them: [
        make_deployment(
            f"b{number}",
            tariff,
            context=context,
            configured=configured,
            abilities=abilities,
            residency=residency,
        )
        for number, (tariff, context, configured, abilities, residency) in enumerate(all_of_them)
    ]
)
NEEDS = st.builds(
    Needs,
    prompt_tokens=st.integers(0, 50_000),
    max_tokens=st.none() | st.integers(1, 50_000),
    tools=st.booleans(),
)
POLICIES = st.sampled_from([{}, {"ada": TenantPolicy(residency=frozenset({"on-premises"}))}])


@given(OFFERS, NEEDS, POLICIES)
def test_every_deployment_is_a_candidate_or_excluded_with_a_reason(
    deployments: list[ModelDeployment], needs: Needs, policies: dict[str, TenantPolicy]
) -> None:
    fleet = make_fleet(deployments, policies=policies)
    candidates, exclusions = rank_for_needs(fleet, needs), list_exclusions(make_route(fleet), needs)
    assert len(candidates) + len(exclusions) == len(deployments)
    for candidate in candidates:
        assert candidate.deployment.configured
        assert candidate.deployment.model.supports(needs)
        assert not candidate.deployment.model.list_unmet_needs(needs)
        assert not policies or candidate.deployment.residency == "on-premises"
    assert all(exclusion.reason and exclusion.code for exclusion in exclusions)
    if not candidates:
        assert build_no_candidate_error(make_route(fleet), needs).message


@given(OFFERS, NEEDS, st.sampled_from([0.0, 0.001]))
def test_candidates_are_sorted_by_score(
    deployments: list[ModelDeployment], needs: Needs, usd_per_second: float
) -> None:
    candidates = rank_for_needs(make_fleet(deployments, usd_per_second=usd_per_second), needs)
    scores = [candidate.forecast.score for candidate in candidates if candidate.forecast]
    assert len(scores) == len(candidates)
    assert scores == sorted(scores)


CATALOG = Catalog(
    deployments=(
        make_deployment("a", quality=1),
        make_deployment("b", quality=2),
        make_deployment("c"),
    ),
    aliases={"good": Alias(quality=1), "pair": Alias(models=("a-model", "c-model"))},
)


@pytest.mark.parametrize(
    ("name", "backends"),
    [
        ("auto", "abc"),
        ("good", "ab"),
        ("pair", "ac"),
        ("b-model", "b"),
        ("c/c-model", "c"),
    ],
)
def test_auto_aliases_models_and_qualified_names_are_found(name: str, backends: str) -> None:
    assert "".join(deployment.backend for deployment in CATALOG.find_deployments(name)) == backends


def test_all_hosts_of_a_back_end_are_found_under_its_name() -> None:
    hosts = tuple(
        ModelDeployment(
            backend=f"gpu-{number}", family="gpu", model=make_deployment("gpu", model="qwen").model
        )
        for number in range(2)
    )
    catalog = Catalog(deployments=hosts)
    assert catalog.find_deployments("gpu/qwen") == hosts
    assert catalog.find_deployments("gpu-1/qwen") == hosts[1:]


def test_many_names_are_found_without_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    deployments = [make_deployment(f"b{number}") for number in range(3)]
    catalog = Catalog(deployments=(*deployments, deployments[1]))
    searched_deployments: list[ModelDeployment] = []

    def record_search(deployment: ModelDeployment) -> tuple[str, ...]:
        searched_deployments.append(deployment)
        return ()

    monkeypatch.setattr(ModelDeployment, "names", property(record_search))
    assert catalog.find_deployments("b1-model:latest") == (deployments[1], deployments[1])
    assert not catalog.is_group_name("b2/b2-model")
    assert searched_deployments == [], "lists of models look up every name"


def test_an_unknown_name_is_not_found() -> None:
    with pytest.raises(ModelNotFound) as exc_info:
        CATALOG.find_deployments("gpt-2")
    assert exc_info.value.field == "model"


def test_catalog_lists_every_name_once() -> None:
    assert CATALOG.names == ("auto", "good", "pair", "a-model", "b-model", "c-model")


@pytest.mark.parametrize(
    ("text", "expected_tokens"), [("", 0), ("abcd", 1), ("abcde", 2), ("墨印", 2)]
)
def test_tokens_are_estimated_by_bytes(text: str, expected_tokens: int) -> None:
    assert estimate_tokens(text) == expected_tokens


def test_table_of_prices_has_a_recent_date() -> None:
    assert date(2026, 10, 1) < PRICES_CHECKED_ON


@pytest.mark.parametrize("requested_name", ["llama", "llama:latest", "b/llama:latest"])
@pytest.mark.parametrize("name", ["llama", "llama:latest"])
def test_name_without_a_tag_means_latest(name: str, requested_name: str) -> None:
    model = Model(name=name, upstream="up", context=9, tariff=FREE_TARIFF)
    catalog = Catalog(
        deployments=(ModelDeployment(backend="b", model=model),), aliases={"work": Alias()}
    )
    assert [deployment.model.name for deployment in catalog.find_deployments(requested_name)] == [
        name
    ]
    assert (
        catalog.find_deployments("work:latest")
        == catalog.find_deployments("auto:latest")
        == catalog.deployments
    )
    assert catalog.is_group_name("work:latest") and not catalog.is_group_name(requested_name)
    for unknown_name in ("llama:7b", "other:latest", ":latest"):
        with pytest.raises(ModelNotFound):
            catalog.find_deployments(unknown_name)


def test_latest_tag_does_not_change_tenant_permissions() -> None:
    model = Model(name="llama", upstream="up", context=9, tariff=FREE_TARIFF)
    catalog = Catalog(deployments=(ModelDeployment(backend="b", model=model, configured=False),))
    policies = {"ada": TenantPolicy(names=frozenset({"llama"}))}
    fleet = Fleet(catalog=catalog, runtimes={}, policies=policies)
    assert fleet.find_allowed_deployments("llama:latest", "ada") == catalog.deployments
    assert fleet.get_route("llama:latest", "ada", None, ApiFormat.OLLAMA, 0).exclusions
    assert fleet.find_allowed_deployments("auto", "ada") == ()
