import math
import random

import pytest

from moyin.text.quality.learned_weights import WORD_TRUST, LearnedWeights, WeightReader
from moyin.text.quality.question import FIRST_WORD_FEATURE, SHAPE_FEATURES
from tests.unit.text.quality.questions import make_question

SHAPE = make_question("Which of these is right?").features[:SHAPE_FEATURES]
NEVER = (-math.inf, math.inf)


def make_features(*words: int) -> tuple[int, ...]:
    """Return the features of a question with these words."""
    return (*SHAPE, *(FIRST_WORD_FEATURE + word for word in words))


def learn_from(weights: LearnedWeights, score: float, *words: int) -> None:
    """Learn from one signal (``score`` from 0 to 1) about a question, as the estimator does."""
    expected_score = 1.0 / (
        1.0 + math.exp(-WeightReader(make_features(*words)).compute_residual(weights.mean))
    )
    weights.learn(make_features(*words), score - expected_score, 0.2, 1.0, (-0.5, 0.5))


def compute_residual(weights: LearnedWeights, *words: int) -> float:
    return WeightReader(make_features(*words)).compute_residual(weights.mean)


def learn_topics(words_decide: bool) -> LearnedWeights:
    """Learn from 200 questions, and return the weights.

    Args:
        words_decide: True if the words of a question determine its rating; False for random ratings.
    """
    generator, weights = random.Random(7), LearnedWeights()
    for number in range(200):
        topic = number % 4
        is_good = topic < 2 if words_decide else generator.random() < 0.5
        learn_from(
            weights, float(is_good), *(10 * topic + generator.randrange(10) for _ in range(6))
        )
    return weights


def test_trust_grows_with_informative_words_and_shrinks_otherwise() -> None:
    assert learn_topics(words_decide=True).mean[WORD_TRUST] > 0.1
    assert learn_topics(words_decide=False).mean[WORD_TRUST] < 0.0


def test_trust_scales_only_the_words() -> None:
    weights = learn_topics(words_decide=True)
    residual, shape_residual = (
        compute_residual(weights, 1, 2, 3),
        sum(weights.mean[number] for number in SHAPE),
    )
    weights.mean[WORD_TRUST] = 0.0
    residual_without_trust = compute_residual(weights, 1, 2, 3)
    weights.mean[WORD_TRUST] = 1.0
    assert compute_residual(weights, 1, 2, 3) - shape_residual == pytest.approx(
        2 * (residual_without_trust - shape_residual)
    )
    assert residual != pytest.approx(residual_without_trust)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_growing_trust_does_not_exceed_the_bound_of_one_signal(side: float) -> None:
    weights = LearnedWeights()
    for word in range(12):
        weights.mean[FIRST_WORD_FEATURE + word] = side
    residual_before = compute_residual(weights, *range(12))
    shift = weights.learn(make_features(*range(12)), side * 30.0, 0.0, 1.0, (-0.5, 0.5))
    assert abs(shift) == pytest.approx(0.5)
    assert 0.45 < (compute_residual(weights, *range(12)) - residual_before) * side <= 0.5


def test_trust_is_bounded_also_after_merging() -> None:
    weight_pair = [LearnedWeights(), LearnedWeights()]
    for weights in weight_pair:
        for _ in range(400):
            for word in range(12):
                weights.mean[FIRST_WORD_FEATURE + word] = 3.0
            weights.learn(make_features(*range(12)), 9.0, 0.0, 1.0, NEVER)
        assert weights.mean[WORD_TRUST] == 2.0
    first_weights, second_weights = weight_pair
    assert (
        first_weights.merge_with(second_weights).mean[WORD_TRUST]
        == second_weights.merge_with(first_weights).mean[WORD_TRUST]
        == 2.0
    )


def test_trust_is_stored_merged_and_forgotten_like_any_weight() -> None:
    weights = learn_topics(words_decide=True)
    assert weights.merge_with(LearnedWeights()).mean[WORD_TRUST] == pytest.approx(
        weights.mean[WORD_TRUST]
    )
    stored_weights = LearnedWeights.from_json(weights.to_json())
    assert stored_weights.mean[WORD_TRUST] == pytest.approx(weights.mean[WORD_TRUST])
    stored_weights.fade(365 * 86_400.0)
    assert stored_weights.mean[WORD_TRUST] == pytest.approx(0.0, abs=0.001)


def test_weights_stored_without_trust_give_the_same_residual() -> None:
    learned_mean = learn_topics(words_decide=True).mean
    information = {0: 3.0, FIRST_WORD_FEATURE + 1: 2.0, FIRST_WORD_FEATURE + 2: 2.0}
    stored_weights = LearnedWeights.from_json(
        LearnedWeights(mean=learned_mean, information=information).to_json()
    )
    word_residual = (
        learned_mean[FIRST_WORD_FEATURE + 1] + learned_mean[FIRST_WORD_FEATURE + 2]
    ) / math.sqrt(2)
    assert compute_residual(stored_weights, 1, 2) == pytest.approx(
        learned_mean[0] + word_residual, abs=1e-6
    )
