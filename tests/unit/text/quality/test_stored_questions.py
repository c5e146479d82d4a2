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
from tests.unit.text.quality.questions import make_question, make_signal

TEXT = "Is this clause of the licence contract valid?"
_DAY = 86_400.0


def read_earlier_question(question: Question) -> Question:
    """Store the question like a version that did not yet detect formulas, and return what is read."""
    stored_question = question_to_json(question)
    stored_question["features"] = [
        number for number in question.features if number != FORMULA_FEATURE
    ]
    assert (
        len([number for number in stored_question["features"] if number < FIRST_WORD_FEATURE])
        == SHAPE_FEATURES - 1
    )
    return question_from_json(json.loads(json.dumps(stored_question)))


def learn_weights(question: Question) -> LearnedWeights:
    estimator = Estimator()
    estimator.learn("studio", make_signal(question, 0.0))
    return estimator.get_state("studio").models["llama3.1:8b"]


def test_words_of_an_earlier_version_are_not_mistaken_for_shape() -> None:
    current_question, earlier_question = (
        make_question(TEXT),
        read_earlier_question(make_question(TEXT)),
    )
    assert earlier_question.features[SHAPE_FEATURES:] == current_question.features[SHAPE_FEATURES:]
    assert all(number < FIRST_WORD_FEATURE for number in earlier_question.features[:SHAPE_FEATURES])
    weights = learn_weights(earlier_question)
    (earlier_word_mean,) = {
        weights.mean[number] for number in earlier_question.features[SHAPE_FEATURES:]
    }
    assert earlier_word_mean == pytest.approx(
        learn_weights(current_question).mean[current_question.features[-1]], rel=0.1
    )


def test_missing_features_of_earlier_questions_do_not_change_estimates() -> None:
    weights = learn_weights(read_earlier_question(make_question(TEXT)))
    assert weights.mean[FORMULA_FEATURE] == weights.mean[FORMULA_FEATURE + 1] == 0.0
    (missing_feature,) = set(
        read_earlier_question(make_question(TEXT)).features[:SHAPE_FEATURES]
    ) - set(make_question(TEXT).features)
    assert not any(
        missing_feature in make_question(text).features
        for text in (TEXT, "x = 3", "Say hello", "こんにちは")
    )


def test_features_of_a_later_version_are_dropped() -> None:
    current_features = make_question(TEXT).features
    later_features = (
        *current_features[:SHAPE_FEATURES],
        300,
        *current_features[SHAPE_FEATURES:],
        80_000,
    )
    assert restore_features(later_features) == current_features


def test_current_question_is_read_unchanged() -> None:
    for text in ("", "x", TEXT, "Solve x^2 = 4"):
        question = make_question(text)
        stored_question = json.loads(json.dumps(question_to_json(question)))
        assert question_from_json(stored_question).features == question.features


def test_earlier_learning_counts_and_fades() -> None:
    estimator = Estimator()
    for number in range(40):
        estimator.learn(
            "studio",
            make_signal(read_earlier_question(make_question(TEXT)), 0.0, key=f"key-{number}"),
        )
    saved_state = json.dumps(estimator.get_state("studio").to_json())

    def estimate_p(seconds: float) -> float:
        restored_state = TenantState.from_json(json.loads(saved_state))
        restored_state.models["llama3.1:8b"].fade(seconds)
        estimator.replace_state("studio", restored_state)
        return estimator.estimate("studio", "llama3.1:8b", None, make_question(TEXT)).p

    unlearned_p = Estimator().estimate("studio", "llama3.1:8b", None, make_question(TEXT)).p
    probabilities = [estimate_p(days * _DAY) for days in (0.0, 10.0, 30.0, 365.0)]
    assert probabilities == sorted(probabilities)
    assert probabilities[0] < unlearned_p - 0.2
    assert probabilities[-1] == pytest.approx(unlearned_p, abs=0.02)


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
