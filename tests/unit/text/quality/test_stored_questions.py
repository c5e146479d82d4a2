"""Tests that questions and weights stored by an earlier version are read correctly."""

from __future__ import annotations

import json

import pytest

from moyin.text.quality.estimator import Estimator
from moyin.text.quality.learned_weights import LearnedWeights
from moyin.text.quality.prior import KIND_DIFFICULTY
from moyin.text.quality.question import (
    FIRST_WORD_FEATURE,
    FORMULA_FEATURE,
    KIND_NUMBER,
    LANGUAGES,
    SHAPE_FEATURES,
    Question,
    restore_features,
)
from moyin.text.quality.tenant_state import TenantState
from moyin.text.routing.request_quality import question_from_json, question_to_json
from tests.unit.text.quality.questions import ask, signal

TEXT = "Is this clause of the licence contract valid?"
_DAY = 86_400.0


def read_earlier_question(question: Question) -> Question:
    """Return the question as it is read after a version without the formula feature stored it."""
    value = question_to_json(question)
    value["features"] = [number for number in question.features if number != FORMULA_FEATURE]
    assert (
        len([number for number in value["features"] if number < FIRST_WORD_FEATURE])
        == SHAPE_FEATURES - 1
    )
    return question_from_json(json.loads(json.dumps(value)))


def learned(question: Question) -> LearnedWeights:
    estimator = Estimator()
    estimator.learn("studio", signal(question, 0.0))
    return estimator.get_state("studio").models["llama3.1:8b"]


def test_words_of_an_earlier_version_are_not_mistaken_for_shape() -> None:
    now, earlier_question = ask(TEXT), read_earlier_question(ask(TEXT))
    assert earlier_question.features[SHAPE_FEATURES:] == now.features[SHAPE_FEATURES:]
    assert all(number < FIRST_WORD_FEATURE for number in earlier_question.features[:SHAPE_FEATURES])
    memory = learned(earlier_question)
    (moved_mean,) = {memory.mean[number] for number in earlier_question.features[SHAPE_FEATURES:]}
    assert moved_mean == pytest.approx(learned(now).mean[now.features[-1]], rel=0.1)


def test_missing_features_of_earlier_questions_move_no_estimate() -> None:
    memory = learned(read_earlier_question(ask(TEXT)))
    assert memory.mean[FORMULA_FEATURE] == memory.mean[FORMULA_FEATURE + 1] == 0.0
    (missing_feature,) = set(read_earlier_question(ask(TEXT)).features[:SHAPE_FEATURES]) - set(
        ask(TEXT).features
    )
    assert not any(
        missing_feature in ask(text).features for text in (TEXT, "x = 3", "Say hello", "こんにちは")
    )


def test_features_of_a_later_version_are_dropped() -> None:
    now = ask(TEXT).features
    later_features = (*now[:SHAPE_FEATURES], 300, *now[SHAPE_FEATURES:], 80_000)
    assert restore_features(later_features) == now


def test_current_question_is_read_unchanged() -> None:
    for text in ("", "x", TEXT, "Solve x^2 = 4"):
        question = ask(text)
        stored_question = json.loads(json.dumps(question_to_json(question)))
        assert question_from_json(stored_question).features == question.features


def test_earlier_learning_counts_and_fades() -> None:
    estimator = Estimator()
    for number in range(40):
        estimator.learn(
            "studio", signal(read_earlier_question(ask(TEXT)), 0.0, key=f"key-{number}")
        )
    saved_state = json.dumps(estimator.get_state("studio").to_json())

    def estimate_p(seconds: float) -> float:
        restored_state = TenantState.from_json(json.loads(saved_state))
        restored_state.models["llama3.1:8b"].fade(seconds)
        estimator.replace_state("studio", restored_state)
        return estimator.estimate("studio", "llama3.1:8b", None, ask(TEXT)).p

    unlearned_p = Estimator().estimate("studio", "llama3.1:8b", None, ask(TEXT)).p
    chances = [estimate_p(days * _DAY) for days in (0.0, 10.0, 30.0, 365.0)]
    assert chances == sorted(chances)
    assert chances[0] < unlearned_p - 0.2
    assert chances[-1] == pytest.approx(unlearned_p, abs=0.02)


def test_feature_numbers_are_stable() -> None:
    # Stored weights refer to kinds by number, so the numbers must not depend on the order of the table.
    assert set(KIND_NUMBER) == set(KIND_DIFFICULTY)
    first_kinds = (
        "greeting extraction writing summary knowledge chat translation medicine law finance"
    )
    kinds = [*first_kinds.split(), "reasoning", "code", "mathematics"]
    assert list(KIND_NUMBER.items())[:13] == [(kind, 16 + n) for n, kind in enumerate(kinds)]
    languages = "en de fr es it pt nl ru pl tr sv zh ja ko ar he hi th el other"
    assert list(LANGUAGES)[:20] == languages.split()
