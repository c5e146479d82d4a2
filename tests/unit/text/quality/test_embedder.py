"""Tests that an embedder's features are the same in every process, and get learned weights."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace

import pytest
from pydantic import ValidationError

from deployments.models.routing_config import RoutingConfig
from moyin.text.quality.embedder import (
    Embedder,
    EmbedderNotInstalled,
    find_package_folder,
    load_embedder,
)
from moyin.text.quality.estimator import Estimator
from moyin.text.quality.question import (
    FIRST_MEANING_FEATURE,
    FIRST_MEANING_WEIGHT,
    MEANING_DIMENSIONS,
    MEANING_SCALE,
    MEANING_STEPS,
    restore_features,
)
from moyin.text.quality.tenant_state import TenantState
from moyin.text.routing.request_quality import question_from_json, question_to_json
from tests.unit.text.quality.questions import make_question, make_signal

PHYSICIAN = "Which drug helps a feverish child?"
PARAPHRASE = "What medicine should toddlers with high temperature take?"
ENGINE = "Where did engineers mount that gearbox?"
FIRST = [2, 25, -24, 5, 4, -2, 4, -9]


@pytest.fixture(scope="module")
def embed() -> Embedder:
    return load_embedder("wordllama")


def decode_meaning(features: tuple[int, ...]) -> list[float]:
    return [
        ((feature - FIRST_MEANING_FEATURE) % MEANING_STEPS - MEANING_STEPS // 2) / MEANING_SCALE
        for feature in features
    ]


def compute_likeness(first_features: tuple[int, ...], second_features: tuple[int, ...]) -> float:
    return sum(
        x * y
        for x, y in zip(
            decode_meaning(first_features), decode_meaning(second_features), strict=True
        )
    )


def test_features_are_the_same_in_every_process_and_version(embed: Embedder) -> None:
    # Stored weights are of these dimensions: whatever changes them makes them those of others.
    assert [
        round(value * MEANING_SCALE) for value in decode_meaning(embed("Say hello"))[:8]
    ] == FIRST


def test_each_dimension_has_one_feature_and_the_vector_has_unit_length(embed: Embedder) -> None:
    features = embed(PHYSICIAN * 40)
    assert [(feature - FIRST_MEANING_FEATURE) // MEANING_STEPS for feature in features] == list(
        range(MEANING_DIMENSIONS)
    )
    assert math.hypot(*decode_meaning(features)) == pytest.approx(1.0, abs=0.02)


def test_texts_of_one_meaning_are_nearer_than_others(embed: Embedder) -> None:
    likeness_of_paraphrase = compute_likeness(embed(PHYSICIAN), embed(PARAPHRASE))
    assert likeness_of_paraphrase > compute_likeness(embed(PHYSICIAN), embed(ENGINE)) + 0.2


@pytest.mark.parametrize("text", ["", "\ud83d", "\x00", "こんにちは", "🙂" * 500])
def test_embedder_accepts_any_text(embed: Embedder, text: str) -> None:
    assert len(embed(text)) in (0, MEANING_DIMENSIONS)
    assert (
        restore_features(make_question(text, embed=embed).features)
        == make_question(text, embed=embed).features
    )


def test_features_are_unchanged_without_an_embedder(embed: Embedder) -> None:
    embedded_question = make_question(PHYSICIAN, embed=embed)
    word_features = tuple(
        number for number in embedded_question.features if number < FIRST_MEANING_FEATURE
    )
    assert replace(embedded_question, features=word_features) == make_question(PHYSICIAN)


def test_learning_carries_over_to_words_of_similar_meaning(embed: Embedder) -> None:
    estimator = Estimator()
    for number in range(20):
        bad_signal = make_signal(make_question(PHYSICIAN, embed=embed), 0.0, key=f"key-{number}")
        estimator.learn("studio", bad_signal)

    def estimate_p(text: str) -> float:
        """Return p_good of llama3.1:8b for a question with the meaning of ``text``, but none of its words."""
        short_question = make_question("Hm")
        question = replace(short_question, features=(*short_question.features, *embed(text)))
        return estimator.estimate("studio", "llama3.1:8b", None, question).p

    assert estimate_p(PHYSICIAN) < estimate_p(PARAPHRASE) < estimate_p(ENGINE)


def test_questions_and_weights_are_stored_and_read(embed: Embedder) -> None:
    question = make_question(PHYSICIAN, embed=embed)
    assert question_from_json(json.loads(json.dumps(question_to_json(question)))) == question
    estimator = Estimator()
    estimator.learn("studio", make_signal(question, 0.0))
    saved_state = json.loads(json.dumps(estimator.get_state("studio").to_json()))
    learned_weights = TenantState.from_json(saved_state).models["llama3.1:8b"]
    weights = learned_weights.mean[FIRST_MEANING_WEIGHT : FIRST_MEANING_WEIGHT + MEANING_DIMENSIONS]
    assert any(weights)
    # A question of before the embedder was switched on, or of after it was switched off.
    estimator.replace_state("studio", TenantState.from_json(saved_state))
    estimator.learn("studio", make_signal(make_question(PHYSICIAN), 0.0, key="grace"))
    relearned_weights = estimator.get_state("studio").models["llama3.1:8b"]
    assert (
        relearned_weights.mean[FIRST_MEANING_WEIGHT : FIRST_MEANING_WEIGHT + MEANING_DIMENSIONS]
        == weights
    )


def test_missing_package_is_reported_with_its_field(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbedderNotInstalled, match=r"pip install 'moyin\[embedder\]'"):
        find_package_folder("wordllama")
    with pytest.raises(ValidationError) as exc_info:
        RoutingConfig.model_validate({"embedder": "wordllama"})
    (error,) = exc_info.value.errors()
    assert error["loc"] == ("embedder",)
    assert "'wordllama' is not installed here" in error["msg"]


def test_unknown_embedder_error_lists_the_supported_ones() -> None:
    with pytest.raises(ValidationError, match="'wordllama'"):
        RoutingConfig.model_validate({"embedder": "bert"})


def test_nothing_is_loaded_or_imported_without_configuration() -> None:
    assert RoutingConfig().embedder is None
    assert "wordllama" not in sys.modules, "importing it configures the root logger"
