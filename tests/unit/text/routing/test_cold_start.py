"""Tests how the shipped configuration routes two hundred prompts before it has any signals."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from deployments.models.config import ModelsConfig
from deployments.models.fleet import FleetBuilder
from moyin.settings import Settings
from moyin.stack.apps import load_serve_config
from moyin.stack.ports import Ports
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.quality.estimator import Estimator
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.decision import Candidate
from moyin.text.routing.router import Router
from tests.unit.text.routing.prompt_mix import HARD, iterate_prompts
from tests.unit.text.routing.router_rig import RecordedLedger

ROOT = Path(__file__).parents[4]
# Drawn from public sources before any router had seen it: benchmarks/quality/draw.py.
MIX = ROOT / "benchmarks" / "quality" / "mix" / "prompts.jsonl"
SMALL, LOCAL, HAIKU = "smollm2-135m", "qwen3:8b", "claude-haiku-5-5"
OLLAMA = {
    "name": "ollama",
    "type": "ollama",
    "hosts": ["http://127.0.0.1:11434"],
    "models": [{"name": LOCAL, "context": 32_768, "tools": True, "quality": 1}],
}


def read_shipped_config() -> dict[str, Any]:
    config = load_serve_config(ROOT / "serve_config.yaml", Ports())
    (app,) = (
        application for application in config["applications"] if application["name"] == "models"
    )
    user_config: dict[str, Any] = app["deployments"][0]["user_config"]
    return user_config


Decisions = list[tuple[str, list[Candidate]]]


def rank_models_for_prompts(
    prompts: Iterable[tuple[str, str]],
    data_folder: Path,
    extra_backends: tuple[dict[str, Any], ...] = (OLLAMA,),
) -> Decisions:
    """Return the router's candidates for each prompt, with the shipped rules and more back ends."""
    rules = read_shipped_config()
    config = ModelsConfig.model_validate(
        {**rules, "backends": [*rules["backends"], *extra_backends]}
    )
    fleet = FleetBuilder(Settings(data=data_folder), {"ANTHROPIC_API_KEY": "anything"}).build(
        config
    )
    router = Router(fleet, RecordedLedger(), estimator=Estimator())
    codec = OpenAICodec()
    context = RoutingContext(request_id="r", owner="ada", headers=())
    decisions = []
    for class_name, prompt in prompts:
        body = {"model": "auto", "messages": [{"role": "user", "content": prompt}]}
        explanation = router.explain(codec, codec.parse(json.dumps(body).encode()), context)
        decisions.append((class_name, list(explanation.candidates)))
    return decisions


def read_public_prompts() -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in MIX.read_text().splitlines()]
    return [(row["class"], row["prompt"]) for row in rows]


@pytest.fixture(scope="module")
def decisions(tmp_path_factory: pytest.TempPathFactory) -> Decisions:
    return rank_models_for_prompts(read_public_prompts(), tmp_path_factory.mktemp("data"))


def get_model_name(candidate: Candidate) -> str:
    return candidate.deployment.model.name


def test_prompt_mix_is_unchanged() -> None:
    # Whoever changes the mix must draw all prompts again: it must not be adapted to the router.
    digest = "c02cc2573f9d072f67f7fd4a9bc7efe23d930d5bf7077bff31c07bffbcf622d1"
    assert hashlib.sha256(MIX.read_bytes()).hexdigest() == digest


def test_the_smallest_model_gets_no_hard_work(decisions: Decisions) -> None:
    assert Counter(class_name for class_name, _ in decisions) == dict.fromkeys(
        {*HARD, "easy chat"}, 25
    )
    assert not [
        class_name
        for class_name, (best_candidate, *_) in decisions
        if class_name in HARD and get_model_name(best_candidate) == SMALL
    ]


def test_the_smallest_model_gets_no_hard_prompts_of_this_repository(tmp_path: Path) -> None:
    decisions = rank_models_for_prompts(iterate_prompts(), tmp_path)
    assert not [
        class_name
        for class_name, (best_candidate, *_) in decisions
        if class_name in HARD and get_model_name(best_candidate) == SMALL
    ]


def test_the_smallest_model_gets_no_hard_work_beside_claude_alone(tmp_path: Path) -> None:
    decisions = rank_models_for_prompts(
        [*read_public_prompts(), *iterate_prompts()], tmp_path, extra_backends=()
    )
    assert {
        get_model_name(candidate) for _, candidates in decisions for candidate in candidates
    } >= {
        SMALL,
        HAIKU,
    }
    assert not [
        class_name
        for class_name, (best_candidate, *_) in decisions
        if class_name in HARD and get_model_name(best_candidate) == SMALL
    ]


def test_estimate_of_arithmetic_matches_the_models_report(
    decisions: Decisions,
) -> None:
    # GSM8K 89.8 %, less for optimism; a third of these questions is not recognised as arithmetic.
    estimates = [
        candidate.forecast.estimate.p
        for class_name, candidates in decisions
        for candidate in candidates
        if class_name == "arithmetic"
        and get_model_name(candidate) == LOCAL
        and candidate.forecast
        and candidate.forecast.estimate
    ]
    assert len(estimates) == 25
    assert 0.8 < sum(estimates) / len(estimates) < 0.898


def test_routing_costs_less_than_the_cheapest_claude_at_similar_quality(
    decisions: Decisions,
) -> None:
    def sum_expectations(candidates: list[Candidate]) -> tuple[int, float]:
        forecasts = [
            candidate.forecast for candidate in candidates if candidate.forecast is not None
        ]
        bad_answers = sum(
            1 - forecast.estimate.p for forecast in forecasts if forecast.estimate is not None
        )
        return sum(forecast.cost_pico for forecast in forecasts), bad_answers

    cost_pico, bad_answers = sum_expectations(
        [best_candidate for _, (best_candidate, *_) in decisions]
    )
    haiku_candidates = [
        candidate
        for _, ranked_candidates in decisions
        for candidate in ranked_candidates
        if get_model_name(candidate) == HAIKU
    ]
    haiku_cost_pico, haiku_bad_answers = sum_expectations(haiku_candidates)
    assert bad_answers <= 1.2 * haiku_bad_answers
    assert cost_pico <= 0.7 * haiku_cost_pico
    page = (ROOT / "docs" / "routing.md").read_text()
    expected_sentence = f"{bad_answers / haiku_bad_answers:.2f} times the useless answers of Haiku alone at {cost_pico / haiku_cost_pico:.2f}"
    assert expected_sentence in " ".join(page.split()), expected_sentence


def test_table_in_the_docs_is_current(decisions: Decisions) -> None:
    counts_by_class: dict[str, Counter[str]] = {}
    for class_name, (best_candidate, *_) in decisions:
        counts_by_class.setdefault(class_name, Counter())[get_model_name(best_candidate)] += 1
    rows = [
        f"| {class_name} | "
        + " | ".join(str(counts[column]) for column in (SMALL, LOCAL, HAIKU))
        + " |"
        for class_name, counts in counts_by_class.items()
    ]
    page = (ROOT / "docs" / "routing.md").read_text()
    missing_rows = [row for row in rows if row not in page]
    assert not missing_rows, "\n".join(rows)


def test_easy_work_without_a_local_model_stays_on_the_smallest_model(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    fleet = FleetBuilder(settings, {"ANTHROPIC_API_KEY": "anything"}).build(
        ModelsConfig.model_validate(read_shipped_config())
    )
    router = Router(fleet, RecordedLedger(), estimator=Estimator())
    codec = OpenAICodec()
    context = RoutingContext(request_id="r", owner="ada", headers=())
    for alias in ("auto", "fast"):
        chosen_models = []
        for prompt in ("Say hello", "Write merge sort in Go", "Erkläre § 823 BGB"):
            body = {"model": alias, "messages": [{"role": "user", "content": prompt}]}
            explanation = router.explain(codec, codec.parse(json.dumps(body).encode()), context)
            chosen_models.append(get_model_name(explanation.candidates[0]))
        assert chosen_models == [SMALL, HAIKU, HAIKU]
